"""``mmvars benchmark``, the same as ``tools/benchmark.py``."""

import argparse
import platform
import re
import sys
from collections.abc import Callable
from typing import Any

import torch

from mmvars.benchmark.contenders import Case, mixer_cases, parse_tokens
from mmvars.benchmark.json_output import (add_json_arguments, check_json_arguments,
                                         write_json)
from mmvars.benchmark.memory import memory_source
from mmvars.benchmark.report import case_entry, group_entries, render
from mmvars.benchmark.timing import CLOCKS, DTYPES, MODES, Settings, measure_case
from mmvars.errors import InputError, check_choice, check_number
from mmvars.layers import PRESETS

__all__ = ['SUITES', 'main', 'parse_args']

_EPILOG = """\
examples:
  mmvars benchmark
  mmvars benchmark --tokens 1024 4096 32x128 --widths 384x6 --mixers self_attention vars_d
  mmvars benchmark --device cuda --dtype bfloat16 --mode training --json times.json

All contenders are measured in one process in turns, A B C A B C, so that ratios hold where absolute
times on a busy machine do not. The first mixer (or --reference) is what the others are compared
with; self_attention is torch's fused softmax attention."""


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
    settings = _settings(args)
    size_name, cases = SUITES[args.suite](args)
    names = [contender.name for contender in cases[0].contenders]
    reference = args.reference or names[0]
    check_choice('--reference', reference, names)
    check_json_arguments(args)
    torch.set_num_threads(args.threads)
    entries = []
    for case in cases:
        print(f'measuring {case.group}, {size_name} {case.size}', file=sys.stderr, flush=True)
        entries.append(case_entry(case, measure_case(case, settings), reference, args.seed))
    result = dict(suite=args.suite, size_name=size_name,
                  settings=_settings_entry(args, settings, reference), cases=entries,
                  growth=group_entries(entries))
    print(render(result))
    write_json(args, result)
    return 0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        description='Time and peak memory of the token mixers against the number of tokens.',
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--suite', default='mixers', choices=tuple(SUITES), help='what to measure')
    parser.add_argument('--mixers', nargs='+', metavar='NAME',
                        default=['self_attention', 'performer', 'vars_d', 'vars_sd', 'vars_s'])
    parser.add_argument('--tokens', nargs='+', metavar='N|HxW',
                        default=['196', '400', '784', '1024', '2025', '4096', '8100'],
                        help='numbers of tokens, or patch grids')
    parser.add_argument('--widths', nargs='+', metavar='CxHEADS', default=['192x6', '768x12'],
                        help='channels and heads')
    parser.add_argument('--preset', default='release', choices=tuple(PRESETS))
    parser.add_argument('--num-steps', type=int, metavar='K', help='updates of the VARS mixers')
    parser.add_argument('--batch-size', type=int, default=1, metavar='B')
    parser.add_argument('--mode', default='forward', choices=MODES,
                        help='training: forward and backward pass')
    parser.add_argument('--reference', metavar='NAME', help='default: the first')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, ...')
    parser.add_argument('--dtype', default='float32', choices=tuple(DTYPES),
                        help='below float32: under autocast')
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


def _mixers(args: argparse.Namespace) -> tuple[str, list[Case]]:
    grids = [parse_tokens(text) for text in args.tokens]
    _refuse_repeated('--tokens', [height * width for height, width in grids])
    _refuse_repeated('--mixers', args.mixers)
    widths = [_width(text) for text in args.widths]
    _refuse_repeated('--widths', widths)
    return 'tokens', mixer_cases(args.mixers, widths, grids, args.batch_size, args.num_steps,
                                 args.preset)


SUITES: dict[str, Callable[[argparse.Namespace], tuple[str, list[Case]]]] = {'mixers': _mixers}
"""Name -> function of the arguments that gives what varies, in words, and the cases."""


def _settings(args: argparse.Namespace) -> Settings:
    for name, low in (('rounds', 1), ('warmup', 0), ('threads', 1)):
        check_number(f'--{name}', getattr(args, name), low, whole=True)
    check_number('--min-seconds', args.min_seconds, 0)
    device = _device(args.device)
    clock = args.clock or ('process' if args.threads == 1 else 'wall')
    return Settings(device=device, dtype=args.dtype, mode=args.mode, rounds=args.rounds,
                    warmup=args.warmup, min_seconds=args.min_seconds, clock=clock, seed=args.seed)


def _settings_entry(args: argparse.Namespace, settings: Settings, reference: str) -> dict[str, Any]:
    on_cpu = settings.device.type == 'cpu'
    name = platform.processor() or platform.machine()
    return dict(
        torch=torch.__version__, device=str(settings.device),
        device_name=name if on_cpu else torch.cuda.get_device_name(settings.device),
        dtype=settings.dtype, mode=settings.mode, threads=args.threads, rounds=settings.rounds,
        warmup=settings.warmup, min_seconds=settings.min_seconds, seed=settings.seed,
        clock=settings.clock if on_cpu else 'device', batch_size=args.batch_size,
        preset=args.preset, num_steps=args.num_steps, reference=reference,
        memory_source=memory_source(settings.device))


def _device(text: str) -> torch.device:
    if not re.fullmatch(r'cpu|cuda(:\d+)?', text):
        raise InputError(f'--device must be cpu, cuda or cuda:N, got {text!r}')
    device = torch.device(text)
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f'--device {text} is not there: torch sees {torch.cuda.device_count()} '
                         f'CUDA devices; use --device cpu')
    return device


def _width(text: str) -> tuple[int, int]:
    found = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text.lower())
    if not found:
        raise InputError(f'--widths takes CHANNELSxHEADS, for instance 192x6, got {text!r}')
    return int(found[1]), int(found[2])


def _refuse_repeated(option: str, values: list) -> None:
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise InputError(f'{option} names {", ".join(repeated)} more than once; once is enough')
