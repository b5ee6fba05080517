"""What is measured of one map or one prediction: pure functions of arrays.

A map gives each pixel a number; a region is the set of pixels that it is compared with.
"""

import numpy as np

__all__ = [
    'THRESHOLDS',
    'average_ranks',
    'class_counts',
    'counts_above',
    'follows',
    'random_prior',
    'roc_auc',
    'scores_follow',
    'share_inside',
]

THRESHOLDS = np.arange(1, 100) / 100
"""At which a map is cut to a mask: a pixel is marked where the map is at least this."""


def follows(
    answer_a: np.ndarray, answer_b: np.ndarray, region_a: np.ndarray, region_b: np.ndarray
) -> bool:
    """Whether the answers to two priors lie where the two priors point (flip accuracy).

    The mean of the answer to A is larger in A's region than in B's, and that of the answer to B
    larger in B's than in A's. A map that does not depend on the prior never follows, not even
    where it is constant; maps that are random and independent do in one of four pairs.

    Args:
        answer_a, answer_b: Maps ``(H, W)`` under the priors A and B.
        region_a, region_b: ``(H, W)`` bool, none of them empty.
    """
    margin_a = answer_a[region_a].mean(dtype=float) - answer_a[region_b].mean(dtype=float)
    margin_b = answer_b[region_b].mean(dtype=float) - answer_b[region_a].mean(dtype=float)
    return bool(margin_a > 0 and margin_b > 0)


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


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value, 1 for the smallest; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse].reshape(values.shape)


def roc_auc(ranks: np.ndarray, region: np.ndarray) -> float:
    """The share of pairs of a pixel inside and one outside in which the inner one has more.

    Equal values count half; a constant map has 0.5. It is the area under the ROC curve of the map
    as a detector of the region.

    Args:
        ranks: :func:`average_ranks` of the map, so that many regions share the sorting.
        region: Bool, the same shape; neither empty nor all.
    """
    inside = int(region.sum())
    wins = ranks[region].sum(dtype=float) - inside * (inside + 1) / 2
    return float(wins / (inside * (region.size - inside)))


def share_inside(values: np.ndarray, region: np.ndarray) -> float | None:
    """Part of the sum of a map, nowhere negative, that lies in the region; ``None`` of zeros."""
    total = values.sum(dtype=float)
    return float(values[region].sum(dtype=float) / total) if total > 0 else None


def counts_above(values: np.ndarray) -> np.ndarray:
    """How many of the values are at least each of :data:`THRESHOLDS`: ``(99,)``."""
    ordered = np.sort(values, axis=None).astype(float)
    return ordered.size - np.searchsorted(ordered, THRESHOLDS, 'left')


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
