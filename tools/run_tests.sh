#!/usr/bin/env bash
# Run the linter, the formatter's check, the type checker and the tests, in an environment that this
# script makes in .venv.
#   bash tools/run_tests.sh [--all] [arguments of pytest]
# --all includes the slow tests. As many files are tested at a time as there are cores, at most four.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/_setup_env.sh
setup_env

select=()
if [ "${1:-}" = --all ]; then
    select=(-m 'slow or not slow')
    shift
fi
_say "Linting"
"$python" -m ruff check .
_say "Checking the format"
"$python" -m ruff format --check --quiet . ||
    _stop "the files above are not formatted: $python -m ruff format ."
_say "Checking types"
"$python" -m mypy
_say "Testing"
# Small tensors: more threads only get in each other's way.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
status=0
"$python" -m pytest -n auto --maxprocesses 4 --dist loadfile "${select[@]}" "$@" || status=$?
if [ "$status" -eq 5 ]; then
    _stop "no test was run: check the arguments ($*)."
fi
exit "$status"
