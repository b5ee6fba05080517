"""Memory of one call: its peak, and what training keeps for the backward pass."""

import ctypes
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

__all__ = ['memory_source', 'peak_memory', 'saved_for_backward']

_STATUS = Path('/proc/self/status')
_RESET = Path('/proc/self/clear_refs')


def memory_source(device: torch.device) -> str | None:
    """How :func:`peak_memory` measures on this device; ``None`` where it cannot."""
    if device.type == 'cuda':
        return 'peak of the CUDA allocator over what was allocated before the call'
    try:
        _RESET.write_text('5')
        return ('high-water mark of the resident set over the resident set before the call '
                '(Linux, reset before each call)') if _resident('VmHWM') else None
    except OSError:
        return None


def peak_memory(call: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that ``call()`` needs at most beside what was there before it, its result included.

    Call it once before: what is allocated for good the first time does not count.

    Returns:
        ``None`` where the system does not tell, see :func:`memory_source`.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if memory_source(device) is None:
        return None
    _give_back_freed()
    _RESET.write_text('5')  # the high-water mark starts again from the present resident set
    before = _resident('VmRSS')
    call()
    return _resident('VmHWM') - before


def saved_for_backward(call: Callable[[], Any], parameters: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps from the forward for the backward pass of ``call()``.

    Tensors that share their memory count once, weights not at all: they are there anyway. What a
    checkpointed part computes again in the backward pass is not kept, and does not count.

    Args:
        call: Runs both passes.
        parameters: The weights.
    """
    known = {_storage(parameter) for parameter in parameters}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        key, detached = _storage(tensor), tensor.detach()  # an output would keep its own graph
        if key not in known:
            kept[key] = detached  # held, so that its address is not given to another
        return detached

    with saved_tensors_hooks(note, lambda tensor: tensor):
        call()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _resident(entry: str) -> int:
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(':')
        if name == entry:
            return int(value.split()[0]) * 1024
    return 0


def _give_back_freed() -> None:
    """Return freed memory to the system: reused pages would not show in the resident set."""
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # glibc only
    if trim is not None:
        trim(0)
