"""Measure how robust a model is: `python tools/test_robustness.py --help`.

The same as `mmvars robustness`.
"""

import sys

from mmvars.cli import run_tool

if __name__ == '__main__':
    sys.exit(run_tool('robustness'))
