"""``mmvars prototypes`` and ``tools/prototypes.py``."""

import argparse
from collections.abc import Sequence

from mmvars.parsers.common import MODEL_HELP, Parser, add_cfg_options

__all__ = ['parse_args']

_EPILOG = """\
The prototype of a class is the direction in which its tokens differ from all others: ridge
regression of "is of this class" on the output tokens of the first pass, less prior.center where the
network has one. A patch is of the class that most of its pixels have. In classification there is
one token an image, the mean of its patches. Read are the training images of the config, whole, one
by one, as its test pipeline prepares them.

FILE holds prototypes, center, the whitening that made them, and all else of the network but the
  trunk, such as decoders. It is
  the start of a network whose priors are classes, in the config or with --cfg-options:
    model.backbone.prior.type=class_prototype   (fixed, or learned_classes)
    model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE
  or the table of class names of a trained model: `mmvars predict ... --prototypes FILE`.
It loads on the trunk that it was made with alone, known by its weights.

Where the prior of the network is a map from text (model.backbone.prior.type=text), --text is due.
FILE then holds, in place of prototypes, the text vectors of the names of the classes, and the map
to start from: ridge regression from these to the prototypes, without the classes that the config
holds out (model.prior_sampler.held_out).

  mmvars prototypes CONFIG decoders.pth -o prototypes.pth      # what `mmvars pretune` wrote
  mmvars prototypes work_dirs/run -o prototypes.pth            # of its trained model
  mmvars prototypes CONFIG decoders.pth -o text.pth --text all-MiniLM-L6-v2/"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description='Make the prototype of each class from the labeled training images of a '
        'config, in one pass.',
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add('config', help=MODEL_HELP)
    add(
        'checkpoint',
        nargs='?',
        help='a trained checkpoint, or decoders of `mmvars pretune` beside a trunk that the config '
        'loads (default: that of the folder; of a config, the weights that it names)',
    )
    add(
        '-o',
        '--output',
        required=True,
        metavar='FILE',
        help='.pth or .safetensors to write',
    )
    add('--text', metavar='FOLDER', help='a sentence encoder, for a prior of type text')
    add(
        '--max-images',
        type=int,
        metavar='N',
        help='read N images, evenly spaced over the training data (default: all)',
    )
    add(
        '--num-workers',
        type=int,
        default=2,
        metavar='W',
        help='processes that load images (default: 2; 0: none)',
    )
    add('--device', help='cpu, cuda, cuda:1, ... (default: cuda if there is one)')
    add('--overwrite', action='store_true', help='replace FILE')
    add_cfg_options(parser)
    return parser.parse_args(argv)
