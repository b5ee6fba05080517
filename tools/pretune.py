"""Pre-tune decoders: `python tools/pretune.py --help`. The same as `mmvars pretune`."""

import sys

from mmvars.cli import run_tool

if __name__ == '__main__':
    sys.exit(run_tool('pretune'))
