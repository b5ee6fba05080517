"""What the released code multiplies for the same function, in closed form.

Several mixers here reach the released models' outputs with less work (no N x N matrix in the
Performer, no r x r products in VARS-S). A table that showed the count of what runs here alone
would hide it, so the release's own arithmetic stands beside it.
"""

from collections.abc import Callable, Sequence

from torch import nn

from mmvars.benchmark.multiply_adds import MultiplyAdds, fourier_multiply_adds
from mmvars.layers import TokenGrid
from mmvars.layers.spectral import half_width

__all__ = ['RELEASED', 'released_multiply_adds']


def _self_attention(mixer: nn.Module, grid: TokenGrid) -> MultiplyAdds:
    return _products(2 * _tokens(grid)**2 * mixer.proj.in_features)


def _performer(mixer: nn.Module, grid: TokenGrid) -> MultiplyAdds:
    """Features of q and of k, the N x N kernel from them, and its product with the value."""
    tokens = _tokens(grid)
    heads, width, features = mixer.random_features.shape
    return _products(heads * (2 * tokens * width * features + tokens**2 * (features + width)))


def _dynamic(mixer: nn.Module, grid: TokenGrid) -> MultiplyAdds:
    """Features, Gram matrix and its modulation, encoding and decoding, and the updates."""
    tokens = _tokens(grid)
    heads, width, features = mixer.random_features.shape
    atoms = mixer.gram_modulation.shape[0]
    per_head = (tokens * width * features + tokens * atoms**2 + 2 * atoms**3
                + 2 * tokens * atoms * width + mixer.num_steps * atoms**2 * width)
    return _products(heads * per_head)


def _static(mixer: nn.Module, grid: TokenGrid) -> MultiplyAdds:
    """Spectral products with r atoms, and with the r x r Gram matrix in each update."""
    channels, atoms = mixer.dictionary.shape[:2]
    steps = mixer.num_steps
    transforms = 1 + atoms + 2 * steps * atoms + atoms + 1 + 2  # the last 2: the output filter
    numbers = atoms + (1 + steps) * atoms**2 + atoms + 1
    return _spectral(channels, transforms, numbers, grid)


def _global_filter(mixer: nn.Module, grid: TokenGrid) -> MultiplyAdds:
    return _spectral(mixer.complex_weight.shape[2], transforms=2, numbers=1, grid=grid)


RELEASED: dict[str, Callable[[nn.Module, TokenGrid], MultiplyAdds]] = {
    'self_attention': _self_attention,
    'performer': _performer,
    'vars_d': _dynamic,
    'vars_sd': _dynamic,
    'vars_s': _static,
    'global_filter': _global_filter,
}
"""Mixer -> what its released form multiplies beside its linear layers, for one image."""


def released_multiply_adds(name: str, mixers: Sequence[nn.Module], grids: Sequence[TokenGrid],
                           linear: int) -> MultiplyAdds:
    """The count of a whole bottom-up network as the released code runs it.

    Args:
        name: A key of :data:`RELEASED`, the mixer of all blocks.
        mixers: One a block, with the release's constants but for steps and atoms.
        grids: The layout of each block's tokens.
        linear: Multiply-adds of the linear and convolution layers, which are the same.
    """
    parts = [RELEASED[name](mixer, grid) for mixer, grid in zip(mixers, grids, strict=True)]
    return MultiplyAdds(linear, sum(part.products for part in parts),
                        sum(part.fourier for part in parts))


def _tokens(grid: TokenGrid) -> int:
    return grid.num_prefix + grid.num_patches


def _products(count: int) -> MultiplyAdds:
    return MultiplyAdds(0, count, 0)


def _spectral(channels: int, transforms: int, numbers: int, grid: TokenGrid) -> MultiplyAdds:
    """``transforms`` of real maps, and ``numbers`` complex products a place, for each channel."""
    transform = fourier_multiply_adds((grid.height, grid.width), real=True)
    places = grid.height * half_width(grid.width)
    return MultiplyAdds(0, 0, round(channels * (transforms * transform + 4 * numbers * places)))
