"""From images to tokens on a grid: patches, positions, and tensors that belong to a grid."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from mmvars.errors import InputError
from mmvars.layers.compile_utils import crop_to, same_grid, statically_true
from mmvars.layers.precision import upcast_to_float32

__all__ = [
    'STEMS',
    'Grid',
    'GridResizeMixin',
    'PatchEmbed',
    'TokenGrid',
    'conv_stem',
    'infer_square_grid',
    'linear_stem',
    'pad_to_patches',
    'patch_grid',
    'resample_pos_embed',
]

Grid = tuple[int, int]
"""Height and width in patches."""

_LARGEST_SIDE = 32_768


class TokenGrid(NamedTuple):
    """Layout of a token sequence: prefix tokens first, then the patches row by row.

    ``num_prefix`` counts the class token and any prompt tokens. A sequence of this layout has
    ``num_prefix + height * width`` tokens.
    """

    height: int
    width: int
    num_prefix: int = 0

    @property
    def num_patches(self) -> int:
        return self.height * self.width

    def patch_tokens(self, tokens: Tensor) -> Tensor:
        """``(B, N, C)`` without its prefix: ``(B, height * width, C)``."""
        return tokens[:, self.num_prefix :]

    def to_map(self, tokens: Tensor) -> Tensor:
        """The patch tokens of ``(B, N, C)`` as a map ``(B, C, height, width)``, a view."""
        patches = tokens[:, self.num_prefix :]
        return patches.transpose(1, 2).unflatten(2, (self.height, self.width))


def patch_grid(img_size: int | Sequence[int], patch_size: int) -> Grid:
    """The patch grid ``(h, w)`` of an image of ``img_size`` pixels (side, or (height, width)).

    Raises:
        InputError: If a side is not a whole number of pixels, is smaller than a patch or absurdly
            long.
    """
    sides = tuple(img_size) if isinstance(img_size, (tuple, list)) else (img_size, img_size)
    if len(sides) != 2 or any(
        not isinstance(side, int) or not patch_size <= side <= _LARGEST_SIDE for side in sides
    ):
        raise InputError(
            f'img_size must be a number of pixels or (height, width), each from '
            f'patch_size ({patch_size}) to {_LARGEST_SIDE}, got {img_size!r}'
        )
    return -(-sides[0] // patch_size), -(-sides[1] // patch_size)


def infer_square_grid(num_patches: int, name: str) -> Grid:
    """The square grid of that many patches.

    Raises:
        InputError: If ``num_patches`` is not a square number.
    """
    side = round(num_patches**0.5)
    if side * side != num_patches:
        raise InputError(
            f'{name} has {num_patches} patch positions, which is no square grid; '
            f'say the (height, width) it was made for '
            f'(mmvars convert --source-grid HEIGHTxWIDTH)'
        )
    return side, side


class PatchEmbed(nn.Module):
    """Patch tokens of images of any size, at least one patch large.

    Args:
        patch_size: Stride P of ``backbone`` and ``proj`` together, in pixels.
        in_chans: Channels of the image.
        proj: Layers to ``(B, C, h, w)``.
        backbone: Layers before ``proj``, from ``(B, in_chans, h P, w P)``; ``None``: no others.
    """

    def __init__(
        self, patch_size: int, in_chans: int, proj: nn.Module, backbone: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.proj = proj
        self.backbone = backbone or nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, Grid]:
        """Embed ``(B, in_chans, H, W)``.

        Returns:
            Tokens ``(B, h * w, C)`` in row-major order, and the grid ``(h, w)`` with
            ``h = ceil(H / P)``, ``w = ceil(W / P)``.

        Raises:
            InputError: If the input is no batch of images or is smaller than a patch.
        """
        if images.ndim != 4 or images.shape[1] != self.in_chans:
            raise InputError(
                f'images must have shape (B, {self.in_chans}, H, W), got {tuple(images.shape)}'
            )
        patch_size, (height, width) = self.patch_size, images.shape[-2:]
        if min(height, width) < patch_size:
            raise InputError(
                f'images are {height}x{width} pixels (height x width), smaller than '
                f'one patch of {patch_size}x{patch_size}; resize them or use a '
                f'smaller patch_size'
            )
        if torch.compiler.is_compiling() or height % patch_size or width % patch_size:
            images = pad_to_patches(images, patch_size)
        maps = self.proj(self.backbone(images))
        tokens = maps.flatten(2).transpose(1, 2).contiguous()
        return tokens, (maps.shape[-2], maps.shape[-1])


def pad_to_patches(images: Tensor, patch_size: int) -> Tensor:
    """``(B, c, H, W)`` padded with zeros at the bottom and right to a multiple of the patch size.

    As in the released segmentation models.
    """
    height, width = images.shape[-2:]
    # Not -height % patch_size: inductor has no form for the remainder of a symbolic size.
    bottom = (height + patch_size - 1) // patch_size * patch_size - height
    right = (width + patch_size - 1) // patch_size * patch_size - width
    if not torch.compiler.is_compiling():
        return F.pad(images, (0, right, 0, bottom))
    if statically_true(bottom == 0) and statically_true(right == 0):
        return images
    # One graph, whether there is anything to pad or not.
    largest = F.pad(images, (0, patch_size - 1, 0, patch_size - 1))
    return crop_to(largest, height + bottom, width + right)


def linear_stem(patch_size: int, in_chans: int, embed_dim: int) -> PatchEmbed:
    """Non-overlapping patches, linearly projected (ViT)."""
    return PatchEmbed(
        patch_size, in_chans, nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)
    )


def conv_stem(patch_size: int, in_chans: int, embed_dim: int) -> PatchEmbed:
    """RVT's overlapping stem of stride 16, which the modified baseline DeiT* also has.

    7x7 convolution of stride 2 to 32 channels, batch norm, 3x3 max pooling of stride 2, 4x4
    convolution of stride 4; no activation.

    Raises:
        InputError: If ``patch_size`` is not 16.
    """
    if patch_size != 16:
        raise InputError(
            f'the convolutional stem has stride 16, so patch_size must be 16, got {patch_size}'
        )
    return PatchEmbed(
        patch_size,
        in_chans,
        nn.Sequential(
            nn.Conv2d(in_chans, 32, 7, stride=2, padding=2),
            nn.BatchNorm2d(32),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Conv2d(32, embed_dim, 4, stride=4),
        ),
    )


STEMS: dict[str, Callable[[int, int, int], PatchEmbed]] = {
    'patch': linear_stem,
    'conv': conv_stem,
}
"""Name -> function of ``(patch_size, in_chans, embed_dim)``."""


def resample_pos_embed(pos_embed: Tensor, from_grid: Grid, to_grid: Grid) -> Tensor:
    """Resize positions from one patch grid to another: bicubic, no antialiasing, corners unaligned.

    Differs from the released models, which compare the *number* of tokens and so use a 4x4 table
    unchanged for a 2x8 grid. Here the grids are compared.

    Args:
        pos_embed: ``(1, P + h * w, C)`` with P prefix rows, which are not resized.
        from_grid: ``(h, w)`` of the table.
        to_grid: ``(h', w')`` of the result.

    Returns:
        ``(1, P + h' * w', C)``; the argument itself where the grids are equal. Differentiable.
    """
    if same_grid(from_grid, to_grid):
        return pos_embed
    num_prefix = pos_embed.shape[1] - from_grid[0] * from_grid[1]
    prefix, table = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    maps = upcast_to_float32(table).transpose(1, 2).unflatten(2, tuple(from_grid))
    maps = F.interpolate(maps, size=tuple(to_grid), mode='bicubic', align_corners=False)
    rows = maps.flatten(2).transpose(1, 2).to(pos_embed.dtype)
    return torch.cat([prefix, rows], dim=1) if num_prefix else rows


class GridResizeMixin(nn.Module):
    """For modules some of whose tensors belong to one patch grid.

    At the grid of the module such a tensor is used as it is, at any other it is resampled, with
    gradients. A state dict of another grid is resampled when it is loaded, by whatever function.
    *Grids* are compared, not numbers of tokens: 2x8 is not 4x4.

    The length of a tensor does not tell 2x8 from 4x4. A module whose grid is not square therefore
    has the grid in its state dict, as the buffer ``trained_grid`` (height, width).

    A subclass calls :meth:`set_grid` in its constructor and implements :meth:`resample` and
    :meth:`infer_grid`.

    Attributes:
        grid: ``(height, width)`` of the tensors.
        grid_tensors: Names of the tensors that belong to the grid.
        resamples_exactly: Whether :meth:`resample` to the same grid returns the same numbers. Then
            one traced graph serves all grids; else the module's own grid gets a second graph.
    """

    grid: Grid
    grid_tensors: tuple[str, ...] = ()
    resamples_exactly = True

    def set_grid(self, grid: Grid) -> None:
        """Declare the grid of :attr:`grid_tensors`."""
        self.grid = (int(grid[0]), int(grid[1]))
        if self.grid[0] != self.grid[1]:
            self.register_buffer('trained_grid', torch.tensor(self.grid))

    def resample(self, name: str, tensor: Tensor, from_grid: Grid, to_grid: Grid) -> Tensor:
        """``tensor``, the value of ``name`` at ``from_grid``, for ``to_grid``. Differentiable.

        The argument itself where the grids are equal.
        """
        raise NotImplementedError

    def infer_grid(self, name: str, tensor: Tensor) -> Grid:
        """The square grid of a value of ``name`` with the shape of ``tensor``.

        Raises:
            InputError: If no square grid has that shape.
        """
        raise NotImplementedError

    def after_resize(self, entries: dict[str, Tensor]) -> None:
        """Update entries of a state dict, in place, that depend on the resampled tensors."""

    def resized(self, name: str, grid: Sequence[int]) -> Tensor:
        """The tensor ``name`` for a grid, whose first two numbers are height and width."""
        tensor, to_grid = getattr(self, name), (grid[0], grid[1])
        # While tracing, == would bind the graph to one grid; resampling to the same grid is exact.
        compare = torch.compiler.is_compiling() and self.resamples_exactly
        if same_grid(to_grid, self.grid) if compare else to_grid == self.grid:
            return tensor
        return self.resample(name, tensor, self.grid, to_grid)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # ``to(memory_format=torch.channels_last)`` is meant for convolutions. These tensors keep
        # their layout: torch takes those of five axes for a 3d convolution's, and fails.
        tensors = [
            tensor
            for name in self.grid_tensors
            if isinstance(tensor := getattr(self, name, None), Tensor)
        ]
        tensors += [tensor.grad for tensor in tensors if tensor.grad is not None]

        def apply(tensor: Tensor) -> Tensor:
            if not any(tensor is other for other in tensors) or not tensor.is_contiguous():
                return fn(tensor)
            return fn(tensor.flatten()).view(tensor.shape)

        return super()._apply(apply, recurse)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self._resample_entries(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @torch.no_grad()
    def _resample_entries(self, state_dict: dict[str, Any], prefix: str) -> None:
        recorded, resampled = state_dict.pop(prefix + 'trained_grid', None), False
        for name in self.grid_tensors:
            tensor, current = state_dict.get(prefix + name), getattr(self, name, None)
            if tensor is None or current is None or tensor.ndim != current.ndim:
                continue  # torch reports missing, unexpected and misshapen entries
            try:
                grid = self.infer_grid(name, tensor) if recorded is None else recorded.tolist()
            except InputError as error:
                raise InputError(f'{prefix}{name}: {error}') from None
            state_dict[prefix + name] = self.resample(name, tensor, tuple(grid), self.grid)
            resampled = resampled or tuple(grid) != self.grid
        if resampled:
            entries = {
                key.removeprefix(prefix): entry
                for key, entry in state_dict.items()
                if key.startswith(prefix)
            }
            self.after_resize(entries)
            state_dict.update({prefix + name: entry for name, entry in entries.items()})
        if hasattr(self, 'trained_grid'):
            state_dict[prefix + 'trained_grid'] = torch.tensor(self.grid)
