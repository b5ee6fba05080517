"""``mmvars convert``, the same as ``tools/convert_checkpoint.py``."""

import argparse
import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmvars.checkpoints.account import Account, CheckpointError
from mmvars.checkpoints.containers import WEIGHTS
from mmvars.checkpoints.convert import TASKS, convert_checkpoint
from mmvars.checkpoints.files import check_destination, write_text
from mmvars.checkpoints.formats import TARGETS
from mmvars.errors import InputError
from mmvars.layers import MIXERS
from mmvars.networks import VARIANTS

__all__ = ['main', 'parse_args']

_EPILOG = """\
examples:
  mmvars convert absvit_base.pth absvit-b16.pth --arch absvit_base_patch16 --for segmentation
  mmvars convert deit_small.pth absvit-s16_init.pth --arch absvit_small_patch16 --img-size 512
  mmvars convert rvt_tiny_vars_sd.pth vars.pth --arch rvt_tiny --mixer-cfg num_steps=5
  mmvars convert work_dirs/run/epoch_300.pth back.pth --arch absvit_tiny_patch16 --to release

The mmvars file serves init_cfg=dict(type='Pretrained', checkpoint=...) of an mmvars backbone and
load_from of `mmvars train` (other tools of OpenMMLab read .pth only). No code of SRC
is ever run, DST is written whole or not at all, and any tensor that is not accounted for is an
error."""


def main(argv: list[str] | None = None) -> int:
    """Convert a checkpoint and print the account.

    Args:
        argv: Arguments; ``None`` for the command line's.

    Returns:
        Exit status 0.

    Raises:
        InputError: If the file cannot be converted; nothing was written then, except for the
            report that was asked for.
    """
    args = vars(parse_args(argv))
    report, overwrite = args.pop('report'), args['overwrite']
    if report is not None:
        if report.resolve() == args['destination'].resolve():
            raise InputError(f'--report {report} is DST itself; give the report another name')
        check_destination(report, args['source'], overwrite, suffixes=())
    options = {name: value for name, value in args.items() if value is not None}
    try:
        account = convert_checkpoint(**options)
    except CheckpointError as error:
        _write_report(report, error.account, overwrite)
        raise
    print(account.render())
    print(f'wrote {args["destination"]}')
    _write_report(report, account, overwrite)
    return 0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of :func:`~mmvars.checkpoints.convert_checkpoint`, and ``report``."""
    parser = argparse.ArgumentParser(
        description='Convert released AbSViT / ViT, RVT, VARS, GFNet, DeiT and timm checkpoints to '
                    'mmvars, or back.',
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SRC', type=Path,
                        help='.pth or .safetensors: a training checkpoint or a bare state dict')
    parser.add_argument('destination', metavar='DST', type=Path,
                        help='.pth or .safetensors to write')
    parser.add_argument('--arch', required=True, choices=VARIANTS, metavar='ARCH',
                        help=f'network: {", ".join(VARIANTS)}')
    parser.add_argument('--mixer', choices=tuple(MIXERS), metavar='MIXER',
                        help=f'token mixer: {", ".join(MIXERS)}; default: what the tensors show')
    parser.add_argument('--mixer-cfg', dest='mixer_options', nargs='+', action=_Options,
                        type=_option, metavar='KEY=VALUE',
                        help='constants of the mixer that SRC was trained with, for instance '
                             'num_steps=3; no tensor shows them. Default: those of the release')
    parser.add_argument('--for', dest='task', choices=TASKS,
                        help='segmentation drops the classifier, classification demands it; '
                             'default: keep what there is')
    parser.add_argument('--to', default='mmvars', choices=tuple(TARGETS), help='names to write')
    parser.add_argument('--weights', default='auto', choices=WEIGHTS,
                        help="model: as trained; ema: moving averages; auto: entry 'model', else "
                             "'state_dict', else the averages")
    parser.add_argument('--img-size', type=_pair('--img-size', allow_side=True), metavar='N|HxW',
                        help='pixels to resample positions, static dictionaries, filters and masks '
                             'for; default: keep them')
    parser.add_argument('--source-grid', type=_pair('--source-grid'), metavar='HxW',
                        help='patch grid of SRC, if it is not square')
    parser.add_argument('--num-classes', type=int, metavar='K',
                        help='classes of a classifier that --allow-new starts')
    parser.add_argument('--allow-new', nargs='+', metavar='PREFIX',
                        help='parts of the network that SRC may lack, for instance trunk.head; '
                             'prior, feedback and prompts always may')
    parser.add_argument('--ignore', nargs='+', metavar='PATTERN',
                        help="keys of SRC to leave out, for instance 'head.*'")
    parser.add_argument('--seed', type=int, help='of new tensors; default 0')
    parser.add_argument('--overwrite', action='store_true', help='replace DST (and the report)')
    parser.add_argument('--report', type=Path, metavar='FILE', help='write the account as JSON')
    size = parser.add_argument_group('sizes other than those of ARCH')
    for name in ('embed-dim', 'depth', 'num-heads'):
        size.add_argument(f'--{name}', type=int, nargs='+', action=_Stages, metavar='N',
                          help='one number, or one for each stage of an RVT')
    for name, kind in (('patch-size', int), ('mlp-ratio', float), ('in-chans', int)):
        size.add_argument(f'--{name}', type=kind, metavar='N')
    size.add_argument('--global-pool', choices=('token', 'avg'))
    return parser.parse_args(argv)


class _Stages(argparse.Action):
    """One number for each stage; a single one is no list."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, values[0] if len(values) == 1 else tuple(values))


class _Options(argparse.Action):
    """``KEY=VALUE`` pairs as a dict."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, dict(values))


def _option(text: str) -> tuple[str, Any]:
    """``num_steps=3`` as a pair; a value that is no Python literal is a word."""
    name, equals, value = text.partition('=')
    if not equals or not name.isidentifier() or not value:
        raise argparse.ArgumentTypeError(f'--mixer-cfg takes KEY=VALUE, got {text!r}')
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _pair(option: str, allow_side: bool = False) -> Callable[[str], int | tuple[int, int]]:
    def parse(text: str) -> int | tuple[int, int]:
        numbers = text.lower().split('x')
        if not all(n.isdecimal() for n in numbers) or len(numbers) not in (
                (1, 2) if allow_side else (2, )):
            raise argparse.ArgumentTypeError(
                f'{option} takes {"N or " if allow_side else ""}HEIGHTxWIDTH, got {text!r}')
        return int(text) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]))

    return parse


def _write_report(path: Path | None, account: Account, overwrite: bool) -> None:
    if path is not None:
        write_text(path, json.dumps(account.to_dict(), indent=1) + '\n', overwrite)
