"""Draw what attention looks at: `python tools/visualize_attention.py --help`.

The same as `mmvars visualize`.
"""

import sys

from mmvars.cli import run_tool

if __name__ == '__main__':
    sys.exit(run_tool('visualize'))
