"""Results that follow from weights, kept between forwards and never stale."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmvars.layers.tracing import is_transformed

__all__ = ['Kept', 'can_keep']

_WORDS = 63  # of 8 bytes, in one partial sum; odd, or it misses that all signs change


def can_keep(tensor: Tensor) -> bool:
    """Whether results may be kept between calls that get such inputs.

    Only without gradients, outside of tracing and of transforms by ``torch.func``, and where
    looking at the contents of a weight costs no synchronisation: on the CPU (and on the meta
    device, which has no contents).
    """
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed()
    return not tracing and not torch.is_grad_enabled() and tensor.device.type in ('cpu', 'meta')


class Kept:
    """One result, kept as long as the tensors it was made from hold the same numbers.

    Neither a tensor's address nor its version counter tells that: ``parameter.data.copy_()``, by
    which mmengine swaps in averaged weights, changes neither. So the contents are compared too, by
    sums of their 64-bit words over pieces of 504 bytes: a pass through memory, and blind only to a
    change through ``.data`` that leaves all these sums alike, such as a reordering within a piece.

    Threads may share one, as long as none changes the weights.

    A copy of the module that owns it, or a pickle, starts with nothing kept.

    Args:
        exact: Compare with copies of the sources instead, blind to nothing. For small sources, or
            such as stay the same tensors in another order.
    """

    def __init__(self, exact: bool = False) -> None:
        self._exact = exact
        self._kept: tuple[tuple, Any] | None = None
        self._derived: dict[Any, tuple[Tensor, tuple, Any]] = {}

    def get(self, sources: Sequence[Tensor], make: Callable[[], Any]) -> Any:
        """The result of ``make()``, kept if possible.

        Args:
            sources: Tensors that the result depends on.
            make: Makes it.
        """
        state = tuple(_contents(source, self._exact) for source in sources)
        kept = self._kept  # one read and one write: another thread may be at the same place
        if kept is None or len(kept[0]) != len(state) or not all(map(_same, kept[0], state)):
            self._derived.clear()
            kept = self._kept = tuple(map(self._recorded, state)), make()
        for name, (source, contents, _) in list(self._derived.items()):
            if not _same(contents, _contents(source, self._exact)):
                self._derived.pop(name, None)
        return kept[1]

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
    version = None if exact or tensor.is_inference() else tensor._version
    tensor = tensor.detach()
    described = tensor.shape, tensor.dtype, tensor.device, version
    if tensor.device.type == 'meta':
        return *described, None
    flat = tensor.reshape(-1)
    if flat.numel() * flat.element_size() % 8 or flat.storage_offset() * flat.element_size() % 8:
        return *described, flat if exact else flat.clone()
    words = flat.view(torch.int64)
    if exact:
        return *described, words
    whole = len(words) // _WORDS * _WORDS
    return *described, torch.cat([words[:whole].view(-1, _WORDS).sum(dim=1), words[whole:]])


def _same(a: tuple, b: tuple) -> bool:
    return a[:-1] == b[:-1] and (a[-1] is None or torch.equal(a[-1], b[-1]))


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return (a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
            and a.dtype == b.dtype and a.device == b.device)
