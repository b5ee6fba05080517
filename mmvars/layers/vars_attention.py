"""VARS with a dictionary made from the input, alone (VARS-D) or with static atoms (VARS-SD).

Read :class:`VARSDynamic` first: random features -> atoms -> sparse code -> reconstruction.
"""

import math
from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import check_choice, check_flag, check_number
from mmvars.layers.attention import (
    INJECTIONS,
    head_width,
    merge_heads,
    project_with_top_down,
    split_heads,
)
from mmvars.layers.embed import (
    Grid,
    GridResizeMixin,
    TokenGrid,
    infer_square_grid,
    resample_pos_embed,
)
from mmvars.layers.fourier import as_complex, conjugate, from_spectrum, times, to_spectrum
from mmvars.layers.fuse import Fusible
from mmvars.layers.global_filter import infer_spectrum_grid, resample_filters
from mmvars.layers.performer import num_features, positive_features
from mmvars.layers.precision import full_precision, upcast_to_float32
from mmvars.layers.sparse_coding import (
    SparseTrace,
    gelu_threshold,
    ista,
    linearized_attention,
    lipschitz,
    lipschitz_bound,
    soft_threshold,
)
from mmvars.layers.vars_static import mix_atoms, new_filters, spectral_lipschitz

__all__ = ['VARSConvolutionalDynamic', 'VARSDynamic', 'VARSStaticDynamic']

_EPS = 1e-12


class Atoms(NamedTuple):
    """The dictionary P of each image and head, ``(N, M)``, in two parts.

    Attributes:
        dynamic: ``(B, h, N, m)``.
        static: ``(h, N, M - m)``, never copied for each image, or ``None``.
        scale: ``(B, h, M, 1)``: one over the length of each atom, or ``None``. Applied to codes,
            which are smaller than atoms.
        gram: ``(B, h, M, M)``, P'P of the scaled atoms.
        readout: ``(B, h, N, M)``, another dictionary that decodes; ``None``: this one does.
    """

    dynamic: Tensor
    static: Tensor | None
    scale: Tensor | None
    gram: Tensor
    readout: Tensor | None = None

    def encode(self, signal: Tensor) -> Tensor:
        """``P'x``, ``(B, h, M, D)``, of ``x (B, h, N, D)``."""
        code = self.dynamic.transpose(-2, -1) @ signal
        if self.static is not None:
            shared = _shared_product(self.static.transpose(-2, -1), signal)
            code = torch.cat([code, shared], dim=-2)
        return code if self.scale is None else self.scale * code

    def decode(self, code: Tensor) -> Tensor:
        """``P u``, ``(B, h, N, D)``, of ``u (B, h, M, D)``."""
        if self.readout is not None:
            return self.readout @ code
        code = code if self.scale is None else self.scale * code
        if self.static is None:
            return self.dynamic @ code
        dynamic, static = code.split([self.dynamic.shape[-1], self.static.shape[-1]], dim=-2)
        out = self.dynamic @ dynamic
        if not torch.compiler.is_compiling() and out.shape[0] == 1:  # no other tensor of this size
            out[0].baddbmm_(self.static, static[0])
            return out
        return out.add_(_shared_product(self.static, static))

    def matrix(self) -> Tensor:
        """P as one tensor, ``(B, h, N, M)``."""
        atoms = self.dynamic
        if self.static is not None:
            atoms = torch.cat([atoms, self.static.expand(atoms.shape[0], -1, -1, -1)], dim=-1)
        return atoms if self.scale is None else atoms * self.scale.transpose(-2, -1)


class VARSDynamic(nn.Module):
    """VARS-D: the value is reconstructed from random features of the tokens (Eq. 1.16-1.17).

    The dictionary of a head is ``Phi(q) (N, m)``: a column is an atom, a soft mask over the tokens.
    The sparse code of the value is found in ``num_steps`` updates of learned ISTA (Eq. 1.12). Time
    and memory grow with N, not N^2. The thesis' equations without sparsity and updates are
    self-attention with the kernel ``Phi Phi'`` (Eq. 1.14).

    The preset decides which equations:

    ============ ==================================== ====================================
    part         ``'release'``                        ``'thesis'`` (Eq. 1.12, 1.16-1.17)
    ============ ==================================== ====================================
    value        ``Wv x + bv``                        x
    queries      of unit length                       over ``D^1/4``
    atoms        of unit length over the tokens       as they are
    L            largest row sum of abs(P'P), plus 1  largest eigenvalue of P'P
    step         ``w2 / L``                           ``1 / (w2 L)``
    modulation   ``Gamma P'P Gamma``                  ``Gamma' P'P Gamma``
    code         starts at S(P'x)                     starts at P'x
    threshold S  ``sign(u) GELU(abs(u) - t)``         ``sign(u) max(abs(u) - t, 0)``
    output       ``P u``                              ``P u + x``
    ============ ==================================== ====================================

    Args:
        embed_dim: Channels C.
        num_heads: Heads h; head width D = C / h.
        grid: ``(h, w)`` of the training images' patches, for ``scale_aware_sparsity``.
        num_prefix: Class and prompt tokens before them.
        qkv_bias: Whether the projection has a bias.
        injection: Where a top-down input enters, see :data:`~mmvars.layers.attention.INJECTIONS`.
        double_value_bias: See :func:`~mmvars.layers.attention.project_with_top_down`.
        preset: ``'release'`` or ``'thesis'``.
        num_steps: Updates k; Figure 1.6 varies it from 1 to 7. Default: 5 (release), 3 (thesis).
        sparsity: lambda of Eq. 1.10. Default: 0.3 (release), 0.6 (thesis: Eq. 1.16 has 2 lambda,
            lambda = 0.3).
        feature_ratio: Random features m of a head over D.
        scale_aware_sparsity: Multiply the sparsity by ``sqrt(N / N0)``, N0 the tokens of ``grid``.
            Entries of unit-length atoms are about ``N^-1/2``, so P'x of a smooth value grows with
            ``sqrt(N)`` and a fixed sparsity prunes less at larger images (P'x grows 1.9 times from
            N = 196 to 784). With the thesis' atoms the factor is ``N / N0``. Exact for the soft
            threshold; the width of GELU does not scale. The released models do not have it; at N0
            it changes nothing.
        separate_keys: Find the code of the value with ``Phi(k)`` in place of ``Phi(q)``, which
            decodes it (Eq. 2.3-2.4). The keys k have a projection of their own, ``k``.

    Raises:
        InputError: On a value that cannot be used.
    """

    takes_top_down = True
    atom_sets = 1  # of m atoms each
    presets: ClassVar[dict[str, dict]] = {
        'release': dict(num_steps=5, sparsity=0.3),
        'thesis': dict(num_steps=3, sparsity=0.6),
    }
    random_features: Tensor

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
        feature_ratio: float = 2.0,
        scale_aware_sparsity: bool = False,
        separate_keys: bool = False,
    ) -> None:
        super().__init__()
        check_choice('preset', preset, self.presets)
        check_choice('injection', injection, INJECTIONS)
        constants = self.presets[preset]
        self.preset = preset
        self.injection = injection
        self.double_value_bias = double_value_bias
        self.num_heads = num_heads
        self.num_steps = constants['num_steps'] if num_steps is None else num_steps
        self.sparsity = constants['sparsity'] if sparsity is None else sparsity
        self.scale_aware_sparsity = scale_aware_sparsity
        self.training_tokens = grid[0] * grid[1] + num_prefix
        check_number('num_steps', self.num_steps, 0, 1000, whole=True)
        check_number('sparsity', self.sparsity, 0, 1e6)
        check_flag('scale_aware_sparsity', scale_aware_sparsity)
        check_flag('separate_keys', separate_keys)
        head_dim = head_width(embed_dim, num_heads)
        features = num_features(feature_ratio, head_dim)
        learns = self.num_steps > 0  # without an update, no loss reaches what updates use
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.qv = nn.Linear(embed_dim, (2 if preset == 'release' else 1) * embed_dim, bias=qkv_bias)
        self.register_buffer('random_features', torch.randn(num_heads, head_dim, features))
        self.gram_modulation = nn.Parameter(
            torch.eye(self.atom_sets * features), requires_grad=learns
        )  # Gamma
        self.step_scale = nn.Parameter(torch.ones(1), requires_grad=learns)  # w2
        self.sparsity_scale = nn.Parameter(
            torch.ones(1), requires_grad=learns or preset == 'release'
        )  # w1
        self.separate_keys = separate_keys
        if separate_keys:
            self.k = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)

    def forward(self, x: Tensor, grid: TokenGrid, top_down: Tensor | None = None) -> Tensor:
        """Mix ``x (B, N, C)``; ``top_down (B, N, C)`` or ``None``. Returns ``(B, N, C)``."""
        query, value = self._query_value(x, top_down)
        dtype = value.dtype
        with full_precision(x):
            query, value = upcast_to_float32(query), upcast_to_float32(value)
            out = self._reconstruct(
                split_heads(query, self.num_heads), split_heads(value, self.num_heads), grid
            )
        return self.proj(out.to(dtype))

    def _reconstruct(self, query: Tensor, signal: Tensor, grid: TokenGrid) -> Tensor:
        """The signal ``(B, h, N, D)`` as the atoms reconstruct it, ``(B, N, C)``."""
        atoms = self._atoms(query, grid)
        for code in self._codes(atoms, signal, grid):  # noqa: B007 only the last is used
            pass
        out = atoms.decode(code)
        if self.preset == 'thesis':
            out = out + signal
        return out.transpose(1, 2).flatten(2)

    def _query_value(self, x: Tensor, top_down: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the tokens are projected to, each ``(B, N, C)``.

        With ``separate_keys`` the first is ``(B, N, 2 C)``: of each head queries, then keys.
        """
        signal = top_down if self.injection == 'qkv' else None
        if self.preset == 'release':
            query, value = project_with_top_down(
                self.qv, x, top_down, self.injection, self.double_value_bias
            )
        else:
            (query,) = project_with_top_down(self.qv, x, signal, 'qkv', self.double_value_bias)
            value = x
            if top_down is not None:
                value = x * top_down if self.injection == 'mask' else x + top_down
        if self.separate_keys:
            (key,) = project_with_top_down(self.k, x, signal, 'qkv', self.double_value_bias)
            heads = [rows.unflatten(2, (self.num_heads, -1)) for rows in (query, key)]
            query = torch.cat(heads, dim=-1).flatten(2)
        return query, value

    def _atoms(self, query: Tensor, grid: TokenGrid) -> Atoms:
        """The dictionary of the queries ``(B, h, N, D)``, or of queries and keys ``(.., 2 D)``."""
        if not self.separate_keys:
            return self._dictionary(query)
        query, key = query.chunk(2, dim=-1)
        return self._dictionary(key)._replace(readout=self._dictionary(query).matrix())

    def _dictionary(self, query: Tensor) -> Atoms:
        """Random features of queries or keys ``(B, h, N, D)`` as atoms."""
        features = self._features(query)
        return self._scaled(features, None, features.transpose(-2, -1) @ features)

    def _features(self, query: Tensor) -> Tensor:
        """Random features ``(B, h, N, m)`` of the queries ``(B, h, N, D)``."""
        return positive_features(
            query, self.random_features.to(query.dtype), unit_length=self.preset == 'release'
        )

    def _scaled(self, dynamic: Tensor, static: Tensor | None, gram: Tensor) -> Atoms:
        """The atoms, in the release with unit length over the tokens."""
        if self.preset == 'thesis':
            return Atoms(dynamic, static, None, gram)
        square = gram.diagonal(dim1=-2, dim2=-1)
        # An atom of length 0 stays 0, with gradient 0, as in positive_features.
        scale = square.masked_fill(square < _EPS**2, math.inf).rsqrt().unsqueeze(-1)
        return Atoms(dynamic, static, scale, gram * scale * scale.transpose(-2, -1))

    def _codes(self, atoms: Atoms, signal: Tensor, grid: TokenGrid) -> Iterator[Tensor]:
        """The code ``(B, h, M, D)`` at the start and after each update (Eq. 1.12)."""
        target, dtype = atoms.encode(signal), signal.dtype
        sparsity = self.sparsity_at(grid) if self.scale_aware_sparsity else self.sparsity
        sparsity = sparsity * self.sparsity_scale.to(dtype)
        gamma, step_scale = self.gram_modulation.to(dtype), self.step_scale.to(dtype)
        if self.preset == 'release':
            shrink, start = gelu_threshold, gelu_threshold(target, sparsity)
            left = gamma
            step_size = step_scale / lipschitz_bound(atoms.gram.detach())[..., None, None]
        else:
            shrink, start = soft_threshold, target
            left = gamma.transpose(-2, -1)
            # A constant of 0 belongs to atoms of zeros, whose code is 0 with any step.
            largest = lipschitz(atoms.gram.detach()).clamp_min(_EPS)[..., None, None]
            step_size = 1 / (step_scale * largest)
        gram = left @ (atoms.gram @ gamma)
        return ista(gram, target, start, step_size, sparsity, self.num_steps, shrink)

    def trace(self, x: Tensor, grid: TokenGrid, top_down: Tensor | None = None) -> SparseTrace:
        """The codes and reconstructions of all steps, for the arguments of :meth:`forward`."""
        query, value = self._query_value(x, top_down)
        with full_precision(x):
            atoms = self._atoms(split_heads(upcast_to_float32(query), self.num_heads), grid)
            signal = split_heads(upcast_to_float32(value), self.num_heads)
            codes = tuple(self._codes(atoms, signal, grid))
            atoms = atoms._replace(readout=None)  # that of the keys reconstructs (Eq. 2.3)
            decoded = tuple(merge_heads(atoms.decode(code)) for code in codes)
            return SparseTrace(codes, decoded, merge_heads(signal), atoms.matrix())

    def mean_attention(self, x: Tensor, grid: TokenGrid, top_down: Tensor | None = None) -> Tensor:
        """What the average token takes of each token, ``(B, h, N)``."""
        return self.attention_steps(x, grid, top_down)[-1]

    @torch.no_grad()
    def attention_steps(self, x: Tensor, grid: TokenGrid, top_down: Tensor | None = None) -> Tensor:
        """The same of the code at the start and after each update: ``(num_steps + 1, B, h, N)``.

        See :func:`~mmvars.layers.sparse_coding.linearized_attention`.
        """
        query, value = self._query_value(x, top_down)
        with full_precision(x):
            query = split_heads(upcast_to_float32(query), self.num_heads)
            signal = split_heads(upcast_to_float32(value), self.num_heads)
            return linearized_attention(self._reconstructions(query, grid), signal)

    def _reconstructions(
        self, query: Tensor, grid: TokenGrid
    ) -> Callable[[Tensor], Iterator[Tensor]]:
        """From a signal ``(B, h, N, D)`` to ``P u`` at each step, of the same shape."""
        atoms = self._atoms(query, grid)
        return lambda signal: map(atoms.decode, self._codes(atoms, signal, grid))

    def sparsity_at(self, grid: TokenGrid) -> float:
        """lambda of Eq. 1.10 for tokens of this layout, before w1."""
        if not self.scale_aware_sparsity:
            return self.sparsity
        ratio = (grid.num_patches + grid.num_prefix) / self.training_tokens
        return self.sparsity * (ratio**0.5 if self.preset == 'release' else ratio)


class VARSStaticDynamic(VARSDynamic, GridResizeMixin, Fusible):
    """VARS-SD as released: m free static atoms a head beside the m dynamic ones.

    ``static_atoms (1, h, P + N, m)`` are vectors over the tokens of the training grid. For other
    grids they are resampled as positions are (bicubic). ``fuse()`` multiplies their Gram matrix
    out; it serves the training grid.

    Differs from the thesis, whose static atoms are translations of filters: see
    :class:`VARSConvolutionalDynamic`, which is what :func:`~mmvars.layers.build_mixer` builds for
    ``'vars_sd'`` with ``preset='thesis'``.

    Args: As :class:`VARSDynamic`.
    """

    atom_sets = 2
    grid_tensors = ('static_atoms',)

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
        feature_ratio: float = 2.0,
        scale_aware_sparsity: bool = False,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            grid,
            num_prefix,
            qkv_bias,
            injection,
            double_value_bias,
            preset,
            num_steps,
            sparsity,
            feature_ratio,
            scale_aware_sparsity,
        )
        self.num_prefix = num_prefix
        self.set_grid(grid)
        self.static_atoms = nn.Parameter(
            torch.randn(1, num_heads, self.training_tokens, self.random_features.shape[-1])
        )

    def _atoms(self, query: Tensor, grid: TokenGrid) -> Atoms:
        dynamic, atoms = self._features(query), self.resized('static_atoms', grid)
        static = atoms[0].to(query.dtype)
        if self.is_fused and atoms is self.static_atoms and self.can_use_fused():
            static_gram = self.fused['static_gram'].to(query.dtype)
        else:
            static_gram = static.transpose(-2, -1) @ static
        gram = dynamic.transpose(-2, -1) @ dynamic
        cross = _shared_product(static.transpose(-2, -1), dynamic)
        upper = torch.cat([gram, cross.transpose(-2, -1)], dim=-1)
        lower = torch.cat([cross, static_gram.expand(gram.shape[0], -1, -1, -1)], dim=-1)
        return self._scaled(dynamic, static, torch.cat([upper, lower], dim=-2))

    def fusible_weights(self) -> list[Tensor] | None:
        return [self.static_atoms] if type(self.static_atoms) is nn.Parameter else None

    def products(self) -> dict[str, Tensor]:
        static = upcast_to_float32(self.static_atoms)[0]
        return {'static_gram': static.transpose(-2, -1) @ static}

    def resample(self, name: str, tensor: Tensor, from_grid: Grid, to_grid: Grid) -> Tensor:
        rows = tensor.transpose(1, 2).flatten(2)  # (1, P + N, h m), a table of positions
        rows = resample_pos_embed(rows, from_grid, to_grid)
        return rows.unflatten(2, (tensor.shape[1], -1)).transpose(1, 2)

    def infer_grid(self, name: str, tensor: Tensor) -> Grid:
        return infer_square_grid(tensor.shape[2] - self.num_prefix, name)


class VARSConvolutionalDynamic(VARSDynamic, GridResizeMixin):
    """VARS-SD as in the thesis: the static atoms are all translations of a few filters a channel.

    The atoms of a head are its random features and, after them, the r H W translations of the
    filters of each of its channels. Prefix tokens are reconstructed from the random features alone.
    Gamma is block-diagonal: ``gram_modulation`` for the random features, ``static_modulation`` for
    the filters. The Lipschitz constant of both parts is at most the sum of theirs.

    Args:
        embed_dim, num_heads, grid, num_prefix, qkv_bias, injection, double_value_bias, num_steps,
            sparsity, feature_ratio: As :class:`VARSDynamic`. There is no ``scale_aware_sparsity``:
            filters keep their size in pixels, so one factor does not fit both kinds of atoms.
        preset: ``'thesis'``.
        atoms_per_channel: Filters r of a channel.

    Raises:
        InputError: On a value that cannot be used.
    """

    grid_tensors = ('dictionary',)
    resamples_exactly = False  # learned half spectra need not be those of real filters
    presets: ClassVar[dict[str, dict]] = {'thesis': VARSDynamic.presets['thesis']}

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        grid: Grid,
        num_prefix: int = 0,
        qkv_bias: bool = True,
        injection: str = 'value',
        double_value_bias: bool = True,
        preset: str = 'thesis',
        num_steps: int | None = None,
        sparsity: float | None = None,
        feature_ratio: float = 2.0,
        atoms_per_channel: int = 3,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            grid,
            num_prefix,
            qkv_bias,
            injection,
            double_value_bias,
            preset,
            num_steps,
            sparsity,
            feature_ratio,
        )
        self.set_grid(grid)
        self.dictionary = nn.Parameter(new_filters(embed_dim, atoms_per_channel, self.grid))
        self.static_modulation = nn.Parameter(
            torch.eye(atoms_per_channel), requires_grad=self.num_steps > 0
        )

    def _reconstruct(self, query: Tensor, signal: Tensor, grid: TokenGrid) -> Tensor:
        features, filters = self._features(query), self._filters(grid)
        for code in self._all_codes(features, filters, signal, grid):  # noqa: B007 only the last
            pass
        return merge_heads(_decode(features, filters, code, grid) + signal)

    def _filters(self, grid: TokenGrid) -> Tensor:
        """Half spectra ``(C, r, H, W // 2 + 1)`` for a grid."""
        return as_complex(self.resized('dictionary', grid))

    def _all_codes(
        self, features: Tensor, filters: Tensor, signal: Tensor, grid: TokenGrid
    ) -> Iterator[Tensor]:
        """The code ``(B, h, m + r H W, D)`` at the start and after each update (Eq. 1.12)."""
        target = _encode(features, filters, signal, grid)
        features_gram = (features.transpose(-2, -1) @ features).detach()
        largest = lipschitz(features_gram)[..., None, None]
        largest = largest + spectral_lipschitz(filters.detach()).max()
        dtype = signal.dtype
        step_size = 1 / (self.step_scale.to(dtype) * largest.clamp_min(_EPS))
        sparsity = self.sparsity * self.sparsity_scale.to(dtype)
        # Gamma' P'P Gamma = (P Gamma)' (P Gamma)
        mixed = (
            features @ self.gram_modulation.to(dtype),
            mix_atoms(filters, self.static_modulation.to(dtype)),
        )

        def gram(code: Tensor) -> Tensor:
            return _encode(*mixed, _decode(*mixed, code, grid), grid)

        return ista(gram, target, target, step_size, sparsity, self.num_steps)

    def trace(self, x: Tensor, grid: TokenGrid, top_down: Tensor | None = None) -> SparseTrace:
        """The codes and reconstructions of all steps, for the arguments of :meth:`forward`.

        The atoms are the random features; the filters are ``dictionary``.
        """
        query, value = self._query_value(x, top_down)
        with full_precision(x):
            query = split_heads(upcast_to_float32(query), self.num_heads)
            features, filters = self._features(query), self._filters(grid)
            signal = split_heads(upcast_to_float32(value), self.num_heads)
            codes = tuple(self._all_codes(features, filters, signal, grid))
            decoded = tuple(merge_heads(_decode(features, filters, code, grid)) for code in codes)
            return SparseTrace(codes, decoded, merge_heads(signal), features)

    def _reconstructions(
        self, query: Tensor, grid: TokenGrid
    ) -> Callable[[Tensor], Iterator[Tensor]]:
        features, filters = self._features(query), self._filters(grid)
        return lambda signal: (
            _decode(features, filters, code, grid)
            for code in self._all_codes(features, filters, signal, grid)
        )

    def resample(self, name: str, tensor: Tensor, from_grid: Grid, to_grid: Grid) -> Tensor:
        return resample_filters(tensor, from_grid, to_grid)

    def infer_grid(self, name: str, tensor: Tensor) -> Grid:
        return infer_spectrum_grid(tensor.shape[-3], tensor.shape[-2], name)


def _shared_product(shared: Tensor, other: Tensor) -> Tensor:
    """``(h, a, n)`` times ``(B, h, n, c)``, without a copy of the former for each image."""
    if not torch.compiler.is_compiling() and other.shape[0] == 1:
        return shared @ other
    return torch.einsum('han,bhnc->bhac', shared, other)


def _encode(features: Tensor, filters: Tensor, signal: Tensor, grid: TokenGrid) -> Tensor:
    """``P'x``, ``(B, h, m + r H W, D)``: of random features, then of translations of filters."""
    size, num_heads = (grid.height, grid.width), signal.shape[1]
    maps = signal[:, :, grid.num_prefix :].transpose(2, 3).flatten(1, 2).unflatten(2, size)
    static = from_spectrum(times(to_spectrum(maps).unsqueeze(2), filters), size)  # (B, C, r, H, W)
    static = static.unflatten(1, (num_heads, -1)).movedim(2, -1).flatten(2, 4)
    return torch.cat([features.transpose(-2, -1) @ signal, static], dim=2)


def _decode(features: Tensor, filters: Tensor, code: Tensor, grid: TokenGrid) -> Tensor:
    """``P u``, ``(B, h, N, D)``; the transpose of :func:`_encode`."""
    size, num_heads, num_features = (grid.height, grid.width), code.shape[1], features.shape[-1]
    static = code[:, :, num_features:].unflatten(2, (-1, *size)).movedim(-1, 2).flatten(1, 2)
    maps = from_spectrum(times(to_spectrum(static), conjugate(filters)).sum(dim=2), size)
    patches = maps.unflatten(1, (num_heads, -1)).flatten(3).transpose(2, 3)
    return features @ code[:, :, :num_features] + F.pad(patches, (0, 0, grid.num_prefix, 0))
