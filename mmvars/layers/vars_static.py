"""VARS with a static dictionary: all translations of learned filters (VARS-S)."""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmvars.errors import InputError, check_choice, check_number
from mmvars.layers.attention import INJECTIONS, project_with_top_down
from mmvars.layers.block import TokenBatchNorm
from mmvars.layers.embed import Grid, GridResizeMixin, TokenGrid
from mmvars.layers.fourier import (
    as_complex,
    as_pairs,
    conjugate,
    from_spectrum,
    half_width,
    times,
    to_spectrum,
)
from mmvars.layers.global_filter import check_no_prefix, infer_spectrum_grid, resample_filters
from mmvars.layers.precision import full_precision, upcast_to_float32
from mmvars.layers.sparse_coding import SparseTrace, ista, linearized_attention, soft_threshold

__all__ = [
    'VARSStatic',
    'lipschitz_estimate',
    'mix_atoms',
    'new_filters',
    'normalized_filters',
    'spectral_lipschitz',
]

_EPS = 1e-12
_CHUNK_SIZE = 2**16  # complex numbers, 512 KiB: with the other temporaries, what an L2 cache holds


def new_filters(embed_dim: int, atoms_per_channel: int, grid: Grid) -> Tensor:
    """Random half spectra ``(C, r, H, W // 2 + 1, 2)`` of filters with about unit length.

    Raises:
        InputError: If there is no atom, or far too many.
    """
    check_number('atoms_per_channel', atoms_per_channel, 1, 1000, whole=True)
    spectrum = torch.randn(embed_dim, atoms_per_channel, grid[0], half_width(grid[1]), 2) * 0.06
    return normalized_filters(spectrum, grid)


def normalized_filters(spectrum: Tensor, grid: Grid) -> Tensor:
    """Each filter over ``sqrt(2 / (H W) * sum |K|^2)``, as in the release.

    That is the length of the filter but for the columns without a mirror image, which count twice.
    """
    square = spectrum.square().sum(dim=(-3, -2, -1), keepdim=True)
    return spectrum / (2 / (grid[0] * grid[1]) * square).sqrt()


def spectral_lipschitz(spectrum: Tensor) -> Tensor:
    """``max over frequencies of sum_a |K_a|^2``, the largest eigenvalue of P'P: ``(C)``.

    Args:
        spectrum: Half spectra ``(C, r, H, W // 2 + 1)``.
    """
    return as_pairs(spectrum).square().sum(dim=(1, -1)).amax(dim=(-2, -1))


def lipschitz_estimate(spectrum: Tensor) -> Tensor:
    """``max over frequencies of the largest singular value of Re(K K^H)``: ``(C)``.

    Re(K K^H) = p p' + q q' with p, q the real and imaginary parts of the r atoms at a frequency, so
    its largest eigenvalue has a closed form.

    Differs from :func:`spectral_lipschitz`: the released code drops the imaginary part, and its
    estimate may be too small by a factor of up to 2.

    Args:
        spectrum: ``(C, r, H, W // 2 + 1, 2)``.
    """
    real, imaginary = upcast_to_float32(spectrum).unbind(dim=-1)
    pp, qq = real.square().sum(dim=1), imaginary.square().sum(dim=1)
    pq = (real * imaginary).sum(dim=1)
    root = ((pp - qq).square() + 4 * pq.square()).sqrt()
    return ((pp + qq + root) / 2).amax(dim=(-2, -1))


def mix_atoms(spectrum: Tensor, modulation: Tensor) -> Tensor:
    """P Gamma: half spectra ``(C, r, H, W // 2 + 1)`` with their r atoms mixed by ``(r, r)``.

    Mixing and transforming commute, so the few filters are mixed instead of every code.
    """
    return as_complex(torch.einsum('ij,cihwp->cjhwp', modulation, as_pairs(spectrum)))


class VARSStatic(GridResizeMixin):
    """VARS-S: the value is reconstructed from filters learned on the data set (Eq. 1.10-1.11).

    The atoms are all circular translations of r filters a channel, kept as half spectra K: encoding
    is a convolution, decoding its transpose. Every channel is coded by itself. All Fourier
    transforms run in float32 under autocast.

    The preset decides which equations:

    ============ ==================================== ====================================
    part         ``'release'``                        ``'thesis'`` (Eq. 1.10-1.12)
    ============ ==================================== ====================================
    value        ``Wv x + bv``                        x
    code         starts at S(P'x), no learned scaling starts at P'x, learned w1, w2, Gamma
    L            a running estimate (buffer)          the largest eigenvalue
    output       filtered once more, batch norm       plus the value
    block norms  batch norm (not before the mixer)    layer norms
    ============ ==================================== ====================================

    Args:
        embed_dim: Channels C.
        num_heads: Unused: every channel is coded by itself.
        grid: ``(H, W)`` the filters are made for. For other grids they keep their size in pixels:
            they are zero-padded or cropped.
        num_prefix: Must be 0: a class token has no place in the map.
        qkv_bias: Whether the projection of the value has a bias.
        injection: Where a top-down input enters, see :data:`~mmvars.layers.attention.INJECTIONS`.
        double_value_bias: See :func:`~mmvars.layers.attention.project_with_top_down`.
        preset: ``'release'`` or ``'thesis'``.
        num_steps: Updates k. Default: 3.
        sparsity: lambda of Eq. 1.10. Default: 3.5 (release), 0.3 (thesis).
        atoms_per_channel: Filters r of a channel. Default: 5 (release), 3 (thesis; fits the
            published sizes of Table 1.2, also those of the released models).

    Raises:
        InputError: On a value that cannot be used.
    """

    takes_top_down = True
    grid_tensors = ('dictionary', 'output_filter')
    resamples_exactly = False  # learned half spectra need not be those of real filters
    presets: ClassVar[dict[str, dict]] = {
        'release': dict(num_steps=3, sparsity=3.5, atoms_per_channel=5),
        'thesis': dict(num_steps=3, sparsity=0.3, atoms_per_channel=3),
    }
    lipschitz: Tensor

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        grid: Grid,
        num_prefix: int = 0,
        qkv_bias: bool = True,
        injection: str = 'value',
        double_value_bias: bool = True,
        preset: str = 'release',
        num_steps: int | None = None,
        sparsity: float | None = None,
        atoms_per_channel: int | None = None,
    ) -> None:
        super().__init__()
        check_choice('preset', preset, self.presets)
        check_choice('injection', injection, INJECTIONS)
        check_no_prefix('vars_s', num_prefix)
        constants = self.presets[preset]
        self.preset = preset
        self.injection = injection
        self.double_value_bias = double_value_bias
        self.num_steps = constants['num_steps'] if num_steps is None else num_steps
        self.sparsity = constants['sparsity'] if sparsity is None else sparsity
        atoms = constants['atoms_per_channel'] if atoms_per_channel is None else atoms_per_channel
        check_number('num_steps', self.num_steps, 0, 1000, whole=True)
        check_number('sparsity', self.sparsity, 0, 1e6)
        self.set_grid(grid)
        self.replaces_block_norms = preset == 'release'
        self.proj = nn.Linear(embed_dim, embed_dim)
        if preset == 'release':
            self.value = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
        self.dictionary = nn.Parameter(new_filters(embed_dim, atoms, self.grid))
        if preset == 'release':
            self.output_filter = nn.Parameter(
                torch.randn(embed_dim, self.grid[0], half_width(self.grid[1]), 2) * 0.02
            )
            self.norm = TokenBatchNorm(embed_dim)
            self.register_buffer('lipschitz', lipschitz_estimate(self.dictionary.detach()))
        else:  # w1, w2 and Gamma of Eq. 1.12, which have no gradient where there is no update
            self.sparsity_scale = nn.Parameter(torch.ones(1), requires_grad=self.num_steps > 0)
            self.step_scale = nn.Parameter(torch.ones(1), requires_grad=self.num_steps > 0)
            self.gram_modulation = nn.Parameter(torch.eye(atoms), requires_grad=self.num_steps > 0)

    def forward(self, x: Tensor, grid: TokenGrid, top_down: Tensor | None = None) -> Tensor:
        """Mix ``x (B, N, C)``; ``top_down (B, N, C)`` or ``None``. Returns ``(B, N, C)``."""
        value = self._value(x, top_down)
        with full_precision(x):
            maps = grid.to_map(upcast_to_float32(value))
            filters, lipschitz = self._filters(grid)
            size = self._channels_at_once(maps)
            parts = []
            for start in range(0, maps.shape[1], size):
                part = slice(start, start + size)
                parts.append(
                    self._reconstruct(maps[:, part], filters[part], lipschitz[part], grid, part)
                )
            out = _to_tokens(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0])
        out = out.to(value.dtype)
        return self.proj(self.norm(out) if self.preset == 'release' else out)

    def _reconstruct(
        self, maps: Tensor, filters: Tensor, lipschitz: Tensor, grid: TokenGrid, channels: slice
    ) -> Tensor:
        """The output before norm and projection, of these channels: ``(B, C, H, W)``."""
        for code in self._codes(maps, filters, lipschitz):  # noqa: B007 only the last is used
            pass
        out = _decode(code, conjugate(filters))
        if self.preset == 'thesis':
            return out + maps
        spectrum = as_complex(self.resized('output_filter', grid)[channels])
        return from_spectrum(times(to_spectrum(out), spectrum), (grid.height, grid.width))

    def _codes(self, maps: Tensor, filters: Tensor, lipschitz: Tensor) -> Iterator[Tensor]:
        """The code ``(B, C, r, H, W)`` at the start and after each update (Eq. 1.12)."""
        size = maps.shape[-2], maps.shape[-1]
        signal = to_spectrum(maps).unsqueeze(2)
        target = from_spectrum(times(signal, filters), size)
        # A constant of 0 belongs to filters of zeros, whose code is 0 with any step.
        step_size = 1 / lipschitz[:, None, None, None].clamp_min(_EPS)
        if self.preset == 'release':
            mixed, sparsity = filters, torch.full_like(step_size, self.sparsity)
            start = soft_threshold(target, sparsity)
        else:
            mixed = mix_atoms(filters, upcast_to_float32(self.gram_modulation))
            sparsity = self.sparsity * upcast_to_float32(self.sparsity_scale)
            step_size = step_size / upcast_to_float32(self.step_scale)
            start = target
        conjugate_mixed = conjugate(mixed)

        def gradient(code: Tensor) -> Tensor:
            # P'P has rank one at each frequency: K (K^H u), so no r x r products are formed.
            decoded = times(to_spectrum(code), conjugate_mixed).sum(dim=2, keepdim=True)
            if self.preset == 'release':  # K (K^H u - x): one map to subtract a channel, not r
                return from_spectrum(times(decoded - signal, mixed), size)
            return from_spectrum(times(decoded, mixed), size) - target

        return ista(gradient, None, start, step_size, sparsity, self.num_steps)

    def trace(self, x: Tensor, grid: TokenGrid, top_down: Tensor | None = None) -> SparseTrace:
        """The codes and reconstructions of all steps, for the arguments of :meth:`forward`."""
        with full_precision(x):
            maps = grid.to_map(upcast_to_float32(self._value(x, top_down)))
            filters, lipschitz = self._filters(grid)
            codes = tuple(self._codes(maps, filters, lipschitz))
            decoded = tuple(_to_tokens(_decode(code, conjugate(filters))) for code in codes)
            return SparseTrace(codes, decoded, _to_tokens(maps), None)

    def mean_attention(self, x: Tensor, grid: TokenGrid, top_down: Tensor | None = None) -> Tensor:
        """What the average token takes of each token, ``(B, 1, N)``: all channels are one head."""
        return self.attention_steps(x, grid, top_down)[-1]

    @torch.no_grad()
    def attention_steps(self, x: Tensor, grid: TokenGrid, top_down: Tensor | None = None) -> Tensor:
        """The same of the code at the start and after each update: ``(num_steps + 1, B, 1, N)``.

        See :func:`~mmvars.layers.sparse_coding.linearized_attention`. The output filter of the
        release belongs to it, as to the forward.
        """
        with full_precision(x):
            value = upcast_to_float32(self._value(x, top_down))
            filters, lipschitz = self._filters(grid)

            def mix(value: Tensor) -> Iterator[Tensor]:
                for code in self._codes(grid.to_map(value[:, 0]), filters, lipschitz):
                    out = _decode(code, conjugate(filters))
                    if self.preset == 'release':
                        spectrum = as_complex(self.resized('output_filter', grid))
                        out = from_spectrum(times(to_spectrum(out), spectrum), grid[:2])
                    yield _to_tokens(out).unsqueeze(1)

            return linearized_attention(mix, value.unsqueeze(1))

    @torch.no_grad()
    def update_lipschitz(self, rate: float) -> None:
        """Move the buffer ``lipschitz`` by ``rate`` of the way to the present filters' estimate.

        The release does so with rate 0.1 every 100 iterations. A function of the weights alone, so
        the same in all processes.

        Raises:
            InputError: With the preset ``'thesis'``, which has no running estimate, or if ``rate``
                is not in [0, 1].
        """
        check_number('rate', rate, 0, 1)
        if self.preset != 'release':
            raise InputError(
                "update_lipschitz is for preset='release': preset='thesis' computes "
                'the Lipschitz constant anew in every forward'
            )
        self.lipschitz.lerp_(lipschitz_estimate(self.dictionary).to(self.lipschitz.dtype), rate)

    def sparsity_at(self, grid: TokenGrid) -> float:
        """lambda of Eq. 1.10 for tokens of this layout, before w1."""
        return self.sparsity

    def resample(self, name: str, tensor: Tensor, from_grid: Grid, to_grid: Grid) -> Tensor:
        return resample_filters(tensor, from_grid, to_grid)

    def infer_grid(self, name: str, tensor: Tensor) -> Grid:
        return infer_spectrum_grid(tensor.shape[-3], tensor.shape[-2], name)

    def after_resize(self, entries: dict[str, Tensor]) -> None:
        if 'lipschitz' in entries and 'dictionary' in entries:
            entries['lipschitz'] = lipschitz_estimate(entries['dictionary'])

    def _value(self, x: Tensor, top_down: Tensor | None) -> Tensor:
        if self.preset == 'release':
            return project_with_top_down(
                self.value, x, top_down, self.injection, self.double_value_bias
            )[0]
        if top_down is None:
            return x
        return x * top_down if self.injection == 'mask' else x + top_down

    def _filters(self, grid: TokenGrid) -> tuple[Tensor, Tensor]:
        """Half spectra ``(C, r, H, W // 2 + 1)`` for a grid, and their Lipschitz constants (C)."""
        filters = self.resized('dictionary', grid)
        spectrum = as_complex(filters)
        if self.preset == 'release':
            same = filters is self.dictionary
            return spectrum, (
                upcast_to_float32(self.lipschitz) if same else lipschitz_estimate(filters).detach()
            )
        # The gradient of Eq. 1.10 needs spectra of real filters: without this, column 0 and, for
        # even W, the last have a part that encoding and decoding ignore, but P'P does not.
        spectrum = to_spectrum(from_spectrum(spectrum, (grid.height, grid.width)))
        return spectrum, spectral_lipschitz(spectrum.detach())

    def _channels_at_once(self, maps: Tensor) -> int:
        """On a CPU, inference takes so many channels at a time that their codes stay in the cache.

        With all channels at once most of the time goes into fetching fresh memory.
        """
        channels = maps.shape[1]
        if torch.is_grad_enabled() or not maps.is_cpu or torch.compiler.is_compiling():
            return max(channels, 1)
        size = maps.shape[0] * self.dictionary.shape[1] * maps.shape[2] * half_width(maps.shape[3])
        return max(1, _CHUNK_SIZE // max(size, 1))


def _decode(code: Tensor, conjugate_filters: Tensor) -> Tensor:
    """P u: maps ``(B, C, H, W)`` of codes ``(B, C, r, H, W)``."""
    spectrum = times(to_spectrum(code), conjugate_filters).sum(dim=2)
    return from_spectrum(spectrum, (code.shape[-2], code.shape[-1]))


def _to_tokens(maps: Tensor) -> Tensor:
    """``(B, C, H, W)`` to ``(B, N, C)``."""
    return maps.flatten(2).transpose(1, 2)
