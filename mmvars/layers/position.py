"""Learned absolute positions for any grid."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.layers.precision import widened
from mmvars.layers.tracing import same_grid

__all__ = ['grid_of_image', 'resample_positions', 'square_grid']

_LARGEST = 32_768


def grid_of_image(img_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    """The patch grid ``(h, w)`` of an image of ``img_size`` pixels (side, or (height, width)).

    Raises:
        InputError: If a side is not a whole number of pixels, at least one patch and not absurdly
            long.
    """
    sides = tuple(img_size) if isinstance(img_size, (tuple, list)) else (img_size, img_size)
    if len(sides) != 2 or any(
            not isinstance(s, int) or not patch_size <= s <= _LARGEST for s in sides):
        raise InputError(f'img_size must be a number of pixels or (height, width), each from '
                         f'patch_size ({patch_size}) to {_LARGEST}, got {img_size!r}')
    return -(-sides[0] // patch_size), -(-sides[1] // patch_size)


def square_grid(num_positions: int, what: str = 'pos_embed') -> tuple[int, int]:
    """The grid of a table that is known only by its length: square, or an error.

    Raises:
        InputError: If ``num_positions`` is not a square number.
    """
    side = round(num_positions**0.5)
    if side * side != num_positions:
        raise InputError(f'{what} has {num_positions} patch positions, which is no square grid; '
                         f'say the (height, width) it was made for')
    return side, side


def resample_positions(pos_embed: Tensor, from_grid: tuple[int, int],
                       to_grid: tuple[int, int]) -> Tensor:
    """Resize positions from one patch grid to another: bicubic, no antialiasing, corners unaligned.

    Differs from the released models, which compare the *number* of tokens only and so use a 4x4
    table as it stands for a 2x8 grid: here the grids themselves are compared.

    Args:
        pos_embed: ``(1, P + h * w, C)`` with P prefix rows, which are kept as they are.
        from_grid: ``(h, w)`` of the table.
        to_grid: ``(h', w')`` wanted.

    Returns:
        ``(1, P + h' * w', C)``; the argument itself where the grids are equal. Differentiable.
    """
    if same_grid(from_grid, to_grid):
        return pos_embed
    num_prefix = pos_embed.shape[1] - from_grid[0] * from_grid[1]
    prefix, table = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    maps = widened(table).transpose(1, 2).unflatten(2, tuple(from_grid))
    maps = F.interpolate(maps, size=tuple(to_grid), mode='bicubic', align_corners=False)
    rows = maps.flatten(2).transpose(1, 2).to(pos_embed.dtype)
    return torch.cat([prefix, rows], dim=1) if num_prefix else rows
