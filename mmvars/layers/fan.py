"""Bricks of FAN: stems, Fourier positions, channel processing, class attention."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.layers.attention import SelfAttention
from mmvars.layers.block import Block
from mmvars.layers.embed import PatchEmbed
from mmvars.layers.mlp import Mlp
from mmvars.layers.projections import (join_heads, split_heads, with_value,
                                       without_value)
from mmvars.layers.tokens import TokenGrid

__all__ = ['ChannelProcessing', 'ClassAttentionBlock', 'FANAttention', 'FANBlock', 'FANStem',
           'FourierPositions']

_NORM_EPS = 1e-6


class FANStem(PatchEmbed):
    """Four 3x3 convolutions of stride 2, each with batch norm, GELU between them: stride 16."""

    def _projection(self, embed_dim: int) -> nn.Module:
        widths = [self.in_chans, *(embed_dim // share for share in (8, 4, 2, 1))]
        layers = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Sequential(nn.Conv2d(before, after, 3, 2, 1, bias=False),
                                     nn.BatchNorm2d(after)), nn.GELU()]
        return nn.Sequential(*layers[:-1])


class FourierPositions(nn.Module):
    """Sines and cosines of the place relative to the grid, projected to C channels; any grid.

    Args:
        embed_dim: Channels C.
        num_frequencies: Sines and cosines an axis.
        temperature: Longest wavelength, in turns.
    """

    def __init__(self, embed_dim: int, num_frequencies: int = 32,
                 temperature: float = 10000.) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.temperature = temperature
        self.token_projection = nn.Conv2d(2 * num_frequencies, embed_dim, 1)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """Positions ``(1, h * w, C)`` of a grid ``(h, w)``."""
        weight = self.token_projection.weight
        y, x = (self._axis(side, weight) for side in grid)
        maps = torch.cat([y[:, :, None].expand(-1, -1, grid[1]),
                          x[:, None, :].expand(-1, grid[0], -1)])
        return self.token_projection(maps[None].to(weight.dtype)).flatten(2).transpose(1, 2)

    def _axis(self, side: int, like: Tensor) -> Tensor:
        index = torch.arange(self.num_frequencies, device=like.device)
        dtype = torch.promote_types(like.dtype, torch.float32)
        places = torch.arange(1, side + 1, device=like.device, dtype=dtype)
        places = places * (2 * math.pi / (side + 1e-6))
        exponent = (index // 2 * 2 / self.num_frequencies).to(dtype)
        angles = places[None] / (self.temperature**exponent)[:, None]
        return torch.where(index[:, None] % 2 == 0, angles.sin(), angles.cos())


class FANAttention(SelfAttention):
    """Softmax attention whose query has a projection of its own; the signal enters the value half.

    Args:
        embed_dim: Channels C.
        num_heads: Heads h.
        qkv_bias: Whether the projections have a bias.
    """

    def _make_projections(self, embed_dim: int, qkv_bias: bool) -> None:
        self.q = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
        self.kv = nn.Linear(embed_dim, 2 * embed_dim, bias=qkv_bias)

    def _project(self, x: Tensor, top_down: Tensor | None) -> tuple[Tensor, ...]:
        return *without_value(self.q, x, top_down), *with_value(self.kv, x, top_down)


class _ConvBranchMlp(nn.Module):
    """Two linear layers with a depthwise convolution branch between them; no activation."""

    def __init__(self, embed_dim: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(embed_dim * mlp_ratio)
        self.fc1 = nn.Linear(embed_dim, hidden)
        self.gamma = nn.Parameter(torch.ones(hidden))
        self.dwconv = _DepthwisePair(hidden)
        self.fc2 = nn.Linear(hidden, embed_dim)

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        hidden = self.fc1(x)
        return self.fc2(hidden + self.gamma * self.dwconv(hidden, grid))


class _DepthwisePair(nn.Module):
    """3x3 depthwise convolution, GELU, batch norm, 3x3 depthwise convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.bn = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        maps = self.conv2(self.bn(F.gelu(self.conv1(grid.to_map(x)))))
        return maps.flatten(2).transpose(1, 2)


class ChannelProcessing(nn.Module):
    """FAN's channel mixer: a perceptron with convolutions, gated channel by channel.

    ``g * LN(mlp(y))`` with the gate ``g = temperature * sigmoid(qs' ks)`` of each head's channels:
    qs is the softmax over the tokens of a projection of y, ks that of y itself, averaged over the
    head's channels.

    Args:
        embed_dim: Channels C.
        num_heads: Heads h.
        mlp_ratio: Hidden width over C.
        qkv_bias: Whether the query's projection has a bias.
    """

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: float,
                 qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.mlp_v = _ConvBranchMlp(embed_dim, mlp_ratio)
        self.norm_v = nn.LayerNorm(embed_dim, eps=_NORM_EPS)
        self.q = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        """Map ``x (B, N, C)`` to ``(B, N, C)``."""
        queries = split_heads(self.q(x), self.num_heads).softmax(dim=2)
        keys = split_heads(x, self.num_heads).softmax(dim=2).mean(dim=3, keepdim=True)
        gate = (queries.transpose(2, 3) @ keys).sigmoid() * self.temperature  # (B, h, D, 1)
        return gate.flatten(1).unsqueeze(1) * self.norm_v(self.mlp_v(x, grid))


class FANBlock(Block):
    """``z + dp(gamma1 attn(norm1 z, t))``, then ``z + dp(gamma2 mlp(norm2 z))``."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool = True,
                 drop_path_rate: float = 0.) -> None:
        super().__init__(nn.LayerNorm(embed_dim, eps=_NORM_EPS),
                         FANAttention(embed_dim, num_heads, qkv_bias=qkv_bias),
                         nn.LayerNorm(embed_dim, eps=_NORM_EPS),
                         ChannelProcessing(embed_dim, num_heads, mlp_ratio, qkv_bias),
                         drop_path_rate)
        self.gamma1 = nn.Parameter(torch.ones(embed_dim))
        self.gamma2 = nn.Parameter(torch.ones(embed_dim))

    def forward(self, x: Tensor, grid: TokenGrid, top_down: Tensor | None = None) -> Tensor:
        """Map ``x (B, N, C)`` to ``(B, N, C)``; ``top_down`` is ``(B, N, C)`` or ``None``."""
        x = x + self.drop_path(self.gamma1 * self.attn(self.norm1(x), grid, top_down))
        return x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x), grid))


class _ClassAttention(nn.Module):
    """The class token attends to all tokens."""

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        for name in ('q', 'k', 'v'):
            setattr(self, name, nn.Linear(embed_dim, embed_dim, bias=qkv_bias))
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self._query_key(x)
        v = split_heads(self.v(x), self.num_heads)
        return self.proj(join_heads(F.scaled_dot_product_attention(q, k, v)))

    def attention_probabilities(self, x: Tensor) -> Tensor:
        """What the class token attends to, ``(B, h, 1, 1 + N)``; for pictures."""
        q, k = self._query_key(x)
        return (q @ k.transpose(-2, -1) * q.shape[-1]**-0.5).softmax(dim=-1)

    def _query_key(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (split_heads(self.q(x[:, :1]), self.num_heads),
                split_heads(self.k(x), self.num_heads))


class ClassAttentionBlock(nn.Module):
    """The class stage of FAN. The class token is the first of ``(B, 1 + N, C)``.

    The second norm replaces the tokens it normalises, and the patch tokens, which the perceptron
    passes by, are doubled, as in the released models.

    Args:
        embed_dim: Channels C.
        num_heads: Heads h.
        mlp_ratio: Hidden width over C.
        qkv_bias: Whether the projections have a bias.
    """

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: float,
                 qkv_bias: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=_NORM_EPS)
        self.attn = _ClassAttention(embed_dim, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(embed_dim, eps=_NORM_EPS)
        self.mlp = Mlp(embed_dim, mlp_ratio)
        self.gamma1 = nn.Parameter(torch.ones(embed_dim))
        self.gamma2 = nn.Parameter(torch.ones(embed_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x (B, 1 + N, C)`` to the same shape."""
        normed = self.norm1(x)
        mixed = torch.cat([self.attn(normed), normed[:, 1:]], dim=1)
        x = self.norm2(x + self.gamma1 * mixed)
        token, patches = x[:, :1], x[:, 1:]
        return torch.cat([token + self.gamma2 * self.mlp(token), 2 * patches], dim=1)
