"""GFNet's global filter, and filters kept as half spectra at other grids."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.layers.compile_utils import same_grid
from mmvars.layers.embed import Grid, GridResizeMixin, TokenGrid
from mmvars.layers.fourier import (
    as_complex,
    as_pairs,
    from_spectrum,
    half_width,
    times,
    to_spectrum,
)
from mmvars.layers.precision import full_precision, upcast_to_float32

__all__ = ['GlobalFilter', 'check_no_prefix', 'infer_spectrum_grid', 'resample_filters']


def infer_spectrum_grid(height: int, columns: int, name: str) -> Grid:
    """The square grid whose half spectrum has ``height`` rows and ``columns`` columns.

    Raises:
        InputError: If no square grid has such a spectrum.
    """
    if half_width(height) != columns:
        raise InputError(
            f'{name} is a half spectrum of {height} rows and {columns} columns, which '
            f'is that of no square grid; say the (height, width) it was made for '
            f'(mmvars convert --source-grid HEIGHTxWIDTH)'
        )
    return height, height


def resample_filters(spectrum: Tensor, from_grid: Grid, to_grid: Grid) -> Tensor:
    """Filters that keep their size in pixels: zero-padded or cropped around their origin.

    Args:
        spectrum: Half spectra ``(..., H, W // 2 + 1, 2)`` of filters on ``from_grid``.
        from_grid: ``(H, W)``.
        to_grid: ``(H', W')``.

    Returns:
        ``(..., H', W' // 2 + 1, 2)``; the argument itself where the grids are equal.
        Differentiable.
    """
    if tuple(from_grid) == tuple(to_grid):
        return spectrum
    filters = torch.fft.fftshift(from_spectrum(as_complex(spectrum), from_grid), dim=(-2, -1))
    padding = []
    for source, target in zip(reversed(from_grid), reversed(to_grid), strict=True):
        before = target // 2 - source // 2  # negative: crop; the origin is at size // 2
        padding += [before, target - source - before]
    filters = torch.fft.ifftshift(F.pad(filters, padding), dim=(-2, -1))
    return as_pairs(to_spectrum(filters)).to(spectrum.dtype)


def check_no_prefix(mixer: str, num_prefix: int) -> None:
    """Refuse class and prompt tokens for a mixer that works on the map of patches.

    Raises:
        InputError: If there are any.
    """
    if num_prefix:
        raise InputError(
            f'{mixer} filters the map of patches and cannot mix the {num_prefix} '
            f'class or prompt tokens; build the trunk without them '
            f"(class_token=False, global_pool='avg', no prompts)"
        )


class GlobalFilter(GridResizeMixin):
    """GFNet's token mixer: each channel is circularly convolved with a filter of the grid's size.

    ``out = F^-1(F(x) * weight)`` over the H x W map, in float32 under autocast. There is no
    projection, so no value path for a top-down input.

    Args:
        embed_dim: Channels C.
        num_heads: Unused; part of the constructor that all mixers share.
        grid: ``(H, W)`` the filter is made for. At other grids the spectrum is interpolated over
            its two axes (bicubic, corners aligned, so the mean of the map keeps its gain).
        num_prefix: Must be 0: a class token has no place in the map.
        qkv_bias: Unused, likewise.

    Raises:
        InputError: If there are prefix tokens.
    """

    takes_top_down = False
    grid_tensors = ('complex_weight',)

    def __init__(
        self, embed_dim: int, num_heads: int, grid: Grid, num_prefix: int = 0, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        check_no_prefix('global_filter', num_prefix)
        self.set_grid(grid)
        height, width = self.grid
        self.complex_weight = nn.Parameter(
            torch.randn(height, half_width(width), embed_dim, 2) * 0.02
        )

    def forward(self, x: Tensor, grid: TokenGrid, top_down: Tensor | None = None) -> Tensor:
        """Mix ``x (B, N, C)``. Returns ``(B, N, C)``.

        Raises:
            InputError: If there is a top-down input.
        """
        if top_down is not None:
            raise InputError(
                'global_filter has no value path, so it takes no top_down input; use '
                'another mixer in a network with top-down attention'
            )
        with full_precision(x):
            spectrum = as_complex(self.resized('complex_weight', grid)).movedim(2, 0)
            maps = grid.to_map(upcast_to_float32(x))
            out = from_spectrum(times(to_spectrum(maps), spectrum), (grid.height, grid.width))
        return out.flatten(2).transpose(1, 2).to(x.dtype)

    def resample(self, name: str, tensor: Tensor, from_grid: Grid, to_grid: Grid) -> Tensor:
        if same_grid(from_grid, to_grid):
            return tensor
        size = to_grid[0], half_width(to_grid[1])
        parts = tensor.flatten(2).permute(2, 0, 1).unsqueeze(0)  # (1, 2C, H, Wf)
        parts = F.interpolate(parts, size=size, mode='bicubic', align_corners=True)
        return parts[0].permute(1, 2, 0).unflatten(2, (-1, 2))

    def infer_grid(self, name: str, tensor: Tensor) -> Grid:
        return infer_spectrum_grid(tensor.shape[0], tensor.shape[1], name)
