"""From pixels to patch tokens."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.layers.tracing import cut_to, surely

__all__ = ['STEMS', 'ConvStem', 'PatchEmbed']


class PatchEmbed(nn.Module):
    """Non-overlapping patches, linearly projected. Any image size at least one patch large.

    The image is zero-padded at the bottom and right to a multiple of the patch size, as in the
    released segmentation models.

    Args:
        patch_size: Side P of a patch in pixels.
        in_chans: Channels of the image.
        embed_dim: Channels C of a token.
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.proj = self._projection(embed_dim)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed ``(B, in_chans, H, W)``.

        Returns:
            Tokens ``(B, h * w, C)`` in row-major order, and the grid ``(h, w)`` with
            ``h = ceil(H / P)``, ``w = ceil(W / P)``.

        Raises:
            InputError: If the input is no image batch or is smaller than a patch.
        """
        patch = self.patch_size
        if images.ndim != 4 or images.shape[1] != self.in_chans:
            raise InputError(f'images must have shape (B, {self.in_chans}, H, W), got '
                             f'{tuple(images.shape)}')
        height, width = images.shape[-2:]
        if min(height, width) < patch:
            raise InputError(f'images are {height}x{width} pixels (height x width), smaller than '
                             f'one patch of {patch}x{patch}; resize them or use a smaller '
                             f'patch_size')
        maps = self._maps(self._padded(images))
        return maps.flatten(2).transpose(1, 2), (maps.shape[-2], maps.shape[-1])

    def _padded(self, images: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to ``(B, in_chans, h P, w P)``: zeros at the bottom and right."""
        patch, (height, width) = self.patch_size, images.shape[-2:]
        # Not -height % patch: of a free size, inductor has no form for a remainder.
        bottom, right = ((side + patch - 1) // patch * patch - side for side in (height, width))
        if surely(bottom == 0) and surely(right == 0):
            return images
        if torch.compiler.is_compiling():  # one graph, whether there is anything to pad or not
            most = F.pad(images, (0, patch - 1, 0, patch - 1))
            return cut_to(most, height + bottom, width + right)
        return F.pad(images, (0, right, 0, bottom))

    def _projection(self, embed_dim: int) -> nn.Module:
        return nn.Conv2d(self.in_chans, embed_dim, self.patch_size, stride=self.patch_size)

    def _maps(self, images: Tensor) -> Tensor:
        """``(B, in_chans, h P, w P)`` to ``(B, C, h, w)``."""
        return self.proj(images)


class ConvStem(PatchEmbed):
    """RVT's overlapping stem of stride 16, which the modified baselines (DeiT*) also have.

    7x7 convolution of stride 2 to 32 channels, batch norm, 3x3 max pooling of stride 2, 4x4
    convolution of stride 4; no activation. Pads and counts patches as :class:`PatchEmbed`.

    Raises:
        InputError: If ``patch_size`` is not 16.
    """

    def _projection(self, embed_dim: int) -> nn.Module:
        if self.patch_size != 16:
            raise InputError(f'the convolutional stem has stride 16, so patch_size must be 16, got '
                             f'{self.patch_size}')
        return nn.Sequential(
            nn.Conv2d(self.in_chans, 32, 7, stride=2, padding=2),
            nn.BatchNorm2d(32),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Conv2d(32, embed_dim, 4, stride=4))


STEMS: dict[str, type[PatchEmbed]] = {'patch': PatchEmbed, 'conv': ConvStem}
"""Name -> class, each ``(patch_size, in_chans, embed_dim)``."""
