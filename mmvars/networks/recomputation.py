"""Gradient checkpointing that leaves batch statistics alone."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = ['run_checkpointed']


def run_checkpointed(block: nn.Module, *inputs: Tensor | tuple | None) -> Tensor:
    """``block(*inputs)``, recomputed in the backward pass instead of kept.

    Non-reentrant, so that frozen inputs and DDP work. A block's batch norms see every batch twice
    like this; they must count it once, or their running statistics would follow the last batches
    about twice as fast as without checkpointing.
    """
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:  # the plain call is what torch.compile knows
        return checkpoint(block, *inputs, use_reentrant=False)
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=_counting_once(norms))


def _counting_once(norms: list[_BatchNorm]) -> Callable[[], tuple[AbstractContextManager, ...]]:
    return lambda: (nullcontext(), _kept_statistics(norms))


@contextmanager
def _kept_statistics(norms: list[_BatchNorm]) -> Iterator[None]:
    """Batch norms normalise by the batch within, but do not take it into their statistics.

    With momentum 0 the same kernels run and save the same tensors, as checkpointing needs.
    """
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
