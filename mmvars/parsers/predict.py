"""``mmvars predict`` and ``tools/predict.py``."""

import argparse
from collections.abc import Sequence

from mmvars.parsers.common import PRIOR_HELP, Parser, add_cfg_options, add_prior_arguments

__all__ = ['parse_args']

_EPILOG = f"""\
Written to DIR, by the name of each image below the folder that was given:
  labels/NAME.png           class of each pixel, with the palette of the data set (16 bits where
                            there are more than 256 classes); of a classifier, lines of labels.csv
  heatmap/NAME.png          with --prior: how much each pixel is what was asked for, 0 to 255
  overlay/NAME.jpg          with --overlay: labels on the image, beside them the heat map
  probabilities/NAME.npz    with --probabilities: probabilities (K, H, W), float16, and classes
Of a video NAME is that of the file, and then the number of the frame. Several priors have a folder
each; pass 1 runs once for all of them.

{PRIOR_HELP}Points, boxes and masks are places in each image; in a video, and with
--carry-state, in the first.

  mmvars predict work_dirs/run photos/ -o out --overlay
  mmvars predict work_dirs/run street.jpg -o out --prior class:car point:320,200 --overlay
  mmvars predict CONFIG drive.mp4 --checkpoint CHECKPOINT -o out --prior box:40,60,90,160 \\
      --carry-state"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description='Predict images and videos: labels, heat maps of what was asked for, overlays, '
        'probabilities.',
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add('model', help='folder that `mmvars train` wrote, a config, or an exported model')
    add('images', nargs='+', help='images, folders of them, videos')
    add('-o', '--out-dir', required=True, metavar='DIR', help='where files are written')
    add('--checkpoint', metavar='FILE', help="of a config, or in place of the folder's")
    add_prior_arguments(parser)
    add('--alpha', type=float, metavar='A', help="scale of the top-down signal (default: model's)")
    add('--overlay', action='store_true', help='also write labels and heat map on the image')
    add('--probabilities', action='store_true', help='also write the probabilities of all classes')
    add(
        '--carry-state',
        action='store_true',
        help='in a video, or a folder of its frames: the output for the frame before replaces '
        'pass 1, at half the cost; another function',
    )
    add('--every', type=int, default=1, metavar='N', help='of a video, one frame of N (default: 1)')
    add('--resume', action='store_true', help='leave out what an earlier call has written')
    add('--overwrite', action='store_true', help='replace what an earlier call has written')
    add('--device', help='cpu, cuda, cuda:1, ... (default: cuda if there is one)')
    add_cfg_options(parser)
    # Intermixed, so that images may stand after options.
    return parser.parse_intermixed_args(argv)
