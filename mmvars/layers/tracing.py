"""One traced graph for all sizes: what may be asked of a size without binding the graph to it.

A Python ``if`` on a symbolic size guards the graph: ``torch.compile`` traces again where the answer
changes, ``torch.export`` refuses. Where both branches give the same numbers, a traced forward takes
the one that is right for every size, unless the size is known.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

__all__ = ['can_look', 'cut_to', 'is_transformed', 'same_grid', 'surely']


def can_look(tensor: torch.Tensor) -> bool:
    """Whether Python may read numbers of it: not while tracing or recording a CUDA graph."""
    recording = tensor.is_cuda and torch.cuda.is_current_stream_capturing()
    return not (torch.compiler.is_compiling() or recording)


def is_transformed() -> bool:
    """Whether ``vmap``, ``grad`` or the like of ``torch.func`` is at work: eager, but not plain.

    Numbers of a tensor may then stand for those of a whole batch of networks or images.
    """
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def surely(condition: bool | torch.SymBool) -> bool:
    """Whether ``condition`` holds for every size that a traced graph is for; plain truth in eager.

    ``False`` therefore means "no" in eager and "not known, or no" under ``torch.compile`` and
    ``torch.export``. Never adds a guard.
    """
    if not torch.compiler.is_compiling():
        return bool(condition)
    # Here, since this module of torch takes longer to import than mmvars does.
    from torch.fx.experimental.symbolic_shapes import statically_known_true
    return statically_known_true(condition)


def same_grid(grid: Sequence[int], other: Sequence[int]) -> bool:
    """Whether the first two numbers, height and width, :func:`surely` are the same."""
    return surely(grid[0] == other[0]) and surely(grid[1] == other[1])


def cut_to(maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """``maps (..., H, W)`` without their last rows and columns, ``(..., height, width)``.

    Whether anything is cut off decides how the result lies in memory, which guards a graph: while
    tracing there is always something to cut off, unless it is known that there is nothing.
    """
    if surely(maps.shape[-2] == height) and surely(maps.shape[-1] == width):
        return maps
    if torch.compiler.is_compiling():
        maps = F.pad(maps, (0, 1, 0, 1))
    return maps[..., :height, :width]
