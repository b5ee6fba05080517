"""Multi-head self-attention with a top-down term on the value path; RVT's masked form."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.layers.grid_tied import Grid, GridTied
from mmvars.layers.position import square_grid
from mmvars.layers.projections import head_width, join_heads, rows_of, split_heads, with_value
from mmvars.layers.signals import FoldedSignal, TopDownSignal
from mmvars.layers.tokens import TokenGrid
from mmvars.layers.tracing import same_grid

__all__ = ['MaskedAttention', 'SelfAttention']


class SelfAttention(nn.Module):
    """Softmax attention whose *value* may carry a top-down signal (Section 2.5, Figure 2.3 b).

    ``out = proj(softmax(q k' / sqrt(D)) v)`` with ``v = Wv x + bv``, and, given a top-down signal
    ``t``, ``v = (Wv x + bv) + (Wv t + bv)``. Queries and keys, the dictionary in the sparse-coding
    reading, never see ``t``.

    Differs from the thesis (which adds the signal to the value): the signal passes the value
    projection, bias included, as in the released models. A zero signal is therefore not the same
    as none: it adds the value bias a second time.

    Args:
        embed_dim: Channels C.
        num_heads: Heads h; the head dimension is D = C / h.
        grid: Unused; part of the constructor that all mixers share.
        num_prefix: Unused, likewise.
        qkv_bias: Whether the joint projection has a bias.

    Raises:
        InputError: If ``num_heads`` does not divide ``embed_dim``.
    """

    takes_top_down = True
    takes_num_queries = True

    def __init__(self, embed_dim: int, num_heads: int, grid: Grid | None = None,
                 num_prefix: int = 0, qkv_bias: bool = True) -> None:
        super().__init__()
        del grid, num_prefix
        head_width(embed_dim, num_heads)
        self.num_heads = num_heads
        self._make_projections(embed_dim, qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, grid: TokenGrid, top_down: TopDownSignal | None = None,
                num_queries: int | None = None) -> Tensor:
        """Mix ``x (B, N, C)``; ``top_down (B, N, C)`` or ``None``. Returns ``(B, N, C)``.

        With ``num_queries`` the result has that many first tokens alone; keys and values are still
        those of all.
        """
        q, k, v = self._query_key_value(x, top_down, num_queries)
        return self.proj(join_heads(self._mix(q, k, v, grid)))

    def attention_probabilities(self, x: Tensor, grid: TokenGrid | None = None,
                                top_down: TopDownSignal | None = None) -> Tensor:
        """``softmax(q k' / sqrt(D))`` of shape ``(B, h, N, N)`` for ``x (B, N, C)``.

        The fused forward never forms this matrix; call this where a picture of it is wanted. Of the
        top-down signals only one on query and key too (AbSViT-QKV) changes it.
        """
        del grid
        q, k, _ = self._query_key_value(x, top_down)
        return self._logits(q, k).softmax(dim=-1)

    def _query_key_value(self, x: Tensor, top_down: TopDownSignal | None,
                         num_queries: int | None = None) -> tuple[Tensor, ...]:
        parts = (self._project(x, top_down) if num_queries is None else
                 self._project_queries(x, top_down, num_queries))
        return tuple(split_heads(part, self.num_heads) for part in parts)

    def _make_projections(self, embed_dim: int, qkv_bias: bool) -> None:
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)

    def _project(self, x: Tensor, top_down: Tensor | None) -> tuple[Tensor, ...]:
        return with_value(self.qkv, x, top_down)

    def _project_queries(self, x: Tensor, top_down: TopDownSignal | None,
                         num_queries: int) -> tuple[Tensor, ...]:
        if top_down is None or isinstance(top_down, Tensor) or (
                isinstance(top_down, FoldedSignal) and top_down.shared is None):
            query, key_value = rows_of(self.qkv, x.shape[-1])
            return query(x[:, :num_queries]), *with_value(key_value, x, top_down)
        query, *others = self._project(x, top_down)
        return query[:, :num_queries], *others

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid) -> Tensor:
        del grid  # attention is free of positions
        return F.scaled_dot_product_attention(q, k, v)

    @staticmethod
    def _logits(q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-2, -1) * q.shape[-1]**-0.5


class MaskedAttention(SelfAttention, GridTied):
    """RVT's position-aware attention: ``softmax(sigmoid(mask) * q k' / sqrt(D)) v``.

    ``attention_mask (h, N, N)`` belongs to a grid of N patches; at other grids it is interpolated
    over both, bicubic, corners unaligned. It starts at zero, so the logits start halved: the
    released code leaves it uninitialised.

    The product stands inside the softmax, so there is no fused form: memory grows with N^2.

    Args:
        embed_dim, num_heads, qkv_bias: As in :class:`SelfAttention`.
        grid: ``(h, w)`` the mask is made for.
        num_prefix: Must be 0: a class token has no position.

    Raises:
        InputError: As in :class:`SelfAttention`, or if there are prefix tokens.
    """

    grid_tied = ('attention_mask', )
    takes_num_queries = False

    def __init__(self, embed_dim: int, num_heads: int, grid: Grid, num_prefix: int = 0,
                 qkv_bias: bool = True) -> None:
        super().__init__(embed_dim, num_heads, qkv_bias=qkv_bias)
        if num_prefix:
            raise InputError(f'masked_attention is a mask between patches and takes no class or '
                             f'prompt tokens, got {num_prefix}; use it in the RVT trunk')
        self.tie_to_grid(grid)
        patches = self.grid[0] * self.grid[1]
        self.attention_mask = nn.Parameter(torch.zeros(num_heads, patches, patches))

    def attention_probabilities(self, x: Tensor, grid: TokenGrid | None = None,
                                top_down: TopDownSignal | None = None) -> Tensor:
        q, k, _ = self._query_key_value(x, top_down)
        return self._masked(q, k, self.grid if grid is None else grid)

    def resample(self, name: str, tensor: Tensor, from_grid: Grid, to_grid: Grid) -> Tensor:
        if same_grid(from_grid, to_grid):
            return tensor
        for _ in range(2):  # the keys' axis, then the queries'
            maps = tensor.unflatten(-1, from_grid)
            maps = F.interpolate(maps, size=to_grid, mode='bicubic', align_corners=False)
            tensor = maps.flatten(-2).transpose(-2, -1)
        return tensor

    def stored_grid(self, name: str, tensor: Tensor) -> Grid:
        return square_grid(tensor.shape[-1], name)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid) -> Tensor:
        return self._masked(q, k, grid) @ v

    def _masked(self, q: Tensor, k: Tensor, grid: TokenGrid | Grid) -> Tensor:
        mask = self.at_grid('attention_mask', grid).sigmoid()
        return (self._logits(q, k) * mask).softmax(dim=-1)
