"""Measure whether a model follows its prior: `python tools/steerability.py --help`.

The same as `mmvars steerability`.
"""

import sys

from mmvars.cli import run_tool

if __name__ == '__main__':
    sys.exit(run_tool('steerability'))
