"""How and where something is measured: from arguments to settings, and to what a report says."""

import argparse
import os
import platform
import re
from typing import Any

import torch

from mmvars.benchmark.memory import memory_source
from mmvars.benchmark.timing import TOLERANCES, Settings
from mmvars.errors import InputError, check_number

__all__ = ['load_average', 'make_settings', 'parse_device', 'settings_entry']


def make_settings(args: argparse.Namespace) -> Settings:
    """Settings from the arguments of the command.

    Raises:
        InputError: If one is out of range, or two do not go together.
    """
    for name, low in (('rounds', 1), ('warmup', 0), ('threads', 1)):
        check_number(f'--{name}', getattr(args, name), low, whole=True)
    check_number('--min-seconds', args.min_seconds, 0)
    device = parse_device(args.device)
    if args.cuda_graph and (device.type != 'cuda' or args.mode != 'forward'):
        raise InputError('--cuda-graph needs --device cuda and --mode forward')
    clock = args.clock or ('process' if args.threads == 1 else 'wall')
    return Settings(device=device, dtype=args.dtype, mode=args.mode, rounds=args.rounds,
                    warmup=args.warmup, min_seconds=args.min_seconds, clock=clock, seed=args.seed,
                    compiled=args.compile, cuda_graph=args.cuda_graph)


def parse_device(text: str) -> torch.device:
    """A device that is there.

    Raises:
        InputError: If it is not.
    """
    if not re.fullmatch(r'cpu|cuda(:\d+)?', text):
        raise InputError(f'--device must be cpu, cuda or cuda:N, got {text!r}')
    device = torch.device(text)
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f'--device {text} is not there: torch sees {torch.cuda.device_count()} '
                         f'CUDA devices; use --device cpu')
    return device


def settings_entry(settings: Settings, threads: int) -> dict[str, Any]:
    """The settings, and the machine, as plain values."""
    on_cpu = settings.device.type == 'cpu'
    name = platform.processor() or platform.machine()
    return dict(
        torch=torch.__version__, device=str(settings.device),
        device_name=name if on_cpu else torch.cuda.get_device_name(settings.device),
        dtype=settings.dtype, mode=settings.mode, threads=threads, rounds=settings.rounds,
        warmup=settings.warmup, min_seconds=settings.min_seconds, seed=settings.seed,
        clock=settings.clock if on_cpu else 'device', compiled=settings.compiled,
        cuda_graph=settings.cuda_graph, tolerance=TOLERANCES[settings.dtype],
        memory_source=memory_source(settings.device))


def load_average() -> float | None:
    """Programs that wanted a core, on average over the last minute; ``None`` if nobody counts."""
    return round(os.getloadavg()[0], 2) if hasattr(os, 'getloadavg') else None
