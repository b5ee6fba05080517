"""``mmvars table`` and ``tools/benchmark/get_flops.py``."""

import argparse
from collections.abc import Sequence

from mmvars.parsers.common import Parser, add_json_arguments

__all__ = ['parse_args']

_EPILOG = """\
examples:
  mmvars table
  mmvars table --table 2.2
  mmvars table --rows 'RVT*' vars-sd --json sizes.json

Table 1.2: VARS, and other backbones (built by timm where it has them). Table 2.2: AbS on ViT, RVT
and FAN, and other backbones. Table 2.3: rivals of AbS."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description='Parameters and multiply-adds of models beside the published tables.',
        epilog=_EPILOG,
    )
    parser.add_argument('--table', metavar='N', help='one table: 1.2, 2.2 or 2.3; default: all')
    parser.add_argument(
        '--rows',
        nargs='+',
        default=[],
        metavar='NAME',
        help="rows by name, a part of it, or a pattern: 'RVT* w/ VARS-D', vars-sd",
    )
    add_json_arguments(parser)
    return parser.parse_args(argv)
