"""``mmvars convert`` and ``tools/convert_checkpoint.py``."""

import argparse
import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmvars.parsers.common import Parser

__all__ = ['parse_args']

_EPILOG = """\
examples:
  mmvars convert absvit_base.pth absvit-b16.pth --arch absvit_base --for segmentation
  mmvars convert deit_small.pth absvit-s16_init.pth --arch absvit_small --img-size 512
  mmvars convert rvt_tiny_vars_sd.pth vars.pth --arch rvt_tiny --mixer-cfg num_steps=5
  mmvars convert work_dirs/run/epoch_300.pth back.pth --arch absvit_tiny --to release

The mmvars file serves init_cfg=dict(type='Pretrained', checkpoint=...) of an mmvars backbone and
load_from of `mmvars train` (other tools of OpenMMLab read .pth only). No code of SRC
is ever run, DST is written whole or not at all, and any tensor that is not accounted for is an
error."""


_ARCHS = (
    'vit_tiny',
    'vit_small',
    'vit_base',
    'vit_tiny_patch8_gap',
    'deit_convstem_tiny',
    'deit_convstem_small',
    'deit_convstem_base',
    'gfnet_tiny',
    'gfnet_convstem_tiny',
    'rvt_tiny',
    'rvt_small',
    'rvt_base',
    'rvt_tiny_plus',
    'rvt_small_plus',
    'rvt_base_plus',
    'fan_tiny',
    'fan_small',
    'fan_base',
    'fan_large',
    'fan_tiny_hybrid',
    'fan_small_hybrid',
    'fan_base_hybrid',
    'absvit_tiny',
    'absvit_small',
    'absvit_base',
    'absvit_tiny_patch8_gap',
)
_MIXERS = (
    'self_attention',
    'masked_attention',
    'performer',
    'vars_s',
    'vars_d',
    'vars_sd',
    'global_filter',
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description='Convert released AbSViT, METER, RVT, VARS, GFNet and FAN checkpoints, and '
        'plain ViTs of timm, DeiT, DINO, Hugging Face, MMPretrain and MMSegmentation to mmvars, or '
        'back.',
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add(
        'source',
        metavar='SRC',
        type=Path,
        help='.pth, .pt, .bin or .safetensors: a training checkpoint or a bare state dict',
    )
    add('destination', metavar='DST', type=Path, help='.pth, .pt, .bin or .safetensors to write')
    add(
        '--arch',
        required=True,
        type=_arch,
        choices=_ARCHS,
        metavar='ARCH',
        help=f'network: {", ".join(_ARCHS)}',
    )
    add(
        '--mixer',
        choices=_MIXERS,
        metavar='MIXER',
        help=f'token mixer: {", ".join(_MIXERS)}; default: what the tensors show',
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
        choices=('segmentation', 'classification'),
        help='segmentation drops the classifier, classification demands it; default: keep what '
        'there is',
    )
    add('--to', default='mmvars', choices=('mmvars', 'release', 'timm'), help='names to write')
    add(
        '--weights',
        default='auto',
        choices=('auto', 'model', 'ema', 'teacher', 'student'),
        help='model: as trained; ema: moving averages; teacher, student: of a self-distillation; '
        "auto: entry 'model', else 'state_dict', else the averages, else the teacher",
    )
    add(
        '--prefix',
        metavar='PREFIX',
        help='what stands before the keys of the network in SRC, such as base_encoder; other keys '
        'are left out. Default: it is found, where SRC holds one network',
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
        raise argparse.ArgumentTypeError(f'{text!r} is not of the form KEY=VALUE')
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


def _arch(name: str) -> str:
    if name.startswith(('timm/', 'mmpretrain/')):
        raise argparse.ArgumentTypeError(
            f'{name} loads published files as they are: write pretrained=FILE in the backbone'
        )
    return name.removesuffix('_patch16')  # of earlier versions
