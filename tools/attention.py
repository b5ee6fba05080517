"""Measure maps of attention against fixations and objects: `python tools/attention.py --help`.

The same as `mmvars attention`.
"""

import sys

from mmvars.cli import run_tool

if __name__ == '__main__':
    sys.exit(run_tool('attention'))
