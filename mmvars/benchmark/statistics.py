"""Medians, bootstrap intervals, growth and crossings, from plain lists of numbers."""

import math
import random
import statistics
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ['Spread', 'crossing', 'growth_exponent', 'growth_interval', 'paired_ratio', 'spread']

_RESAMPLES = 2000


class Spread(NamedTuple):
    """A median between two quantiles."""

    low: float
    median: float
    high: float


def spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles of the samples themselves."""
    return Spread(_quantile(samples, .25), statistics.median(samples), _quantile(samples, .75))


def paired_ratio(samples: Sequence[float], reference: Sequence[float], seed: int = 0) -> Spread:
    """Median of the ratios round by round, with its 5-95 % bootstrap interval.

    Pairing takes out what slows a whole round down, as other work on the machine does.

    Args:
        samples: One time a round.
        reference: The reference's time in the same rounds.
        seed: Of the resampling.
    """
    ratios = [time / other for time, other in zip(samples, reference, strict=True)]
    generator = random.Random(seed)
    medians = [statistics.median(generator.choices(ratios, k=len(ratios)))
               for _ in range(_RESAMPLES)]
    return Spread(_quantile(medians, .05), statistics.median(ratios), _quantile(medians, .95))


def growth_exponent(sizes: Sequence[float], values: Sequence[float], low: float,
                    high: float) -> float | None:
    """Slope of ``log value`` over ``log size`` by least squares: 1 is linear, 2 quadratic.

    Args:
        sizes: For instance numbers of tokens.
        values: Times or bytes; only sizes in ``[low, high]`` count.

    Returns:
        ``None`` where fewer than two different sizes are left, or a value is not positive.
    """
    points = [(size, value) for size, value in zip(sizes, values, strict=True)
              if low <= size <= high]
    if len({size for size, _ in points}) < 2 or any(value <= 0 for _, value in points):
        return None
    slope, _ = statistics.linear_regression([math.log(size) for size, _ in points],
                                            [math.log(value) for _, value in points])
    return slope


def growth_interval(sizes: Sequence[float], samples: Sequence[Sequence[float]], low: float,
                    high: float, seed: int = 0) -> Spread | None:
    """The growth exponent of medians, with its 5-95 % bootstrap interval.

    Args:
        sizes: As of :func:`growth_exponent`.
        samples: Times at each size.
        low, high: As of :func:`growth_exponent`.
        seed: Of the resampling.
    """
    exponent = growth_exponent(sizes, [statistics.median(times) for times in samples], low, high)
    if exponent is None:
        return None
    generator = random.Random(seed)
    found = [growth_exponent(sizes, [statistics.median(generator.choices(times, k=len(times)))
                                     for times in samples], low, high)
             for _ in range(_RESAMPLES)]
    return Spread(_quantile(found, .05), exponent, _quantile(found, .95))


def crossing(sizes: Sequence[float], ratios: Sequence[float]) -> float | None:
    """The size from which on a ratio stays below 1, by interpolation of the logarithms.

    Args:
        sizes: Rising.
        ratios: To the reference, one a size.

    Returns:
        0 where the ratio is below 1 at every size, ``None`` where it is not below 1 at the last.
    """
    if not sizes or ratios[-1] >= 1:
        return None
    last = max((i for i, ratio in enumerate(ratios) if ratio >= 1), default=None)
    if last is None:
        return 0
    (x0, x1), (y0, y1) = ([math.log(value) for value in values[last:last + 2]]
                          for values in (sizes, ratios))
    return math.exp(x0 + (x1 - x0) * y0 / (y0 - y1))


def _quantile(samples: Sequence[float], share: float) -> float:
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
