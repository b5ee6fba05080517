"""``mmvars convert``, the same as ``tools/convert_checkpoint.py``."""

import argparse
import ast
import json
from pathlib import Path
from typing import Any

from mmvars.checkpoints.convert import TASKS, convert_checkpoint
from mmvars.checkpoints.formats import TARGETS
from mmvars.checkpoints.load import WEIGHTS
from mmvars.checkpoints.report import CheckpointError
from mmvars.checkpoints.write import check_destination, write_text
from mmvars.errors import InputError
from mmvars.layers import MIXERS
from mmvars.networks import MODELS

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
    """Convert a checkpoint and print the report; the exit status is 0.

    Raises:
        InputError: If the file cannot be converted; nothing was written then, except for the
            report, if requested.
    """
    args = vars(parse_args(argv))
    path, overwrite = args.pop('report'), args['overwrite']
    if path is not None:
        if path.resolve() == args['destination'].resolve():
            raise InputError(f'--report {path} is DST itself; give the report another name')
        check_destination(path, args['source'], overwrite, suffixes=())
    options = {name: value for name, value in args.items() if value is not None}
    for name in ('embed_dim', 'depth', 'num_heads'):
        if name in options:  # a single number is no list
            options[name] = options[name][0] if len(options[name]) == 1 else tuple(options[name])
    if 'mixer_cfg' in options:
        options['mixer_cfg'] = dict(options['mixer_cfg'])
    error = None
    try:
        report = convert_checkpoint(**options)
        print(f'{report.render()}\nwrote {args["destination"]}')
    except CheckpointError as caught:
        error, report = caught, caught.report
    if path is not None:
        write_text(path, json.dumps(report.to_dict(), indent=1) + '\n', overwrite)
    if error is not None:
        raise error
    return 0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of :func:`~mmvars.checkpoints.convert_checkpoint`, and ``report``."""
    parser = argparse.ArgumentParser(
        description='Convert released AbSViT / ViT, RVT, VARS, GFNet, DeiT and timm checkpoints to '
        'mmvars, or back.',
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        'source',
        metavar='SRC',
        type=Path,
        help='.pth or .safetensors: a training checkpoint or a bare state dict',
    )
    add('destination', metavar='DST', type=Path, help='.pth or .safetensors to write')
    add(
        '--arch',
        required=True,
        choices=MODELS,
        metavar='ARCH',
        help=f'network: {", ".join(MODELS)}',
    )
    add(
        '--mixer',
        choices=tuple(MIXERS),
        metavar='MIXER',
        help=f'token mixer: {", ".join(MIXERS)}; default: what the tensors show',
    )
    add(
        '--mixer-cfg',
        nargs='+',
        type=_option,
        metavar='KEY=VALUE',
        help='constants of the mixer that SRC was trained with, for instance num_steps=3; no '
        'tensor shows them. Default: those of the release',
    )
    add(
        '--for',
        dest='task',
        choices=TASKS,
        help='segmentation drops the classifier, classification demands it; default: keep what '
        'there is',
    )
    add('--to', default='mmvars', choices=tuple(TARGETS), help='names to write')
    add(
        '--weights',
        default='auto',
        choices=('auto', *WEIGHTS),
        help='model: as trained; ema: moving averages; teacher, student: of a self-distillation; '
        "auto: entry 'model', else 'state_dict', else the averages, else the teacher",
    )
    add(
        '--prefix',
        metavar='PREFIX',
        help='what stands before the keys of the network in SRC, such as base_encoder; other keys '
        'are left out',
    )
    add(
        '--img-size',
        type=_side_or_pair,
        metavar='N|HxW',
        help='pixels to resample positions, static dictionaries, filters and masks for; default: '
        'keep them',
    )
    add('--source-grid', type=_pair, metavar='HxW', help='patch grid of SRC, if it is not square')
    add('--num-classes', type=int, metavar='K', help='classes of a new classifier, see --allow-new')
    add(
        '--allow-new',
        nargs='+',
        metavar='PREFIX',
        help='parts of the network that SRC may lack, for instance trunk.head; prior, feedback and '
        'prompts always may',
    )
    add(
        '--ignore',
        nargs='+',
        metavar='PATTERN',
        help="keys of SRC to leave out, for instance 'head.*'",
    )
    add('--seed', type=int, help='of new tensors; default 0')
    add('--overwrite', action='store_true', help='replace DST (and the report)')
    add('--report', type=Path, metavar='FILE', help='write the report as JSON')
    size = parser.add_argument_group('sizes other than those of ARCH')
    for name in ('embed-dim', 'depth', 'num-heads'):
        size.add_argument(
            f'--{name}',
            type=int,
            nargs='+',
            metavar='N',
            help='one number, or one for each stage of an RVT',
        )
    for name, kind in (('patch-size', int), ('mlp-ratio', float), ('in-chans', int)):
        size.add_argument(f'--{name}', type=kind, metavar='N')
    size.add_argument('--global-pool', choices=('token', 'avg'))
    return parser.parse_args(argv)


def _option(text: str) -> tuple[str, Any]:
    """``num_steps=3`` as a pair; a value that is no Python literal is a word."""
    name, _, value = text.partition('=')
    if not name.isidentifier() or not value:
        raise argparse.ArgumentTypeError(f'--mixer-cfg takes KEY=VALUE, got {text!r}')
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _side_or_pair(text: str) -> int | tuple[int, int]:
    return int(text) if text.isdecimal() else _pair(text)


def _pair(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition('x')
    if not height.isdecimal() or not width.isdecimal():
        raise argparse.ArgumentTypeError(f'takes HEIGHTxWIDTH, got {text!r}')
    return int(height), int(width)
