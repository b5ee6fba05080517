"""Train a model: `python tools/train.py --help`. The same as `mmvars train`."""

import sys

from mmvars.cli import run_tool

if __name__ == '__main__':
    sys.exit(run_tool('train'))
