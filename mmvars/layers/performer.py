"""Positive random features of the softmax kernel, and linear attention with them."""

import math

import torch
from torch import Tensor, nn

from mmvars.errors import InputError, check_choice, check_number
from mmvars.layers.attention import (
    INJECTIONS,
    head_width,
    merge_heads,
    project_with_top_down,
    split_heads,
)
from mmvars.layers.embed import Grid, TokenGrid
from mmvars.layers.precision import full_precision, upcast_to_float32

__all__ = ['Performer', 'num_features', 'positive_features']

_EPS = 1e-12


def num_features(feature_ratio: float, head_dim: int) -> int:
    """Random features m of a head: ``feature_ratio * head_dim``, rounded down.

    Raises:
        InputError: If that is no feature, or the ratio is far too large.
    """
    check_number('feature_ratio', feature_ratio, 0, 1000)
    count = int(feature_ratio * head_dim)
    if count < 1:
        raise InputError(
            f'feature_ratio must give at least one feature, but {feature_ratio:g} x '
            f'the head width ({head_dim}) gives {count}; use at least '
            f'{math.ceil(1000 / head_dim) / 1000:g}'
        )
    return count


def positive_features(x: Tensor, random_features: Tensor, unit_length: bool = True) -> Tensor:
    """``exp(x w - |x|^2 / 2) / sqrt(m)`` for each column w of ``random_features``.

    For w ~ N(0, I) the product of two such vectors estimates ``exp(x'y)``, without bias (the Phi of
    Eq. 1.14). All features are positive.

    Args:
        x: ``(B, h, N, D)``.
        random_features: ``(h, D, m)``.
        unit_length: Scale each row of x to length 1 first, as the released models do; else by
            ``D^-1/4``, so that the kernel is that of softmax, ``exp(x'y / sqrt(D))``.

    Returns:
        ``(B, h, N, m)``.
    """
    bias = -math.log(random_features.shape[-1]) / 2
    if unit_length:
        # A row of length 0 stays 0, with gradient 0: division by a small number would multiply its
        # gradient with 1e12. Of all other rows |x|^2 / 2 is known.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        zero = length < _EPS
        x = x / length.masked_fill(zero, math.inf)
        bias = zero.to(x.dtype) / 2 + (bias - 0.5)
    else:
        x = x * x.shape[-1] ** -0.25
        bias = bias - torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / 2
    # These are the largest tensors of the linear mixers, so the exponent starts as the bias, and
    # only the product and the exponential pass over them.
    weights = random_features.expand(x.shape[0], -1, -1, -1)
    exponent = torch.baddbmm(bias.flatten(0, 1), x.flatten(0, 1), weights.flatten(0, 1))
    return exponent.exp_().unflatten(0, x.shape[:2])


class Performer(nn.Module):
    """Attention through random features: the modified baselines of Table 1.2 (marked *).

    ``out = proj(Phi(q) (Phi(k)' v) / (Phi(q) sum_n Phi(k)))``, linear in N in time and memory. The
    released code forms the N x N matrix, with the same output.

    Args:
        embed_dim: Channels C.
        num_heads: Heads h; head width D = C / h.
        grid: Unused; part of the constructor that all mixers share.
        num_prefix: Unused, likewise.
        qkv_bias: Whether the joint projection has a bias.
        injection: Where a top-down input enters, see :data:`~mmvars.layers.attention.INJECTIONS`.
        double_value_bias: See :func:`~mmvars.layers.attention.project_with_top_down`.
        feature_ratio: Random features of a head over D; 2 in the release.

    Raises:
        InputError: If ``num_heads`` does not divide ``embed_dim``, or there is no feature.
    """

    takes_top_down = True

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        grid: Grid | None = None,
        num_prefix: int = 0,
        qkv_bias: bool = True,
        injection: str = 'value',
        double_value_bias: bool = True,
        feature_ratio: float = 2.0,
    ) -> None:
        super().__init__()
        check_choice('injection', injection, INJECTIONS)
        self.num_heads = num_heads
        self.injection = injection
        self.double_value_bias = double_value_bias
        head_dim = head_width(embed_dim, num_heads)
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.random_features: Tensor
        features = num_features(feature_ratio, head_dim)
        self.register_buffer('random_features', torch.randn(num_heads, head_dim, features))

    def forward(self, x: Tensor, grid: TokenGrid, top_down: Tensor | None = None) -> Tensor:
        """Mix ``x (B, N, C)``; ``top_down (B, N, C)`` or ``None``. Returns ``(B, N, C)``."""
        q, k, v = project_with_top_down(
            self.qkv, x, top_down, self.injection, self.double_value_bias
        )
        with full_precision(x):
            q, k = self._features(q), self._features(k)
            values = split_heads(upcast_to_float32(v), self.num_heads)
            mass = (q @ k.sum(dim=2).unsqueeze(-1)).clamp_min(_EPS)
            out = q @ (k.transpose(-2, -1) @ values) / mass
        return self.proj(merge_heads(out).to(v.dtype))

    def attention_probabilities(
        self, x: Tensor, grid: TokenGrid | None = None, top_down: Tensor | None = None
    ) -> Tensor:
        """``Phi(q) Phi(k)'`` with rows that sum to 1, ``(B, h, N, N)``, for ``x (B, N, C)``.

        What the forward multiplies the values with, but does not form. For figures.
        """
        q, k, _ = project_with_top_down(
            self.qkv, x, top_down, self.injection, self.double_value_bias
        )
        with full_precision(x):
            weights = self._features(q) @ self._features(k).transpose(-2, -1)
            return weights / weights.sum(dim=-1, keepdim=True).clamp_min(_EPS)

    def mean_attention(
        self, x: Tensor, grid: TokenGrid | None = None, top_down: Tensor | None = None
    ) -> Tensor:
        """What the average token attends to, the mean over the queries: ``(B, h, N)``."""
        q, k, _ = project_with_top_down(
            self.qkv, x, top_down, self.injection, self.double_value_bias
        )
        with full_precision(x):
            q, k = self._features(q), self._features(k)
            mass = (q @ k.sum(dim=2).unsqueeze(-1)).clamp_min(_EPS)
            return (k @ (q / mass).mean(dim=2).unsqueeze(-1)).squeeze(-1)

    def keys_values(
        self, x: Tensor, grid: TokenGrid | None = None, top_down: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values, ``(B, h, N, D)`` each: for figures."""
        _, k, v = project_with_top_down(
            self.qkv, x, top_down, self.injection, self.double_value_bias
        )
        return split_heads(k, self.num_heads), split_heads(v, self.num_heads)

    def _features(self, x: Tensor) -> Tensor:
        """Positive features ``(B, h, N, m)`` of queries or keys ``(B, N, C)``."""
        heads = split_heads(upcast_to_float32(x), self.num_heads)
        return positive_features(heads, upcast_to_float32(self.random_features))
