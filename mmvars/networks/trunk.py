"""Trunk: a bottom-up network whose blocks take one optional top-down input each."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from typing_extensions import Self

from mmvars.errors import InputError, check_flag
from mmvars.layers import PatchEmbed, TokenGrid, fuse, unfuse
from mmvars.networks.old_keys import rename_entries

__all__ = ['Trunk', 'TrunkOutput', 'checkpointed']


class TrunkOutput(NamedTuple):
    """The output of one pass.

    Attributes:
        tokens: ``(B, N, C)`` after the final norm (un-normalized where the trunk has none).
        grid: Layout of the tokens.
        intermediates: ``(B, N, C)`` after each block of ``out_indices``; not normalized.
        grids: Layout of each of the intermediates.
        block_io: Input and output of each block, where requested.
    """

    tokens: Tensor
    grid: TokenGrid
    intermediates: tuple[Tensor, ...] = ()
    grids: tuple[TokenGrid, ...] = ()
    block_io: tuple[tuple[Tensor, Tensor], ...] = ()

    def repeat(self, times: int) -> 'TrunkOutput':
        """Each image ``times`` times, one after the other, without ``block_io``."""
        return TrunkOutput(
            self.tokens.repeat_interleave(times, dim=0),
            self.grid,
            tuple(each.repeat_interleave(times, dim=0) for each in self.intermediates),
            self.grids,
        )


class Trunk(nn.Module):
    """The loop over the blocks, common to all trunks.

    A trunk sets ``patch_embed``, ``blocks``, ``fc_norm`` and ``head`` and implements
    :meth:`forward_embed` and :meth:`pool`. It may change tokens and grid before a block in
    :meth:`pre_block`.

    Args:
        norm: The final norm.
        grad_checkpointing: Recompute each block in the backward pass instead of storing its
            activations.

    Attributes:
        name: What it was built by, such as ``'vit_tiny'``, for messages; empty if by no name.
        has_gated_feedback: Whether feedback starts switched off, see
            :class:`~mmvars.networks.Feedback`.
        embed_dim: Width of the last block.
        fc_norm: Norm after the pooling.
        head: The classifier.
        num_prefix: Class and prompt tokens before the patches of the output.
        num_block_prefix: Class and prompt tokens before the patches inside the blocks.
        num_pooled: First tokens that :meth:`pool` reads, where it reads no others; ``None``: all.
        mixer: Name of the token mixer, of :data:`mmvars.layers.MIXERS`; empty for a trunk without
            a choice of mixers.
        mixer_cfg: All its options.
        top_down_tokens: Called with the tokens that enter the last block, only in a pass with
            top-down inputs: where class activation maps find the pass that predicts. All other
            layers run in every pass, and their tools keep the first.
    """

    blocks: Any  # a ModuleList, or a list of the blocks of several stages
    patch_embed: PatchEmbed
    embed_dim: int
    fc_norm: nn.Module
    head: nn.Module
    name = ''
    has_gated_feedback = False
    num_prefix = 0
    num_block_prefix = 0
    num_pooled: int | None = None
    mixer = ''
    mixer_cfg: dict[str, Any]

    def __init__(self, norm: nn.Module, grad_checkpointing: bool) -> None:
        super().__init__()
        check_flag('grad_checkpointing (with_cp of a backbone)', grad_checkpointing)
        self.mixer_cfg = {}
        self.norm = norm
        self.top_down_tokens = nn.Identity()
        self.grad_checkpointing = grad_checkpointing

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels after each block."""
        return (self.embed_dim,) * self.depth

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.patch_embed.in_chans

    @property
    def has_class_token(self) -> bool:
        """Whether the first output token is a class token."""
        return self.num_prefix > 0

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between neighboring tokens after each block."""
        return (self.patch_embed.patch_size,) * self.depth

    def forward(
        self, images: Tensor, out_indices: Sequence[int] = (), pooled_only: bool = False
    ) -> TrunkOutput:
        """One bottom-up pass.

        Args:
            images: ``(B, in_chans, H, W)``.
            out_indices, pooled_only: See :meth:`forward_blocks`.
        """
        tokens, grid = self.forward_embed(images)
        return self.forward_blocks(tokens, grid, None, out_indices, pooled_only=pooled_only)

    def forward_embed(self, images: Tensor) -> tuple[Tensor, TokenGrid]:
        """Tokens ``(B, N, C)`` with positions, and their grid, of images ``(B, c, H, W)``."""
        raise NotImplementedError

    def forward_blocks(
        self,
        tokens: Tensor,
        grid: TokenGrid,
        top_down: Sequence[Tensor] | None = None,
        out_indices: Sequence[int] = (),
        keep_block_io: bool = False,
        pooled_only: bool = False,
    ) -> TrunkOutput:
        """One pass through all blocks.

        Args:
            tokens: ``(B, N, C)`` from :meth:`forward_embed`.
            grid: Their layout.
            top_down: One tensor a block, ``(B, N, C)`` of that block, or ``None``.
            out_indices: Blocks whose output is returned, 0-based.
            keep_block_io: Whether to return the input and output of every block.
            pooled_only: Let the last block compute only the tokens that :meth:`pool` reads, where
                these are fewer than all.
        """
        intermediates, grids, block_io = [], [], []
        blocks = self.blocks
        for index, block in enumerate(blocks):
            block_input, grid = self.pre_block(index, tokens, grid)
            signal = None if top_down is None else top_down[index]
            last = index == len(blocks) - 1
            if last and signal is not None:
                block_input = self.top_down_tokens(block_input)
            num_queries = self.num_pooled if pooled_only and last else None
            if self.grad_checkpointing and self.training:
                tokens = checkpointed(block, block_input, grid, signal, num_queries)
            else:
                tokens = block(block_input, grid, signal, num_queries)
            if index in out_indices:
                intermediates.append(tokens)
                grids.append(grid)
            if keep_block_io:
                block_io.append((block_input, tokens))
        if len(intermediates) != len(out_indices):
            raise InputError(
                f'out_indices must be different block numbers from 0 to '
                f'{len(blocks) - 1}, got {tuple(out_indices)}'
            )
        tokens, grid = self.forward_norm(tokens, grid)
        return TrunkOutput(tokens, grid, tuple(intermediates), tuple(grids), tuple(block_io))

    def pre_block(self, index: int, tokens: Tensor, grid: TokenGrid) -> tuple[Tensor, TokenGrid]:
        """Tokens ``(B, N, C)`` and grid as block ``index`` takes them."""
        return tokens, grid

    def forward_norm(self, tokens: Tensor, grid: TokenGrid) -> tuple[Tensor, TokenGrid]:
        """From the last block to the output tokens, and their grid."""
        return self.norm(tokens), grid

    def pool(self, output: TrunkOutput) -> Tensor:
        """The image descriptor ``(B, C)`` that the classifier reads."""
        raise NotImplementedError

    def forward_head(self, output: TrunkOutput) -> Tensor:
        """Class scores ``(B, num_classes)`` of a pass.

        Raises:
            InputError: If the trunk has no classifier.
        """
        if isinstance(self.head, nn.Identity):
            raise InputError(
                'num_classes is 0, so this network has no classifier; build it with num_classes > 0'
            )
        return self.head(self.pool(output))

    def block_grids(self, grid: TokenGrid) -> tuple[TokenGrid, ...]:
        """Layout of the tokens in each block, for embedded tokens of ``grid``."""
        return (grid,) * len(self.blocks)

    def stage_modules(self, index: int) -> list[nn.Module]:
        """The modules that run for block ``index``: the block, and what leads to it alone."""
        return [self.blocks[index]]

    def embed_modules(self) -> list[Any]:
        """Modules and parameters before the first block."""
        parts = [getattr(self, name, None) for name in ('patch_embed', 'cls_token', 'pos_embed')]
        return [part for part in parts if part is not None]

    def pool_modules(self) -> list[Any]:
        """Modules that only :meth:`pool` uses, besides ``fc_norm``."""
        return []

    def layer_id(self, name: str) -> int | None:
        """The block that a parameter belongs to by its name; ``None`` for embedding and head."""
        parts = name.split('.')
        return int(parts[1]) if parts[0] == 'blocks' else None

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, beside all one-dimensional ones."""
        return set()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        rename_entries(state_dict, prefix, plain=True)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def init_linear_layers(self) -> None:
        """Truncated normal (std 0.02) weights and zero biases in every linear layer."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def fuse(self) -> Self:
        """Multiply weights out for inference, see :class:`mmvars.layers.Fusible`."""
        fuse(self)
        return self

    def unfuse(self) -> Self:
        """Undo :meth:`fuse`."""
        unfuse(self)
        return self


def checkpointed(block: nn.Module, *inputs: Any) -> Tensor:
    """``block(*inputs)``, recomputed in the backward pass instead of stored.

    Non-reentrant, so that frozen inputs and DDP work. A block's batch norms see every batch twice
    and must count it once, or their running statistics would follow the last batches about twice as
    fast as without checkpointing.
    """
    norms = [
        module
        for module in block.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    if not norms:  # torch.compile supports the plain call only
        return checkpoint(block, *inputs, use_reentrant=False)
    return checkpoint(
        block,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _frozen_statistics(norms)),
    )


@contextmanager
def _frozen_statistics(norms: list[_BatchNorm]) -> Iterator[None]:
    """Batch norms normalize by the batch, and do not count it in their statistics.

    With momentum 0 the same kernels run and save the same tensors, as checkpointing needs.
    """
    before = [
        (norm, norm.momentum, count, count.clone())
        for norm in norms
        if (count := norm.num_batches_tracked) is not None
    ]
    for norm, *_ in before:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count, count_before in before:
            norm.momentum = momentum
            count.copy_(count_before)
