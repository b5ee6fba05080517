"""Dictionaries of atoms: how a signal is encoded (P'x), decoded (P u) and compared (P'P u)."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from mmvars.layers.sparse_coding import STEP_BOUNDS
from mmvars.layers.spectral_dictionary import SpectralDictionary
from mmvars.layers.tracing import surely

__all__ = ['DenseDictionary', 'Dictionary', 'JoinedDictionary', 'SpectralDictionary']

_EPS = 1e-12


class Dictionary(Protocol):
    """What sparse coding needs of a dictionary P. Shapes are those of the implementation."""

    def encode(self, signal: Tensor) -> Tensor:
        """``P'x``: how well each atom matches."""
        ...

    def decode(self, code: Tensor) -> Tensor:
        """``P u``: the reconstruction."""
        ...

    def gram(self, modulation: Tensor | None, transpose: bool) -> Callable[[Tensor], Tensor]:
        """The operator ``u -> A P'P K u`` with A = K' (``transpose``) or K; K None: identity."""
        ...

    def descent(self, signal: Tensor, target: Tensor, step_size: Tensor, modulation: Tensor | None,
                transpose: bool) -> Callable[[Tensor], Tensor]:
        """``u -> u - step_size (A P'P K u - b)``, where ``b``, the target, is :meth:`encode` of x.

        The same as :meth:`gram` with a few operations more, but cheaper.
        """
        ...


class DenseDictionary:
    """Atoms that are vectors over the tokens. Signal ``(B, h, N, D)``, code ``(B, h, M, D)``.

    Args:
        atoms: ``(B, h, N, M1)``.
        normalise: Scale each atom to unit length over the tokens. The atoms themselves are never
            rescaled: the lengths come from the Gram matrix's diagonal, and go into code and Gram
            matrix, so the work is M^2, not N M.
        shared: ``(h, N, M2)``, atoms that all images have, or ``None``. They follow the others, M =
            M1 + M2, but are never copied beside them, and their part of the Gram matrix is made
            once for the batch.
        shared_gram: ``(h, M2, M2)``, that part.

    Attributes:
        gram_matrix: ``(B, h, M, M)``, P'P.
    """

    def __init__(self, atoms: Tensor, normalise: bool, shared: Tensor | None = None,
                 shared_gram: Tensor | None = None) -> None:
        self._own = atoms
        self._shared = shared
        self._scale = None
        self.gram_matrix = self._gram_matrix(shared_gram)
        if normalise:
            square = self.gram_matrix.diagonal(dim1=-2, dim2=-1)
            # An atom of length 0 stays 0, with gradient 0: see positive_features.
            self._scale = square.masked_fill(square < _EPS**2, math.inf).rsqrt().unsqueeze(-1)
            for scale in (self._scale, self._scale.transpose(-2, -1)):
                self.gram_matrix = (self.gram_matrix * scale if torch.is_grad_enabled() else
                                    self.gram_matrix.mul_(scale))

    @property
    def atoms(self) -> Tensor:
        """P itself, ``(B, h, N, M)``, scaled."""
        atoms = self._own
        if self._shared is not None:
            atoms = torch.cat([atoms, self._shared.expand(atoms.shape[0], -1, -1, -1)], dim=-1)
        return atoms if self._scale is None else atoms * self._scale.transpose(-2, -1)

    def encode(self, signal: Tensor) -> Tensor:
        code = self._own.transpose(-2, -1) @ signal
        if self._shared is not None:
            code = torch.cat([code, _for_all(self._shared.transpose(-2, -1), signal)], dim=-2)
        return self._scaled(code)

    def decode(self, code: Tensor) -> Tensor:
        code = self._scaled(code)
        if self._shared is None:
            return self._own @ code
        own, shared = code.split([self._own.shape[-1], self._shared.shape[-1]], dim=-2)
        return _for_all(self._shared, shared, plus=self._own @ own)

    def gram(self, modulation: Tensor | None, transpose: bool) -> Callable[[Tensor], Tensor]:
        matrix = self._modulated(modulation, transpose)
        return lambda code: matrix @ code

    def descent(self, signal: Tensor, target: Tensor, step_size: Tensor, modulation: Tensor | None,
                transpose: bool) -> Callable[[Tensor], Tensor]:
        del signal
        # u - s (G u - b) = (I - s G) u + s b: one product a step, and no other operation.
        matrix = self._modulated(modulation, transpose)
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        matrix = torch.addcmul(eye, matrix, -step_size).flatten(0, 1)
        constant = (step_size * target).flatten(0, 1)

        def descend(code: Tensor) -> Tensor:
            return torch.baddbmm(constant, matrix, code.flatten(0, 1)).view_as(code)

        return descend

    def bound(self, kind: str) -> Tensor:
        """Upper bound of the curvature, ``(B, h, 1, 1)``, by a name of ``STEP_BOUNDS``."""
        # No gradient passes the bound; with one, eigenvalues cost twice as much.
        return STEP_BOUNDS[kind](self.gram_matrix.detach())[..., None, None]

    def _gram_matrix(self, shared_gram: Tensor | None) -> Tensor:
        own = self._own.transpose(-2, -1) @ self._own
        if self._shared is None:
            return own
        cross = _for_all(self._shared.transpose(-2, -1), self._own)
        upper = torch.cat([own, cross.transpose(-2, -1)], dim=-1)
        lower = torch.cat([cross, shared_gram.expand(own.shape[0], -1, -1, -1)], dim=-1)
        return torch.cat([upper, lower], dim=-2)

    def _modulated(self, modulation: Tensor | None, transpose: bool) -> Tensor:
        """``A P'P K``, ``(B, h, M, M)``."""
        if modulation is None:
            return self.gram_matrix
        left = modulation if transpose else modulation.transpose(-2, -1)
        # (P'P A')' = A P'P, which is symmetric: so the first product is one of plain matrices.
        half = (self.gram_matrix @ left).flatten(0, 1).transpose(-2, -1)
        return torch.bmm(half, modulation.expand_as(half)).view_as(self.gram_matrix)

    def _scaled(self, code: Tensor) -> Tensor:
        return code if self._scale is None else code * self._scale


class JoinedDictionary:
    """``[P1; P2]``: the atoms of a dense dictionary and, after them, of a spectral one.

    Signal ``(B, h, N, D)``, code ``(B, h, M + r H W, D)``: the convolutional atoms of a head's
    channels follow its dense atoms. Prefix tokens are the dense atoms' alone.

    Args:
        dense: The dense part.
        spectral: The convolutional part, over all h D channels.
        size: ``(H, W)`` of the map.
    """

    def __init__(self, dense: DenseDictionary, spectral: SpectralDictionary,
                 size: tuple[int, int]) -> None:
        self._dense = dense
        self._spectral = spectral
        self._size = size
        self._num_dense = dense.gram_matrix.shape[-1]

    @property
    def atoms(self) -> Tensor:
        return self._dense.atoms

    def encode(self, signal: Tensor) -> Tensor:
        codes = self._spectral.encode(self._to_map(signal))
        return torch.cat([self._dense.encode(signal), self._code_to_heads(codes, signal.shape[1])],
                         dim=2)

    def decode(self, code: Tensor) -> Tensor:
        dense, static = self._parts(code)
        decoded = self._spectral.decode(self._code_to_maps(static))
        out = self._dense.decode(dense)
        heads = decoded.unflatten(1, (code.shape[1], -1)).flatten(3).transpose(2, 3)
        return out + F.pad(heads, (0, 0, out.shape[2] - heads.shape[2], 0))

    def gram(self, modulation: Sequence[Tensor] | None,
             transpose: bool) -> Callable[[Tensor], Tensor]:
        def mixed(code: Tensor, left: bool) -> Tensor:
            if modulation is None:
                return code
            of_dense, of_static = (m.T if left and transpose else m for m in modulation)
            dense, static = self._parts(code)
            maps = _mixed(of_static, self._code_to_maps(static))
            return torch.cat([of_dense @ dense, self._code_to_heads(maps, code.shape[1])], dim=2)

        return lambda code: mixed(self.encode(self.decode(mixed(code, False))), True)

    def descent(self, signal: Tensor, target: Tensor, step_size: Tensor, modulation: Any,
                transpose: bool) -> Callable[[Tensor], Tensor]:
        del signal
        gram = self.gram(modulation, transpose)
        return lambda code: code - step_size * (gram(code) - target)

    def bound(self, kind: str) -> Tensor:
        """Sum of the parts' bounds, which bounds the joined P'P: ``(B, h, 1, 1)``."""
        return self._dense.bound(kind) + self._spectral.bound().max()

    def _parts(self, code: Tensor) -> tuple[Tensor, Tensor]:
        return code[:, :, :self._num_dense], code[:, :, self._num_dense:]

    def _to_map(self, signal: Tensor) -> Tensor:
        patches = signal[:, :, signal.shape[2] - self._size[0] * self._size[1]:]
        return patches.transpose(2, 3).flatten(1, 2).unflatten(2, self._size)

    def _code_to_maps(self, code: Tensor) -> Tensor:
        return code.unflatten(2, (-1, *self._size)).movedim(-1, 2).flatten(1, 2)

    def _code_to_heads(self, maps: Tensor, num_heads: int) -> Tensor:
        return maps.unflatten(1, (num_heads, -1)).movedim(2, -1).flatten(2, 4)


def _for_all(shared: Tensor, other: Tensor, plus: Tensor | None = None) -> Tensor:
    """``(h, a, n)`` times ``(B, h, n, c)``, without a copy of the former for each image.

    ``plus``: added, in its own memory; not needed for its gradient, as no product is.
    """
    if surely(other.shape[0] == 1):
        if plus is None:
            return shared @ other
        plus.flatten(0, 1).baddbmm_(shared, other.flatten(0, 1))
        return plus
    product = torch.einsum('han,bhnc->bhac', shared, other)
    return product if plus is None else plus.add_(product)


def _mixed(matrix: Tensor, code: Tensor) -> Tensor:
    """Mix the atoms, axis 2 of ``(B, C, r, H, W)``."""
    return torch.einsum('ij,bcjhw->bcihw', matrix, code)
