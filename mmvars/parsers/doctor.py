"""``mmvars doctor``."""

import argparse
from collections.abc import Sequence

from mmvars.parsers.common import Parser

__all__ = ['parse_args']


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description='Say what is wrong with this environment, and how '
        'to put it right. Exit status 0 only if all works.'
    )
    parser.add_argument(
        '-v', '--verbose', action='store_true', help='show all output of the trials that fail'
    )
    return parser.parse_args(argv)
