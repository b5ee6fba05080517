"""Parameters and multiply-adds beside the published ones: `python tools/model_table.py --help`.

The same as `mmvars table`.
"""

import sys

from mmvars.cli import run_tool

if __name__ == '__main__':
    sys.exit(run_tool('table'))
