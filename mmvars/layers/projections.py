"""Projections that the mixers share: heads, and the top-down signal on the value path."""

from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError

__all__ = ['head_width', 'join_heads', 'split_heads', 'with_value']


def head_width(embed_dim: int, num_heads: int) -> int:
    """Channels D of a head.

    Raises:
        InputError: If ``num_heads`` does not divide ``embed_dim``.
    """
    if num_heads < 1 or embed_dim % num_heads:
        raise InputError(f'embed_dim ({embed_dim}) must be divisible by num_heads ({num_heads})')
    return embed_dim // num_heads


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``(B, N, h D)`` to ``(B, h, N, D)``."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """``(B, h, N, D)`` to ``(B, N, h D)``."""
    return x.transpose(1, 2).flatten(2)


def with_value(projection: nn.Linear, x: Tensor, top_down: Tensor | None) -> tuple[Tensor, ...]:
    """Apply a joint projection whose last C rows give the value, with a top-down signal on them.

    Without a signal: the projection of ``x (B, N, C)``, cut into pieces of C channels. A signal
    ``t`` reaches the value alone, through the value's own rows and bias:
    ``Wv x + bv + Wv t + bv = Wv (x + t) + 2 bv``, so it costs no projection.

    Returns:
        Pieces ``(B, N, C)`` in the order of the rows; the value is the last.
    """
    channels = x.shape[-1]
    if top_down is None:
        return projection(x).split(channels, dim=-1)
    weight, bias = projection.weight, projection.bias
    others = len(weight) - channels
    bias_v = None if bias is None else 2 * bias[others:]
    value = F.linear(x + top_down, weight[others:], bias_v)
    if not others:
        return (value, )
    bias_others = None if bias is None else bias[:others]
    return (*F.linear(x, weight[:others], bias_others).split(channels, dim=-1), value)
