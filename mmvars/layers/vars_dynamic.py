"""VARS with a dictionary made from the input, alone (VARS-D) or with static atoms (VARS-SD)."""

import torch
from torch import Tensor, nn

from mmvars.errors import InputError, check_choice
from mmvars.layers.dictionaries import (DenseDictionary, Dictionary, JoinedDictionary,
                                        SpectralDictionary)
from mmvars.layers.fourier import as_complex
from mmvars.layers.grid_tied import Grid
from mmvars.layers.kept import Kept, can_keep
from mmvars.layers.performer import num_features, positive_features
from mmvars.layers.position import resample_positions, square_grid
from mmvars.layers.precision import widened
from mmvars.layers.projections import (head_width, join_heads, project_value, split_heads,
                                       without_value)
from mmvars.layers.reconstruction import VALUES, SparseReconstruction
from mmvars.layers.sparse_coding import STEP_BOUNDS
from mmvars.layers.spectral import resample_filters, square_side
from mmvars.layers.tokens import TokenGrid
from mmvars.layers.vars_static import new_filters

__all__ = ['VARSConvolutionalDynamic', 'VARSDynamic', 'VARSStaticDynamic']


class VARSDynamic(SparseReconstruction):
    """VARS-D: the value is rebuilt from random features of the tokens (Eq. 1.16-1.17).

    Each head's dictionary is ``Phi(q) (N, m)``; a column is an atom, a soft mask over the tokens.
    Its sparse code of the value is found in ``num_steps`` updates of Eq. 1.12. Time and memory grow
    with N, not N^2. Without sparsity, updates and scalings, and with the residual, this is
    self-attention with the kernel ``Phi Phi'`` (Eq. 1.14).

    The default constants are those of the released models; the preset ``'thesis'`` has the
    equations as printed (see :data:`mmvars.layers.PRESETS`).

    Differs from the thesis with the default constants: 5 steps instead of 3, sparsity 0.3 instead
    of 0.6 (Eq. 1.16 weighs the code with 2 lambda, lambda = 0.3), the GELU's shrinkage, the row
    sums' bound, queries and atoms of unit length, and what
    :class:`~mmvars.layers.SparseReconstruction` lists.

    Args:
        embed_dim: Channels C.
        num_heads: Heads h; head width D = C / h.
        grid: ``(h, w)`` of the training images' patches: what a sparsity is meant for.
        num_prefix: Class and prompt tokens before them.
        qkv_bias: Whether the projection has a bias.
        num_steps, sparsity, shrinkage, step_scaling, gram_transpose, start, residual: See
            :class:`~mmvars.layers.SparseReconstruction`.
        feature_ratio: Random features m of a head over D.
        step_bound: ``'row_sum'`` (release) or ``'spectral'``, the largest eigenvalue (thesis). No
            gradient passes it.
        normalise_atoms: Scale the atoms to unit length over the tokens (release).
        normalise_queries: Scale queries to unit length before the features (release); else by
            ``D^-1/4``.
        value: ``'projected'``: rebuild ``Wv x + bv`` (release), or ``'input'``: x (Eq. 1.16).
        scale_aware_sparsity: Multiply the sparsity by ``sqrt(N / N0)``, N0 the training grid's
            tokens. Atoms of unit length have entries of about ``N^-1/2``, so P'x of a smooth value
            grows with ``sqrt(N)`` and a fixed sparsity prunes less at larger images (x1.9 in P'x
            from N = 196 to 784). Off by default: the released models do not do it, and it changes
            nothing at N0. Atoms that are not normalised keep their entries, and the squared error
            grows with N: there the factor is ``N / N0``. Exact for the soft threshold; GELU's width
            does not scale with it. Keep ``img_size`` at the size of the pretraining where this is
            on: N0 is counted there, and inputs of any size run all the same.

    Raises:
        InputError: On a value that cannot be used.
    """

    atom_sets = 1

    def __init__(self, embed_dim: int, num_heads: int, grid: Grid, num_prefix: int = 0,
                 qkv_bias: bool = True, num_steps: int = 5, sparsity: float = .3,
                 feature_ratio: float = 2., shrinkage: str = 'gelu', step_bound: str = 'row_sum',
                 step_scaling: str = 'multiply', gram_transpose: bool = False,
                 start: str = 'shrunk', residual: bool = False, normalise_atoms: bool = True,
                 normalise_queries: bool = True, value: str = 'projected',
                 scale_aware_sparsity: bool = False) -> None:
        head_dim = head_width(embed_dim, num_heads)
        features = num_features(feature_ratio, head_dim)
        super().__init__(embed_dim, self.atom_sets * features, num_steps, sparsity, shrinkage,
                         step_scaling, gram_transpose, start, residual)
        check_choice('step_bound', step_bound, STEP_BOUNDS)
        check_choice('value', value, VALUES)
        self.num_heads = num_heads
        self.step_bound = step_bound
        self.normalise_atoms = normalise_atoms
        self.normalise_queries = normalise_queries
        self.value = value
        self.scale_aware_sparsity = scale_aware_sparsity
        self.training_tokens = grid[0] * grid[1] + num_prefix
        rows = 2 * embed_dim if value == 'projected' else embed_dim
        self.qv = nn.Linear(embed_dim, rows, bias=qkv_bias)
        self.register_buffer('random_features', torch.randn(num_heads, head_dim, features))

    def _inputs(self, x: Tensor, top_down: Tensor | None) -> tuple[Tensor, ...]:
        if self.value == 'projected':
            return project_value(self.qv, x, top_down)
        return *without_value(self.qv, x, top_down), *project_value(None, x, top_down)

    def _dictionary(self, inputs: tuple[Tensor, ...],
                    grid: TokenGrid) -> tuple[Tensor, Dictionary, Tensor]:
        query, signal = (split_heads(part, self.num_heads) for part in inputs)
        features = positive_features(query, widened(self.random_features), self.normalise_queries)
        dictionary = self._with_static(features, grid)
        return signal, dictionary, dictionary.bound(self.step_bound)

    def _with_static(self, features: Tensor, grid: TokenGrid) -> Dictionary:
        del grid
        return DenseDictionary(features, self.normalise_atoms)

    def _to_tokens(self, signal: Tensor) -> Tensor:
        return join_heads(signal)

    def sparsity_at(self, grid: TokenGrid) -> float:
        if not self.scale_aware_sparsity:
            return self.sparsity
        ratio = (grid.num_patches + grid.num_prefix) / self.training_tokens
        return self.sparsity * (ratio**.5 if self.normalise_atoms else ratio)


class VARSStaticDynamic(VARSDynamic):
    """VARS-SD as released: m free static atoms a head stand beside the m dynamic ones.

    ``static_atoms (1, h, P + N, m)`` are vectors over the tokens of the training grid. At other
    grids they are resampled as positions are (bicubic); their scale does not matter where atoms are
    normalised.

    Differs from the thesis (whose static atoms are translations of filters, as in
    :class:`VARSConvolutionalDynamic`).

    Args: As :class:`VARSDynamic`.
    """

    atom_sets = 2
    grid_tied = ('static_atoms', )

    def __init__(self, embed_dim: int, num_heads: int, grid: Grid, num_prefix: int = 0,
                 **options) -> None:
        super().__init__(embed_dim, num_heads, grid, num_prefix, **options)
        self.num_prefix = num_prefix
        self.tie_to_grid(grid)
        features = self.random_features.shape[-1]
        self.static_atoms = nn.Parameter(
            torch.randn(1, num_heads, self.training_tokens, features))
        self._kept_gram = Kept(exact=True)
        self._resampled_gram: tuple[Tensor, Tensor] | None = None  # of which atoms, and what

    def resample(self, name: str, tensor: Tensor, from_grid: Grid, to_grid: Grid) -> Tensor:
        rows = tensor.transpose(1, 2).flatten(2)  # (1, P + N, h m), a table of positions
        rows = resample_positions(rows, tuple(from_grid), tuple(to_grid))
        return rows.unflatten(2, (tensor.shape[1], -1)).transpose(1, 2)

    def stored_grid(self, name: str, tensor: Tensor) -> Grid:
        return square_grid(tensor.shape[2] - self.num_prefix, name)

    def _with_static(self, features: Tensor, grid: TokenGrid) -> Dictionary:
        atoms = self.at_grid('static_atoms', grid)
        static = widened(atoms)[0]

        def gram() -> Tensor:
            return static.transpose(-2, -1) @ static

        if self.training or not can_keep(atoms):
            return DenseDictionary(features, self.normalise_atoms, static, gram())
        if atoms is self.static_atoms:
            kept = self._kept_gram.get([atoms], gram)
        else:  # resampled, kept itself and replaced where it no longer holds
            made = self._resampled_gram  # read and written once: threads may have other grids
            if made is None or made[0] is not atoms:
                made = self._resampled_gram = atoms, gram()
            kept = made[1]
        return DenseDictionary(features, self.normalise_atoms, static, kept)

    def _forget(self) -> None:
        super()._forget()
        self._resampled_gram = None


class VARSConvolutionalDynamic(VARSDynamic):
    """VARS-SD as in the thesis: the static atoms are all translations of a few filters a channel.

    Prefix tokens are explained by the dynamic atoms alone. Gamma is block-diagonal:
    ``gram_modulation`` for the dynamic atoms, ``static_modulation`` for the filters.

    Args:
        atoms_per_channel: Filters r of a channel.
        **options: As :class:`VARSDynamic`.

    Raises:
        InputError: As :class:`VARSDynamic`, if there is no filter, or with
            ``scale_aware_sparsity``.
    """

    grid_tied = ('dictionary', )
    resamples_exactly = False  # released half spectra are not those of real filters alone

    def __init__(self, embed_dim: int, num_heads: int, grid: Grid, num_prefix: int = 0,
                 atoms_per_channel: int = 3, **options) -> None:
        super().__init__(embed_dim, num_heads, grid, num_prefix, **options)
        if self.scale_aware_sparsity:
            raise InputError("scale_aware_sparsity does not go with static_atoms='convolution': "
                             'filters keep their size in pixels and need no scaling, dynamic atoms '
                             "do; use static_atoms='free'")
        self.tie_to_grid(grid)
        self.dictionary = nn.Parameter(new_filters(embed_dim, atoms_per_channel, self.grid))
        self.static_modulation = nn.Parameter(torch.eye(atoms_per_channel),
                                              requires_grad=self.num_steps > 0)

    def resample(self, name: str, tensor: Tensor, from_grid: Grid, to_grid: Grid) -> Tensor:
        return resample_filters(tensor, from_grid, to_grid)

    def stored_grid(self, name: str, tensor: Tensor) -> Grid:
        return square_side(tensor.shape[-3], tensor.shape[-2], name)

    def _modulation(self) -> tuple[Tensor, Tensor]:
        return widened(self.gram_modulation), widened(self.static_modulation)

    def _with_static(self, features: Tensor, grid: TokenGrid) -> Dictionary:
        size = grid.height, grid.width
        filters = SpectralDictionary(as_complex(self.at_grid('dictionary', grid)), size)
        return JoinedDictionary(DenseDictionary(features, self.normalise_atoms), filters, size)
