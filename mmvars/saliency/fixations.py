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

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mmvars.errors import InputError, check_choice, check_number

__all__ = [
    'DEFINITIONS',
    'CheckedMap',
    'auc_judd',
    'auc_shuffled',
    'cc',
    'checked_map',
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
_PIECE = 2**15
"""Values that are worked on at a time: with their results they stay in the cache."""
_BINS = 2**14


class CheckedMap(NamedTuple):
    """A map that is finite, and what several measures need of it: see :func:`checked_map`.

    Attributes:
        values: ``(H, W)``, float64.
        low, high, total: The least and the largest of them, and their sum.
    """

    values: np.ndarray
    low: float
    high: float
    total: float


def checked_map(name: str, values: 'np.ndarray | CheckedMap') -> CheckedMap:
    """A map to be measured in several ways, looked at once.

    Args:
        name: Of the argument, for messages.
        values: ``(H, W)``; what was checked is returned as it is.

    Raises:
        InputError: If it is not a map, or not finite.
    """
    if isinstance(values, CheckedMap):
        return values
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or not values.size:
        raise InputError(f'{name} must be a map (H, W), got shape {values.shape}')
    lows, highs, totals = zip(
        *((piece.min(), piece.max(), piece.sum()) for (piece,) in _pieces(values)), strict=True
    )
    low, high = float(np.min(lows)), float(np.max(highs))
    if not np.isfinite([low, high]).all():  # nan is the least and the largest
        raise InputError(f'{name} must be finite, and holds inf or nan')
    return CheckedMap(values, low, high, float(np.sum(totals)))


def nss(
    saliency: np.ndarray | CheckedMap, points: np.ndarray, definition: str = 'pysaliency'
) -> float:
    """Normalized scanpath saliency: mean of ``(S - mean S) / std S`` at the fixations.

    0 for a map without information, and for a constant one.

    Args:
        saliency: ``(H, W)``; here and below it may be of :func:`checked_map`.
        points: ``(F, 2)``.
        definition: ``'pysaliency'``: each fixation counts, std over H W. ``'matlab'``: each fixated
            pixel counts once, std over H W - 1.

    Raises:
        InputError: If an argument is not what it must be, as in all functions here.
    """
    check_choice('definition', definition, DEFINITIONS)
    values, low, high, total = checked_map('saliency', saliency)
    fixated = _pixels('points', points, values.shape)
    if definition == 'matlab':
        fixated = np.unique(fixated)
    if low == high:
        return 0.0
    mean = total / values.size
    squares = sum(np.square(piece - mean).sum() for (piece,) in _pieces(values))
    std = np.sqrt(squares / (values.size - (definition == 'matlab')))
    return float((values.ravel()[fixated] - mean).mean() / (std or 1))


def auc_judd(
    saliency: np.ndarray | CheckedMap,
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
    values, low, high, _ = checked_map('saliency', saliency)
    matlab = definition == 'matlab'
    pixels = _pixels('points', points, values.shape)
    fixated = np.unique(pixels)
    if len(fixated) == values.size:
        raise InputError('points: every pixel is fixated, so there are no others to compare with')
    if jitter:
        if low < high < low + _LEAST_RANGE:
            raise InputError(
                f'saliency: its values differ by at most {high - low:.1e}, and the jitter has size '
                f'{_JITTER:g}: scale the map (saliency / saliency.max()), or pass jitter=False'
            )
        values = values + _noise(values.shape, matlab)
    positives = np.sort(values.ravel()[fixated if matlab else pixels])[::-1]
    if matlab:
        # Thresholds one by one; what is above and not passed yet counts as false.
        passed = np.arange(1, len(positives) + 1)
        hits = passed / len(positives)
        above = _at_least(values, positives)
        false = (above - passed) / (values.size - len(positives))
    else:
        hits = _at_least(positives, positives) / len(positives)
        false = _at_least(values, positives) - _at_least(values.ravel()[fixated], positives)
        false = false / (values.size - len(fixated))
    return _area(np.concatenate([[0], false, [1]]), np.concatenate([[0], hits, [1]]))


def auc_shuffled(
    saliency: np.ndarray | CheckedMap, points: np.ndarray, other_points: np.ndarray
) -> float:
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
    values = checked_map('saliency', saliency).values
    positives = values.ravel()[_pixels('points', points, values.shape)]
    negatives = values.ravel()[_pixels('other_points', other_points, values.shape)]
    at_least_and_above = np.concatenate([positives, np.nextafter(positives, np.inf)])
    return float(1 - _at_least(negatives, at_least_and_above).mean() / len(negatives))


def cc(saliency: np.ndarray | CheckedMap, density: np.ndarray | CheckedMap) -> float:
    """Pearson's correlation of a map and the fixation density; 0 for a constant map.

    Args:
        saliency, density: ``(H, W)``.
    """
    pair = _checked_pair(saliency, density)
    if pair[0].low == pair[0].high:
        return 0.0
    means = [each.total / each.values.size for each in pair]
    products = np.zeros(3)
    for pieces in _pieces(*(each.values for each in pair)):
        a, b = (piece - mean for piece, mean in zip(pieces, means, strict=True))
        products += a @ b, a @ a, b @ b
    length = np.sqrt(products[1] * products[2])
    return float(products[0] / length) if length else 0.0


def kl_divergence(saliency: np.ndarray | CheckedMap, density: np.ndarray | CheckedMap) -> float:
    """``sum D log(eps + D / (S + eps))``, how much of the fixation density D a map S misses.

    Both sum to 1; eps = 2.2204e-16. As in the MIT/Tuebingen benchmark (pysaliency's ``MIT_KLDiv``).
    A map with negative numbers is moved up to a minimum of 0; one of zeros counts as uniform. 0 is
    best.

    Args:
        saliency, density: ``(H, W)``.
    """
    pair = _checked_pair(saliency, density)
    return float(
        sum(
            truth @ np.log(truth / (values + _EPS) + _EPS)
            for values, truth in _density_pieces(*pair)
        )
    )


def sim(
    saliency: np.ndarray | CheckedMap,
    density: np.ndarray | CheckedMap,
    definition: str = 'pysaliency',
) -> float:
    """``sum min(S, D)``, what a map S and the fixation density D have in common; 1 is best.

    Args:
        saliency, density: ``(H, W)``.
        definition: Both sum to 1, after this. ``'pysaliency'``: a map with negative numbers is
            moved up to a minimum of 0. ``'matlab'``: any is scaled to a minimum of 0 and a maximum
            of 1, so that a constant added to a map changes nothing.
    """
    check_choice('definition', definition, DEFINITIONS)
    pair = _checked_pair(saliency, density)
    moved = definition == 'matlab'
    return float(sum(np.minimum(*pieces).sum() for pieces in _density_pieces(*pair, moved=moved)))


def fixation_density(points: np.ndarray, size: tuple[int, int], sigma: float) -> np.ndarray:
    """Counts of fixations, blurred by a Gaussian: ``(H, W)``, float64.

    As pysaliency's ``FixationMap``: mirrored at the border, cut off at 4 sigma.

    Args:
        points: ``(F, 2)``.
        size: ``(H, W)``.
        sigma: In pixels, usually of one degree of visual angle.
    """
    check_number('sigma', sigma, 0.1)
    rows, columns = np.divmod(_pixels('points', points, tuple(size)), size[1])
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
    others = [i for i in range(len(points)) if i != index]
    factors = np.array([(width / sizes[i][1], height / sizes[i][0]) for i in others])
    counts = [len(points[i]) for i in others]
    return np.concatenate([points[i] for i in others]) * factors.repeat(counts, axis=0)


def points_of_map(fixation_map: np.ndarray) -> np.ndarray:
    """The points ``(F, 2)`` of a map ``(H, W)`` that is not zero where there is a fixation.

    Raises:
        InputError: If it is a blurred map, whose points are lost.
    """
    values = checked_map('fixation_map', fixation_map).values
    (fixated,) = np.nonzero(values.ravel() > 0)
    share = len(fixated) / values.size
    if not 0 < share <= _MOST_FIXATED:
        raise InputError(
            f'fixation_map: {100 * share:.0f} % of its pixels are above 0, so it is no map of '
            'points but a blurred one (or empty): give the fixations themselves, since NSS and AUC '
            'with a blurred map are other numbers'
        )
    rows, columns = np.divmod(fixated, values.shape[1])
    return np.stack([columns, rows], axis=1).astype(float)


def _checked_pair(
    saliency: np.ndarray | CheckedMap, density: np.ndarray | CheckedMap
) -> tuple[CheckedMap, CheckedMap]:
    pair = checked_map('saliency', saliency), checked_map('density', density)
    shape, size = (each.values.shape for each in pair)
    if shape != size:
        raise InputError(
            f'density must have the size of saliency {shape}, got {size}: blur '
            'points by fixation_density(points, saliency.shape, sigma)'
        )
    if pair[1].low == pair[1].high:
        raise InputError('density is constant: there is no fixation in it')
    return pair


def _pixels(name: str, points: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Numbers ``(F,)`` of the pixels of points, row by row; the points are checked."""
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
    return rows * size[1] + columns


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


def _density_pieces(*maps: CheckedMap, moved: bool = False) -> Iterator[list[np.ndarray]]:
    """The same pieces of maps that sum to 1.

    Args:
        maps: As they are given.
        moved: Whether all are moved to a minimum of 0, and not only those with negative numbers.
    """
    maps = tuple(
        checked_map('', each.values - each.low) if moved or each.low < 0 else each for each in maps
    )
    for pieces in _pieces(*(each.values for each in maps)):
        yield [
            piece / each.total if each.total else np.full(piece.shape, 1 / each.values.size)
            for piece, each in zip(pieces, maps, strict=True)
        ]


def _at_least(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many of ``values`` are at least each of ``thresholds``: ``(t,)``.

    All are counted in bins, and only those in the bin of a threshold are compared with it.
    """
    low = min(values.min(), thresholds.min())
    width = max(values.max(), thresholds.max()) - low
    scale = (_BINS - 1) / max(width, 1e-300)

    def bins_of(numbers: np.ndarray) -> np.ndarray:
        return ((numbers - low) * scale).astype(np.intp)

    own = bins_of(thresholds)
    compared = np.zeros(_BINS, dtype=bool)
    compared[own] = True
    counts, close = np.zeros(_BINS, dtype=np.intp), []
    for (piece,) in _pieces(values):
        bins = bins_of(piece)
        counts += np.bincount(bins, minlength=_BINS)
        close.append(piece[compared[bins]])
    counts[compared] = 0
    numbers = np.sort(np.concatenate(close))
    return counts[::-1].cumsum()[::-1][own] + len(numbers) - np.searchsorted(numbers, thresholds)


def _pieces(*arrays: np.ndarray) -> Iterator[list[np.ndarray]]:
    """The same :data:`_PIECE` values of each array."""
    flat = [each.ravel() for each in arrays]
    for start in range(0, flat[0].size, _PIECE):
        yield [each[start : start + _PIECE] for each in flat]


@lru_cache(maxsize=2)  # images of a data set have few sizes
def _noise(size: tuple[int, int], uniform: bool) -> np.ndarray:
    """What breaks ties: ``(H, W)``, not to be written into."""
    state = np.random.RandomState(42)
    return _JITTER * (state.rand(*size) if uniform else state.randn(*size))


def _area(x: np.ndarray, y: np.ndarray) -> float:
    return float((np.diff(x) * (y[1:] + y[:-1])).sum() / 2)
