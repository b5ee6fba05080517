"""``mmvars test`` and ``tools/test.py``."""

import argparse
from collections.abc import Sequence

from mmvars.parsers.common import CONFIG_HELP, Parser, add_common_arguments

__all__ = ['parse_args']


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description='Test a checkpoint: metrics, and on demand predictions and pictures.'
    )
    parser.add_argument('config', help=CONFIG_HELP)
    parser.add_argument('checkpoint', help='checkpoint of a model of this config')
    parser.add_argument(
        '--out',
        help='segmentation: folder for the predicted label maps (PNG, class ids in color); '
        'classification: .pkl file for the predictions; VQA: .json file for EvalAI',
    )
    parser.add_argument(
        '--out-item',
        choices=['metrics', 'pred'],
        help='what --out FILE holds (classification; default: pred)',
    )
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder for pictures of the predictions')
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2,
        metavar='SECONDS',
        help='how long --show shows each picture',
    )
    parser.add_argument(
        '--interval', type=int, default=1, help='draw every n-th image (classification)'
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    add_common_arguments(parser)
    return parser.parse_args(argv)
