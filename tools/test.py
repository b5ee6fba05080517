"""Test a checkpoint: `python tools/test.py --help`. The same as `mmvars test`."""

import sys

from mmvars.cli import run_tool

if __name__ == '__main__':
    sys.exit(run_tool('test'))
