"""Real maps and their half spectra, as complex numbers or as pairs of real ones.

Fourier transforms are fast (FFT) or products with matrices of cosines and sines. The latter do more
arithmetic and run faster all the same where maps are tiny; and they are all there is where a
network is exported, since ONNX has neither complex numbers nor a transform of two dimensions that
runtimes share. There, spectra are real tensors with a last axis of 2, the real and imaginary part,
and every function here takes and gives them in place of complex ones.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from mmvars.layers.precision import widened

__all__ = ['as_complex', 'as_pairs', 'conjugate', 'from_spectrum', 'half_width', 'in_pairs',
           'square_length', 'times', 'to_spectrum']

_SMALL = 81  # places: maps up to 9 x 9, on which one matrix is faster than an FFT


def in_pairs() -> bool:
    """Whether spectra are pairs of real numbers: while a graph is made for other runtimes."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def half_width(width: int) -> int:
    """Columns of the half spectrum of a real map of ``width`` columns."""
    return width // 2 + 1


def as_complex(spectrum: Tensor) -> Tensor:
    """``(..., 2)``, real and imaginary parts, as complex numbers ``(...)``, at least complex64.

    Where spectra are pairs, they stay ``(..., 2)``, at least float32.
    """
    spectrum = widened(spectrum)
    return spectrum if in_pairs() else torch.view_as_complex(spectrum.contiguous())


def as_pairs(spectrum: Tensor) -> Tensor:
    """The inverse of :func:`as_complex`: ``(..., 2)``."""
    return torch.view_as_real(spectrum.resolve_conj()) if spectrum.is_complex() else spectrum


def conjugate(spectrum: Tensor) -> Tensor:
    """The complex conjugate, in memory of its own: not made anew in every product with it."""
    if spectrum.is_complex():
        return spectrum.conj().resolve_conj()
    real, imaginary = spectrum.unbind(dim=-1)
    return torch.stack([real, -imaginary], dim=-1)


def times(a: Tensor, b: Tensor, overwrite: bool = False) -> Tensor:
    """The product, number by number; broadcasts.

    ``overwrite``: nobody else needs ``a``, and the product has its shape.
    """
    if a.is_complex():
        return a.mul_(b) if overwrite and not torch.is_grad_enabled() else a * b
    (ar, ai), (br, bi) = a.unbind(dim=-1), b.unbind(dim=-1)
    return torch.stack([ar * br - ai * bi, ar * bi + ai * br], dim=-1)


def square_length(spectrum: Tensor) -> Tensor:
    """``|K|^2``, real."""
    return as_pairs(spectrum).square().sum(dim=-1)


def to_spectrum(maps: Tensor) -> Tensor:
    """Half spectrum ``(..., H, W // 2 + 1)`` of real maps ``(..., H, W)``."""
    if in_pairs():
        return _matrix_transform(maps)
    height, width = maps.shape[-2:]
    if _one_matrix_pays(maps, (height, width)):
        numbers = maps.flatten(-2) @ _kept(_both_ways, (height, width), maps.dtype, maps.device)
        return torch.view_as_complex(numbers.unflatten(-1, (height, -1, 2)))
    return torch.fft.rfft2(maps)


def from_spectrum(spectrum: Tensor, size: tuple[int, int]) -> Tensor:
    """Real maps ``(..., H, W)`` of half spectra, whether these are Hermitian or not.

    A product of learned half spectra is not Hermitian in its first and, for even W, last column.
    The inverse along y comes first, and the one along x then drops their imaginary part: the same
    result on every device, which a two-dimensional inverse does not promise.
    """
    if not spectrum.is_complex():
        return _inverse_matrix_transform(spectrum, size)
    if _one_matrix_pays(spectrum, size):
        numbers = as_pairs(spectrum).flatten(-3)
        matrix = _kept(_both_ways_back, size, numbers.dtype, numbers.device)
        return (numbers @ matrix).unflatten(-1, size)
    return torch.fft.irfft(torch.fft.ifft(spectrum, dim=-2), n=size[1], dim=-1)


def _one_matrix_pays(like: Tensor, size: tuple[int, int]) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_grad_enabled():
        return False
    return type(like) is Tensor and like.is_cpu and math.prod(size) <= _SMALL


def _matrix_transform(maps: Tensor) -> Tensor:
    """Half spectra ``(..., H, W // 2 + 1, 2)``, along rows and then along columns."""
    height, width = maps.shape[-2:]
    rows = maps @ _along_rows(width, maps.dtype, maps.device)  # (..., H, 2 Wf)
    columns = rows.unflatten(-1, (-1, 2)).transpose(-3, -2).flatten(-2)  # (..., Wf, 2 H)
    spectrum = columns @ _along_columns(height, maps.dtype, maps.device)
    return spectrum.unflatten(-1, (-1, 2)).transpose(-3, -2)


def _inverse_matrix_transform(spectrum: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    columns = spectrum.transpose(-3, -2).flatten(-2)
    # The matrix along columns is that of a rotation, times sqrt(H): its inverse is its transpose.
    columns = columns @ (_along_columns(height, spectrum.dtype, spectrum.device).T / height)
    rows = columns.unflatten(-1, (-1, 2)).transpose(-3, -2).flatten(-2)
    return rows @ _back_along_rows(width, spectrum.dtype, spectrum.device)


@functools.lru_cache(maxsize=8)
def _kept(make: Callable[..., Tensor], size: tuple[int, int], dtype: torch.dtype,
          device: torch.device) -> Tensor:
    """A constant of the size alone, made once."""
    with torch.inference_mode(False), torch.no_grad():
        return make(size, device).to(dtype)


def _both_ways(size: tuple[int, int], device: torch.device) -> Tensor:
    """``(H W, 2 H Wf)``: the whole transform as one matrix."""
    maps = torch.eye(math.prod(size), dtype=torch.double, device=device).unflatten(1, size)
    return _matrix_transform(maps).flatten(1)


def _both_ways_back(size: tuple[int, int], device: torch.device) -> Tensor:
    """``(2 H Wf, H W)``."""
    shape = size[0], half_width(size[1]), 2
    numbers = torch.eye(math.prod(shape), dtype=torch.double, device=device).unflatten(1, shape)
    return _inverse_matrix_transform(numbers, size).flatten(1)


def _angles(rows: int, columns: int, size: int, device: torch.device) -> Tensor:
    products = torch.arange(rows, device=device)[:, None] * torch.arange(columns, device=device)
    return (products % size).double() * (2 * math.pi / size)


def _along_rows(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``(W, 2 Wf)``: cosine and minus sine of each frequency in turn."""
    angles = _angles(width, half_width(width), width, device)
    return torch.stack([angles.cos(), -angles.sin()], dim=-1).flatten(1).to(dtype)


def _along_columns(height: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``(2 H, 2 H)``: complex numbers in, complex numbers out, as pairs."""
    angles = _angles(height, height, height, device)
    cos, sin = angles.cos(), angles.sin()
    of_real, of_imaginary = torch.stack([cos, -sin], dim=-1), torch.stack([sin, cos], dim=-1)
    return torch.stack([of_real, of_imaginary], dim=1).flatten(2).flatten(0, 1).to(dtype)


def _back_along_rows(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``(2 Wf, W)``: the real part of the inverse; all columns but the first and, for even W, the
    last stand for their mirror image too."""
    angles = _angles(half_width(width), width, width, device)
    alone = (torch.arange(half_width(width), device=device) * 2) % width == 0
    weight = (2 - alone.double())[:, None] / width
    return torch.stack([weight * angles.cos(), -weight * angles.sin()],
                       dim=1).flatten(0, 1).to(dtype)
