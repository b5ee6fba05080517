"""Results that follow from weights, kept between forwards and never stale."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ['Kept', 'can_keep']

_WORDS = 64  # of 8 bytes, in one partial sum


def can_keep(tensor: Tensor) -> bool:
    """Whether results may be kept between calls that get such inputs.

    Only without gradients, outside of tracing, and where looking at the contents of a weight costs
    no synchronisation: on the CPU (and on the meta device, which has no contents).
    """
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not tracing and not torch.is_grad_enabled() and tensor.device.type in ('cpu', 'meta')


class Kept:
    """One result, kept as long as the tensors it was made from hold the same numbers.

    Neither a tensor's address nor its version counter tells that: ``parameter.data.copy_()``, by
    which mmengine swaps in averaged weights, changes neither. So the contents are compared, by
    sums of their 64-bit words over pieces of 512 bytes: a pass through memory, and blind only to a
    change that leaves all these sums alike, such as a reordering within a piece.

    A copy of the module that owns it, or a pickle, starts with nothing kept.

    Args:
        exact: Compare with copies of the sources instead, blind to nothing. For small sources, or
            such as stay the same tensors in another order.
    """

    def __init__(self, exact: bool = False) -> None:
        self._exact = exact
        self._state: tuple | None = None
        self._value: Any = None
        self._derived: dict[Any, tuple[Tensor, tuple, Any]] = {}

    def get(self, sources: Sequence[Tensor], make: Callable[[], Any]) -> Any:
        """The result of ``make()``, kept if possible.

        Args:
            sources: Tensors that the result depends on.
            make: Makes it.
        """
        state = tuple(_contents(source, self._exact) for source in sources)
        kept = self._state
        if kept is None or len(kept) != len(state) or not all(map(_same, kept, state)):
            self._derived.clear()
            self._value, self._state = make(), tuple(map(self._recorded, state))
        for name, (source, contents, _) in list(self._derived.items()):
            if not _same(contents, _contents(source, self._exact)):
                del self._derived[name]
        return self._value

    def derive(self, name: Any, source: Tensor, make: Callable[[], Any]) -> Any:
        """A further result, of what :meth:`get` gave and one more tensor.

        Whether that tensor still holds the same numbers, the next :meth:`get` looks along with its
        own sources: all of them in one go, since to look at one weight between two large products
        takes five times as long. So both are called in each forward, this one after it.

        Args:
            name: Of the result.
            source: The tensor.
            make: Makes it.
        """
        kept = self._derived.get(name)
        if kept is None or not _same_memory(kept[0], source):
            contents = self._recorded(_contents(source, self._exact))
            kept = self._derived[name] = source.detach(), contents, make()
        return kept[2]

    def _recorded(self, contents: tuple) -> tuple:
        if not self._exact:
            return contents
        *described, now = contents  # what was compared until now was the source itself
        return *described, None if now is None else now.clone()

    def __deepcopy__(self, memo: dict) -> 'Kept':
        return Kept(self._exact)

    def __reduce__(self) -> tuple:
        return Kept, (self._exact, )


def _contents(tensor: Tensor, exact: bool) -> tuple:
    tensor = tensor.detach()
    described = tensor.shape, tensor.dtype, tensor.device
    if tensor.device.type == 'meta':
        return *described, None
    flat = tensor.reshape(-1)
    if flat.numel() * flat.element_size() % 8 or flat.storage_offset() * flat.element_size() % 8:
        return *described, flat if exact else flat.clone()
    words = flat.view(torch.int64)
    if exact:
        return *described, words
    return *described, words.view(-1, math.gcd(len(words), _WORDS)).sum(dim=1)


def _same(a: tuple, b: tuple) -> bool:
    return a[:3] == b[:3] and (a[3] is None or torch.equal(a[3], b[3]))


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return (a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
            and a.dtype == b.dtype and a.device == b.device)
