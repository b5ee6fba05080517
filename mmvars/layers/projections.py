"""Projections that the mixers share: heads, and where a top-down signal enters them."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError

__all__ = ['AddedToAll', 'MaskedValue', 'TopDownSignal', 'head_width', 'join_heads',
           'project_value', 'split_heads', 'with_value', 'without_value']


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


class AddedToAll(NamedTuple):
    """A signal ``(B, N, C)`` on query, key *and* value: the arbitrary design of Table 2.5."""

    tokens: Tensor


class MaskedValue(NamedTuple):
    """A mask ``(B, N, 1)`` that the value is multiplied with: MaskAtt of Table 2.3."""

    mask: Tensor


TopDownSignal = Tensor | AddedToAll | MaskedValue
"""What a mixer takes as its top-down signal; a bare tensor ``(B, N, C)`` is added to the value."""


def with_value(projection: nn.Linear, x: Tensor,
               top_down: TopDownSignal | None) -> tuple[Tensor, ...]:
    """Apply a joint projection whose last C rows give the value, with a top-down signal.

    Without a signal: the projection of ``x (B, N, C)``, cut into pieces of C channels. A signal
    ``t`` reaches the value alone, through the value's own rows and bias:
    ``Wv x + bv + Wv t + bv = Wv (x + t) + 2 bv``, so it costs no projection.

    Returns:
        Pieces ``(B, N, C)`` in the order of the rows; the value is the last.
    """
    channels = x.shape[-1]
    weight, bias = projection.weight, projection.bias
    if top_down is None:
        return projection(x).split(channels, dim=-1)
    if isinstance(top_down, MaskedValue):
        *others, value = projection(x).split(channels, dim=-1)
        return (*others, value * top_down.mask)
    if isinstance(top_down, AddedToAll):
        doubled = None if bias is None else 2 * bias
        return F.linear(x + top_down.tokens, weight, doubled).split(channels, dim=-1)
    others = len(weight) - channels
    bias_v = None if bias is None else 2 * bias[others:]
    value = F.linear(x + top_down, weight[others:], bias_v)
    if not others:
        return (value, )
    bias_others = None if bias is None else bias[:others]
    return (*F.linear(x, weight[:others], bias_others).split(channels, dim=-1), value)


def project_value(projection: nn.Linear | None, x: Tensor,
                  top_down: TopDownSignal | None) -> tuple[Tensor, ...]:
    """As :func:`with_value`; with no projection the tokens themselves are the value."""
    if projection is not None:
        return with_value(projection, x, top_down)
    if isinstance(top_down, MaskedValue):
        return (x * top_down.mask, )
    if isinstance(top_down, AddedToAll):
        return (x + top_down.tokens, )
    return (x if top_down is None else x + top_down, )


def without_value(projection: nn.Linear, x: Tensor,
                  top_down: TopDownSignal | None) -> tuple[Tensor, ...]:
    """Apply a projection that gives no value: only a signal meant for everything reaches it."""
    return with_value(projection, x, top_down if isinstance(top_down, AddedToAll) else None)
