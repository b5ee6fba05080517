"""Export a model to ONNX or torch.export: `python tools/export.py --help`.

The same as `mmvars export`.
"""

import sys

from mmvars.cli import run_tool

if __name__ == '__main__':
    sys.exit(run_tool('export'))
