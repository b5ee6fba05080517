"""The way back: what becomes of the modulated output tokens before the second pass."""

from collections.abc import Callable, Sequence

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import check_choice
from mmvars.layers import TokenGrid
from mmvars.layers.projections import AddedToAll, MaskedValue, TopDownSignal
from mmvars.networks.trunk import BlockTrace

__all__ = ['INJECTIONS', 'Feedback', 'LayerDecoder', 'MaskFeedback']

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
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.chain = nn.Linear(embed_dim, embed_dim, bias=False)
        self.readout = nn.Linear(embed_dim, embed_dim, bias=False)
        trunc_normal_(self.chain.weight, std=.02)
        trunc_normal_(self.readout.weight, std=.02)


class _Crossing(nn.Module):
    """From a stage of half the grid back to the one before it: the mirror of its pooling.

    A full 3x3 transposed convolution of stride 2. No code of AbS on RVT was released; of the simple
    choices only this one has the published size of 11 M parameters and 2.7 GFLOPs (Table 2.2).
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_dim, out_dim, 3, stride=2, padding=1, output_padding=1)

    def forward(self, tokens: Tensor, grid: TokenGrid, to_grid: TokenGrid) -> Tensor:
        maps = self.conv(grid.to_map(tokens))[..., :to_grid.height, :to_grid.width]
        return maps.flatten(2).transpose(1, 2)


class Feedback(nn.Module):
    """A chain of decoders from the last block to the first.

    Args:
        widths: Channels of each block.
        strides: Stride of each block; where it changes, a transposed convolution crosses over.
        injection: Where the signals enter, one of :data:`INJECTIONS`.

    Raises:
        InputError: If ``injection`` is unknown.
    """

    second_pass = True

    def __init__(self, widths: Sequence[int], strides: Sequence[int],
                 injection: str = 'value') -> None:
        super().__init__()
        check_choice('injection', injection, INJECTIONS)
        self.injection = injection
        self.decoders = nn.ModuleList(LayerDecoder(width) for width in widths)
        # Crossing i leads from block i + 1 back to block i.
        self.crossings = nn.ModuleDict({
            str(i): _Crossing(widths[i + 1], widths[i]) for i in range(len(widths) - 1)
            if strides[i] != strides[i + 1]})

    def forward(self, tokens: Tensor, mask: Tensor,
                grids: Sequence[TokenGrid]) -> tuple[TopDownSignal, ...]:
        """Decode the modulated output tokens ``(B, N, C)``.

        With ``s_L`` the argument: ``s_l = s_{l+1} A_l'`` and signal ``t_l = s_l B_l'``, where A is
        ``chain`` and B is ``readout``.

        Args:
            tokens: Modulated output tokens, laid out as in the last block.
            mask: Unused; other ways back need it.
            grids: Layout of each block.

        Returns:
            L signals, ``(B, N, C)`` of each block, in the order of the blocks.
        """
        del mask
        signals = []
        for index in reversed(range(len(self.decoders))):
            if str(index) in self.crossings:
                crossing = self.crossings[str(index)]
                tokens = crossing(tokens, grids[index + 1], grids[index])
            tokens = self.decoders[index].chain(tokens)
            signals.append(INJECTIONS[self.injection](self.decoders[index].readout(tokens)))
        return tuple(reversed(signals))

    def reconstruction_errors(self, traces: Sequence[BlockTrace]) -> Tensor:
        """Layer-wise reconstruction loss (Eq. 2.13, first term), one value a layer: ``(L,)``.

        ``R_l = mean((sg(z_out) A_l' - sg(z_in))^2)`` over all elements, with sg the stop-gradient:
        it trains the chain of its own layer and nothing else.

        Differs from the thesis (half the sum of squares): the mean, as in the released models.
        """
        errors = [
            F.mse_loss(decoder.chain(trace.output.detach()), trace.input.detach())
            for decoder, trace in zip(self.decoders, traces, strict=True)
        ]
        return torch.stack(errors)


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
