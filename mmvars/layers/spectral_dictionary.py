"""The dictionary of a few filters and all their translations, in the frequency domain."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmvars.layers.fourier import (as_complex, as_pairs, conjugate, from_spectrum, square_length,
                                   times, to_spectrum)

__all__ = ['SpectralDictionary', 'spectral_bound']


class SpectralDictionary:
    """Every translation of r filters a channel. Signal ``(B, C, H, W)``, code ``(B, C, r, H, W)``.

    Encoding is a circular convolution, decoding its transpose with the same filters. P'P has rank
    one at each frequency, ``K (K^H u)``, so no r x r products are formed.

    Args:
        spectrum: K, complex half spectra ``(C, r, H, W // 2 + 1)``. Where they are those of real
            filters, :meth:`gram` is encoding after decoding. Else it also sees the rest of K, as in
            the released models, which form ``K K^H`` at every frequency.
        size: ``(H, W)``.
    """

    def __init__(self, spectrum: Tensor, size: tuple[int, int]) -> None:
        self._spectrum = spectrum
        self._size = size
        self._last: tuple[Tensor, Tensor] | None = None  # a signal and its spectrum
        self._conjugate: Tensor | None = None

    def of_channels(self, channels: slice) -> 'SpectralDictionary':
        """The same for some of the channels."""
        return SpectralDictionary(self._spectrum[channels], self._size)

    def encode(self, signal: Tensor) -> Tensor:
        return self._encoded(self._transformed(signal), self._spectrum)

    def decode(self, code: Tensor) -> Tensor:
        return from_spectrum(_decoded(code, self._conjugated()), self._size)

    def gram(self, modulation: Tensor | None, transpose: bool) -> Callable[[Tensor], Tensor]:
        left, right = self._modulated(modulation, transpose)
        return lambda code: self._encoded(_decoded(code, right), left)

    def descent(self, signal: Tensor, target: Tensor, step_size: Tensor, modulation: Tensor | None,
                transpose: bool) -> Callable[[Tensor], Tensor]:
        left, right = self._modulated(modulation, transpose)
        # K (K^H u) - b = K (K^H u - x) in the spectrum: one map to subtract a channel, not r.
        wanted = self._transformed(signal) if modulation is None else None

        def descend(code: Tensor) -> Tensor:
            decoded = _decoded(code, right)
            if wanted is None:
                gradient = self._encoded(decoded, left) - target
            else:
                gradient = self._encoded(decoded.sub_(wanted), left)
            return torch.addcmul(code, gradient, step_size, value=-1)

        return descend

    def bound(self) -> Tensor:
        """Largest eigenvalue of P'P over all channels' frequencies: ``(C, 1, 1, 1)``."""
        return spectral_bound(self._spectrum)[:, None, None, None]

    def _conjugated(self) -> Tensor:
        if self._conjugate is None:
            self._conjugate = conjugate(self._spectrum)
        return self._conjugate

    def _transformed(self, signal: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not signal:
            self._last = signal, to_spectrum(signal)
        return self._last[1]

    def _encoded(self, spectrum: Tensor, filters: Tensor) -> Tensor:
        """Of one map a channel: ``(B, C, H, Wf)`` to ``(B, C, r, H, W)``."""
        return from_spectrum(times(spectrum.unsqueeze(2), filters), self._size)

    def _modulated(self, modulation: Tensor | None, transpose: bool) -> tuple[Tensor, Tensor]:
        """Filters to encode with, and conjugate ones to decode with, of ``A P'P K``.

        Mixing atoms and transforming maps commute, so the few filters are mixed, not each code.
        """
        if modulation is None:
            return self._spectrum, self._conjugated()
        right = self._with_mixed_atoms(modulation.T)
        return right if transpose else self._with_mixed_atoms(modulation), conjugate(right)

    def _with_mixed_atoms(self, matrix: Tensor) -> Tensor:
        return as_complex(torch.einsum('ij,cjhwp->cihwp', matrix, as_pairs(self._spectrum)))


def spectral_bound(spectrum: Tensor) -> Tensor:
    """``max over frequencies of sum_a |K_a|^2``, the largest eigenvalue of P'P: ``(C)``.

    Args:
        spectrum: ``(C, r, H, W // 2 + 1)``, complex.
    """
    return square_length(spectrum).sum(dim=1).amax(dim=(-2, -1))


def _decoded(code: Tensor, conjugate_filters: Tensor) -> Tensor:
    """Half spectra of one map a channel, of codes ``(B, C, r, H, W)``."""
    return times(to_spectrum(code), conjugate_filters, overwrite=True).sum(dim=2)
