"""What a forward may ask about sizes and values under ``torch.compile`` and ``torch.export``.

A Python ``if`` on a symbolic size specializes the graph: ``torch.compile`` traces again where the
answer changes, ``torch.export`` refuses. Where both branches compute the same numbers, a traced
forward takes the branch that is right for every size, unless the size is known.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ['can_read_values', 'crop_to', 'is_exporting', 'same_grid', 'statically_true']


def is_exporting() -> bool:
    """Whether a graph is being made for another runtime (``torch.export`` or ONNX)."""
    exporting = getattr(torch.compiler, 'is_exporting', lambda: False)  # new in torch 2.7
    return exporting() or torch.onnx.is_in_onnx_export()


def can_read_values(tensor: Tensor) -> bool:
    """Whether Python may read values of a tensor: not while tracing or capturing a CUDA graph."""
    capturing = tensor.is_cuda and torch.cuda.is_current_stream_capturing()
    return not (torch.compiler.is_compiling() or capturing)


def statically_true(condition: bool | torch.SymBool) -> bool:
    """Whether ``condition`` holds for all sizes that the traced graph is for; plain truth in eager.

    ``False`` means "no" in eager mode, and "no, or unknown" while tracing. Adds no guard.
    """
    if not torch.compiler.is_compiling() or not hasattr(torch.compiler, 'is_exporting'):
        # Before torch 2.7 dynamo can trace neither the function below nor bool(): as a plain
        # condition this adds a guard there, so that some sizes have graphs of their own.
        return condition  # type: ignore[return-value]
    # Imported here: this module of torch takes longer to import than mmvars does.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


def same_grid(grid: Sequence[int], other: Sequence[int]) -> bool:
    """Whether height and width, the first two numbers, are :func:`statically_true` the same."""
    return statically_true(grid[0] == other[0]) and statically_true(grid[1] == other[1])


def crop_to(maps: Tensor, height: int, width: int) -> Tensor:
    """``maps (..., H, W)`` without their last rows and columns: ``(..., height, width)``.

    Whether anything is cropped changes the strides of the result, which would add a guard: while
    tracing there is always something to crop, unless the sizes are known to be equal.
    """
    if statically_true(maps.shape[-2] == height) and statically_true(maps.shape[-1] == width):
        return maps
    if torch.compiler.is_compiling():
        maps = F.pad(maps, (0, 1, 0, 1))
    return maps[..., :height, :width]
