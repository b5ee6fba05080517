#!/usr/bin/env bash
# From a fresh clone to a trained AbSViT, in minutes and on a CPU: sets up .venv, trains
# AbSViT-Ti + UperNet + FCN on the embedded mini data set, tests it, draws its attention.
#   bash tools/quickstart.sh [OUTPUT_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/_setup_env.sh
setup_env
# Threads that wait without spinning: else a second busy program makes training many times slower.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
exec "$python" tools/_quickstart.py "$@"
