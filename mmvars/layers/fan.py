"""Layers of FAN: stems, Fourier positions, channel processing, class attention."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.layers.attention import (
    head_width,
    mean_row,
    merge_heads,
    project_with_top_down,
    split_heads,
)
from mmvars.layers.block import Block, Mlp
from mmvars.layers.embed import PatchEmbed, TokenGrid

__all__ = [
    'ChannelProcessing',
    'ClassAttentionBlock',
    'FANAttention',
    'FANBlock',
    'FourierPositions',
    'fan_hybrid_stem',
    'fan_stem',
]

_NORM_EPS = 1e-6


def fan_stem(patch_size: int, in_chans: int, embed_dim: int) -> PatchEmbed:
    """Four 3x3 convolutions of stride 2, each with batch norm, GELU between them: stride 16.

    Raises:
        InputError: If ``patch_size`` is not 16, or ``embed_dim`` below 8.
    """
    if patch_size != 16:
        raise InputError(
            f'the stem of FAN has stride 16, so patch_size must be 16, got {patch_size}'
        )
    if embed_dim < 8:
        raise InputError(
            f'embed_dim of FAN must be at least 8, since its stem begins with an '
            f'eighth of the channels; got {embed_dim}'
        )
    widths = [in_chans, *(embed_dim // share for share in (8, 4, 2, 1))]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [
            nn.Sequential(nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after)),
            nn.GELU(),
        ]
    return PatchEmbed(patch_size, in_chans, nn.Sequential(*layers[:-1]))


class FourierPositions(nn.Module):
    """Sines and cosines of the place relative to the grid, projected to C channels; any grid.

    Args:
        embed_dim: Channels C.
        num_frequencies: Sines and cosines an axis.
        temperature: Longest wavelength, in turns.
    """

    def __init__(
        self, embed_dim: int, num_frequencies: int = 32, temperature: float = 10000.0
    ) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.temperature = temperature
        self.token_projection = nn.Conv2d(2 * num_frequencies, embed_dim, 1)

    def forward(self, grid: tuple[int, int], like: Tensor) -> Tensor:
        """Positions ``(1, h * w, C)`` of a grid ``(h, w)``, on the device of ``like``."""
        y, x = (self._axis(side, like) for side in grid)
        maps = torch.cat(
            [y[:, :, None].expand(-1, -1, grid[1]), x[:, None, :].expand(-1, grid[0], -1)]
        )
        return self.token_projection(maps[None].to(like.dtype)).flatten(2).transpose(1, 2)

    def _axis(self, side: int, like: Tensor) -> Tensor:
        index = torch.arange(self.num_frequencies, device=like.device)
        dtype = torch.promote_types(like.dtype, torch.float32)
        places = torch.arange(1, side + 1, device=like.device, dtype=dtype)
        places = places * (2 * math.pi / (side + 1e-6))
        exponent = (index // 2 * 2 / self.num_frequencies).to(dtype)
        angles = places[None] / (self.temperature**exponent)[:, None]
        return torch.where(index[:, None] % 2 == 0, angles.sin(), angles.cos())


class FANAttention(nn.Module):
    """Softmax attention with separate projections of the query, and of key and value.

    Args:
        embed_dim: Channels C.
        num_heads: Heads h.
        qkv_bias: Whether the projections have a bias.
        injection, double_value_bias: See :class:`~mmvars.layers.SelfAttention`.
    """

    takes_top_down = True

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        injection: str = 'value',
        double_value_bias: bool = True,
    ) -> None:
        super().__init__()
        head_width(embed_dim, num_heads)
        self.num_heads = num_heads
        self.injection = injection
        self.double_value_bias = double_value_bias
        self.q = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
        self.kv = nn.Linear(embed_dim, 2 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, grid: TokenGrid, top_down: Tensor | None = None) -> Tensor:
        """Mix ``x (B, N, C)``; ``top_down (B, N, C)`` or ``None``. Returns ``(B, N, C)``."""
        q, k, v = self.query_key_value(x, top_down)
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))

    def query_key_value(self, x: Tensor, top_down: Tensor | None) -> tuple[Tensor, ...]:
        """Queries, keys and values ``(B, h, N, D)`` of ``x (B, N, C)``."""
        to_query = top_down if self.injection == 'qkv' else None
        (q,) = project_with_top_down(self.q, x, to_query, self.injection, self.double_value_bias)
        k, v = project_with_top_down(self.kv, x, top_down, self.injection, self.double_value_bias)
        return (
            split_heads(q, self.num_heads),
            split_heads(k, self.num_heads),
            split_heads(v, self.num_heads),
        )

    def attention_probabilities(
        self, x: Tensor, grid: TokenGrid | None = None, top_down: Tensor | None = None
    ) -> Tensor:
        """``softmax(q k' / sqrt(D))``, ``(B, h, N, N)``; for figures."""
        q, k, _ = self.query_key_value(x, top_down)
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)

    def mean_attention(
        self, x: Tensor, grid: TokenGrid | None = None, top_down: Tensor | None = None
    ) -> Tensor:
        """What the average token attends to, the mean over the queries: ``(B, h, N)``."""
        q, k, _ = self.query_key_value(x, top_down)
        return mean_row(q, k)


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

    def __init__(
        self, embed_dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool = True
    ) -> None:
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

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        injection: str = 'value',
        double_value_bias: bool = True,
    ) -> None:
        super().__init__(
            nn.LayerNorm(embed_dim, eps=_NORM_EPS),
            FANAttention(embed_dim, num_heads, qkv_bias, injection, double_value_bias),
            nn.LayerNorm(embed_dim, eps=_NORM_EPS),
            ChannelProcessing(embed_dim, num_heads, mlp_ratio, qkv_bias),
            drop_path_rate,
        )
        self.gamma1 = nn.Parameter(torch.ones(embed_dim))
        self.gamma2 = nn.Parameter(torch.ones(embed_dim))

    def forward(
        self,
        x: Tensor,
        grid: TokenGrid,
        top_down: Tensor | None = None,
        num_queries: int | None = None,
    ) -> Tensor:
        """Map ``x (B, N, C)`` to ``(B, N, C)``; ``num_queries`` must be ``None``."""
        x = x + self.drop_path(self.gamma1 * self.attn(self.norm1(x), grid, top_down))
        return x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x), grid))


class _ClassAttention(nn.Module):
    """The class token attends to all tokens."""

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
        self.k = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
        self.v = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self._query_key(x)
        v = split_heads(self.v(x), self.num_heads)
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))

    def attention_probabilities(self, x: Tensor) -> Tensor:
        """What the class token attends to, ``(B, h, 1, 1 + N)``; for figures."""
        q, k = self._query_key(x)
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)

    def _query_key(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (
            split_heads(self.q(x[:, :1]), self.num_heads),
            split_heads(self.k(x), self.num_heads),
        )


class ClassAttentionBlock(nn.Module):
    """The class stage of FAN. The class token is the first of ``(B, 1 + N, C)``.

    The second norm replaces the tokens it normalizes, and the patch tokens, which the perceptron
    passes by, are doubled, as in the released models.

    Args:
        embed_dim: Channels C.
        num_heads: Heads h.
        mlp_ratio: Hidden width over C.
        qkv_bias: Whether the projections have a bias.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool = True
    ) -> None:
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


class _ConvNorm(nn.LayerNorm):
    """Layer norm over the channels of maps ``(B, C, H, W)``.

    Args:
        channels: C.
        unbiased: Divide the variance by C - 1, as the released hybrid models do everywhere but in
            the stem, whose output comes in another memory layout.
    """

    def __init__(self, channels: int, unbiased: bool) -> None:
        super().__init__(channels, eps=_NORM_EPS)
        self.unbiased = unbiased

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        if self.unbiased:
            variance, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=1)
            x = (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias
        else:
            x = super().forward(x)
        return x.movedim(-1, 1)


class _ConvNeXtBlock(nn.Module):
    """7x7 depthwise convolution, norm, two 1x1 convolutions with GELU, layer scale, skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = _ConvNorm(channels, unbiased=True)
        self.mlp = nn.ModuleDict(
            dict(fc1=nn.Conv2d(channels, 4 * channels, 1), fc2=nn.Conv2d(4 * channels, channels, 1))
        )
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.mlp['fc1'](self.norm(self.conv_dw(x))))
        return x + self.gamma[:, None, None] * self.mlp['fc2'](hidden)


class _Stage(nn.Module):
    """A step down by a 2x2 convolution (but for the first stage), then blocks."""

    def __init__(self, in_dim: int, out_dim: int, depth: int, downsample: bool) -> None:
        super().__init__()
        self.downsample = (
            nn.Sequential(_ConvNorm(in_dim, unbiased=True), nn.Conv2d(in_dim, out_dim, 2, stride=2))
            if downsample
            else nn.Identity()
        )
        self.blocks = nn.Sequential(*(_ConvNeXtBlock(out_dim) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class _ConvNeXt(nn.Module):
    """The first stages of a ConvNeXt: stride 4, then 8."""

    def __init__(self, in_chans: int, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, widths[0], 4, stride=4), _ConvNorm(widths[0], unbiased=False)
        )
        before = [widths[0], *widths]
        self.stages = nn.Sequential(
            *(_Stage(before[i], widths[i], depths[i], downsample=i > 0) for i in range(len(widths)))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x))


def fan_hybrid_stem(
    patch_size: int,
    in_chans: int,
    embed_dim: int,
    widths: Sequence[int] = (128, 256),
    depths: Sequence[int] = (3, 3),
) -> PatchEmbed:
    """ConvNeXt stages of stride 8, then a 2x2 convolution of stride 2: stride 16.

    Args:
        patch_size: Stride of the whole; 16.
        in_chans: Image channels.
        embed_dim: Channels C of a token.
        widths: Channels of the two stages.
        depths: Blocks of the two stages.

    Raises:
        InputError: If ``patch_size`` is not that of the stages.
    """
    if patch_size != 4 * 2 ** len(widths):
        raise InputError(
            f'the hybrid stem has stride {4 * 2 ** len(widths)}, so patch_size must be '
            f'that, got {patch_size}'
        )
    return PatchEmbed(
        patch_size,
        in_chans,
        nn.Conv2d(widths[-1], embed_dim, 2, stride=2),
        _ConvNeXt(in_chans, widths, depths),
    )
