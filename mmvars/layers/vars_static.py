"""VARS with a static dictionary: all translations of learned filters (VARS-S)."""

import torch
from torch import Tensor, nn

from mmvars.errors import check_choice, check_number
from mmvars.layers.dictionaries import Dictionary, SpectralDictionary
from mmvars.layers.fourier import as_complex, from_spectrum, half_width, times, to_spectrum
from mmvars.layers.grid_tied import Grid
from mmvars.layers.norm import TokenBatchNorm
from mmvars.layers.precision import widened
from mmvars.layers.projections import project_value
from mmvars.layers.reconstruction import VALUES, SparseReconstruction
from mmvars.layers.spectral import refuse_prefix, resample_filters, square_side
from mmvars.layers.tokens import TokenGrid

__all__ = ['VARSStatic', 'new_filters', 'running_bound']

BOUNDS = ('running', 'spectral')
NORMS = ('batch', 'layer')
_CHUNK_NUMBERS = 2**16  # complex numbers, 512 KiB: with other temporaries, what an L2 cache holds


def new_filters(embed_dim: int, atoms_per_channel: int, grid: Grid) -> Tensor:
    """Random half spectra ``(C, r, H, W // 2 + 1, 2)`` of filters with about unit length.

    Normal numbers, divided by ``sqrt(2 / (H W) * sum |K|^2)`` for each filter, which counts the
    columns that have no mirror image twice, as the release does.

    Raises:
        InputError: If there is no atom.
    """
    check_number('atoms_per_channel', atoms_per_channel, 1, whole=True)
    height, width = grid
    spectrum = torch.randn(embed_dim, atoms_per_channel, height, half_width(width), 2) * .06
    return normalised_filters(spectrum, grid)


def normalised_filters(spectrum: Tensor, grid: Grid) -> Tensor:
    """The scaling of :func:`new_filters` alone."""
    square = spectrum.square().sum(dim=(-3, -2, -1), keepdim=True)
    return spectrum / (2 / (grid[0] * grid[1]) * square).sqrt()


def running_bound(spectrum: Tensor) -> Tensor:
    """``max over frequencies of the largest singular value of Re(K K^H)``: ``(C)``.

    Re(K K^H) = p p' + q q' with p, q the real and imaginary parts of the r atoms at a frequency, so
    its largest eigenvalue has a closed form.

    Differs from the largest eigenvalue of P'P, which is ``max sum |K|^2``: the released code drops
    the imaginary part, and its bound may be too small by a factor of up to 2.

    Args:
        spectrum: ``(C, r, H, W // 2 + 1, 2)``.
    """
    real, imaginary = widened(spectrum).unbind(dim=-1)
    pp, qq = real.square().sum(dim=1), imaginary.square().sum(dim=1)
    pq = (real * imaginary).sum(dim=1)
    root = ((pp - qq).square() + 4 * pq.square()).sqrt()
    return ((pp + qq + root) / 2).amax(dim=(-2, -1))


class VARSStatic(SparseReconstruction):
    """VARS-S: the value is rebuilt from filters learned on the whole data set (Eq. 1.10-1.11).

    The dictionary's atoms are all circular translations of r filters a channel, kept as half
    spectra: encoding is a convolution, decoding its transpose. All Fourier transforms run in
    float32 under autocast.

    The default constants are those of the released models, in which the mixer also brings its own
    norms (batch norm before ``proj``, none before the mixer, batch norm before the channel mixer)
    and a second filter. The preset ``'thesis'`` replaces the attention alone.

    Differs from the thesis with the default constants: sparsity 3.5 instead of 0.3, 5 atoms a
    channel where the published sizes fit 3, none of LISTA's learned numbers, a running bound, the
    norms and the second filter above, and the start, residual and value of the release (see
    :class:`~mmvars.layers.SparseReconstruction`).

    Args:
        embed_dim: Channels C.
        num_heads: Unused: every channel is coded by itself.
        grid: ``(H, W)`` the filters are made for. At other grids they keep their size in pixels:
            the filters are zero-padded or cropped.
        num_prefix: Must be 0: a class token has no place in the map.
        qkv_bias: Whether the value's projection has a bias.
        num_steps, sparsity, start, residual: See :class:`~mmvars.layers.SparseReconstruction`.
        atoms_per_channel: r; 5 in the released code, 3 fits the published sizes (Table 1.2).
        step_bound: ``'running'``: the buffer ``step_bound``, a running mean refreshed by
            :meth:`update_step_bound` (release), or ``'spectral'``: the largest eigenvalue, from the
            filters at every forward (thesis).
        norm: ``'batch'`` (release) or ``'layer'``: the block keeps its layer norms.
        output_filter: Filter the reconstruction once more (release).
        learned_scaling: Learn w1, w2 and Gamma (r x r, shared by channels and places) of Eq. 1.12;
            the released VARS-S has none.
        value: ``'projected'``: rebuild ``Wv x + bv`` (release), or ``'input'``: x (Eq. 1.10).
        hermitian_filters: Drop the part of the learned half spectra that belongs to no real filter
            (in column 0 and, for even W, the last). Encoding and decoding never see that part, but
            the release's Gram operator does, so that its updates are not quite the gradient of
            Eq. 1.10; with this they are (thesis).

    Raises:
        InputError: On a value that cannot be used.
    """

    grid_tied = ('dictionary', 'output_filter')
    resamples_exactly = False  # released half spectra are not those of real filters alone

    def __init__(self, embed_dim: int, num_heads: int, grid: Grid, num_prefix: int = 0,
                 qkv_bias: bool = True, num_steps: int = 3, sparsity: float = 3.5,
                 atoms_per_channel: int = 5, step_bound: str = 'running', start: str = 'shrunk',
                 residual: bool = False, norm: str = 'batch', output_filter: bool = True,
                 learned_scaling: bool = False, value: str = 'projected',
                 hermitian_filters: bool = False) -> None:
        del num_heads
        check_number('atoms_per_channel', atoms_per_channel, 1, whole=True)
        super().__init__(embed_dim, atoms_per_channel if learned_scaling else 0, num_steps,
                         sparsity, shrinkage='soft', step_scaling='divide', gram_transpose=True,
                         start=start, residual=residual)
        refuse_prefix('vars_s', num_prefix)
        check_choice('step_bound', step_bound, BOUNDS)
        check_choice('norm', norm, NORMS)
        check_choice('value', value, VALUES)
        self.tie_to_grid(grid)
        self.bound_kind = step_bound
        self.hermitian_filters = hermitian_filters
        self.replaces_block_norms = norm == 'batch'
        self.value = (nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
                      if value == 'projected' else None)
        self.dictionary = nn.Parameter(new_filters(embed_dim, atoms_per_channel, self.grid))
        height, width = self.grid
        self.output_filter = nn.Parameter(
            torch.randn(embed_dim, height, half_width(width), 2) * .02) if output_filter else None
        self.norm = TokenBatchNorm(embed_dim) if norm == 'batch' else nn.Identity()
        if step_bound == 'running':
            self.register_buffer('step_bound', torch.zeros(embed_dim))
            self.update_step_bound(rate=1.)

    @torch.no_grad()
    def update_step_bound(self, rate: float) -> None:
        """Move the buffer ``step_bound`` by ``rate`` of the way to the filters' present bound.

        The release does so with rate 0.1 every 100 iterations. A function of the weights alone, so
        the same on all ranks.

        Raises:
            InputError: If the step bound is not a running one, or ``rate`` is not in [0, 1].
        """
        check_number('rate', rate, 0, 1)
        check_choice("step_bound of this mixer", self.bound_kind, ('running', ))
        self.step_bound.lerp_(running_bound(self.dictionary).to(self.step_bound.dtype), rate)

    def resample(self, name: str, tensor: Tensor, from_grid: Grid, to_grid: Grid) -> Tensor:
        return resample_filters(tensor, from_grid, to_grid)

    def stored_grid(self, name: str, tensor: Tensor) -> Grid:
        return square_side(tensor.shape[-3], tensor.shape[-2], name)

    def follow_resampling(self, entries: dict[str, Tensor]) -> None:
        # The bound of the filters as they now are; at_grid's filters get theirs in the same way.
        if 'step_bound' in entries and 'dictionary' in entries:
            entries['step_bound'] = running_bound(entries['dictionary'])

    def _inputs(self, x: Tensor, top_down: Tensor | None) -> tuple[Tensor, ...]:
        return project_value(self.value, x, top_down)

    def _dictionary(self, inputs: tuple[Tensor, ...],
                    grid: TokenGrid) -> tuple[Tensor, Dictionary, Tensor]:
        filters = self.at_grid('dictionary', grid)
        size, spectrum = (grid.height, grid.width), as_complex(filters)
        if self.hermitian_filters:
            spectrum = to_spectrum(from_spectrum(spectrum, size))
        dictionary = SpectralDictionary(spectrum, size)
        if self.bound_kind == 'spectral':
            bound = dictionary.bound()
        elif filters is self.dictionary:
            bound = widened(self.step_bound)[:, None, None, None]
        else:
            bound = running_bound(filters)[:, None, None, None]
        return grid.to_map(inputs[0]), dictionary, bound

    def _reconstruct(self, signal: Tensor, dictionary: SpectralDictionary, bound: Tensor,
                     grid: TokenGrid, channels: slice = slice(None)) -> Tensor:
        num_channels, size = signal.shape[1], self._channels_at_once(signal)
        if num_channels <= size:
            return super()._reconstruct(signal, dictionary, bound, grid, channels)
        parts = [slice(start, start + size) for start in range(0, num_channels, size)]
        return torch.cat([super(VARSStatic, self)._reconstruct(
            signal[:, part], dictionary.of_channels(part), bound[part], grid, part)
            for part in parts], dim=1)

    def _channels_at_once(self, signal: Tensor) -> int:
        """Every channel is coded by itself, so inference on CPU takes a few at a time.

        Codes and spectra then stay in the cache, and their memory is used again; with all channels
        at once most of the time goes into fetching fresh memory from the system.
        """
        if torch.is_grad_enabled() or not signal.is_cpu or torch.compiler.is_compiling():
            return signal.shape[1]
        batch, _, height, width = signal.shape
        numbers = batch * self.dictionary.shape[1] * height * half_width(width)
        return max(1, _CHUNK_NUMBERS // numbers)

    def _refined(self, signal: Tensor, grid: TokenGrid, channels: slice) -> Tensor:
        if self.output_filter is None:
            return signal
        spectrum = as_complex(self.at_grid('output_filter', grid)[channels])
        return from_spectrum(times(to_spectrum(signal), spectrum), (grid.height, grid.width))

    def _to_tokens(self, signal: Tensor) -> Tensor:
        return signal.flatten(2).transpose(1, 2)

    def _normalised(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens)
