"""What can be pointed at in an image: points, a box, a mask; or the like in another image."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from mmvars.errors import InputError

__all__ = ['Box', 'Example', 'Mask', 'Pixels', 'Points', 'as_prompt']


class Pixels(NamedTuple):
    """Columns and rows ``(n, 2)``, int64, of pixels: what to look for, and what not."""

    positive: np.ndarray
    negative: np.ndarray


NO_PIXELS = np.zeros((0, 2), dtype=np.int64)


class Points:
    """Places in an image.

    Args:
        points: ``(x, y)`` of each, in pixels from the left and the top.
        labels: 1 for "like this", 0 for "not like this"; default: all 1.

    Raises:
        InputError: If there is none with label 1, or a number cannot be used.
    """

    def __init__(self, points: Sequence[Any], labels: Sequence[int] | None = None) -> None:
        try:
            self.points = np.asarray(points, dtype=np.float64)
        except (TypeError, ValueError):
            self.points = np.zeros(0)
        if self.points.ndim != 2 or self.points.shape[1] != 2 or not len(self.points):
            raise InputError(
                f'points must be a list of pairs (x, y), such as [(120, 80)]; got {points!r}'
            )
        if not np.isfinite(self.points).all():
            raise InputError(f'points must be finite numbers, got {points!r}')
        self.labels = np.ones(len(self.points), dtype=np.int64)
        if labels is not None:
            given = np.asarray(labels)
            if given.shape != self.labels.shape or not np.isin(given, (0, 1)).all():
                raise InputError(
                    f'labels must be 1 (like this) or 0 (not like this) for each of the '
                    f'{len(self.points)} points, got {labels!r}'
                )
            self.labels = given.astype(np.int64)
        if not self.labels.any():
            raise InputError(
                'all points are labeled 0 (not like this): give at least one with label 1'
            )

    def pixels(self, size: tuple[int, int]) -> Pixels:
        """The pixels that the points lie in, of an image ``(H, W)``.

        Raises:
            InputError: If a point lies outside.
        """
        height, width = size
        inside = (self.points >= 0).all(axis=1) & (self.points < (width, height)).all(axis=1)
        if not inside.all():
            x, y = self.points[~inside][0]
            raise InputError(
                f'the point ({x:g}, {y:g}) lies outside of the image, whose x goes from 0 to '
                f'{width - 1} and y from 0 to {height - 1}'
            )
        cells = np.floor(self.points).astype(np.int64)
        return Pixels(cells[self.labels == 1], cells[self.labels == 0])


@dataclass(frozen=True)
class Box:
    """A rectangle from the left upper corner ``(x0, y0)`` to the right lower ``(x1, y1)``, in
    pixels from the left and the top. What is outside of the image does not count."""

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        values = self.x0, self.y0, self.x1, self.y1
        if not all(isinstance(value, Real) and np.isfinite(value) for value in values):
            raise InputError(f'a box is four finite numbers x0, y0, x1, y1; got {values}')
        if self.x0 >= self.x1 or self.y0 >= self.y1:
            raise InputError(
                f'a box goes from its left upper to its right lower corner, x0 < x1 and y0 < y1; '
                f'got {values}'
            )

    def pixels(self, size: tuple[int, int]) -> Pixels:
        """The pixels that the box touches, of an image ``(H, W)``.

        Raises:
            InputError: If it touches none.
        """
        height, width = size
        columns = np.arange(max(int(np.floor(self.x0)), 0), min(int(np.ceil(self.x1)), width))
        rows = np.arange(max(int(np.floor(self.y0)), 0), min(int(np.ceil(self.y1)), height))
        if not columns.size or not rows.size:
            raise InputError(
                f'the box ({self.x0:g}, {self.y0:g}, {self.x1:g}, {self.y1:g}) lies outside of the '
                f'image of {width} x {height} pixels (width x height)'
            )
        return Pixels(np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2), NO_PIXELS)


class Mask:
    """Pixels of an image.

    Args:
        mask: ``(H, W)``, of the image's size: bool, or 0 and 1 (or 255).

    Raises:
        InputError: If it is of another kind, or empty.
    """

    def __init__(self, mask: Any) -> None:
        values = np.asarray(mask)
        if values.ndim != 2 or not values.size:
            raise InputError(
                f'a mask must have shape (H, W), a file be a gray image; got {values.shape}'
            )
        if values.dtype != bool:
            levels = np.unique(values)
            if (
                values.dtype.kind not in 'iuf'
                or len(levels) > 2
                or not np.isin(levels, (0, 1, 255)).all()
            ):
                raise InputError(
                    f'a mask must be bool, or hold 0 and 1 (or 255) alone; got {values.dtype} with '
                    f'{len(levels)} values: compare first, such as labels == 3 or probability > 0.5'
                )
        self.mask = values.astype(bool)
        if not self.mask.any():
            raise InputError('the mask is empty: mark at least one pixel, or give prior=None')

    def pixels(self, size: tuple[int, int]) -> Pixels:
        """The marked pixels, of an image ``(H, W)``.

        Raises:
            InputError: If the mask is of another size.
        """
        if self.mask.shape != tuple(size):
            raise InputError(
                f'the mask has {self.mask.shape[0]}x{self.mask.shape[1]} pixels (height x width), '
                f'but the image {size[0]}x{size[1]}: they must be of one size'
            )
        rows, columns = self.mask.nonzero()
        return Pixels(np.stack([columns, rows], axis=1), NO_PIXELS)


@dataclass(frozen=True, eq=False)
class Example:
    """Another image, or a region in it: "such as this".

    Args:
        image: As for ``Predictor.set_image``.
        region: In that image; ``None``: all of it.
    """

    image: Any
    region: Points | Box | Mask | None = None

    def __post_init__(self) -> None:
        region = as_prompt(self.region)
        if not isinstance(region, Points | Box | Mask | None):
            raise InputError(
                f'the region of an Example must be mmvars.Points, Box or Mask, got {self.region!r}'
            )
        object.__setattr__(self, 'region', region)


def as_prompt(prior: Any) -> Any:
    """What the short forms stand for: ``(x, y)`` a point, a bool array ``(H, W)`` a mask."""
    if isinstance(prior, tuple) and len(prior) == 2 and all(isinstance(v, Real) for v in prior):
        return Points([prior])
    if getattr(prior, 'ndim', None) == 2 and str(prior.dtype).endswith('bool'):
        return Mask(prior)
    if isinstance(prior, Integral) and not isinstance(prior, bool):
        return int(prior)
    return prior
