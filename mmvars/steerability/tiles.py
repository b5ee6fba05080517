"""Which images stand side by side, and which class names each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmvars.steerability.photos import Photo, Photos, collage

__all__ = ['Collage', 'TileDrawer', 'class_pixels']

DRAWS = 300
"""Of the tiles of a collage, until each is named by a class of its own."""

REMNANT = 0.1
"""Of ``min_share``: what a class that names a tile may have of the other tiles."""


@dataclass(frozen=True)
class Collage:
    """Images side by side.

    Attributes:
        photo: All of it.
        regions: Of the tiles that a class names, flat.
        named: These classes.
        absent: Two classes, or fewer, that are in no tile.
    """

    photo: Photo
    regions: list[np.ndarray]
    named: list[int]
    absent: list[int]


@dataclass(frozen=True, eq=False)
class TileDrawer:
    """Draws collages.

    Attributes:
        photos: The data.
        indices: Of the I images that are drawn from.
        counts: Pixels of each class in each of these, ``(I, K)``.
        askable: Classes that can name a tile.
        min_share: Of its pixels that a class must have to name it.
        layout: Of pairs, see :func:`~mmvars.steerability.photos.collage`.
    """

    photos: Photos
    indices: Sequence[int]
    counts: np.ndarray
    askable: np.ndarray
    min_share: float
    layout: str

    def draw(self, tiles: int, rng: np.random.Generator) -> Collage:
        """The first of many draws in which each tile has a class of its own; else the one with most
        of such tiles."""
        best, most = np.zeros(0, int), -1
        for _ in range(DRAWS):
            drawn = rng.choice(len(self.indices), tiles, replace=len(self.indices) < tiles)
            count = sum(name is not None for name in self._names(self.counts[drawn], rng))
            if count > most:
                best, most = drawn, count
            if most == tiles:
                break
        photo, regions = collage([self.photos[self.indices[i]] for i in best], self.layout)
        num_classes = self.counts.shape[1]
        counts = np.stack([class_pixels(photo.labels[region], num_classes) for region in regions])
        names = self._names(counts, rng)
        order = rng.permutation(self.askable).tolist()
        return Collage(
            photo,
            [each.ravel() for each, name in zip(regions, names, strict=True) if name is not None],
            [name for name in names if name is not None],
            [k for k in order if not counts[:, k].any()][:2],
        )

    def _names(self, counts: np.ndarray, rng: np.random.Generator) -> list[int | None]:
        """For each tile a class that is large in it and in no other, if there is one.

        Args:
            counts: Pixels of each class in each tile, ``(tiles, K)``.
            rng: To draw one of several.
        """
        least = np.maximum(self.min_share * counts.sum(axis=1, keepdims=True), 1)
        alone = (counts > least * REMNANT).sum(axis=0) == 1
        order = rng.permutation(self.askable)
        fits = ((counts >= least) & alone)[:, order]
        return [int(order[row.argmax()]) if row.any() else None for row in fits]


def class_pixels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of each class, ``(K,)``; negative labels are none."""
    return np.bincount(labels[labels >= 0].ravel(), minlength=num_classes)
