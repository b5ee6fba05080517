"""``mmvars steer`` and ``tools/steer.py``."""

import argparse
from collections.abc import Sequence

from mmvars.parsers.common import Parser, add_cfg_options

__all__ = ['parse_args']

_EPILOG = """\
The page asks a model for what you point at: click, draw a box, choose a class, or type words; see
what the prompt changes, at any strength. It is for this machine alone: another machine reaches it
through a tunnel, `ssh -L 8765:localhost:8765 HERE`. With --host it listens on an address of this
machine in the network, without a password.

  mmvars steer work_dirs/run
  mmvars steer CONFIG --checkpoint FILE --images photos/ --prototypes prototypes.pth"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description='Serve a local web page on which a trained model is told what to look for.',
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add(
        'model',
        metavar='RUN_FOLDER|CONFIG',
        help='folder that `mmvars train` wrote, or a config, or the name of a shipped one',
    )
    add('--checkpoint', metavar='FILE', help="weights, in place of the run's own")
    add(
        '--images',
        metavar='FOLDER',
        help='images to choose from (default: the photographs that mmvars brings)',
    )
    add('--port', type=_port, default=8765, metavar='N', help='default 8765; 0: any that is free')
    add(
        '--host',
        default='127.0.0.1',
        metavar='ADDRESS',
        help='address or name of this machine to listen on, the one that browsers will ask for '
        '(default: 127.0.0.1, for this machine alone)',
    )
    add('--prototypes', metavar='FILE', help='of `mmvars prototypes`: the classes to choose from')
    add('--text', metavar='FOLDER', help='a sentence encoder, for words as prompts')
    add(
        '--side',
        type=_side,
        default=1024,
        metavar='N',
        help='images whose longer side has more pixels are scaled down to N (default 1024)',
    )
    add('--device', help='cpu, cuda, cuda:1, ... (default: cuda if there is one)')
    add_cfg_options(parser)
    return parser.parse_args(argv)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f'{text!r} is no port, a number from 0 to 65535')
    return int(text)


def _side(text: str) -> int:
    if not text.isdecimal() or not 64 <= int(text) <= 8192:
        raise argparse.ArgumentTypeError(f'{text!r} is no number of pixels from 64 to 8192')
    return int(text)
