"""From pixels to patch tokens."""

from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError

__all__ = ['PatchEmbed']


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
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed ``(B, in_chans, H, W)``.

        Returns:
            Tokens ``(B, h * w, C)`` in row-major order, and the grid ``(h, w)`` with
            ``h = ceil(H / P)``, ``w = ceil(W / P)``.

        Raises:
            InputError: If the input is no image batch or is smaller than a patch.
        """
        patch = self.patch_size
        if images.ndim != 4 or images.shape[1] != self.proj.in_channels:
            raise InputError(f'images must have shape (B, {self.proj.in_channels}, H, W), got '
                             f'{tuple(images.shape)}')
        height, width = images.shape[-2:]
        if min(height, width) < patch:
            raise InputError(f'images are {height}x{width} pixels (height x width), smaller than '
                             f'one patch of {patch}x{patch}; resize them or use a smaller '
                             f'patch_size')
        pad_bottom, pad_right = -height % patch, -width % patch
        if pad_bottom or pad_right:
            images = F.pad(images, (0, pad_right, 0, pad_bottom))
        maps = self.proj(images)
        return maps.flatten(2).transpose(1, 2), (maps.shape[-2], maps.shape[-1])
