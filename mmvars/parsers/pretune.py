"""``mmvars pretune`` and ``tools/pretune.py``."""

import argparse
from collections.abc import Sequence

from mmvars.parsers.common import (
    CONFIG_HELP,
    Parser,
    add_cfg_options,
    add_launcher,
    image_size,
)

__all__ = ['parse_args']

_EPILOG = """\
With the trunk frozen, the reconstruction loss of each layer (Eq. 2.13, first term) is a linear
regression: A_l = argmin |z_l A_l' - z_{l-1}|^2. One pass over unlabeled images solves it exactly.
One image of ten is held out, to choose the ridge of each block and to measure the error.

FILE holds the decoders alone and loads on this trunk alone, known by its weights, at any image
size: model.backbone.init_cfg=dict(type='Pretrained', checkpoint=FILE), beside the trunk's own
pretrained=... On a trunk of timm it also holds identity readouts, closed gates and the mean token.

Stopped in any way, the same command line goes on where the last state was saved (every half
minute, beside FILE) and gives the same file, bit for bit.

  mmvars pretune CONFIG --images photos/
  torchrun --nproc_per_node 4 -m mmvars.cli pretune CONFIG --images photos/ --launcher pytorch"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description='Fit the decoders of a network with top-down attention to its pretrained '
        'trunk, in one pass over unlabeled images.',
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add('config', help=CONFIG_HELP)
    add(
        '--images',
        required=True,
        metavar='FOLDER',
        help='folder of images, searched with all it holds; no labels are read',
    )
    add(
        '--output',
        metavar='FILE',
        help='.pth or .safetensors to write (default: decoders.pth in work_dirs/<config name>)',
    )
    add(
        '--size',
        type=image_size,
        metavar='N|HxW',
        help='pixels that images are scaled and cropped to: side, or height x width (default: '
        'crop_size of the config, else img_size of its backbone, else 224)',
    )
    add('--batch-size', type=int, default=8, metavar='B', help='images a pass (default: 8)')
    add(
        '--num-workers',
        type=int,
        default=2,
        metavar='W',
        help='processes that load images (default: 2; 0: none)',
    )
    add('--device', help='cpu, cuda, cuda:1, ... (default: cuda if there is one)')
    add(
        '--overwrite',
        action='store_true',
        help='replace FILE, and the state of another run that was stopped',
    )
    add_cfg_options(parser)
    add_launcher(parser)
    return parser.parse_args(argv)
