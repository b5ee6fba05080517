#!/usr/bin/env bash
# Shared by quickstart.sh and run_tests.sh, which source it: makes ./.venv with the known-good
# versions, once; `setup_env official` makes ./.venv-official. Sets $python to its interpreter.
#
# In the environment: PYTHON names the interpreter to start from; TORCH_INDEX_URL an index of torch
# builds (a CPU-only one saves several GB); MMCV_WHEEL a wheel of mmcv 2.1.0 with compiled ops, for
# the official stack; pip's own variables work as always.

_say() { printf '\n==> %s\n' "$*"; }

_stop() {
    printf '\nmmvars: %s\n' "$*" >&2
    exit 1
}

_find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 python}; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

_pip() {
    local log=$venv/pip.log
    if ! "$python" -m pip install --disable-pip-version-check -c "$constraints" "$@" \
        2>&1 | tee "$log"; then
        if grep -qiE 'name resolution|newconnection|connection (refused|reset|timed out)|timed out|network is unreachable|could not fetch url|from versions: none' "$log"; then
            _stop "pip could not reach its package index. Connect to the network, or name an index" \
                "that this machine reaches in PIP_INDEX_URL, and run this again: what is" \
                "installed already is kept."
        fi
        if grep -qi 'no space left' "$log"; then
            _stop "the disk is full: torch and its libraries take about 6 GB (set TORCH_INDEX_URL" \
                "to an index of CPU-only builds for 1 GB)."
        fi
        _stop "pip failed (its output is above, and in $log)."
    fi
}

# No index has mmcv 2.1.0 with compiled ops for this torch; without them mmsegmentation fails.
_install_mmcv() {
    if "$python" -c 'import mmcv._ext' 2>/dev/null; then
        return
    fi
    _pip 'setuptools<81' wheel psutil numpy
    if [ -n "${MMCV_WHEEL:-}" ]; then
        _say "Installing mmcv from $MMCV_WHEEL"
        _pip "$MMCV_WHEEL"
    else
        _say "Compiling mmcv 2.1.0, about half an hour (MMCV_WHEEL=FILE installs a wheel instead)"
        MMCV_WITH_OPS=1 _pip --no-build-isolation --no-binary mmcv mmcv
    fi
}

setup_env() {
    local stack=${1:-onedl} venv=.venv constraints=tools/constraints.txt base stamp
    if [ "$stack" = official ]; then
        venv=.venv-official constraints=tools/constraints-official.txt
    fi
    if [ -d "$venv" ]; then
        "$venv/bin/python" -c '' 2>/dev/null ||
            _stop "$venv is there but its Python does not run: remove it (rm -r $venv) and run" \
                "this again."
        "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
            _stop "$venv has $("$venv/bin/python" --version), and mmvars needs 3.10 or newer:" \
                "remove it (rm -r $venv) and run this again."
    else
        base=$(_find_python) ||
            _stop "no Python 3.10 or newer was found (python3 is" \
                "$(python3 --version 2>/dev/null || echo missing)). Install one, or name it:" \
                "PYTHON=/path/to/python3.11 bash $0"
        "$base" -c 'import venv, ensurepip' 2>/dev/null ||
            _stop "$base cannot make virtual environments. On Debian or Ubuntu:" \
                "sudo apt install python3-venv"
        _say "Making a virtual environment in $venv with $("$base" --version)"
        if ! "$base" -m venv "$venv"; then
            rm -rf "$venv"
            _stop "$base -m venv failed (its output is above)."
        fi
    fi
    python=$PWD/$venv/bin/python
    stamp=$venv/mmvars-$(cat setup.py "$constraints" | cksum | tr -d ' ')
    if [ -e "$stamp" ]; then
        _say "Using the environment in $venv"
        return
    fi
    _say "Installing torch and torchvision (the longest step: a download of up to 4 GB)"
    _pip ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch torchvision
    if [ "$stack" = official ]; then
        _install_mmcv
    fi
    _say "Installing mmvars with the OpenMMLab stack ($stack)"
    if [ "$stack" = official ]; then
        _pip -e '.[openmmlab,dev]'
    else
        _pip -e '.[onedl,dev,dev-onedl]'
    fi
    rm -f "$venv"/mmvars-*
    touch "$stamp"
}
