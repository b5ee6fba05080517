"""Projections that the mixers share: heads, and where a top-down signal enters them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.layers.signals import (AddedToAll, FoldedSignal, MaskedValue, SharedInput,
                                   TopDownSignal)

__all__ = ['head_width', 'join_heads', 'project_value', 'rows_of', 'split_heads',
           'with_value', 'without_value']


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


class Rows(NamedTuple):
    """Some rows of a linear layer; called as the layer is."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def rows_of(projection: nn.Linear, *sizes: int) -> tuple[Rows, ...]:
    """A joint projection cut after ``sizes`` rows each; the last piece takes what remains."""
    sizes = (*sizes, len(projection.weight) - sum(sizes))
    biases = ((None, ) * len(sizes) if projection.bias is None else
              projection.bias.split(sizes))
    return tuple(map(Rows, projection.weight.split(sizes), biases))


def with_value(projection: nn.Linear | Rows, x: Tensor,
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
    if isinstance(top_down, SharedInput):
        return _remembered(projection, x, top_down).split(channels, dim=-1)
    if isinstance(top_down, FoldedSignal):
        return _with_folded_value(projection, x, top_down)
    if isinstance(top_down, MaskedValue):
        *others, value = projection(x).split(channels, dim=-1)
        return (*others, value * top_down.mask)
    if isinstance(top_down, AddedToAll):
        doubled = None if bias is None else 2 * bias
        return F.linear(x + top_down.tokens, weight, doubled).split(channels, dim=-1)
    others = len(weight) - channels
    value = F.linear(x + top_down, weight[others:], None if bias is None else 2 * bias[others:])
    if not others:
        return (value, )
    bias_others = None if bias is None else bias[:others]
    return (*F.linear(x, weight[:others], bias_others).split(channels, dim=-1), value)


def project_value(projection: nn.Linear | None, x: Tensor,
                  top_down: TopDownSignal | None) -> tuple[Tensor, ...]:
    """As :func:`with_value`; with no projection the tokens themselves are the value."""
    if projection is not None:
        return with_value(projection, x, top_down)
    if top_down is None or isinstance(top_down, SharedInput):
        return (x, )
    if isinstance(top_down, FoldedSignal):
        return (_added(x.clone(), top_down, None), )
    if isinstance(top_down, MaskedValue):
        return (x * top_down.mask, )
    return (x + (top_down.tokens if isinstance(top_down, AddedToAll) else top_down), )


def without_value(projection: nn.Linear, x: Tensor,
                  top_down: TopDownSignal | None) -> tuple[Tensor, ...]:
    """Apply a projection that gives no value: only a signal meant for everything reaches it."""
    if isinstance(top_down, FoldedSignal) and top_down.shared is not None:
        return top_down.shared.joint[projection].split(x.shape[-1], dim=-1)
    return with_value(projection, x,
                      top_down if isinstance(top_down, AddedToAll | SharedInput) else None)


def _remembered(projection: nn.Linear, x: Tensor, shared: SharedInput) -> Tensor:
    shared.joint[projection] = joint = projection(x)
    return joint


def _with_folded_value(projection: nn.Linear | Rows, x: Tensor,
                       signal: FoldedSignal) -> tuple[Tensor, ...]:
    channels = x.shape[-1]
    weight, bias = projection.weight, projection.bias
    others = len(weight) - channels
    rows, bias_v = weight[others:], None if bias is None else bias[others:]
    if signal.shared is None:
        if signal.rows is None:  # the bias once more, inside the product of the signal
            *pieces, value = projection(x).split(channels, dim=-1)
            return (*pieces, value + signal.through(rows, bias_v))
        both = None if bias is None else torch.cat([bias[:others], 2 * bias_v])
        *pieces, value = F.linear(x, weight, both).split(channels, dim=-1)
        return (*pieces, _added(value, signal, rows))
    *pieces, value = signal.shared.joint[projection].split(channels, dim=-1)
    if signal.shared.same_value:
        # Several second passes may follow, so it stays as it is; under autocast it is narrower
        # than the bias.
        value = value.clone() if bias is None else value + bias_v.to(value.dtype)
        return (*pieces, _added(value, signal, rows))
    doubled = None if bias is None else 2 * bias_v
    if not signal.weights:  # one product of the sum instead of two
        return (*pieces, F.linear(x + signal.tokens, rows, doubled))
    return (*pieces, _added(F.linear(x, rows, doubled), signal, rows))


def _added(value: Tensor, signal: FoldedSignal, rows: Tensor | None) -> Tensor:
    """``value`` plus the signal; in its own memory where nobody differentiates or traces."""
    folded = signal.through(rows)
    if signal.rows is not None:
        # The rows of a joint projection are further apart than a value is long.
        flat = value.as_strided((value.shape[0] * value.shape[1], value.shape[2]),
                                (value.stride(1), 1), value.storage_offset())
        flat.index_add_(0, signal.rows, folded)
        return value
    return value + folded
