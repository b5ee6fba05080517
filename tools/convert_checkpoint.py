"""Convert a checkpoint: `python tools/convert_checkpoint.py --help`.

The same as `mmvars convert`.
"""

import sys

from mmvars.cli import run_tool

if __name__ == '__main__':
    sys.exit(run_tool('convert'))
