"""What the second pass of the released AbSViT multiplies and ours does not.

Ours embeds the patches once for both passes, classifies the last one alone, and sends input and
signal through one projection as their sum; see :func:`mmvars.layers.projections.with_value`. A
table that showed the count of what runs here alone would hide it, so these parts stand beside it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from mmvars.benchmark.multiply_adds import MultiplyAdds, count_multiply_adds
from mmvars.layers import SelfAttention, TokenGrid
from mmvars.layers.fan import FANAttention
from mmvars.networks import Feedback, TopDown

__all__ = ['SecondPass', 'released_two_passes', 'second_pass', 'unused_products']


class SecondPass(NamedTuple):
    """Multiply-adds of linear layers and convolutions, for one image.

    Attributes:
        embedding: Patches embedded again.
        classifier: Class scores of the first pass.
        value_rows: The signal times the rows of each projection that give the value.
        other_rows: The signal times the other rows, for query and key; nobody uses the result.
        reconstruction: The decoders once more on each block's output, for the reconstruction loss:
            the released code computes it in inference too. No part of the design.
    """

    embedding: int
    classifier: int
    value_rows: int
    other_rows: int
    reconstruction: int


def second_pass(network: TopDown, grids: Sequence[TokenGrid], images: Tensor) -> SecondPass | None:
    """The parts that run in the released design and not here.

    Args:
        network: With attention in all blocks.
        grids: The layout of each block's tokens.
        images: ``(1, in_chans, H, W)``, on any device.

    Returns:
        ``None`` for a network whose second pass is no AbSViT's: there is none, no signal is
        decoded, or it enters elsewhere than in the value of softmax attention.
    """
    mixers = [block.attn for block in network.trunk.blocks]
    if not (isinstance(network.feedback, Feedback) and network.feedback.injection == 'value'
            and all(isinstance(mixer, SelfAttention) for mixer in mixers)):
        return None
    tokens = [grid.num_prefix + grid.num_patches for grid in grids]
    projections = [_value_projection(mixer).weight for mixer in mixers]
    value_rows = sum(n * weight.shape[1]**2 for n, weight in zip(tokens, projections, strict=True))
    all_rows = sum(n * weight.numel() for n, weight in zip(tokens, projections, strict=True))
    decoders = [sum(weight.numel() for weight in decoder.parameters())
                for decoder in network.feedback.decoders]
    return SecondPass(
        embedding=count_multiply_adds(lambda: network.trunk.embed(images), [network]).linear,
        classifier=sum(weight.numel() for weight in network.trunk.head.parameters()
                       if weight.ndim == 2),
        value_rows=value_rows,
        other_rows=all_rows - value_rows,
        reconstruction=sum(n * numel for n, numel in zip(tokens, decoders, strict=True)))


def released_two_passes(executed: MultiplyAdds, parts: SecondPass, unused: int) -> MultiplyAdds:
    """The count of the released design, without the reconstruction.

    Args:
        executed: What runs here.
        parts: What runs there beside it.
        unused: :func:`unused_products` of one pass.
    """
    linear = executed.linear + sum(parts) - parts.reconstruction
    return MultiplyAdds(linear, executed.products + 2 * unused, executed.fourier)


def unused_products(mixers: Sequence[nn.Module], grids: Sequence[TokenGrid]) -> int:
    """Products of the released FAN's attention that it returns and nobody uses, in one pass."""
    return sum((grid.num_prefix + grid.num_patches)**2 * mixer.proj.in_features
               for mixer, grid in zip(mixers, grids, strict=True)
               if isinstance(mixer, FANAttention))


def _value_projection(mixer: SelfAttention) -> nn.Linear:
    return mixer.kv if isinstance(mixer, FANAttention) else mixer.qkv
