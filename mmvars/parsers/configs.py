"""``mmvars configs``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmvars.parsers.common import Parser

__all__ = ['parse_args']

_EPILOG = """\
examples:
  mmvars configs                       all that can be trained
  mmvars configs vars                  those with a part of the name
  mmvars configs 'absvit-b16*' --copy my_configs

A name of the list serves `mmvars train` and the other commands, and `_base_ = 'mmvars::NAME'` in a
config of your own."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description='List the configs that mmvars ships, or copy them to change them.',
        epilog=_EPILOG,
    )
    parser.add_argument(
        'pattern', nargs='?', default='', help='part of the name, or a pattern with * and ?'
    )
    parser.add_argument(
        '--copy', type=Path, metavar='DIR', help='copy them, and what they inherit, below DIR'
    )
    return parser.parse_args(argv)
