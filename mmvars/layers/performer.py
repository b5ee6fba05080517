"""Positive random features of the softmax kernel, and linear attention with them."""

import math

import torch
from torch import Tensor, nn

from mmvars.errors import InputError, check_number
from mmvars.layers.precision import full_precision, widened
from mmvars.layers.projections import (TopDownSignal, head_width, join_heads, split_heads,
                                       with_value)
from mmvars.layers.tokens import TokenGrid

__all__ = ['Performer', 'num_features', 'positive_features']

_EPS = 1e-12


def num_features(feature_ratio: float, head_dim: int) -> int:
    """Random features m of a head: ``feature_ratio * head_dim``, rounded down.

    Raises:
        InputError: If that is no feature at all.
    """
    check_number('feature_ratio', feature_ratio, 0)
    count = int(feature_ratio * head_dim)
    if count < 1:
        raise InputError(f'feature_ratio must give at least one feature, but {feature_ratio:g} x '
                         f'the head width ({head_dim}) gives {count}; use at least '
                         f'{math.ceil(1000 / head_dim) / 1000:g}')
    return count


def positive_features(x: Tensor, random_features: Tensor, unit_length: bool = True) -> Tensor:
    """``exp(x w - |x|^2 / 2) / sqrt(m)`` for each column w of ``random_features``.

    For w ~ N(0, I) the product of two such vectors estimates ``exp(x'y)``, without bias (the Phi of
    Eq. 1.14). All features are positive.

    Args:
        x: ``(B, h, N, D)``.
        random_features: ``(h, D, m)``.
        unit_length: Scale each row of x to length 1 first, as the released models do; else by
            ``D^-1/4``, so that the kernel is the softmax's ``exp(x'y / sqrt(D))``.

    Returns:
        ``(B, h, N, m)``.
    """
    bias = -math.log(random_features.shape[-1]) / 2
    if unit_length:
        # A row of length 0 stays 0, with gradient 0: dividing it by a small number instead would
        # multiply its gradient with 1e12, which no training survives in float16. Of all other rows
        # |x|^2 / 2 is known.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        zero = length < _EPS
        x = x / length.masked_fill(zero, math.inf)
        bias = zero.to(x.dtype) / 2 + (bias - .5)
    else:
        x = x * x.shape[-1]**-0.25
        bias = bias - torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / 2
    # All in the exponent, which starts as the bias: these are the largest tensors of the linear
    # mixers, and no pass is made over them but by product and exponential.
    weights = random_features.expand(x.shape[0], -1, -1, -1)
    exponent = torch.baddbmm(bias.flatten(0, 1), x.flatten(0, 1), weights.flatten(0, 1))
    return exponent.exp_().unflatten(0, x.shape[:2])


class Performer(nn.Module):
    """Attention through random features: the modified baselines of Table 1.2 (marked *).

    ``out = proj(Phi(q) (Phi(k)' v) / (Phi(q) sum_n Phi(k)))``: the N x N matrix of the released
    code is never formed, so time and memory are linear in N; the output is the same.

    Args:
        embed_dim: Channels C.
        num_heads: Heads h; head width D = C / h.
        grid: Unused; part of the constructor that all mixers share.
        num_prefix: Unused, likewise.
        qkv_bias: Whether the joint projection has a bias.
        feature_ratio: Random features of a head over D; 2 in the release.

    Raises:
        InputError: If ``num_heads`` does not divide ``embed_dim``, or there is no feature.
    """

    takes_top_down = True

    def __init__(self, embed_dim: int, num_heads: int, grid: tuple[int, int] | None = None,
                 num_prefix: int = 0, qkv_bias: bool = True, feature_ratio: float = 2.) -> None:
        super().__init__()
        del grid, num_prefix
        self.num_heads = num_heads
        head_dim = head_width(embed_dim, num_heads)
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)
        features = num_features(feature_ratio, head_dim)
        self.register_buffer('random_features', torch.randn(num_heads, head_dim, features))

    def forward(self, x: Tensor, grid: TokenGrid, top_down: Tensor | None = None) -> Tensor:
        """Mix ``x (B, N, C)``; ``top_down (B, N, C)`` or ``None``. Returns ``(B, N, C)``."""
        del grid
        q, k, v = with_value(self.qkv, x, top_down)
        with full_precision(x):
            q, k = self._features(q, k)
            values = split_heads(widened(v), self.num_heads)
            mass = (q @ k.sum(dim=2).unsqueeze(-1)).clamp_min(_EPS)
            out = q @ (k.transpose(-2, -1) @ values) / mass
        return self.proj(join_heads(out).to(v.dtype))

    def attention_probabilities(self, x: Tensor, grid: TokenGrid | None = None,
                                top_down: TopDownSignal | None = None) -> Tensor:
        """``Phi(q) Phi(k)'`` with rows that sum to 1, ``(B, h, N, N)`` for ``x (B, N, C)``.

        What the linear forward multiplies the values with, without ever forming it: for pictures.
        """
        del grid
        q, k, _ = with_value(self.qkv, x, top_down)
        with full_precision(x):
            q, k = self._features(q, k)
            weights = q @ k.transpose(-2, -1)
            return weights / weights.sum(dim=-1, keepdim=True).clamp_min(_EPS)

    def _features(self, *projected: Tensor) -> tuple[Tensor, ...]:
        """Positive features ``(B, h, N, m)`` of queries or keys ``(B, N, C)``."""
        weights = widened(self.random_features)
        return tuple(positive_features(split_heads(widened(t), self.num_heads), weights)
                     for t in projected)
