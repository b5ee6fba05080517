"""Steer a model on a local web page: `python tools/steer.py --help`. The same as `mmvars steer`."""

import sys

from mmvars.cli import run_tool

if __name__ == '__main__':
    sys.exit(run_tool('steer'))
