"""The feedback path: layer-wise linear decoders and their reconstruction loss."""

from collections.abc import Sequence

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.networks.trunk import BlockTrace

__all__ = ['Feedback', 'LayerDecoder']


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


class Feedback(nn.Module):
    """A chain of decoders from the last block to the first.

    Args:
        embed_dim: Token width C.
        depth: Number of blocks L.
    """

    def __init__(self, embed_dim: int, depth: int) -> None:
        super().__init__()
        self.decoders = nn.ModuleList(LayerDecoder(embed_dim) for _ in range(depth))

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Decode the modulated output tokens ``(B, N, C)``.

        With ``s_L`` the argument: ``s_l = s_{l+1} A_l'`` and signal ``t_l = s_l B_l'``, where A is
        ``chain`` and B is ``readout``.

        Returns:
            L signals ``(B, N, C)``, in the order of the blocks.
        """
        signals = []
        for decoder in reversed(self.decoders):
            tokens = decoder.chain(tokens)
            signals.append(decoder.readout(tokens))
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
