#!/usr/bin/env bash
# Train in several processes on this machine, one for each GPU (or CPU processes without GPUs).
#   bash tools/dist_train.sh CONFIG PROCESSES [arguments of train.py]
# PYTHON names the interpreter (after the quickstart: PYTHON=.venv/bin/python).
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each.
# Ctrl-C, SIGTERM, SIGHUP and the death of this process save a checkpoint. Where one of the processes
# dies, the others end.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: bash $0 CONFIG PROCESSES [arguments of train.py]" >&2
    exit 2
fi
config=$1
processes=$2
shift 2
exec "${PYTHON:-python}" "$(dirname "$0")/_launch.py" \
    --nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}" \
    --nproc-per-node="$processes" "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
