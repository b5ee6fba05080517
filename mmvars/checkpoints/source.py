"""One tensor of a file, and whether it can be used at all."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ['Source', 'as_float32', 'tensor_fault']


class Source(NamedTuple):
    """A tensor of a file.

    Attributes:
        key: Its key there.
        value: What stands under it, in the form that the network has.
        shape: Its shape in the file; ``None`` where it is no tensor.
    """

    key: str
    value: Any
    shape: tuple[int, ...] | None


def tensor_fault(value: Any, target: Tensor | None = None) -> str:
    """Why ``value`` cannot be the contents of ``target`` (of any tensor if ``None``), or ``''``.

    Shapes are not compared.
    """
    if not isinstance(value, Tensor):
        return f'a {type(value).__name__}, not a tensor'
    if value.is_quantized or value.layout != torch.strided or value.is_meta:
        return f'not a plain dense tensor ({value.dtype}, {value.layout}, {value.device})'
    if target is not None and value.is_floating_point() != target.is_floating_point():
        return f'{value.dtype} where {target.dtype} belongs'
    if value.is_floating_point() and value.numel():
        value = value.float()  # what it will be; a float64 may overflow
        # The extremes are NaN if any value is, and need no temporary of the tensor's size.
        if not all(extreme.isfinite() for extreme in value.aminmax()):
            return (f'{int(value.isnan().sum())} NaN and {int(value.isinf().sum())} infinite of '
                    f'{value.numel()} values')
    return ''


def as_float32(value: Tensor, notes: list[str]) -> Tensor:
    """A floating tensor in float32, with a note where it was not; others as they are."""
    if not value.is_floating_point() or value.dtype == torch.float32:
        return value
    notes.append(f'{value.dtype} -> float32'.replace('torch.', ''))
    return value.float()
