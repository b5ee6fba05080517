"""``mmvars benchmark`` and ``tools/benchmark/benchmark.py``."""

import argparse
from collections.abc import Sequence

from mmvars.parsers.common import Parser, add_json_arguments

__all__ = ['parse_args']

_EPILOG = """\
suites:
  mixers   token mixers alone, against the number of tokens
  models   whole networks: inference, or with --mode training one training step

examples:
  mmvars benchmark
  mmvars benchmark --tokens 1024 4096 32x128 --widths 384x6 --mixers self_attention vars_d
  mmvars benchmark --suite models --sizes 224 512x1024 --models timm/vit_tiny absvit_tiny
  mmvars benchmark --suite models --mode training --batch-sizes 8 \\
      --models timm/vit_tiny absvit_tiny absvit_tiny:grad_checkpointing=True
  mmvars benchmark --suite models --sizes 224 518 --models mmvars/timm/vit_small_patch14_dinov2 \\
      mmvars/timm/vit_small_patch14_dinov2:top_down=absvit
  mmvars benchmark --device cuda --dtype bfloat16 --compile --json times.json

All contenders are measured in one process in turns, A B C A B C, so that ratios hold where absolute
times on a busy machine do not. The first (or --reference) is what the others are compared with.
Those that compute the same function get the same weights, and their outputs are compared first. A
contender of --models is [LIBRARY/]NAME[:OPTION=VALUE...]: vit_tiny, absvit_base, rvt_tiny, ... of
this package (in inference fused; with :fuse=False not), mmvars/timm/NAME for its trunks of timm,
timm/vit_* for timm's own, or reference/absvit_*, which is
tools/benchmark/reference_absvit.py."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description='Time and peak memory of networks and token mixers, in turns in one process.',
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add('--suite', default='mixers', choices=('mixers', 'models'), help='what to measure')
    add(
        '--mixers',
        nargs='+',
        metavar='NAME',
        default=['self_attention', 'performer', 'vars_d', 'vars_sd', 'vars_s'],
        help="self_attention is torch's fused softmax attention",
    )
    add(
        '--tokens',
        nargs='+',
        metavar='N|HxW',
        help='mixers: numbers of tokens, or patch grids',
        default=['196', '400', '784', '1024', '2025', '4096', '8100'],
    )
    add(
        '--widths',
        nargs='+',
        metavar='CxHEADS',
        default=['192x6', '768x12'],
        help='mixers: channels and heads',
    )
    add('--preset', default='release', choices=('release', 'thesis'), help='mixers')
    add('--num-steps', type=int, metavar='K', help='updates of the VARS mixers')
    add(
        '--models',
        nargs='+',
        metavar='NAME',
        help='models: see below',
        default=['timm/vit_tiny', 'vit_tiny', 'absvit_tiny', 'reference/absvit_tiny'],
    )
    add('--sizes', nargs='+', metavar='S|HxW', default=['224'], help='of images, in pixels')
    add(
        '--task',
        default='auto',
        choices=('auto', 'classify', 'features'),
        help='auto: class scores at 224x224, four feature maps at other sizes',
    )
    add('--batch-sizes', '--batch-size', nargs='+', type=int, default=[1], metavar='B')
    add(
        '--mode',
        default='forward',
        choices=('forward', 'training'),
        help='training: forward and backward pass',
    )
    add('--reference', metavar='NAME', help='default: the first contender')
    add('--device', default='cpu', help='cpu, cuda, cuda:1, ...')
    add(
        '--dtype',
        default='float32',
        choices=('float32', 'bfloat16', 'float16'),
        help='below float32: under autocast',
    )
    add('--compile', action='store_true', help='all through torch.compile')
    add('--threads', type=int, default=1, metavar='T', help='of the CPU')
    add(
        '--clock',
        choices=('process', 'wall'),
        help='on a CPU; default: process time for one thread, '
        'which other programs disturb least, wall time for more',
    )
    add('--rounds', type=int, default=7)
    add('--warmup', type=int, default=1, help='rounds before')
    add('--min-seconds', type=float, default=0.05, metavar='S', help='least length of a sample')
    add('--seed', type=int, default=0, help='of weights and inputs')
    add_json_arguments(parser)
    return parser.parse_args(argv)
