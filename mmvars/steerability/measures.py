"""What is measured of one map or one prediction: pure functions of arrays.

A map gives each pixel a number; a region is the set of pixels that it is compared with.
"""

from typing import NamedTuple

import numpy as np

__all__ = [
    'THRESHOLDS',
    'MapStats',
    'class_counts',
    'follows',
    'map_stats',
    'random_prior',
    'scores_follow',
]

THRESHOLDS = np.arange(1, 100) / 100
"""At which a map is cut to a mask: a pixel is marked where the map is at least this."""


class MapStats(NamedTuple):
    """What is measured of a map at R regions that do not overlap.

    Attributes:
        means: ``(R,)``, of the map in each region.
        shares: ``(R,)``, part of its sum, where it is nowhere negative; ``nan`` of zeros.
        auc: ``(R,)``, share of the pairs of a pixel inside and one outside in which the inner one
            has more; equal values count half. It is the area under the ROC curve of the map as a
            detector of the region, 0.5 of a constant map.
        marked: ``(R, 99)``, pixels of each region that are at least each of :data:`THRESHOLDS`.
        all_marked: ``(99,)``, the same of the whole image.
    """

    means: np.ndarray
    shares: np.ndarray
    auc: np.ndarray
    marked: np.ndarray
    all_marked: np.ndarray


def map_stats(values: np.ndarray, regions: np.ndarray, num_regions: int) -> MapStats:
    """All of a map from one sort.

    Args:
        values: ``(n,)``, of the pixels that count.
        regions: ``(n,)``, from 0 to R: the region of each pixel, R for none. No region is empty,
            and none has all pixels.
        num_regions: R.
    """
    order = np.argsort(values)
    ordered, regions = values[order], regions[order]
    sizes = np.bincount(regions, minlength=num_regions + 1)
    sums = np.bincount(regions, ordered, num_regions + 1)
    # Equal values share the mean of their ranks, which are 1 for the smallest.
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    ends = np.append(starts[1:], len(ordered))
    ranks = np.repeat((starts + 1 + ends) / 2, ends - starts)
    rank_sums = np.bincount(regions, ranks, num_regions + 1)
    # From each value to how many thresholds it reaches.
    below = np.searchsorted(ordered.astype(float), THRESHOLDS, 'left')
    reached = np.repeat(np.arange(100), np.diff(below, prepend=0, append=len(ordered)))
    histogram = np.bincount(regions * 100 + reached, minlength=(num_regions + 1) * 100)
    marked = histogram.reshape(-1, 100)[:, :0:-1].cumsum(axis=1)[:, ::-1]
    inside = sizes[:num_regions]
    pairs = inside * (len(values) - inside)
    total = sums.sum()
    return MapStats(
        sums[:-1] / inside,
        sums[:-1] / total if total > 0 else np.full(num_regions, np.nan),
        (rank_sums[:-1] - inside * (inside + 1) / 2) / pairs,
        marked[:-1],
        marked.sum(axis=0),
    )


def follows(means_a: np.ndarray, means_b: np.ndarray, a: int, b: int) -> bool:
    """Whether the answers to two priors lie where the two priors point (flip accuracy).

    The mean of the answer to A is larger in A's region than in B's, and that of the answer to B
    larger in B's than in A's. A map that does not depend on the prior never follows, not even
    where it is constant; maps that are random and independent do in one of four pairs.

    Args:
        means_a, means_b: Means ``(R,)`` of the map under the priors A and B in each region.
        a, b: Their regions.
    """
    return bool(means_a[a] > means_a[b] and means_b[b] > means_b[a])


def scores_follow(
    scores_a: np.ndarray, scores_b: np.ndarray, class_a: int, class_b: int
) -> tuple[bool, bool]:
    """Whether the class scores ``(K,)`` under two priors follow these: class A, then class B.

    Returns:
        Whether under each prior its class beats the other one; and whether it beats all classes.
    """
    beats = scores_a[class_a] > scores_a[class_b] and scores_b[class_b] > scores_b[class_a]
    wins = scores_a.argmax() == class_a and scores_b.argmax() == class_b
    return bool(beats), bool(wins)


def class_counts(labels: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of each class in both, and in either: ``(2, K)``, whose quotient is the IoU.

    Args:
        labels, truth: Of the counted pixels, ``(n,)``; no class of ``truth`` is ignored.
        num_classes: K.
    """
    both = np.bincount(truth[labels == truth], minlength=num_classes)
    either = np.bincount(labels, minlength=num_classes) + np.bincount(truth, minlength=num_classes)
    return np.stack([both, either - both])


def random_prior(norm: float, width: int, rng: np.random.Generator) -> np.ndarray:
    """A vector ``(C,)`` of this norm, its direction uniform on the sphere; float32."""
    vector = rng.standard_normal(width)
    return (norm * vector / np.linalg.norm(vector)).astype(np.float32)
