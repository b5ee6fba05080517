"""``--json FILE`` of the commands that print tables."""

import argparse
import json
from pathlib import Path
from typing import Any

from mmvars.checkpoints.files import check_destination, write_text

__all__ = ['add_json_arguments', 'check_json_arguments', 'write_json']


def add_json_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--json`` and ``--overwrite``."""
    parser.add_argument('--json', type=Path, metavar='FILE', help='write all numbers as JSON')
    parser.add_argument('--overwrite', action='store_true', help='replace FILE')


def check_json_arguments(args: argparse.Namespace) -> None:
    """See that the file can be written, before the work that fills it.

    Raises:
        InputError: If it cannot.
    """
    if args.json is not None:
        check_destination(args.json, overwrite=args.overwrite, suffixes=())


def write_json(args: argparse.Namespace, result: Any, again: bool = False) -> None:
    """Write the file, if one was asked for; ``again`` over what this command wrote before."""
    if args.json is not None:
        write_text(args.json, json.dumps(result, indent=1) + '\n', args.overwrite or again)
