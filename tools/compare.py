"""Train variants of a config, several seeds each: `python tools/compare.py --help`.

The same as `mmvars compare`.
"""

import sys

from mmvars.cli import run_tool

if __name__ == '__main__':
    sys.exit(run_tool('compare'))
