"""Patches of an image in the order of a map, and the images that lack some of them."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    'Patches',
    'at_stride',
    'center_map',
    'fill_of',
    'kept_patches',
    'order_of',
    'shifted',
    'steps_of',
]


class Patches(NamedTuple):
    """The patches of an image, those of its padding left out.

    Attributes:
        rows, columns: Row and column of the patch of each row ``(H,)`` and column ``(W,)`` of
            pixels. A rest that a network cuts off belongs to the last patch.
    """

    rows: np.ndarray
    columns: np.ndarray

    @classmethod
    def of(cls, size: Sequence[int], patch: int, grid: Sequence[int]) -> 'Patches':
        """Of an image ``(H, W)``, in patches of so many pixels, in a grid that may be larger."""
        return cls(
            *(np.minimum(np.arange(n) // patch, g - 1) for n, g in zip(size, grid, strict=True))
        )

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.rows[-1]) + 1, int(self.columns[-1]) + 1

    def values(self, maps: Tensor) -> np.ndarray:
        """The mean of the heads ``(K, h, w)`` of a map, at the patches ``(h', w')``."""
        return maps.double().mean(dim=0)[: self.shape[0], : self.shape[1]].numpy()

    def pixels(self, kept: np.ndarray, size: Sequence[int]) -> np.ndarray:
        """Whether each pixel is of a patch that is kept, at any size ``(H', W')`` of the image."""
        rows, columns = (
            each[(2 * np.arange(n) + 1) * len(each) // (2 * n)]
            for each, n in zip((self.rows, self.columns), size, strict=True)
        )
        return kept.reshape(self.shape)[rows[:, None], columns]


def at_stride(maps: Tensor, patch: int, size: Sequence[int]) -> Tensor:
    """Maps ``(K, h, w)`` of an image ``(H, W)``, of a finer grid at patches of so many pixels."""
    ratio = max(maps.shape[-2] * patch // size[0], 1)
    return F.avg_pool2d(maps[None], ratio, ceil_mode=True)[0] if ratio > 1 else maps


def order_of(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Numbers of the patches, largest value first; ties at random."""
    flat = values.ravel()
    return np.lexsort((rng.random(flat.size), -flat))


def center_map(shape: tuple[int, int]) -> np.ndarray:
    """Less the distance from the center, the sides being 1."""
    y, x = ((np.arange(n) + 0.5) / n - 0.5 for n in shape)
    return -np.hypot(y[:, None], x)


def shifted(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A map moved around the edges, anywhere but to its own place."""
    place = divmod(rng.integers(1, max(values.size, 2)), values.shape[1])
    return np.roll(values, place, axis=(0, 1))


def steps_of(fractions: Sequence[float], count: int) -> list[int]:
    """Patches that are removed or inserted at each fraction.

    Args:
        fractions: Below one half, from 0 on.
        count: Patches of the image.

    Returns:
        For each fraction, then for one less each, backwards: so that the steps of the inverse
        order are among them.
    """
    first = [int(fraction * count + 0.5) for fraction in fractions]
    return first + [count - each for each in reversed(first)]


def kept_patches(order: np.ndarray, steps: Sequence[int], inserts: bool) -> list[np.ndarray]:
    """Whether each patch is kept ``(N,)``, at each step of deletion, or of insertion."""
    kept = []
    for step in steps:
        each = np.full(len(order), not inserts)
        each[order[:step]] = inserts
        kept.append(each)
    return kept


def fill_of(pixels: Tensor, fill: str, patch: int) -> Tensor:
    """What removed pixels of an image ``(3, H, W)`` are.

    Args:
        pixels: float32.
        fill: ``'mean'``, the mean color of the image; ``'blur'``, the image blurred by a Gaussian
            with a standard deviation of one patch.
        patch: In pixels.
    """
    if fill == 'mean':
        return pixels.mean(dim=(1, 2), keepdim=True).expand_as(pixels)
    image = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    blurred = cv2.GaussianBlur(image, (0, 0), patch, borderType=cv2.BORDER_REPLICATE)
    return torch.from_numpy(blurred).permute(2, 0, 1)
