#!/usr/bin/env bash
# Run the linter, the formatter's check, the type checker and the tests, in an environment that this
# script makes in .venv; or the tests alone with the official OpenMMLab packages, in .venv-official.
#   bash tools/run_tests.sh [--stack official] [--all] [arguments of pytest]
# --all includes the slow tests. As many tests run at a time as there are cores, at most four.
# The official mmcv is compiled (half an hour), unless MMCV_WHEEL names a wheel of it.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/_setup_env.sh

select=()
stack=onedl
while true; do
    case "${1:-}" in
        --all) select=(-m 'slow or not slow') ;;
        --stack)
            stack=${2:-}
            [[ "$stack" = onedl || "$stack" = official ]] ||
                _stop "--stack takes onedl (the default) or official, not '$stack'."
            shift
            ;;
        *) break ;;
    esac
    shift
done
setup_env "$stack"
if [ "$stack" = onedl ]; then
    _say "Linting"
    "$python" -m ruff check .
    _say "Checking the format"
    "$python" -m ruff format --check --quiet . ||
        _stop "the files above are not formatted: $python -m ruff format ."
    _say "Checking types"
    "$python" -m mypy
fi
_say "Testing with the $stack stack"
# Small tensors: more threads only get in each other's way.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
status=0
"$python" -m pytest -n logical --maxprocesses 4 "${select[@]}" "$@" || status=$?
if [ "$status" -eq 5 ]; then
    _stop "no test was run: check the arguments ($*)."
fi
exit "$status"
