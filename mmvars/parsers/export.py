"""``mmvars export`` and ``tools/export.py``."""

import argparse
from collections.abc import Sequence

from mmvars.parsers.common import CONFIG_HELP, Parser, add_cfg_options, image_size

__all__ = ['parse_args']

_EPILOG = """\
examples:
  mmvars export CONFIG CHECKPOINT --output model.onnx --size 512x1024 --labels --normalize
  mmvars export CONFIG CHECKPOINT --output model.pt2 --size 512 --dynamic
  mmvars export CONFIG CHECKPOINT --output backbone.pt2 --size 224 --part backbone

The batch size is always free, height and width with --dynamic. Input: images (B, C, H, W) in
float32, normalized as the config's data_preprocessor does unless --normalize is given. A segmentor
is exported for whole images; where the config tests with sliding windows, the file is for one
window. The file is run, in onnxruntime or torch, and compared with the model before it gets its
name: it stands for a model whose outputs it has been seen to give."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description='Export a model of a config and a checkpoint to ONNX (.onnx) or to a program '
        'of torch.export (.pt2), and compare the file with the model.',
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add('config', help=CONFIG_HELP)
    add('checkpoint', help='checkpoint of a model of this config')
    add('--output', required=True, metavar='FILE', help='.onnx or .pt2 to write')
    add(
        '--size',
        required=True,
        type=image_size,
        metavar='N|HxW',
        help='pixels of the images: side, or height x width',
    )
    add(
        '--dynamic',
        action='store_true',
        help='images of any size, not of --size alone; not every model can',
    )
    add(
        '--part',
        choices=('model', 'backbone'),
        default='model',
        help='the whole model (default), or the features of its backbone',
    )
    add('--labels', action='store_true', help='class numbers in place of logits')
    add(
        '--normalize',
        '--normalise',
        action='store_true',
        help='put mean, std and channel order into the file: it then takes pixels from 0 to 255 as '
        'the config loads them (BGR where it turns them to RGB)',
    )
    add(
        '--opset',
        type=int,
        metavar='N',
        help="version of ONNX's operators, 18 or more; default: the exporter's",
    )
    add(
        '--tolerance',
        type=float,
        default=1e-4,
        metavar='T',
        help='greatest difference from the model, relative to the greatest output (default 1e-4; '
        'the threshold of the released VARS-D and -SD jumps at 0, where rounding can make 1e-3)',
    )
    add('--overwrite', action='store_true', help='replace FILE')
    add_cfg_options(parser)
    return parser.parse_args(argv)
