"""Trunk: embed -> blocks -> tokens, with the top-down signal as an argument."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmvars.errors import InputError
from mmvars.layers import TokenGrid

__all__ = ['BlockTrace', 'Trunk', 'TrunkOutput']


class BlockTrace(NamedTuple):
    """Raw input and output ``(B, N, C)`` of one block, before any final norm."""

    input: Tensor
    output: Tensor


class TrunkOutput(NamedTuple):
    """What one pass gives.

    Attributes:
        tokens: ``(B, N, C)`` after the final norm (un-normalised where the trunk has none).
        grid: Layout of the tokens.
        intermediates: ``(B, N, C)`` after each block of ``out_indices``; not normalised.
        traces: One :class:`BlockTrace` a block where asked for, else empty.
    """

    tokens: Tensor
    grid: TokenGrid
    intermediates: tuple[Tensor, ...] = ()
    traces: tuple[BlockTrace, ...] = ()


class Trunk(nn.Module):
    """The loop over the blocks, common to all hosts.

    A host fills ``blocks`` and ``norm`` and implements :meth:`embed` and :meth:`pool`; it may
    replace tokens before a block in :meth:`before_block`.

    Args:
        blocks: The blocks, in order.
        norm: What follows the last block.
        grad_checkpointing: Recompute each block in the backward pass instead of keeping its
            activations (non-reentrant, so that frozen inputs and DDP work).
    """

    embed_dim: int
    head: nn.Module

    def __init__(self, blocks: nn.ModuleList, norm: nn.Module, grad_checkpointing: bool) -> None:
        super().__init__()
        self.blocks = blocks
        self.norm = norm
        self.grad_checkpointing = grad_checkpointing

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def embed(self, images: Tensor) -> tuple[Tensor, TokenGrid]:
        """Tokens ``(B, N, C)`` with positions, and their grid, of images ``(B, c, H, W)``."""
        raise NotImplementedError

    def pool(self, output: TrunkOutput) -> Tensor:
        """The image descriptor ``(B, C)`` that the classifier reads."""
        raise NotImplementedError

    def before_block(self, index: int, tokens: Tensor) -> Tensor:
        """Hook of the host: tokens ``(B, N, C)`` as block ``index`` should see them."""
        del index
        return tokens

    def run(self, tokens: Tensor, grid: TokenGrid, top_down: Sequence[Tensor] | None = None,
            out_indices: Sequence[int] = (), trace: bool = False) -> TrunkOutput:
        """One pass through all blocks.

        Args:
            tokens: ``(B, N, C)`` from :meth:`embed`.
            grid: Their layout.
            top_down: One signal ``(B, N, C)`` a block, or ``None``.
            out_indices: Blocks whose output is wanted, 0-based.
            trace: Keep every block's input and output (for the reconstruction loss).
        """
        intermediates, traces = [], []
        for index, block in enumerate(self.blocks):
            block_input = self.before_block(index, tokens)
            signal = None if top_down is None else top_down[index]
            if self.grad_checkpointing and self.training:
                tokens = checkpoint(block, block_input, grid, signal, use_reentrant=False)
            else:
                tokens = block(block_input, grid, signal)
            if index in out_indices:
                intermediates.append(tokens)
            if trace:
                traces.append(BlockTrace(block_input, tokens))
        return TrunkOutput(self.norm(tokens), grid, tuple(intermediates), tuple(traces))

    def logits(self, output: TrunkOutput) -> Tensor:
        """Class scores ``(B, num_classes)`` of a pass.

        Raises:
            InputError: If the trunk was built without a classifier.
        """
        if isinstance(self.head, nn.Identity):
            raise InputError('num_classes is 0, so this network has no classifier; build it with '
                             'num_classes > 0')
        return self.head(self.pool(output))
