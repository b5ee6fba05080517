"""Multi-head self-attention with a top-down term on the value path."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.layers.tokens import TokenGrid

__all__ = ['SelfAttention']


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
        qkv_bias: Whether the joint projection has a bias.

    Raises:
        InputError: If ``num_heads`` does not divide ``embed_dim``.
    """

    takes_top_down = True

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise InputError(f'embed_dim ({embed_dim}) must be divisible by num_heads '
                             f'({num_heads})')
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, grid: TokenGrid, top_down: Tensor | None = None) -> Tensor:
        """Mix ``x (B, N, C)``; ``top_down (B, N, C)`` or ``None``. Returns ``(B, N, C)``."""
        del grid  # attention is free of positions; the argument is part of the mixer contract
        q, k, v = self._query_key_value(x, top_down)
        out = F.scaled_dot_product_attention(self._heads(q), self._heads(k), self._heads(v))
        return self.proj(out.transpose(1, 2).flatten(2))

    def attention_probabilities(self, x: Tensor) -> Tensor:
        """``softmax(q k' / sqrt(D))`` of shape ``(B, h, N, N)`` for ``x (B, N, C)``.

        The fused forward never forms this matrix; call this where a picture of it is wanted.
        """
        q, k, _ = self._query_key_value(x, None)
        q, k = self._heads(q), self._heads(k)
        return (q @ k.transpose(-2, -1) * q.shape[-1]**-0.5).softmax(dim=-1)

    def _query_key_value(self, x: Tensor, top_down: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if top_down is None:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            return q, k, v
        # Wv x + bv + Wv t + bv = Wv (x + t) + 2 bv: the signal costs no projection of its own.
        num_qk = 2 * x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        bias_qk = None if bias is None else bias[:num_qk]
        bias_v = None if bias is None else 2 * bias[num_qk:]
        q, k = F.linear(x, weight[:num_qk], bias_qk).chunk(2, dim=-1)
        return q, k, F.linear(x + top_down, weight[num_qk:], bias_v)

    def _heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, 2, (self.num_heads, -1)).transpose(1, 2)
