"""The convolutional stem of the hybrid FAN: two stages of ConvNeXt blocks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.layers.embed import PatchEmbed

__all__ = ['FANHybridStem']

_NORM_EPS = 1e-6


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
        self.mlp = nn.ModuleDict(dict(fc1=nn.Conv2d(channels, 4 * channels, 1),
                                      fc2=nn.Conv2d(4 * channels, channels, 1)))
        self.gamma = nn.Parameter(torch.full((channels, ), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.mlp['fc1'](self.norm(self.conv_dw(x))))
        return x + self.gamma[:, None, None] * self.mlp['fc2'](hidden)


class _Stage(nn.Module):
    """A step down by a 2x2 convolution (but for the first stage), then blocks."""

    def __init__(self, in_dim: int, out_dim: int, depth: int, downsample: bool) -> None:
        super().__init__()
        self.downsample = nn.Sequential(
            _ConvNorm(in_dim, unbiased=True),
            nn.Conv2d(in_dim, out_dim, 2, stride=2)) if downsample else nn.Identity()
        self.blocks = nn.Sequential(*(_ConvNeXtBlock(out_dim) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class _ConvNeXt(nn.Module):
    """The first stages of a ConvNeXt: stride 4, then 8."""

    def __init__(self, in_chans: int, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_chans, widths[0], 4, stride=4),
                                  _ConvNorm(widths[0], unbiased=False))
        before = [widths[0], *widths]
        self.stages = nn.Sequential(*(
            _Stage(before[i], widths[i], depths[i], downsample=i > 0)
            for i in range(len(widths))))

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x))


class FANHybridStem(PatchEmbed):
    """ConvNeXt stages of stride 8, then a 2x2 convolution of stride 2: stride 16.

    Args:
        patch_size: Stride of the whole; 16.
        in_chans: Image channels.
        embed_dim: Channels C of a token.
        widths: Channels of the two stages.
        depths: Blocks of the two stages.

    Raises:
        InputError: If ``patch_size`` is not 16.
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int,
                 widths: Sequence[int] = (128, 256), depths: Sequence[int] = (3, 3)) -> None:
        self._widths = tuple(widths)
        super().__init__(patch_size, in_chans, embed_dim)
        if patch_size != 4 * 2**len(widths):
            raise InputError(f'the hybrid stem has stride {4 * 2**len(widths)}, so patch_size must '
                             f'be that, got {patch_size}')
        self.backbone = _ConvNeXt(in_chans, widths, depths)

    def _projection(self, embed_dim: int) -> nn.Module:
        return nn.Conv2d(self._widths[-1], embed_dim, 2, stride=2)

    def _maps(self, images: Tensor) -> Tensor:
        return self.proj(self.backbone(images))
