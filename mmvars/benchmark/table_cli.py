"""``mmvars table``, the same as ``tools/model_table.py``."""

import argparse

from mmvars.benchmark.json_output import (add_json_arguments, check_json_arguments,
                                         write_json)
from mmvars.benchmark.model_table import model_table, render, select_rows
from mmvars.benchmark.published import TABLES

__all__ = ['main', 'parse_args']

_EPILOG = """\
examples:
  mmvars table
  mmvars table --table 2.2
  mmvars table --rows 'RVT*' vars-sd --json sizes.json

Table 1.2: VARS. Table 2.2: AbS on ViT, RVT and FAN, and other backbones (from timm where it has
them). Table 2.3: rivals of AbS. Everything is counted from models built without memory for their
weights, in well under a minute."""


def main(argv: list[str] | None = None) -> int:
    """Print parameters and multiply-adds of our models beside the published ones.

    Args:
        argv: Arguments; ``None`` for the command line's.

    Returns:
        Exit status 0.

    Raises:
        InputError: If a table, a row or a file cannot be used; nothing was written then.
    """
    args = parse_args(argv)
    rows = select_rows(args.table, args.rows)
    check_json_arguments(args)
    result = model_table(rows)
    print(render(result))
    write_json(args, result)
    return 0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        description='Parameters and multiply-adds of our models beside the published tables.',
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--table', metavar='N', help=f'one table: {", ".join(TABLES)}; '
                        'default: all')
    parser.add_argument('--rows', nargs='+', default=[], metavar='NAME',
                        help="rows by name, a part of it, or a pattern: 'RVT* w/ VARS-D', vars-sd")
    add_json_arguments(parser)
    return parser.parse_args(argv)
