"""Predict images and videos: `python tools/predict.py --help`. The same as `mmvars predict`."""

import sys

from mmvars.cli import run_tool

if __name__ == '__main__':
    sys.exit(run_tool('predict'))
