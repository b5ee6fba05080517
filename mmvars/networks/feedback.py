"""The way back: what becomes of the modulated output tokens before the second pass."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import check_choice
from mmvars.layers import TokenGrid
from mmvars.layers.kept import Kept, can_keep
from mmvars.layers.precision import widened
from mmvars.layers.signals import (AddedToAll, FoldedSignal, MaskedValue, TopDownSignal,
                                   exact_product)
from mmvars.layers.tracing import cut_to, surely
from mmvars.networks.chain_error import chain_error
from mmvars.networks.plain_path import is_plain_path

__all__ = ['INJECTIONS', 'Feedback', 'LayerDecoder', 'LowRankLinear', 'MaskFeedback']

_FEW = .8  # share of tokens up to which gathering them pays

INJECTIONS: dict[str, Callable[[Tensor], TopDownSignal]] = {
    'value': lambda tokens: tokens,
    'qkv': AddedToAll,
}
"""Where a decoded signal enters attention: the value (AbSViT), or all of it (AbSViT-QKV)."""


class LayerDecoder(nn.Module):
    """The decoder g of one layer (Figure 2.3): two bias-free linear maps.

    ``chain`` carries the signal to the layer below and is what the reconstruction loss trains;
    ``readout`` turns it into the layer's top-down input.

    Differs from the thesis, which writes one linear transform a layer; the released models have
    these two.

    Args:
        embed_dim: Channels C.
        rank: Rank of ``readout``, which then is two maps, C to rank to C. It loads the weights of
            a full one, cut to the largest ``rank`` singular values.
    """

    def __init__(self, embed_dim: int, rank: int | None = None) -> None:
        super().__init__()
        self.chain = nn.Linear(embed_dim, embed_dim, bias=False)
        self.readout = (nn.Linear(embed_dim, embed_dim, bias=False) if rank is None else
                        LowRankLinear(embed_dim, rank))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                trunc_normal_(layer.weight, std=.02)

    @property
    def readout_weights(self) -> tuple[Tensor, ...]:
        """The matrices of ``readout``, in the order in which tokens meet them."""
        if isinstance(self.readout, LowRankLinear):
            return self.readout.down.weight, self.readout.up.weight
        return (self.readout.weight, )


class LowRankLinear(nn.Module):
    """A bias-free linear map of C channels through a narrow middle.

    Args:
        embed_dim: Channels C.
        rank: Width of the middle.
    """

    def __init__(self, embed_dim: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(embed_dim, rank, bias=False)
        self.up = nn.Linear(rank, embed_dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``(B, N, C)`` to ``(B, N, C)``."""
        return self.up(self.down(tokens))

    def factors(self, full: Tensor) -> dict[str, Tensor]:
        """The two weights whose product is nearest to a full one ``(C, C)``, by name."""
        left, values, right = torch.linalg.svd(widened(full), full_matrices=False)
        rank, root = self.down.out_features, values.sqrt()
        return {'down.weight': (root[:rank, None] * right[:rank]).to(full.dtype),
                'up.weight': (left[:, :rank] * root[:rank]).to(full.dtype)}

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        full = state_dict.pop(f'{prefix}weight', None)
        if full is not None:
            state_dict |= {prefix + name: factor for name, factor in self.factors(full).items()}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class _Crossing(nn.Module):
    """From a stage of half the grid back to the one before it: the mirror of its pooling.

    A full 3x3 transposed convolution of stride 2. No code of AbS on RVT was released; of the simple
    choices only this one has the published size of 11 M parameters and 2.7 GFLOPs (Table 2.2).
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_dim, out_dim, 3, stride=2, padding=1, output_padding=1)

    def forward(self, tokens: Tensor, grid: TokenGrid, to_grid: TokenGrid) -> Tensor:
        maps = cut_to(self.conv(grid.to_map(tokens)), to_grid.height, to_grid.width)
        return maps.flatten(2).transpose(1, 2)


class Feedback(nn.Module):
    """A chain of decoders from the last block to the first.

    In eval mode without gradients, on the CPU, two matrices ``(C, C)`` a block are kept between
    forwards: the decoders multiplied together, without and with the value projection.

    Args:
        widths: Channels of each block.
        strides: Stride of each block; where it changes, a transposed convolution crosses over.
        injection: Where the signals enter, one of :data:`INJECTIONS`.
        rank: Rank of the readouts; ``None``: full.
        first_block: The lowest block that gets a signal; those below have no decoder.

    Raises:
        InputError: If ``injection`` is unknown.
    """

    second_pass = True

    def __init__(self, widths: Sequence[int], strides: Sequence[int], injection: str = 'value',
                 rank: int | None = None, first_block: int = 0) -> None:
        super().__init__()
        check_choice('injection', injection, INJECTIONS)
        self.injection = injection
        self.first_block = first_block
        self.decoders = nn.ModuleList(LayerDecoder(width, rank) for width in widths)
        # Crossing i leads from block i + 1 back to block i.
        self.crossings = nn.ModuleDict({
            str(i): _Crossing(widths[i + 1], widths[i]) for i in range(len(widths) - 1)
            if strides[i] != strides[i + 1]})
        self._kept = Kept()

    def forward(self, tokens: Tensor, mask: Tensor,
                grids: Sequence[TokenGrid]) -> tuple[TopDownSignal | None, ...]:
        """Decode the modulated output tokens ``(B, N, C)``.

        With ``s_L`` the argument: ``s_l = s_{l+1} A_l'`` and signal ``t_l = s_l B_l'``, where A is
        ``chain`` and B is ``readout``. The maps are linear, so ``t_l = s_L (B_l A_l ... A_{L-1})'``
        (one product a block instead of two, and of the same tokens) wherever multiplying the
        matrices costs less than it saves: where the product is kept, or there are many tokens.

        Args:
            tokens: Modulated output tokens, laid out as in the last block.
            mask: ``(B, N, 1)``, where the tokens are zero.
            grids: Layout of each block.

        Returns:
            L signals in the order of the blocks, each for tokens ``(B, N, C)`` of its block.
        """
        keep = can_keep(tokens) and not is_plain_path()
        # A chain costs 2 B N C^2 more a block, folding 3 C^3.
        many = not surely(2 * tokens.shape[0] * tokens.shape[1] <= 3 * tokens.shape[2])
        if is_plain_path() or not (keep or many):
            return self._chained(tokens, grids)
        if keep:
            weights = [weight for decoder in self.decoders[self.first_block:]
                       for weight in (decoder.chain.weight, *decoder.readout_weights)]
            folded = self._kept.get(weights, lambda: self._fold(exact_product))
        else:
            folded = self._fold(torch.matmul)
        rows = _nonzero_rows(mask) if keep and tokens.device.type == 'cpu' else None
        base = tokens if rows is None else tokens.flatten(0, 1)[rows]
        signals: list[TopDownSignal | None] = [None] * len(self.decoders)
        for index in reversed(range(self.first_block, len(self.decoders))):
            if str(index) in self.crossings:
                base = F.linear(tokens, folded[index + 1][0])
                base = tokens = self.crossings[str(index)](base, grids[index + 1], grids[index])
                rows = None
            signal = FoldedSignal(base, folded[index][1], rows, tokens.shape[:2],
                                  partial(self._kept.derive, index) if keep else None)
            signals[index] = (signal if self.injection == 'value' else
                              INJECTIONS[self.injection](signal.decode()))
        return tuple(signals)

    def train(self, mode: bool = True) -> 'Feedback':
        self._kept = Kept()  # as much memory as the decoders, of no use in training
        return super().train(mode)

    def _apply(self, fn: Callable, recurse: bool = True) -> 'Feedback':
        self._kept = Kept()  # nor on another device
        return super()._apply(fn, recurse)

    def reconstruction_error(self, index: int, block_input: Tensor, block_output: Tensor) -> Tensor:
        """Layer-wise reconstruction loss (Eq. 2.13, first term) of one block: a number.

        ``R_l = mean((sg(z_out) A_l' - sg(z_in))^2)`` over all elements, with sg the stop-gradient:
        it trains the chain of its own layer and nothing else.

        Differs from the thesis (half the sum of squares): the mean, as in the released models.

        Args:
            index: Number of the block.
            block_input: ``(B, N, C)``, before any norm.
            block_output: ``(B, N, C)``, before any final norm.
        """
        return chain_error(self.decoders[index].chain.weight, block_output.detach(),
                           block_input.detach())

    def _chained(self, tokens: Tensor,
                 grids: Sequence[TokenGrid]) -> tuple[TopDownSignal | None, ...]:
        signals: list[TopDownSignal | None] = [None] * len(self.decoders)
        for index in reversed(range(self.first_block, len(self.decoders))):
            if str(index) in self.crossings:
                crossing = self.crossings[str(index)]
                tokens = crossing(tokens, grids[index + 1], grids[index])
            tokens = self.decoders[index].chain(tokens)
            signals[index] = INJECTIONS[self.injection](self.decoders[index].readout(tokens))
        return tuple(signals)

    def _fold(self, product: Callable[[Tensor, Tensor], Tensor]
              ) -> list[tuple[Tensor, tuple[Tensor, ...]] | None]:
        """For each block: the chain to it since the last crossing, and the signal's factors."""
        folded: list = [None] * len(self.decoders)
        chain = None
        for index in reversed(range(self.first_block, len(self.decoders))):
            decoder = self.decoders[index]
            if chain is None or str(index) in self.crossings:
                chain = decoder.chain.weight
            else:
                chain = product(decoder.chain.weight, chain)
            first, *others = decoder.readout_weights
            folded[index] = chain, (product(first, chain), *others)
        return folded


def _nonzero_rows(mask: Tensor) -> Tensor | None:
    """Places in ``B N`` where the mask is not zero, if they are few enough to pay; NaN counts."""
    wanted = (mask != 0).flatten()
    if wanted.sum() > _FEW * len(wanted):
        return None
    return wanted.nonzero().squeeze(1)


class MaskFeedback(nn.Module):
    """MaskAtt of Table 2.3: the mask itself goes back, and multiplies the values of every block.

    On a grid that is finer than the last block's the mask is interpolated (bilinear).
    """

    second_pass = True

    def forward(self, tokens: Tensor, mask: Tensor,
                grids: Sequence[TokenGrid]) -> tuple[TopDownSignal, ...]:
        """The mask ``(B, N, 1)`` of the last block as it is for each block."""
        del tokens
        return tuple(MaskedValue(_at_grid(mask, grids[-1], grid)) for grid in grids)


def _at_grid(mask: Tensor, grid: TokenGrid, to_grid: TokenGrid) -> Tensor:
    if grid == to_grid:
        return mask
    maps = F.interpolate(grid.to_map(mask), size=(to_grid.height, to_grid.width), mode='bilinear',
                         align_corners=False)
    return torch.cat([mask[:, :grid.num_prefix], maps.flatten(2).transpose(1, 2)], dim=1)
