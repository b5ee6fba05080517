#!/usr/bin/env bash
# Test in several processes on this machine, one for each GPU (or CPU processes without GPUs).
#   bash tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of test.py]
# PYTHON names the interpreter (after the quickstart: PYTHON=.venv/bin/python).
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: bash $0 CONFIG CHECKPOINT PROCESSES [arguments of test.py]" >&2
    exit 2
fi
config=$1
checkpoint=$2
processes=$3
shift 3
exec "${PYTHON:-python}" "$(dirname "$0")/_launch.py" \
    --nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}" \
    --nproc-per-node="$processes" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
