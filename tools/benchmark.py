"""Time and memory of networks and mixers, side by side: `python tools/benchmark.py --help`.

The same as `mmvars benchmark`.
"""

import sys

from mmvars.cli import run_tool

if __name__ == '__main__':
    sys.exit(run_tool('benchmark'))
