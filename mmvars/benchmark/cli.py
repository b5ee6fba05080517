"""``mmvars benchmark``, the same as ``tools/benchmark.py``."""

import argparse
from pathlib import Path

import torch

from mmvars.benchmark.json_output import (add_json_arguments, check_json_arguments,
                                         write_json)
from mmvars.benchmark.models import TASKS
from mmvars.benchmark.setting import make_settings
from mmvars.benchmark.suites import SUITES
from mmvars.benchmark.target_report import BEGIN, END
from mmvars.benchmark.timing import CLOCKS, DTYPES, MODES
from mmvars.layers import PRESETS

__all__ = ['SUITES', 'main', 'parse_args']

_EPILOG = """\
suites:
  mixers   token mixers alone, against the number of tokens
  models   whole networks: inference, or with --mode training one training step
  priors   ours with several priors on one image: one look for all against a call for each
  imports  what importing mmvars adds to importing mmseg
  readme   all targets of speed, reached or missed: the table of the README (see --rows)

examples:
  mmvars benchmark
  mmvars benchmark --tokens 1024 4096 32x128 --widths 384x6 --mixers self_attention vars_d
  mmvars benchmark --suite models --sizes 224 512x1024 --models timm/vit_tiny absvit_tiny
  mmvars benchmark --suite models --mode training --batch-sizes 8 \\
      --models timm/vit_tiny absvit_tiny absvit_tiny:grad_checkpointing=True
  mmvars benchmark --device cuda --dtype bfloat16 --compile --json times.json
  mmvars benchmark --suite readme --json targets.json --update README.md
  mmvars benchmark --suite readme --rows VARS import --keep targets.json --update README.md

All contenders are measured in one process in turns, A B C A B C, so that ratios hold where absolute
times on a busy machine do not. The first (or --reference) is what the others are compared with.
Those of one name have the same weights, and their outputs are compared first. A contender of
--models is [LIBRARY/]NAME[:OPTION=VALUE...]: ours by name (vit_tiny, absvit_base, rvt_tiny, ...),
timm/vit_*, mmseg/vit_*, or textbook/absvit_*: AbSViT written straight from its equations."""


def main(argv: list[str] | None = None) -> int:
    """Measure time and peak memory, and print tables.

    Args:
        argv: Arguments; ``None`` for the command line's.

    Returns:
        Exit status 0.

    Raises:
        InputError: If an argument cannot be used; nothing was measured or written then.
    """
    args = parse_args(argv)
    job = SUITES[args.suite](args, make_settings(args))
    check_json_arguments(args)
    torch.set_num_threads(args.threads)
    result, text = job()
    print(text)
    write_json(args, result, again=True)
    return 0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        description='Time and peak memory of networks and token mixers, in turns in one process.',
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--suite', default='mixers', choices=tuple(SUITES), help='what to measure')
    _add_suite_arguments(parser)
    parser.add_argument('--batch-sizes', '--batch-size', dest='batch_sizes', nargs='+', type=int,
                        default=[1], metavar='B')
    parser.add_argument('--mode', default='forward', choices=MODES,
                        help='training: forward and backward pass')
    parser.add_argument('--reference', metavar='NAME', help='default: the first')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, ...')
    parser.add_argument('--dtype', default='float32', choices=tuple(DTYPES),
                        help='below float32: under autocast')
    parser.add_argument('--compile', action='store_true', help='all through torch.compile')
    parser.add_argument('--cuda-graph', action='store_true',
                        help='capture each once and replay it')
    parser.add_argument('--threads', type=int, default=1, metavar='T', help='of the CPU')
    parser.add_argument('--clock', choices=tuple(CLOCKS),
                        help='on CPU; default: process time for one thread, which other programs '
                        'disturb least, wall time for more')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--warmup', type=int, default=1, help='rounds before')
    parser.add_argument('--min-seconds', type=float, default=.05, metavar='S',
                        help='least length of a sample')
    parser.add_argument('--seed', type=int, default=0, help='of weights and inputs')
    add_json_arguments(parser)
    return parser.parse_args(argv)


def _add_suite_arguments(parser: argparse.ArgumentParser) -> None:
    mixers = parser.add_argument_group('mixers')
    mixers.add_argument('--mixers', nargs='+', metavar='NAME',
                        default=['self_attention', 'performer', 'vars_d', 'vars_sd', 'vars_s'],
                        help='self_attention is torch\'s fused softmax attention')
    mixers.add_argument('--tokens', nargs='+', metavar='N|HxW',
                        default=['196', '400', '784', '1024', '2025', '4096', '8100'],
                        help='numbers of tokens, or patch grids')
    mixers.add_argument('--widths', nargs='+', metavar='CxHEADS', default=['192x6', '768x12'],
                        help='channels and heads')
    mixers.add_argument('--preset', default='release', choices=tuple(PRESETS))
    mixers.add_argument('--num-steps', type=int, metavar='K', help='updates of the VARS mixers')
    models = parser.add_argument_group('models and priors')
    models.add_argument('--models', nargs='+', metavar='NAME',
                        default=['timm/vit_tiny', 'vit_tiny', 'absvit_tiny',
                                 'textbook/absvit_tiny'], help='contenders, see below')
    models.add_argument('--sizes', nargs='+', metavar='S|HxW', default=['224'],
                        help='of the images in pixels')
    models.add_argument('--task', default='auto', choices=TASKS,
                        help='auto: class scores at 224x224, four feature maps at other sizes')
    models.add_argument('--priors', type=int, default=4, metavar='K', help='priors an image')
    readme = parser.add_argument_group('readme')
    readme.add_argument('--rows', nargs='+', default=[], metavar='PART',
                        help='only the targets with one of these words in them')
    readme.add_argument('--keep', type=Path, metavar='FILE',
                        help='take the other rows from the JSON file of an earlier run')
    readme.add_argument('--update', type=Path, metavar='FILE',
                        help=f'write the table into this file, between {BEGIN} and {END}')
