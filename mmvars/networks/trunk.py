"""Trunk: embed -> blocks -> tokens, with the top-down signal as an argument."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from timm.layers import trunc_normal_
from torch import Tensor, nn

from mmvars.errors import InputError, check_flag
from mmvars.layers import TokenGrid
from mmvars.layers.signals import TopDownSignal
from mmvars.networks.recomputation import run_checkpointed

__all__ = ['Trunk', 'TrunkOutput']


class TrunkOutput(NamedTuple):
    """What one pass gives.

    Attributes:
        tokens: ``(B, N, C)`` after the final norm (un-normalised where the trunk has none).
        grid: Layout of the tokens.
        intermediates: ``(B, N, C)`` after each block of ``out_indices``; not normalised.
        grids: Layout of each of the intermediates.
    """

    tokens: Tensor
    grid: TokenGrid
    intermediates: tuple[Tensor, ...] = ()
    grids: tuple[TokenGrid, ...] = ()


class Trunk(nn.Module):
    """The loop over the blocks, common to all hosts.

    A host sets ``blocks`` and implements :meth:`embed` and :meth:`pool`; it may replace tokens, and
    change their grid, before a block in :meth:`before_block`.

    Args:
        norm: What follows the last block.
        grad_checkpointing: Recompute each block in the backward pass instead of keeping its
            activations.

    Attributes:
        blocks: The blocks, in order.
        embed_dim: Width of the last block.
        fc_norm: What follows the pooling, or stands for the final norm where there is none before.
        head: The classifier.
        mixer: Name of the token mixer, of :data:`mmvars.layers.MIXERS`.
        mixer_options: All its options.
    """

    blocks: Sequence[nn.Module]
    embed_dim: int
    fc_norm: nn.Module
    head: nn.Module
    mixer: str
    mixer_options: dict

    def __init__(self, norm: nn.Module, grad_checkpointing: bool) -> None:
        super().__init__()
        check_flag('grad_checkpointing (with_cp of a backbone)', grad_checkpointing)
        self.norm = norm
        self.grad_checkpointing = grad_checkpointing

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels after each block."""
        return (self.embed_dim, ) * self.depth

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between neighbouring tokens after each block."""
        return (self.patch_embed.patch_size, ) * self.depth

    @property
    def num_prefix(self) -> int:
        """Class and prompt tokens before the patches of the output."""
        return self.num_block_prefix

    @property
    def num_block_prefix(self) -> int:
        """Those of them that the blocks see."""
        return 0

    @property
    def num_pooled(self) -> int | None:
        """First tokens that :meth:`pool` reads, where it needs no others; ``None``: all."""
        return None

    def block_grids(self, grid: TokenGrid) -> tuple[TokenGrid, ...]:
        """Layout of the tokens in each block, for embedded tokens of ``grid``."""
        return (grid, ) * self.depth

    def block_modules(self, index: int) -> list[nn.Module]:
        """What runs for block ``index``: the block, and whatever only leads to it."""
        return [self.blocks[index]]

    def block_index(self, name: str) -> int | None:
        """The block that a parameter belongs to by its name; ``None`` for embedding and head."""
        parts = name.split('.')
        return int(parts[1]) if parts[0] == 'blocks' else None

    def init_linear_layers(self) -> None:
        """Truncated normal (std 0.02) weights and zero biases in every linear layer."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def embed(self, images: Tensor) -> tuple[Tensor, TokenGrid]:
        """Tokens ``(B, N, C)`` with positions, and their grid, of images ``(B, c, H, W)``."""
        raise NotImplementedError

    def pool(self, output: TrunkOutput) -> Tensor:
        """The image descriptor ``(B, C)`` that the classifier reads."""
        raise NotImplementedError

    def before_block(self, index: int, tokens: Tensor,
                     grid: TokenGrid) -> tuple[Tensor, TokenGrid]:
        """Hook of the host: tokens ``(B, N, C)`` and grid as block ``index`` should see them."""
        del index
        return tokens, grid

    def after_blocks(self, tokens: Tensor, grid: TokenGrid) -> tuple[Tensor, TokenGrid]:
        """From the last block to the output tokens, and their grid: the final norm."""
        return self.norm(tokens), grid

    def run(self, tokens: Tensor, grid: TokenGrid,
            top_down: Sequence[TopDownSignal | None] | None = None, out_indices: Sequence[int] = (),
            visit: Callable[[int, Tensor, Tensor], None] | None = None, first_block: int = 0,
            pooled_only: bool = False) -> TrunkOutput:
        """One pass through all blocks.

        Args:
            tokens: ``(B, N, C)`` from :meth:`embed`.
            grid: Their layout.
            top_down: One signal a block, see :data:`~mmvars.layers.signals.TopDownSignal`, or
                ``None``.
            out_indices: Blocks whose output is wanted, 0-based.
            visit: Called after each block with its number, its raw input and its raw output.
            first_block: Start at this block; ``tokens`` are its input.
            pooled_only: Let the last block give only the tokens that :meth:`pool` reads, where
                that is fewer than all.
        """
        intermediates, grids, blocks = [], [], self.blocks
        for index in range(first_block, self.depth):
            block = blocks[index]
            if index > first_block or not index:
                tokens, grid = self.before_block(index, tokens, grid)
            arguments = [tokens, grid, None if top_down is None else top_down[index]]
            if pooled_only and self.num_pooled is not None and index == self.depth - 1:
                arguments.append(self.num_pooled)
            if self.grad_checkpointing and self.training:
                output = run_checkpointed(block, *arguments)
            else:
                output = block(*arguments)
            if index in out_indices:
                intermediates.append(output)
                grids.append(grid)
            if visit is not None:
                visit(index, tokens, output)
            tokens = output
        tokens, grid = self.after_blocks(tokens, grid)
        return TrunkOutput(tokens, grid, tuple(intermediates), tuple(grids))

    def logits(self, output: TrunkOutput) -> Tensor:
        """Class scores ``(B, num_classes)`` of a pass.

        Raises:
            InputError: If the trunk was built without a classifier.
        """
        if isinstance(self.head, nn.Identity):
            raise InputError('num_classes is 0, so this network has no classifier; build it with '
                             'num_classes > 0')
        return self.head(self.pool(output))
