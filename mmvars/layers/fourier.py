"""Real maps and their half spectra.

Spectra are complex numbers, computed by FFT. Where a graph is exported they are pairs of real
numbers instead, in a last axis of 2, and the transforms are products with matrices of cosines and
sines: ONNX has neither complex numbers nor a two-dimensional transform that all runtimes support.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mmvars.layers.compile_utils import is_exporting
from mmvars.layers.precision import upcast_to_float32

__all__ = [
    'as_complex',
    'as_pairs',
    'conjugate',
    'from_spectrum',
    'half_width',
    'times',
    'to_spectrum',
]


def half_width(width: int) -> int:
    """Columns of the half spectrum of a real map of ``width`` columns."""
    return width // 2 + 1


def as_complex(spectrum: Tensor) -> Tensor:
    """``(..., 2)``, real and imaginary parts, as complex numbers ``(...)``, at least complex64.

    In an exported graph they stay pairs ``(..., 2)``, at least float32.
    """
    spectrum = upcast_to_float32(spectrum)
    return spectrum if is_exporting() else torch.view_as_complex(spectrum.contiguous())


def as_pairs(spectrum: Tensor) -> Tensor:
    """The inverse of :func:`as_complex`: ``(..., 2)``."""
    return torch.view_as_real(spectrum) if spectrum.is_complex() else spectrum


def conjugate(spectrum: Tensor) -> Tensor:
    """The complex conjugate, with its own memory, so that products need not make it again."""
    if spectrum.is_complex():
        return torch.conj_physical(spectrum)
    real, imaginary = spectrum.unbind(dim=-1)
    return torch.stack([real, -imaginary], dim=-1)


def times(a: Tensor, b: Tensor) -> Tensor:
    """The elementwise product of two spectra; broadcasts."""
    if a.is_complex():
        return a * b
    (ar, ai), (br, bi) = a.unbind(dim=-1), b.unbind(dim=-1)
    return torch.stack([ar * br - ai * bi, ar * bi + ai * br], dim=-1)


def to_spectrum(maps: Tensor) -> Tensor:
    """Half spectra ``(..., H, W // 2 + 1)`` of real maps ``(..., H, W)``."""
    if is_exporting():
        return _rfft2_of_pairs(maps)
    if maps.numel() == 0:  # an empty batch, which FFT libraries refuse
        return torch.complex(maps, maps)[..., : half_width(maps.shape[-1])]
    return torch.fft.rfft2(maps)


def from_spectrum(spectrum: Tensor, size: tuple[int, int]) -> Tensor:
    """Real maps ``(..., H, W)`` of half spectra, whether these are Hermitian or not.

    A product of learned half spectra is not Hermitian in its first and, for even W, last column.
    Here the inverse along y comes first, and the one along x then drops the imaginary part of these
    columns: the same result on every device, which a two-dimensional inverse does not promise.
    """
    if not spectrum.is_complex():
        return _irfft2_of_pairs(spectrum, size)
    if spectrum.numel() == 0:
        return F.pad(spectrum.real, (0, size[1] - spectrum.shape[-1]))
    return torch.fft.irfft(torch.fft.ifft(spectrum, dim=-2), n=size[1], dim=-1)


def _rfft2_of_pairs(maps: Tensor) -> Tensor:
    height, width = maps.shape[-2:]
    cos, sin = _waves(width, half_width(width), maps)
    real, imaginary = maps @ cos, -maps @ sin
    cos, sin = _waves(height, height, maps)
    return torch.stack([cos @ real + sin @ imaginary, cos @ imaginary - sin @ real], dim=-1)


def _irfft2_of_pairs(spectrum: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    real, imaginary = spectrum.unbind(dim=-1)
    cos, sin = _waves(height, height, real)
    real, imaginary = cos @ real - sin @ imaginary, cos @ imaginary + sin @ real
    cos, sin = _waves(width, half_width(width), real)
    # Every column but the first and, for even W, the last also stands for its mirror image.
    columns = torch.arange(half_width(width), device=real.device)
    weight = torch.where(columns * 2 % width == 0, 1.0, 2.0).to(real.dtype) / (height * width)
    return (weight * real) @ cos.mT - (weight * imaginary) @ sin.mT


def _waves(size: int, num_frequencies: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of ``2 pi y k / size``, ``(size, num_frequencies)``, as the dtype of like."""
    places = torch.arange(size, device=like.device)
    cycles = places[:, None] * places[:num_frequencies] % size  # exact in whole numbers
    angles = cycles.double() * (2 * math.pi / size)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)
