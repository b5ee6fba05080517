"""How well a map says where people look: NSS, AUC-Judd, shuffled AUC, CC, KL and SIM.

One definition a number: that of pysaliency 0.2.22, the code of the MIT/Tuebingen benchmark.
``definition='matlab'`` is that of the older MATLAB code of the MIT benchmark, where it is another.

Three things are compared, and none stands for another:

- a saliency map ``(H, W)``, any numbers;
- points ``(F, 2)``, the fixations as ``x, y`` in pixels from the left and the top, one of several
  in a pixel counting each time. Parts of a pixel are cut off;
- a density ``(H, W)``, the fixations blurred (:func:`fixation_density`).

NSS and the AUCs need points: with a blurred map in their place they are other numbers.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mmvars.errors import InputError, check_choice, check_number

__all__ = [
    'DEFINITIONS',
    'auc_judd',
    'auc_shuffled',
    'cc',
    'fixation_density',
    'kl_divergence',
    'nss',
    'points_of_map',
    'shuffled_points',
    'sim',
]

DEFINITIONS = ('pysaliency', 'matlab')

_EPS = 2.2204e-16
_JITTER = 1e-7
_LEAST_RANGE = 1000 * _JITTER
_MOST_FIXATED = 0.05
"""Share of the pixels above which a map of fixations is no map of points."""


def nss(saliency: np.ndarray, points: np.ndarray, definition: str = 'pysaliency') -> float:
    """Normalized scanpath saliency: mean of ``(S - mean S) / std S`` at the fixations.

    0 for a map without information, and for a constant one.

    Args:
        saliency: ``(H, W)``.
        points: ``(F, 2)``.
        definition: ``'pysaliency'``: each fixation counts, std over H W. ``'matlab'``: each fixated
            pixel counts once, std over H W - 1.

    Raises:
        InputError: If an argument is not what it must be, as in all functions here.
    """
    check_choice('definition', definition, DEFINITIONS)
    values = _checked_map('saliency', saliency)
    rows, columns = _pixels('points', points, values.shape, unique=definition == 'matlab')
    std = values.std(ddof=definition == 'matlab')
    return float((values[rows, columns] - values.mean()).mean() / (std or 1))


def auc_judd(
    saliency: np.ndarray,
    points: np.ndarray,
    definition: str = 'pysaliency',
    jitter: bool = True,
) -> float:
    """Area under the ROC curve of fixated against all other pixels, thresholds at the fixations.

    The curve is drawn through the points of the fixations' values alone, with (0, 0) and (1, 1).

    Args:
        saliency: ``(H, W)``.
        points: ``(F, 2)``.
        definition: ``'pysaliency'``: each fixation counts. ``'matlab'``: each fixated pixel counts
            once, and equal values of them are passed one by one.
        jitter: Add noise of size 1e-7, which breaks ties: normal in pysaliency, uniform in the
            MATLAB code. Drawn with seed 42 for each image. pysaliency draws on from one image of a
            data set to the next; the MATLAB code has no seed.

    Raises:
        InputError: Also if the jitter is not small beside the differences within the map.
    """
    check_choice('definition', definition, DEFINITIONS)
    values = _checked_map('saliency', saliency)
    matlab = definition == 'matlab'
    rows, columns = _pixels('points', points, values.shape, unique=matlab)
    fixated = np.zeros(values.shape, dtype=bool)
    fixated[rows, columns] = True
    if fixated.all():
        raise InputError('points: every pixel is fixated, so there are no others to compare with')
    if jitter:
        if 0 < (spread := float(np.ptp(values))) < _LEAST_RANGE:
            raise InputError(
                f'saliency: its values differ by at most {spread:.1e}, and the jitter has size '
                f'{_JITTER:g}: scale the map (saliency / saliency.max()), or pass jitter=False'
            )
        values = values + _noise(values.shape, matlab)
    positives = np.sort(values[rows, columns])[::-1]
    if matlab:
        # Thresholds one by one; what is above and not passed yet counts as false.
        passed = np.arange(1, len(positives) + 1)
        hits = passed / len(positives)
        above = _at_least(values, positives)
        false = (above - passed) / (values.size - len(positives))
    else:
        hits = _at_least(positives, positives) / len(positives)
        false = _at_least(values, positives) - _at_least(values[fixated], positives)
        false = false / (values.size - fixated.sum())
    return _area(np.concatenate([[0], false, [1]]), np.concatenate([[0], hits, [1]]))


def auc_shuffled(saliency: np.ndarray, points: np.ndarray, other_points: np.ndarray) -> float:
    """Area under the ROC curve of fixations against fixations of other images (sAUC).

    Share of all pairs of a fixation and one of another image in which the map is larger at the
    former; equal values count half. A center bias, which both have, earns nothing. All fixations of
    the other images count, as often as they are there.

    There is one definition: the MATLAB code draws 100 random subsets without a seed and has eleven
    thresholds.

    Args:
        saliency: ``(H, W)``.
        points: ``(F, 2)``.
        other_points: ``(G, 2)``, see :func:`shuffled_points`.
    """
    values = _checked_map('saliency', saliency)
    positives = values[_pixels('points', points, values.shape)]
    negatives = values[_pixels('other_points', other_points, values.shape)]
    at_least = _at_least(negatives, positives)
    equal = np.array([np.count_nonzero(negatives == value) for value in positives])
    return float(1 - (at_least - equal / 2).mean() / len(negatives))


def cc(saliency: np.ndarray, density: np.ndarray) -> float:
    """Pearson's correlation of a map and the fixation density; 0 for a constant map.

    Args:
        saliency, density: ``(H, W)``.
    """
    values, truth = _checked_pair(saliency, density)
    values, truth = (values - values.mean()).ravel(), (truth - truth.mean()).ravel()
    length = np.sqrt((values @ values) * (truth @ truth))
    return float(values @ truth / length) if length else 0.0


def kl_divergence(saliency: np.ndarray, density: np.ndarray) -> float:
    """``sum D log(eps + D / (S + eps))``, how much of the fixation density D a map S misses.

    Both sum to 1; eps = 2.2204e-16. As in the MIT/Tuebingen benchmark (pysaliency's ``MIT_KLDiv``).
    A map with negative numbers is moved up to a minimum of 0; one of zeros counts as uniform. 0 is
    best.

    Args:
        saliency, density: ``(H, W)``.
    """
    values, truth = map(_as_density, _checked_pair(saliency, density))
    terms = values + _EPS
    np.divide(truth, terms, out=terms)
    terms += _EPS
    return float(truth.ravel() @ np.log(terms, out=terms).ravel())


def sim(saliency: np.ndarray, density: np.ndarray, definition: str = 'pysaliency') -> float:
    """``sum min(S, D)``, what a map S and the fixation density D have in common; 1 is best.

    Args:
        saliency, density: ``(H, W)``.
        definition: Both sum to 1, after this. ``'pysaliency'``: a map with negative numbers is
            moved up to a minimum of 0. ``'matlab'``: any is scaled to a minimum of 0 and a maximum
            of 1, so that a constant added to a map changes nothing.
    """
    check_choice('definition', definition, DEFINITIONS)
    pair = _checked_pair(saliency, density)
    if definition == 'matlab':
        pair = pair[0] - pair[0].min(), pair[1] - pair[1].min()
    values, truth = map(_as_density, pair)
    return float(np.minimum(values, truth).sum())


def fixation_density(points: np.ndarray, size: tuple[int, int], sigma: float) -> np.ndarray:
    """Counts of fixations, blurred by a Gaussian: ``(H, W)``, float64.

    As pysaliency's ``FixationMap``: mirrored at the border, cut off at 4 sigma.

    Args:
        points: ``(F, 2)``.
        size: ``(H, W)``.
        sigma: In pixels, usually of one degree of visual angle.
    """
    check_number('sigma', sigma, 0.1)
    rows, columns = _pixels('points', points, tuple(size))
    return _spread(rows, size[0], sigma).T @ _spread(columns, size[1], sigma)


def shuffled_points(
    points: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], index: int
) -> np.ndarray:
    """The fixations ``(G, 2)`` of all other images, scaled to the size of image ``index``.

    Args:
        points: ``(F, 2)`` of each image.
        sizes: ``(H, W)`` of each image.
        index: The image that they are for.

    Raises:
        InputError: If there is no other image.
    """
    if len(points) < 2:
        raise InputError('shuffled AUC needs the fixations of other images, and there is one image')
    height, width = sizes[index]
    return np.concatenate(
        [
            np.asarray(each, dtype=float) * (width / own_width, height / own_height)
            for i, (each, (own_height, own_width)) in enumerate(zip(points, sizes, strict=True))
            if i != index
        ]
    )


def points_of_map(fixation_map: np.ndarray) -> np.ndarray:
    """The points ``(F, 2)`` of a map ``(H, W)`` that is not zero where there is a fixation.

    Raises:
        InputError: If it is a blurred map, whose points are lost.
    """
    values = _checked_map('fixation_map', fixation_map)
    fixated = values > 0
    share = fixated.mean()
    if not 0 < share <= _MOST_FIXATED:
        raise InputError(
            f'fixation_map: {100 * share:.0f} % of its pixels are above 0, so it is no map of '
            'points but a blurred one (or empty): give the fixations themselves, since NSS and AUC '
            'with a blurred map are other numbers'
        )
    rows, columns = np.nonzero(fixated)
    return np.stack([columns, rows], axis=1).astype(float)


def _checked_map(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or not values.size:
        raise InputError(f'{name} must be a map (H, W), got shape {values.shape}')
    if not np.isfinite(values).all():
        raise InputError(f'{name} must be finite, and holds inf or nan')
    return values


def _checked_pair(saliency: np.ndarray, density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, truth = _checked_map('saliency', saliency), _checked_map('density', density)
    if values.shape != truth.shape:
        raise InputError(
            f'density must have the size of saliency {values.shape}, got {truth.shape}: blur '
            'points by fixation_density(points, saliency.shape, sigma)'
        )
    if not np.ptp(truth):
        raise InputError('density is constant: there is no fixation in it')
    return values, truth


def _pixels(
    name: str, points: np.ndarray, size: tuple[int, ...], unique: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of points, checked."""
    points = np.asarray(points, dtype=float)
    if points.shape == size or points.ndim != 2 or points.shape[1] != 2:
        raise InputError(
            f'{name} must be fixations (F, 2), each x and y in pixels, got shape {points.shape}. '
            'With a fixation map, blurred or not, this would be another number: take '
            'points_of_map(...) of one that is not blurred'
        )
    if not len(points):
        raise InputError(f'{name}: there is no fixation, so nothing can be measured')
    inside = (points >= 0) & (points < (size[1], size[0]))
    if not inside.all():
        x, y = points[~inside.all(axis=1)][0]
        raise InputError(
            f'{name}: ({x:g}, {y:g}) is outside of the {size[1]}x{size[0]} pixels of the map: '
            'leave such fixations out; points are (x, y), not (row, column)'
        )
    columns, rows = points.astype(int).T
    if unique:
        rows, columns = np.unique(np.stack([rows, columns]), axis=1)
    return rows, columns


def _spread(places: np.ndarray, side: int, sigma: float) -> np.ndarray:
    """One row a place: the Gaussian around it along one side, mirrored at both ends."""
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * np.square(offsets / sigma))
    targets = (places[:, None] + offsets) % (2 * side)
    targets = np.minimum(targets, 2 * side - 1 - targets)
    spread = np.zeros((len(places), side))
    np.add.at(spread, (np.arange(len(places))[:, None], targets), kernel / kernel.sum())
    return spread


def _as_density(values: np.ndarray) -> np.ndarray:
    if values.min() < 0:
        values = values - values.min()
    total = values.sum()
    return values / total if total else np.full(values.shape, 1 / values.size)


def _at_least(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many of ``values`` are at least each of ``thresholds``: ``(t,)``."""
    # Faster than a search for each value: there are thousands of them for each threshold.
    return np.array([np.count_nonzero(values >= threshold) for threshold in thresholds])


@lru_cache(maxsize=2)  # images of a data set have few sizes
def _noise(size: tuple[int, int], uniform: bool) -> np.ndarray:
    """What breaks ties: ``(H, W)``, not to be written into."""
    state = np.random.RandomState(42)
    return _JITTER * (state.rand(*size) if uniform else state.randn(*size))


def _area(x: np.ndarray, y: np.ndarray) -> float:
    return float((np.diff(x) * (y[1:] + y[:-1])).sum() / 2)
