"""Contenders measured in turns, in one process."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from mmvars.benchmark.contenders import Case, Contender
from mmvars.benchmark.memory import peak_memory, saved_for_backward
from mmvars.benchmark.multiply_adds import MultiplyAdds, count_multiply_adds
from mmvars.errors import InputError

__all__ = ['CLOCKS', 'DTYPES', 'MODES', 'TOLERANCES', 'Measurement', 'Settings', 'measure_case']

DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)
CLOCKS: dict[str, Callable[[], float]] = dict(process=time.process_time, wall=time.perf_counter)
MODES = ('forward', 'training')
TOLERANCES = {'float32': 1e-4, 'bfloat16': 5e-2, 'float16': 1e-2}
"""How far outputs may differ, in parts of their largest value: of two calls, and of twins."""


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        device: Where.
        dtype: A key of ``DTYPES``; below float32 the forward pass runs under autocast.
        mode: ``'forward'``: eval mode without gradients; ``'training'``: train mode, forward and
            backward pass, gradients of weights and (where the contender says so) inputs.
        rounds: Samples of each contender.
        warmup: Rounds before, not counted.
        min_seconds: Least length of a sample; short calls are repeated until they fill it.
        clock: A key of ``CLOCKS``. On CUDA, device events are used instead.
        seed: Of weights and inputs.
        compiled: Whether every contender goes through ``torch.compile``.
        cuda_graph: Whether every contender is captured once and replayed; forward on CUDA only.
    """

    device: torch.device = field(default_factory=lambda: torch.device('cpu'))
    dtype: str = 'float32'
    mode: str = 'forward'
    rounds: int = 7
    warmup: int = 1
    min_seconds: float = .05
    clock: str = 'process'
    seed: int = 0
    compiled: bool = False
    cuda_graph: bool = False


@dataclass
class Measurement:
    """What was found for one contender of a case.

    Attributes:
        name: Of the contender.
        seconds: Of one call, one value a round.
        repeats: Calls in one sample.
        peak_bytes: See :func:`~mmvars.benchmark.memory.peak_memory`.
        saved_bytes: Of training, see :func:`~mmvars.benchmark.memory.saved_for_backward`.
        macs: Multiply-adds of one call, of the backward pass too in training.
        output_rms: Root mean square of the output, a check that something was computed.
    """

    name: str
    seconds: list[float]
    repeats: int
    peak_bytes: int | None
    saved_bytes: int | None
    macs: MultiplyAdds
    output_rms: float


def measure_case(case: Case, settings: Settings) -> list[Measurement]:
    """Build, check, and time the contenders of a case in interleaved rounds.

    Raises:
        InputError: If an output is not finite, is all zeros, or changes from call to call; if
            twins do not agree.
    """
    if settings.compiled:  # many programs of one piece of code would end in it running uncompiled
        torch.compiler.reset()
    runs = [_Run(contender, settings) for contender in case.contenders]
    for run in runs:
        run.prepare()
    _compare_twins(runs, TOLERANCES[settings.dtype])
    for run in runs:
        run.output = torch.empty(0)
    for _ in range(settings.warmup):
        for run in runs:
            run.sample()
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(settings.rounds):
        for run, samples in zip(runs, seconds, strict=True):
            samples.append(run.sample())
    return [Measurement(run.contender.name, samples, run.repeats, run.peak_bytes, run.saved_bytes,
                        run.macs, run.output_rms)
            for run, samples in zip(runs, seconds, strict=True)]


class _Run:
    """A contender, built and ready to be called."""

    repeats = 1
    peak_bytes: int | None = None
    saved_bytes: int | None = None
    macs = MultiplyAdds(0, 0, 0)
    output = torch.empty(0)
    output_rms = 0.

    def __init__(self, contender: Contender, settings: Settings) -> None:
        self.contender = contender
        self.settings = settings
        self.training = settings.mode == 'training'
        torch.manual_seed(settings.seed)
        module = contender.build()
        torch.manual_seed(settings.seed)
        inputs = contender.inputs()
        self.module = module.to(settings.device).train(self.training)
        self.inputs = tuple(tensor.to(settings.device).requires_grad_(
            self.training and contender.input_gradients and tensor.is_floating_point())
            for tensor in inputs)
        self.forward: Callable[..., Any] = self.module
        self.replay: Callable[[], Any] | None = None

    def call(self) -> list[Tensor]:
        """One forward pass, or one forward and backward pass; the outputs."""
        if self.replay is not None:
            return self.replay()
        if not self.training:
            with torch.no_grad(), self._precision():
                return list(_tensors(self.forward(*self.inputs)))
        with self._precision():
            outputs = list(_tensors(self.forward(*self.inputs)))
        torch.autograd.backward([out.sum() for out in outputs])
        return outputs

    def step(self) -> None:
        """What is timed: a call, and in training the gradients it leaves given back."""
        self.call()
        if self.training:
            self._forget_gradients()

    def prepare(self) -> None:
        """Count, measure memory, and refuse what shows that nothing sensible is measured.

        Networks may keep things for later calls, so the first call is not the one counted. Big
        networks are slow, so no call serves one purpose only.
        """
        results = []
        if self.training:
            self.saved_bytes = saved_for_backward(lambda: results.append(self._result()),
                                                  self.module.parameters())
        else:
            results.append(self._result())
        self.macs = count_multiply_adds(lambda: results.append(self._result()), [self.module])
        if self.settings.compiled:
            self.forward = torch.compile(self.module, dynamic=False)
            results = [self._result(), self._result()]
        self._check(*results)
        self.output = results[0]
        seconds = []
        self.peak_bytes = peak_memory(lambda: seconds.append(self.sample()), self.settings.device)
        if self.settings.cuda_graph:
            self._capture()
            seconds.append(self.sample())
        self.repeats = max(1, round(self.settings.min_seconds / max(seconds[-1], 1e-7)))

    def sample(self) -> float:
        """Seconds of one call, the mean of ``repeats``."""
        if self.settings.device.type == 'cuda':
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(self.settings.device)
            start.record()
            for _ in range(self.repeats):
                self.step()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1000 / self.repeats
        clock = CLOCKS[self.settings.clock]
        start = clock()
        for _ in range(self.repeats):
            self.step()
        return (clock() - start) / self.repeats

    def _result(self) -> Tensor:
        """All outputs in one row, and in training the length of the gradient of all weights."""
        parts = [out.detach().float().flatten() for out in self.call()]
        if self.training:
            lengths = [parameter.grad.float().norm() for parameter in self.module.parameters()
                       if parameter.grad is not None]
            parts.append(torch.stack(lengths).norm().unsqueeze(0))
            self._forget_gradients()
        return torch.cat(parts).cpu()

    def _check(self, first: Tensor, again: Tensor) -> None:
        name, dtype = self.contender.name, self.settings.dtype
        self.output_rms = first.square().mean().sqrt().item()
        if not first.isfinite().all():
            raise InputError(f'{name} gives values that are not finite in {dtype}; measure it with '
                             f'another --dtype')
        if self.output_rms == 0:
            raise InputError(f'{name} gives zeros only, so its time would mean nothing')
        if (difference := _difference(first, again)) > TOLERANCES[dtype]:
            raise InputError(f'{name} gives another output when called again (by '
                             f'{difference:.1e} of its largest value); measure it without dropout')

    def _capture(self) -> None:
        stream = torch.cuda.Stream(self.settings.device)
        stream.wait_stream(torch.cuda.current_stream(self.settings.device))
        with torch.cuda.stream(stream):  # what is allocated at first use must not be captured
            for _ in range(3):
                self.call()
        torch.cuda.current_stream(self.settings.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.call()

        def replay() -> list[Tensor]:
            graph.replay()
            return outputs

        self.replay = replay

    def _forget_gradients(self) -> None:
        for tensor in (*self.module.parameters(), *self.inputs):
            tensor.grad = None

    def _precision(self) -> contextlib.AbstractContextManager:
        if self.settings.dtype == 'float32':
            return contextlib.nullcontext()
        return torch.autocast(self.settings.device.type, DTYPES[self.settings.dtype])


def _compare_twins(runs: Sequence[_Run], tolerance: float) -> None:
    for one, other in combinations(runs, 2):
        if one.contender.twins is None or one.contender.twins != other.contender.twins:
            continue
        names = f'{one.contender.name} and {other.contender.name}'
        if one.output.shape != other.output.shape:
            raise InputError(f'{names} should give the same outputs, but one has '
                             f'{one.output.numel()} values and the other {other.output.numel()}')
        if (difference := _difference(one.output, other.output)) > tolerance:
            raise InputError(f'{names} should give the same outputs from the same weights, but '
                             f'differ by {difference:.1e} of the largest value ({tolerance:.0e} is '
                             f'allowed): one of them does not compute what it should')


def _difference(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / one.abs().max().clamp(min=1e-30)).item()


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    else:
        for part in output:
            yield from _tensors(part)
