"""Time and memory of modules: contenders measured in turns in one process, and their statistics.

On a busy machine absolute times mean little. The contenders of a case therefore take turns, A B C
A B C, and are compared round by round.
"""

import contextlib
import ctypes
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from get_flops import MultiplyAdds, count_multiply_adds
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mmvars.errors import InputError

DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)
CLOCKS: dict[str, Callable[[], float]] = dict(process=time.process_time, wall=time.perf_counter)
TOLERANCES = dict(float32=1e-4, bfloat16=5e-2, float16=1e-2)
"""How far two outputs may differ, relative to the largest value: of two calls, or of twins."""

_RESAMPLES = 2000
_STATUS, _RESET = Path('/proc/self/status'), Path('/proc/self/clear_refs')


@dataclass(frozen=True)
class Contender:
    """A module to measure.

    Attributes:
        name: In tables.
        build: Makes the module, on the CPU in float32, from torch's present seed. Its output is a
            tensor, or a list of tensors. Its ``fuse()``, if any, is called for inference.
        inputs: Makes the tensors of one call, likewise.
        function: What it computes. Contenders of a case with the same value have the same weights,
            and their outputs (in training: their gradients too) are compared before timing.
        input_gradients: Whether the backward pass reaches the inputs.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    function: str | None = None
    input_gradients: bool = True


@dataclass(frozen=True)
class Case:
    """Contenders with the same task.

    Attributes:
        group: What stays the same while the size varies, such as a width.
        size: What varies, such as the number of tokens.
        contenders: In the order of each round.
    """

    group: str
    size: int
    contenders: tuple[Contender, ...]


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        device: Where.
        dtype: A key of ``DTYPES``; below float32 the forward pass runs under autocast.
        mode: 'forward': eval mode without gradients. 'training': forward and backward pass.
        rounds: Samples of each contender.
        warmup: Rounds before, not counted.
        min_seconds: Least length of a sample; short calls are repeated until they fill it.
        clock: A key of ``CLOCKS``. CUDA uses device events instead.
        seed: Of weights and inputs.
        compile: Whether every contender goes through ``torch.compile``.
    """

    device: torch.device = field(default_factory=lambda: torch.device('cpu'))
    dtype: str = 'float32'
    mode: str = 'forward'
    rounds: int = 7
    warmup: int = 1
    min_seconds: float = 0.05
    clock: str = 'process'
    seed: int = 0
    compile: bool = False


@dataclass
class Measurement:
    """Results of one contender.

    Attributes:
        name: Of the contender.
        seconds: Of one call, one value a round.
        peak_bytes: See :func:`peak_memory`.
        saved_bytes: See :func:`saved_for_backward`; training only.
        macs: Multiply-adds of one call, with its backward pass in training.
    """

    name: str
    seconds: list[float]
    peak_bytes: int | None
    saved_bytes: int | None
    macs: MultiplyAdds


def measure_case(case: Case, settings: Settings) -> list[Measurement]:
    """Build, check and time the contenders of a case in interleaved rounds.

    Raises:
        InputError: If an output is not finite, all zeros, or changes from call to call; or if
            contenders of the same function differ.
    """
    if settings.compile:  # too many programs of one piece of code, and torch runs it uncompiled
        torch.compiler.reset()
    runs = [_Run(contender, settings) for contender in case.contenders]
    for run in runs:
        run.prepare()
    _check_same_function(runs, TOLERANCES[settings.dtype])
    for _ in range(settings.warmup):
        for run in runs:
            run.sample()
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(settings.rounds):
        for run, samples in zip(runs, seconds, strict=True):
            samples.append(run.sample())
    return [
        Measurement(run.contender.name, samples, run.peak_bytes, run.saved_bytes, run.macs)
        for run, samples in zip(runs, seconds, strict=True)
    ]


class _Run:
    """A contender that has been built, and its input."""

    results: list[Tensor]
    macs: MultiplyAdds
    peak_bytes: int | None = None
    saved_bytes: int | None = None
    repeats = 1

    def __init__(self, contender: Contender, settings: Settings) -> None:
        self.contender, self.settings = contender, settings
        self.training = settings.mode == 'training'
        torch.manual_seed(settings.seed)
        self.module = contender.build().to(settings.device).train(self.training)
        torch.manual_seed(settings.seed)
        self.inputs = tuple(
            tensor.to(settings.device).requires_grad_(
                self.training and contender.input_gradients and tensor.is_floating_point()
            )
            for tensor in contender.inputs()
        )
        if not self.training and hasattr(self.module, 'fuse'):
            self.module.fuse()
        self.forward: Callable[..., Any] = self.module

    def call(self) -> list[Tensor]:
        """One forward pass, in training with its backward pass; the outputs."""
        precision = (
            contextlib.nullcontext()
            if self.settings.dtype == 'float32'
            else (torch.autocast(self.settings.device.type, DTYPES[self.settings.dtype]))
        )
        with torch.set_grad_enabled(self.training), precision:
            outputs = list(_tensors(self.forward(*self.inputs)))
        if self.training:
            torch.autograd.backward([out.sum() for out in outputs])
        return outputs

    def prepare(self) -> None:
        """Count multiply-adds, measure memory, and check the output."""
        if self.training:
            self.saved_bytes = saved_for_backward(self._step, self.module.parameters())
        else:
            self._step()
        first: list[Tensor] = []
        self.macs = count_multiply_adds(lambda: first.extend(self._results()), [self.module])
        if self.settings.compile:
            self.forward = torch.compile(self.module, dynamic=False)
        self.results = self._results()
        self._check_results(first)
        times: list[float] = []
        self.peak_bytes = peak_memory(lambda: times.append(self.sample()), self.settings.device)
        self.repeats = max(1, round(self.settings.min_seconds / max(times[0], 1e-7)))

    def sample(self) -> float:
        """Seconds of one call, the mean of ``repeats``."""
        if self.settings.device.type == 'cuda':
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(self.settings.device)
            start.record()
            for _ in range(self.repeats):
                self._step()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1000 / self.repeats
        clock = CLOCKS[self.settings.clock]
        begin = clock()
        for _ in range(self.repeats):
            self._step()
        return (clock() - begin) / self.repeats

    def _step(self) -> None:
        self.call()
        for tensor in (*self.module.parameters(), *self.inputs):
            tensor.grad = None

    def _results(self) -> list[Tensor]:
        """All outputs in one row; in training also the norm of the gradient of all weights."""
        results = [torch.cat([out.detach().float().flatten() for out in self.call()]).cpu()]
        if self.training:
            norms = [
                parameter.grad.float().norm()
                for parameter in self.module.parameters()
                if parameter.grad is not None
            ]
            results.append(torch.stack(norms).norm().cpu())
        for tensor in (*self.module.parameters(), *self.inputs):
            tensor.grad = None
        return results

    def _check_results(self, first: list[Tensor]) -> None:
        name, dtype = self.contender.name, self.settings.dtype
        if not all(result.isfinite().all() for result in self.results):
            raise InputError(
                f'{name} gives values that are not finite in {dtype}; measure it with '
                f'another --dtype'
            )
        if not self.results[0].any():
            raise InputError(f'{name} gives zeros only, so its time would mean nothing')
        if (difference := _difference(self.results, first)) > TOLERANCES[dtype]:
            raise InputError(
                f'{name} gives another output when called again (by {difference:.1e} '
                f'of the largest value); measure it without dropout'
            )


def _check_same_function(runs: Sequence[_Run], tolerance: float) -> None:
    for one, other in combinations(runs, 2):
        if one.contender.function is None or one.contender.function != other.contender.function:
            continue
        difference = _difference(one.results, other.results)
        if difference > tolerance:
            raise InputError(
                f'{one.contender.name} and {other.contender.name} should give the '
                f'same outputs from the same weights, but differ by {difference:.1e} '
                f'of the largest value ({tolerance:.0e} is allowed): one of them does '
                f'not compute what it should'
            )


def _difference(results: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest value of each result."""
    if [result.shape for result in results] != [other.shape for other in others]:
        return math.inf
    return max(
        ((one - other).abs().max() / one.abs().max().clamp(min=1e-30)).item()
        for one, other in zip(results, others, strict=True)
    )


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    else:
        for part in output:
            yield from _tensors(part)


# Memory


def memory_source(device: torch.device) -> str | None:
    """How :func:`peak_memory` measures on this device; ``None`` where it cannot."""
    if device.type == 'cuda':
        return 'peak of the CUDA allocator over what was allocated before the call'
    try:
        _RESET.write_text('5')
        _resident('VmHWM')
    except (OSError, LookupError):
        return None
    return 'high-water mark of the resident set over the resident set before the call (Linux)'


def peak_memory(call: Callable[[], Any], device: torch.device) -> int | None:
    """Most bytes that ``call()`` needs beside what was there before it, its result included.

    Call it once before: what is allocated for good the first time does not count.

    Returns:
        ``None`` where the system does not say, see :func:`memory_source`.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if memory_source(device) is None:
        call()
        return None
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # glibc only
    if trim is not None:
        trim(0)  # freed pages that are used again would not show in the resident set
    _RESET.write_text('5')  # the high-water mark starts again from the present resident set
    before = _resident('VmRSS')
    call()
    return _resident('VmHWM') - before


def saved_for_backward(call: Callable[[], Any], parameters: Iterable[Tensor]) -> int:
    """Bytes that autograd saves in the forward for the backward pass of ``call()``.

    Tensors that share their memory count once; weights do not count, they are there anyway; nor
    does what a checkpointed part computes again in the backward pass.

    Args:
        call: Runs both passes.
        parameters: The weights.
    """
    weights = {_storage(parameter) for parameter in parameters}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()  # an output would hold its own graph
        if _storage(tensor) not in weights:
            saved[_storage(tensor)] = tensor  # held, so that its address is not used again
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _resident(entry: str) -> int:
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(':')
        if name == entry:
            return int(value.split()[0]) * 1024
    raise LookupError(entry)


# Statistics


class Spread(NamedTuple):
    """A median between two quantiles."""

    low: float
    median: float
    high: float


def spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles of the samples."""
    return Spread(_quantile(samples, 0.25), statistics.median(samples), _quantile(samples, 0.75))


def paired_ratio(samples: Sequence[float], reference: Sequence[float], seed: int = 0) -> Spread:
    """Median of the ratios round by round, with its 5-95 % bootstrap interval.

    Pairing cancels what slows a whole round down, such as other work on the machine.
    """
    ratios = [one / other for one, other in zip(samples, reference, strict=True)]
    generator = random.Random(seed)
    medians = [
        statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES)
    ]
    return Spread(_quantile(medians, 0.05), statistics.median(ratios), _quantile(medians, 0.95))


def growth_exponent(
    sizes: Sequence[float], values: Sequence[float], low: float = 1024, high: float = 8192
) -> float | None:
    """Slope of ``log value`` over ``log size`` by least squares: 1 is linear, 2 quadratic.

    Only sizes in ``[low, high]`` count: below, fixed costs hide the growth.

    Returns:
        ``None`` where fewer than two different sizes are left, or a value is not positive.
    """
    points = [
        (size, value) for size, value in zip(sizes, values, strict=True) if low <= size <= high
    ]
    if len({size for size, _ in points}) < 2 or any(value <= 0 for _, value in points):
        return None
    return statistics.linear_regression(
        [math.log(size) for size, _ in points], [math.log(value) for _, value in points]
    ).slope


def _quantile(samples: Sequence[float], share: float) -> float:
    ordered = sorted(samples)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])
