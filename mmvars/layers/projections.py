"""Projections that the mixers share: heads, and where a top-down signal enters them."""

from typing import NamedTuple

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
    return _with_added_value(projection, x, x + top_down)


def project_value(projection: nn.Linear | None, x: Tensor,
                  top_down: TopDownSignal | None) -> tuple[Tensor, ...]:
    """As :func:`with_value`; with no projection the tokens themselves are the value."""
    if projection is not None:
        return with_value(projection, x, top_down)
    if top_down is None or isinstance(top_down, SharedInput):
        return (x, )
    if isinstance(top_down, FoldedSignal):
        return (_added(_own(x, top_down), top_down, None), )
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


def _with_added_value(projection: nn.Linear | Rows, x: Tensor,
                      summed: Tensor) -> tuple[Tensor, ...]:
    """Pieces of ``x``, with the value of ``summed = x + t``: its projection's bias counts twice."""
    others, value = _value_last(projection, x.shape[-1])
    doubled = None if value.bias is None else 2 * value.bias
    return *_pieces(others, x), F.linear(summed, value.weight, doubled)


def _with_folded_value(projection: nn.Linear | Rows, x: Tensor,
                       signal: FoldedSignal) -> tuple[Tensor, ...]:
    if signal.shared is None:
        others, rows = _value_last(projection, x.shape[-1])
        return *_pieces(others, x), _added(rows(x), signal, rows)
    *pieces, value = signal.shared.joint[projection].split(x.shape[-1], dim=-1)
    _, rows = _value_last(projection, x.shape[-1])
    if signal.shared.same_value:  # several second passes may follow, so it stays as it is
        return *pieces, _added(_own(value, signal), signal, rows)
    if not signal.weights:  # one product of the sum instead of two
        return *pieces, _with_added_value(rows, x, x + signal.tokens)[-1]
    return *pieces, _added(rows(x), signal, rows)


def _added(value: Tensor, signal: FoldedSignal, rows: Rows | None) -> Tensor:
    """``value + Wv t + bv``; in the value's own memory where some tokens get no signal."""
    weight, bias = (None, None) if rows is None else rows
    if signal.rows is None:
        return value + signal.through(weight, bias)
    value = value.contiguous()
    if bias is not None:
        value += bias
    value.view(-1, value.shape[-1]).index_add_(0, signal.rows,
                                               signal.through(weight).to(value.dtype))
    return value


def _own(value: Tensor, signal: FoldedSignal) -> Tensor:
    """A copy of a value that others read too, where :func:`_added` would write into it."""
    return value if signal.rows is None else value.clone()


def _value_last(projection: nn.Linear | Rows, channels: int) -> tuple[Rows, Rows]:
    return rows_of(projection, len(projection.weight) - channels)


def _pieces(projection: Rows, x: Tensor) -> tuple[Tensor, ...]:
    return projection(x).split(x.shape[-1], dim=-1) if len(projection.weight) else ()
