"""Contenders measured in turns, in one process."""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmvars.benchmark.contenders import Case, Contender
from mmvars.benchmark.memory import peak_memory
from mmvars.benchmark.multiply_adds import MultiplyAdds, count_multiply_adds
from mmvars.errors import InputError

__all__ = ['CLOCKS', 'DTYPES', 'MODES', 'Measurement', 'Settings', 'measure_case']

DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)
CLOCKS: dict[str, Callable[[], float]] = dict(process=time.process_time, wall=time.perf_counter)
MODES = ('forward', 'training')
_CALIBRATION_CALLS = 2
_TOLERANCE = {'float32': 1e-4, 'bfloat16': 2e-2, 'float16': 5e-3}


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        device: Where.
        dtype: A key of ``DTYPES``; below float32 the forward pass runs under autocast.
        mode: ``'forward'``: eval mode without gradients; ``'training'``: train mode, forward and
            backward pass, gradients of weights and inputs.
        rounds: Samples of each contender.
        warmup: Rounds before, not counted.
        min_seconds: Least length of a sample; short calls are repeated until they fill it.
        clock: A key of ``CLOCKS``. On CUDA, device events are used instead.
        seed: Of weights and inputs.
    """

    device: torch.device = field(default_factory=lambda: torch.device('cpu'))
    dtype: str = 'float32'
    mode: str = 'forward'
    rounds: int = 7
    warmup: int = 1
    min_seconds: float = .05
    clock: str = 'process'
    seed: int = 0


@dataclass
class Measurement:
    """What was found for one contender of a case.

    Attributes:
        name: Of the contender.
        seconds: Of one call, one value a round.
        repeats: Calls in one sample.
        peak_bytes: See :func:`~mmvars.benchmark.memory.peak_memory`.
        macs: Multiply-adds of a forward pass.
        output_rms: Root mean square of the output, a check that something was computed.
    """

    name: str
    seconds: list[float]
    repeats: int
    peak_bytes: int | None
    macs: MultiplyAdds
    output_rms: float


def measure_case(case: Case, settings: Settings) -> list[Measurement]:
    """Build, check, and time the contenders of a case in interleaved rounds.

    Raises:
        InputError: If an output is not finite, is all zeros, or changes from call to call.
    """
    runs = [_Run(contender, settings) for contender in case.contenders]
    for run in runs:
        run.check()
        run.calibrate()
    for _ in range(settings.warmup):
        for run in runs:
            run.sample()
    peaks = [peak_memory(run.call, settings.device) for run in runs]
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(settings.rounds):
        for run, samples in zip(runs, seconds, strict=True):
            samples.append(run.sample())
    return [Measurement(run.contender.name, samples, run.repeats, peak, run.macs, run.output_rms)
            for run, samples, peak in zip(runs, seconds, peaks, strict=True)]


class _Run:
    """A contender, built and ready to be called."""

    def __init__(self, contender: Contender, settings: Settings) -> None:
        self.contender = contender
        self.settings = settings
        torch.manual_seed(settings.seed)
        module = contender.build()
        torch.manual_seed(settings.seed)
        inputs = contender.inputs()
        training = settings.mode == 'training'
        self.macs = _multiply_adds(module, inputs)
        self.module = module.to(settings.device).train(training)
        self.inputs = tuple(tensor.to(settings.device).requires_grad_(
            training and tensor.is_floating_point()) for tensor in inputs)
        self.repeats = 1
        self.output_rms = 0.

    def call(self) -> Any:
        """One forward pass, or one forward and backward pass."""
        if self.settings.mode == 'forward':
            with torch.no_grad(), self._precision():
                return self.module(*self.inputs)
        with self._precision():
            outputs = self.module(*self.inputs)
        torch.autograd.backward([out.sum() for out in _tensors(outputs)])
        for tensor in (*self.module.parameters(), *self.inputs):
            tensor.grad = None
        return outputs

    def check(self) -> None:
        """Refuse outputs that show that nothing sensible is being measured."""
        name, dtype = self.contender.name, self.settings.dtype
        first, again = (torch.cat([out.detach().float().flatten() for out in _tensors(self.call())])
                        for _ in range(2))
        self.output_rms = first.square().mean().sqrt().item()
        if not first.isfinite().all():
            raise InputError(f'{name} gives values that are not finite in {dtype}; measure it with '
                             f'another --dtype')
        if self.output_rms == 0:
            raise InputError(f'{name} gives zeros only, so its time would mean nothing')
        difference = (first - again).abs().max() / first.abs().max()
        if difference > _TOLERANCE[dtype]:
            raise InputError(f'{name} gives another output when called again (by '
                             f'{difference:.1e} of its largest value); measure it without dropout')

    def calibrate(self) -> None:
        """Set how many calls make a sample long enough for the clock."""
        seconds = min(self.sample() for _ in range(_CALIBRATION_CALLS))
        self.repeats = max(1, round(self.settings.min_seconds / max(seconds, 1e-7)))

    def sample(self) -> float:
        """Seconds of one call, the mean of ``repeats``."""
        if self.settings.device.type == 'cuda':
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(self.settings.device)
            start.record()
            for _ in range(self.repeats):
                self.call()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1000 / self.repeats
        clock = CLOCKS[self.settings.clock]
        start = clock()
        for _ in range(self.repeats):
            self.call()
        return (clock() - start) / self.repeats

    def _precision(self) -> contextlib.AbstractContextManager:
        if self.settings.dtype == 'float32':
            return contextlib.nullcontext()
        return torch.autocast(self.settings.device.type, DTYPES[self.settings.dtype])


def _multiply_adds(module: nn.Module, inputs: tuple[Tensor, ...]) -> MultiplyAdds:
    """Of a forward pass in eval mode, counted on the meta device."""
    twin = copy.deepcopy(module).to('meta').eval()
    arguments = [tensor.to('meta') for tensor in inputs]
    with torch.no_grad():
        return count_multiply_adds(lambda: twin(*arguments), [twin])


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    else:
        for part in output:
            yield from _tensors(part)
