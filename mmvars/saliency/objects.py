"""How well a map marks objects: the thesis' Table 1.4, DINO's Jaccard, pointing, mass and rank.

One definition a number. ``counted (H, W)`` says everywhere which pixels have a label: what is not
counted (255 in VOC) is left out as if it were not there.
"""

from typing import NamedTuple

import numpy as np

from mmvars.errors import InputError, check_number

__all__ = [
    'Overlap',
    'best_jaccard',
    'foreground_overlap',
    'mass_accuracy',
    'mass_masks',
    'pointing_game',
    'rank_accuracy',
]


class Overlap(NamedTuple):
    """Pixels of an image by what a map says of them and what they are.

    Attributes:
        both: Marked, and of an object.
        false_positives: Marked, and of none.
        false_negatives: Not marked, and of an object.
        total: All that count.
    """

    both: int
    false_positives: int
    false_negatives: int
    total: int

    @property
    def iou(self) -> float:
        """Of the foreground; ``nan`` where nothing is marked and there is no object."""
        union = self.both + self.false_positives + self.false_negatives
        return self.both / union if union else float('nan')

    @property
    def false_positive_share(self) -> float:
        """FP of Table 1.4: a share of all pixels, not of those without an object."""
        return self.false_positives / self.total

    @property
    def false_negative_share(self) -> float:
        """FN of Table 1.4: a share of all pixels, not of those of objects."""
        return self.false_negatives / self.total


def foreground_overlap(
    saliency: np.ndarray,
    foreground: np.ndarray,
    counted: np.ndarray | None = None,
    threshold: float = 0.3,
) -> Overlap:
    """What Table 1.4 is made of: a map from 0 to 1, cut at 0.3, against all objects of an image.

    The map is scaled by its own minimum and maximum; what is larger than the threshold is marked.
    A constant map marks nothing. The thesis does not say how it averages: its mIoU is taken here as
    the mean over the images of :attr:`Overlap.iou`, and FP and FN are shares of all pixels, which
    its numbers fit (with them the share of the objects' pixels is .39 in all four columns).

    Args:
        saliency: ``(H, W)``.
        foreground: ``(H, W)`` bool, the objects of all classes.
        counted: ``(H, W)`` bool; ``None``: all.
        threshold: From 0 to 1.

    Raises:
        InputError: If an argument is not what it must be, as in all functions here.
    """
    check_number('threshold', threshold, 0, 1)
    values, truth = _counted(saliency, foreground, counted)
    low, high = np.min(saliency), np.max(saliency)
    marked = values - low > threshold * (high - low)
    return Overlap(
        int((marked & truth).sum()),
        int((marked & ~truth).sum()),
        int((~marked & truth).sum()),
        truth.size,
    )


def mass_masks(maps: np.ndarray, mass: float = 0.6) -> np.ndarray:
    """The patches that hold 60 % of a map's mass, as DINO marks them: bool, the shape of ``maps``.

    The smallest values, whose sum is at most 40 % of the whole, are left out. Equal values are
    taken in the order of the patches.

    Args:
        maps: ``(..., h, w)``, nowhere negative: the class token's attention of each head.
        mass: Share to keep.
    """
    check_number('mass', mass, 0, 1)
    values = np.asarray(maps, dtype=float).reshape(*np.shape(maps)[:-2], -1)
    if values.min() < 0:
        raise InputError('maps must not be negative: the mass of a map is the sum of its values')
    order = values.argsort(axis=-1, kind='stable')
    sums = np.take_along_axis(values, order, axis=-1).cumsum(axis=-1)
    kept = np.empty(values.shape, dtype=bool)
    # A map of zeros keeps nothing.
    np.put_along_axis(kept, order, sums > (1 - mass) * sums[..., -1:], axis=-1)
    return kept.reshape(np.shape(maps))


def best_jaccard(masks: np.ndarray, target: np.ndarray, counted: np.ndarray | None = None) -> float:
    """Jaccard index of an object and the best of several masks, DINO's number for one object.

    DINO takes the masks of the heads of the last block (:func:`mass_masks`), each object by itself
    with the head that is best for it, and the mean over all objects.

    Args:
        masks: ``(K, H, W)`` bool.
        target: ``(H, W)`` bool, the object.
        counted: ``(H, W)`` bool; ``None``: all.
    """
    scores = []
    for mask in masks:
        marked, truth = _counted(mask, target, counted)
        _check_object(truth)
        scores.append((marked & truth).sum() / (marked | truth).sum())
    return float(max(scores))


def pointing_game(
    saliency: np.ndarray, target: np.ndarray, counted: np.ndarray | None = None
) -> float:
    """Whether the largest value of a map lies on an object: 1 or 0.

    Where several pixels share it, the share of them that do, so a constant map scores no more than
    a random one. No distance is tolerated; the first to play it (Zhang et al., 2016) allowed 15
    pixels.

    Args:
        saliency: ``(H, W)``.
        target: ``(H, W)`` bool, the object.
        counted: ``(H, W)`` bool; ``None``: all.
    """
    values, truth = _counted(saliency, target, counted)
    _check_object(truth)
    return float(truth[values == values.max()].mean())


def mass_accuracy(
    saliency: np.ndarray, target: np.ndarray, counted: np.ndarray | None = None
) -> float:
    """Share of a map's mass that lies on an object (relevance mass accuracy, Arras et al., 2022).

    That of a constant map, and of one of zeros, is the object's share of the pixels.

    Args:
        saliency: ``(H, W)``, nowhere negative.
        target: ``(H, W)`` bool, the object.
        counted: ``(H, W)`` bool; ``None``: all.
    """
    values, truth = _counted(saliency, target, counted)
    _check_object(truth)
    if values.min() < 0:
        raise InputError('saliency must not be negative: its mass is the sum of its values')
    total = values.sum()
    return float(values[truth].sum() / total if total else truth.mean())


def rank_accuracy(
    saliency: np.ndarray, target: np.ndarray, counted: np.ndarray | None = None
) -> float:
    """Share on an object of its K pixels that are largest, K the object's size (Arras et al.).

    Of pixels that tie for the last places, their share that lies on it: that of a constant map is
    the object's share of the pixels.

    Args:
        saliency: ``(H, W)``.
        target: ``(H, W)`` bool, the object.
        counted: ``(H, W)`` bool; ``None``: all.
    """
    values, truth = _counted(saliency, target, counted)
    _check_object(truth)
    size = int(truth.sum())
    limit = np.partition(values, len(values) - size)[len(values) - size]
    above, equal = values > limit, values == limit
    return float((truth[above].sum() + (size - above.sum()) * truth[equal].mean()) / size)


def _counted(
    values: np.ndarray, target: np.ndarray, counted: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """A map and an object at the pixels that count, ``(n,)`` each."""
    values, target = np.asarray(values), np.asarray(target)
    counted = np.ones(target.shape, dtype=bool) if counted is None else np.asarray(counted)
    for name, mask in (('the object', target), ('counted', counted)):
        if mask.dtype != bool:
            raise InputError(f'{name} must be a mask of bool, got {mask.dtype}: compare labels')
    if values.ndim != 2 or not values.shape == target.shape == counted.shape:
        raise InputError(
            f'map, object and counted must be of one size (H, W), got {values.shape}, '
            f'{target.shape} and {counted.shape}: bring the map to the size of the labels'
        )
    if not np.isfinite(values).all():
        raise InputError('the map must be finite, and holds inf or nan')
    if not counted.any():
        raise InputError('counted: no pixel of the image has a label')
    return values[counted], target[counted]


def _check_object(truth: np.ndarray) -> None:
    if not truth.any():
        raise InputError('the object has no pixel that counts: leave it out')
