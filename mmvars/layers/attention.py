"""Multi-head softmax attention with a top-down input, RVT's masked form, and their projections."""

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError, check_choice
from mmvars.layers.compile_utils import same_grid
from mmvars.layers.embed import Grid, GridResizeMixin, TokenGrid, infer_square_grid

__all__ = [
    'INJECTIONS',
    'MaskedAttention',
    'SelfAttention',
    'head_width',
    'is_plain_linear',
    'linear_slice',
    'mean_row',
    'merge_heads',
    'project_with_top_down',
    'split_heads',
]

INJECTIONS = ('value', 'qkv', 'mask')
"""Where a top-down input enters a mixer. ``'value'``: added to the input of the value projection
(AbSViT). ``'qkv'``: to the input of every projection (AbSViT-QKV, Table 2.5). ``'mask'``: ``(B, N,
1)``, multiplied with the value (MaskAtt, Table 2.3)."""


_CHUNK_SIZE = 2**20  # numbers of an attention matrix that are held at a time, 4 MiB


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


def merge_heads(x: Tensor) -> Tensor:
    """``(B, h, N, D)`` to ``(B, N, h D)``."""
    return x.transpose(1, 2).flatten(2)


def is_plain_linear(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer computes nothing but ``x W' + b``, so that rows of W can be used alone.

    Not so for a layer that was replaced or wrapped (LoRA, quantization), whose weight is
    parametrized or pruned, or that has hooks: such a layer must be called. Hooks of all modules at
    once do not count: they observe, as torch's FLOP counter, what runs without them.
    """
    return (
        type(linear) is nn.Linear
        and type(linear.weight) is nn.Parameter
        and 'forward' not in linear.__dict__  # torch 2.4 cannot compile vars()
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
        and not linear._backward_hooks
        and not linear._backward_pre_hooks
    )


def linear_slice(linear: nn.Linear, x: Tensor, rows: slice, num_biases: int = 1) -> Tensor:
    """``x W[rows]' + num_biases * b[rows]`` of a plain linear layer; x is ``(..., C)``."""
    bias = None if linear.bias is None else linear.bias[rows]
    if bias is not None and num_biases > 1:
        bias = num_biases * bias
    return F.linear(x, linear.weight[rows], bias)


def project_with_top_down(
    projection: nn.Module,
    x: Tensor,
    top_down: Tensor | None,
    injection: str = 'value',
    double_value_bias: bool = True,
) -> tuple[Tensor, ...]:
    """Apply a joint projection whose last C output channels are the value.

    A top-down input t passes the value's own rows: ``Wv x + bv + Wv t + bv`` in the released
    models, which count the bias twice, or ``Wv (x + t) + bv``. Where :func:`is_plain_linear`, the
    rows are used separately, so that t costs no product; any other projection is called twice.

    Args:
        projection: Linear layer from C to a multiple of C channels.
        x: ``(B, N, C)``.
        top_down: ``(B, N, C)``; ``(B, N, 1)`` with ``injection='mask'``; or ``None``.
        injection: One of :data:`INJECTIONS`.
        double_value_bias: Whether t brings the bias of its projection along, as released.

    Returns:
        Pieces ``(B, N, C)`` in the order of the rows; the value is the last.
    """
    channels = x.shape[-1]
    if top_down is None:
        return projection(x).split(channels, dim=-1)
    if injection == 'mask':
        *others, value = projection(x).split(channels, dim=-1)
        return *others, value * top_down
    if injection == 'qkv':
        both = (
            projection(x) + projection(top_down) if double_value_bias else projection(x + top_down)
        )
        return both.split(channels, dim=-1)
    if is_plain_linear(projection):
        value = linear_slice(
            projection,
            x + top_down,
            slice(-channels, None),
            num_biases=2 if double_value_bias else 1,
        )
        if projection.out_features == channels:
            return (value,)
        others = linear_slice(projection, x, slice(None, -channels))
        return *others.split(channels, dim=-1), value
    *others, value = projection(x).split(channels, dim=-1)
    if double_value_bias:
        return *others, value + projection(top_down)[..., -channels:]
    return *others, projection(x + top_down)[..., -channels:]


def mean_row(
    q: Tensor, k: Tensor, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Mean over the queries of ``softmax(scale q k' + bias)``, ``(B, h, N)``.

    Some queries at a time, so that the matrix is never held as a whole.

    Args:
        q: ``(B, h, M, D)``.
        k: ``(B, h, N, D)``.
        bias: Broadcasts with ``(B, h, M, N)``.
        scale: ``None``: ``D^-1/2``.
    """
    keys = k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    size = max(1, _CHUNK_SIZE // (keys[..., 0, :].numel() or 1))
    total = q.new_zeros(keys[..., 0, :].shape)
    for start in range(0, q.shape[-2], size):
        part = slice(start, start + size)
        logits = q[..., part, :] @ keys
        if bias is not None:
            logits = logits + (bias[..., part, :] if bias.shape[-2] > 1 else bias)
        total += logits.softmax(dim=-1).sum(dim=-2)
    return total / q.shape[-2]


class SelfAttention(nn.Module):
    """Softmax attention whose *value* takes a top-down input (Section 2.5, Figure 2.3 b).

    ``out = proj(softmax(q k' / sqrt(D)) v)`` with ``v = Wv x + bv``, and, given a top-down input t,
    ``v = (Wv x + bv) + (Wv t + bv)``. Queries and keys do not see t.

    Differs from the thesis, which adds the signal to the value: it passes the value projection, as
    in the released models. With ``double_value_bias``, as released, it also brings the bias, so a
    top-down input of zeros is not the same as none.

    Args:
        embed_dim: Channels C.
        num_heads: Heads h; the head width is D = C / h.
        grid: Unused; part of the constructor that all mixers share.
        num_prefix: Unused, likewise.
        qkv_bias: Whether the joint projection has a bias.
        injection: Where a top-down input enters, one of :data:`INJECTIONS`.
        double_value_bias: See :func:`project_with_top_down`.

    Raises:
        InputError: If ``num_heads`` does not divide ``embed_dim``.
    """

    takes_top_down = True
    takes_num_queries = True

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        grid: Grid | None = None,
        num_prefix: int = 0,
        qkv_bias: bool = True,
        injection: str = 'value',
        double_value_bias: bool = True,
    ) -> None:
        super().__init__()
        check_choice('injection', injection, INJECTIONS)
        head_width(embed_dim, num_heads)
        self.num_heads = num_heads
        self.injection = injection
        self.double_value_bias = double_value_bias
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(
        self,
        x: Tensor,
        grid: TokenGrid,
        top_down: Tensor | None = None,
        num_queries: int | None = None,
    ) -> Tensor:
        """Mix ``x (B, N, C)``; ``top_down (B, N, C)`` or ``None``. Returns ``(B, N, C)``.

        With ``num_queries`` the result has that many first tokens alone; keys and values are those
        of all tokens.
        """
        q, k, v = project_with_top_down(
            self.qkv, x, top_down, self.injection, self.double_value_bias
        )
        q = split_heads(q[:, :num_queries], self.num_heads)
        k, v = split_heads(k, self.num_heads), split_heads(v, self.num_heads)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))

    def attention_probabilities(
        self, x: Tensor, grid: TokenGrid | None = None, top_down: Tensor | None = None
    ) -> Tensor:
        """``softmax(q k' / sqrt(D))``, ``(B, h, N, N)``, for ``x (B, N, C)``.

        The forward uses a fused kernel and does not form this matrix; it is for figures. Only with
        ``injection='qkv'`` does a top-down input change it.
        """
        q, k, _ = project_with_top_down(
            self.qkv, x, top_down, self.injection, self.double_value_bias
        )
        q, k = split_heads(q, self.num_heads), split_heads(k, self.num_heads)
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)

    def mean_attention(
        self, x: Tensor, grid: TokenGrid | None = None, top_down: Tensor | None = None
    ) -> Tensor:
        """What the average token attends to, the mean over the queries: ``(B, h, N)``.

        All mixers with a value have this method, see
        :func:`~mmvars.layers.sparse_coding.linearized_attention` for the common definition.
        """
        q, k, _ = project_with_top_down(
            self.qkv, x, top_down, self.injection, self.double_value_bias
        )
        return mean_row(split_heads(q, self.num_heads), split_heads(k, self.num_heads))

    def keys_values(
        self, x: Tensor, grid: TokenGrid | None = None, top_down: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values, ``(B, h, N, D)`` each: for figures."""
        _, k, v = project_with_top_down(
            self.qkv, x, top_down, self.injection, self.double_value_bias
        )
        return split_heads(k, self.num_heads), split_heads(v, self.num_heads)


class MaskedAttention(SelfAttention, GridResizeMixin):
    """RVT's position-aware attention: ``softmax(sigmoid(mask) * q k' / sqrt(D)) v``.

    ``attention_mask (h, N, N)`` belongs to a grid of N patches; for other grids it is interpolated
    along both axes (bicubic, corners unaligned). It starts at zero, which halves the logits; the
    released code leaves it uninitialized.

    The mask multiplies the logits, for which there is no fused kernel: memory grows with N^2.

    Args:
        embed_dim, num_heads, qkv_bias, injection, double_value_bias: See :class:`SelfAttention`.
        grid: ``(h, w)`` of the mask.
        num_prefix: Must be 0: a class token has no position.

    Raises:
        InputError: As in :class:`SelfAttention`, or if there are prefix tokens.
    """

    takes_num_queries = False
    grid_tensors = ('attention_mask',)

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        grid: Grid,
        num_prefix: int = 0,
        qkv_bias: bool = True,
        injection: str = 'value',
        double_value_bias: bool = True,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            qkv_bias=qkv_bias,
            injection=injection,
            double_value_bias=double_value_bias,
        )
        if num_prefix:
            raise InputError(
                f'masked_attention is a mask between patches and takes no class or '
                f'prompt tokens, got {num_prefix}; use it in the RVT trunk'
            )
        self.set_grid(grid)
        patches = self.grid[0] * self.grid[1]
        self.attention_mask = nn.Parameter(torch.zeros(num_heads, patches, patches))

    def forward(
        self,
        x: Tensor,
        grid: TokenGrid,
        top_down: Tensor | None = None,
        num_queries: int | None = None,
    ) -> Tensor:
        """Mix ``x (B, N, C)``; ``top_down (B, N, C)`` or ``None``. Returns ``(B, N, C)``."""
        q, k, v = project_with_top_down(
            self.qkv, x, top_down, self.injection, self.double_value_bias
        )
        out = self._probabilities(q, k, grid) @ split_heads(v, self.num_heads)
        return self.proj(merge_heads(out))

    def attention_probabilities(
        self, x: Tensor, grid: TokenGrid | None = None, top_down: Tensor | None = None
    ) -> Tensor:
        """The masked attention ``(B, h, N, N)`` for ``x (B, N, C)`` of ``grid``."""
        q, k, _ = project_with_top_down(
            self.qkv, x, top_down, self.injection, self.double_value_bias
        )
        return self._probabilities(q, k, self.grid if grid is None else grid)

    def mean_attention(
        self, x: Tensor, grid: TokenGrid | None = None, top_down: Tensor | None = None
    ) -> Tensor:
        return self.attention_probabilities(x, grid, top_down).mean(dim=2)

    def _probabilities(self, q: Tensor, k: Tensor, grid: TokenGrid | Grid) -> Tensor:
        mask = self.resized('attention_mask', grid).sigmoid()
        q, k = split_heads(q, self.num_heads), split_heads(k, self.num_heads)
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 * mask).softmax(dim=-1)

    def resample(self, name: str, tensor: Tensor, from_grid: Grid, to_grid: Grid) -> Tensor:
        if same_grid(from_grid, to_grid):
            return tensor
        for _ in range(2):  # the axis of the keys, then that of the queries
            maps = tensor.unflatten(-1, from_grid)
            maps = F.interpolate(maps, size=to_grid, mode='bicubic', align_corners=False)
            tensor = maps.flatten(-2).transpose(-2, -1)
        return tensor

    def infer_grid(self, name: str, tensor: Tensor) -> Grid:
        return infer_square_grid(tensor.shape[-1], name)
