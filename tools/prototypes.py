"""Make class prototypes: `python tools/prototypes.py --help`. The same as `mmvars prototypes`."""

import sys

from mmvars.cli import run_tool

if __name__ == '__main__':
    sys.exit(run_tool('prototypes'))
