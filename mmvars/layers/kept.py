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

    def get(self, sources: Sequence[Tensor], make: Callable[[], Any], *others: Any) -> Any:
        """The result of ``make()``, kept if possible.

        Args:
            sources: Tensors that the result depends on.
            make: Makes it.
            others: What else it depends on; compared by identity.
        """
        state = tuple(_contents(source, self._exact) for source in sources)
        kept = self._state
        if (kept is None or len(kept[0]) != len(state) or len(kept[1]) != len(others)
                or any(a is not b for a, b in zip(kept[1], others, strict=True))
                or not all(map(_same, kept[0], state))):
            if self._exact:  # what was compared until now were the sources themselves
                state = tuple((*of, None if now is None else now.clone()) for *of, now in state)
            self._value, self._state = make(), (state, others)
        return self._value

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
