"""``mmvars train`` and ``tools/train.py``."""

import argparse
from collections.abc import Sequence

from mmvars.parsers.common import CONFIG_HELP, Parser, add_common_arguments

__all__ = ['parse_args']


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description='Train a model. Ctrl-C finishes the step, saves a '
        'checkpoint and leaves; --resume goes on from it.'
    )
    parser.add_argument('config', help=CONFIG_HELP)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from a checkpoint; without a name (or with "auto") from the '
        'last one in the work dir',
    )
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument('--no-validate', action='store_true', help='do not validate while training')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the real batch size over auto_scale_lr.base_batch_size',
    )
    add_common_arguments(parser)
    return parser.parse_args(argv)
