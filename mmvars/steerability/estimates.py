"""From the measures of single images to one number with its spread."""

from dataclasses import dataclass, field

import numpy as np

from mmvars.steerability.measures import THRESHOLDS

__all__ = ['Estimate', 'Resamples', 'Tally', 'ThresholdTally']

NUM_RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number and its spread.

    Attributes:
        value: Over all images; ``nan`` where nothing was counted.
        low, high: Its 95 % bootstrap interval: the 2.5th and 97.5th percentile of the number over
            1000 draws of as many images, with replacement. Models, seeds of training and the
            choice of images beyond these are not in it.
        count: How many questions (pairs, mosaics, images) it is of.
    """

    value: float
    low: float
    high: float
    count: int


class Resamples:
    """Draws of the bootstrap, the same for every number, so that differences are paired.

    Args:
        num_images: I.
        seed: Of the draws.
    """

    def __init__(self, num_images: int, seed: int) -> None:
        draws = np.random.default_rng(seed).multinomial(
            num_images, np.full(num_images, 1 / num_images), NUM_RESAMPLES
        )
        self.weights = np.vstack([np.ones(num_images), draws])  # first all images

    def estimate(self, tally: 'Tally', minus: 'Tally | None' = None) -> Estimate:
        """The tally's number; or the difference of two, resampled together."""
        values = tally.mean(self.weights)
        if minus is not None:
            values -= minus.mean(self.weights)
        value, draws = values[0], values[1:][np.isfinite(values[1:])]
        spread = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if draws.size else [np.nan]
        return Estimate(float(value), float(spread[0]), float(spread[-1]), len(tally.rows))


@dataclass
class Tally:
    """Quotients of sums over images, one for each group, and their mean over the groups.

    With one group and a denominator of 1 each time it is the plain mean; with classes as groups,
    intersections over unions, it is the mean IoU.
    """

    rows: list[tuple[int, int, float, float]] = field(default_factory=list)

    def add(self, image: int, numerator: float, denominator: float = 1.0, group: int = 0) -> None:
        """Add one measure of an image."""
        self.rows.append((image, group, float(numerator), float(denominator)))

    def mean(self, weights: np.ndarray) -> np.ndarray:
        """The number for each draw ``(R, I)`` of how often an image counts: ``(R,)``.

        A group whose images a draw does not have keeps its quotient over all images: without it,
        the mean over the others would be another number.
        """
        if not self.rows:
            return np.full(len(weights), np.nan)
        rows = np.array(self.rows)
        groups, group = np.unique(rows[:, 1].astype(int), return_inverse=True)
        sums = np.zeros((2, weights.shape[1], len(groups)))
        for sum_of, column in zip(sums, rows[:, 2:].T, strict=True):
            np.add.at(sum_of, (rows[:, 0].astype(int), group), column)
        totals = sums.sum(axis=1)
        known = totals[1] > 0
        if not known.any():
            return np.full(len(weights), np.nan)
        numerators, denominators = weights @ sums[0][:, known], weights @ sums[1][:, known]
        drawn = denominators > 0
        over_all = totals[0][known] / totals[1][known]
        quotients = numerators / np.where(drawn, denominators, 1)
        return np.where(drawn, quotients, over_all).mean(axis=1)


@dataclass
class ThresholdTally:
    """Tallies at all :data:`~mmvars.steerability.measures.THRESHOLDS` at once."""

    rows: list[tuple[int, int, np.ndarray, np.ndarray]] = field(default_factory=list)

    def add(
        self, image: int, numerators: np.ndarray, denominators: np.ndarray, group: int = 0
    ) -> None:
        """Add one measure of an image at each threshold: ``(99,)``."""
        self.rows.append((image, group, numerators, denominators))

    def at(self, threshold: float) -> Tally:
        """The tally at one threshold."""
        (index,) = np.flatnonzero(np.isclose(THRESHOLDS, threshold))
        return Tally([(i, group, float(n[index]), float(d[index])) for i, group, n, d in self.rows])

    def best_threshold(self) -> float:
        """The threshold with the highest number over all images; the lowest of equals."""
        _, groups, numerators, denominators = zip(*self.rows, strict=True)
        known, group = np.unique(groups, return_inverse=True)
        sums = np.zeros((2, len(known), len(THRESHOLDS)))
        np.add.at(sums[0], group, np.stack(numerators))
        np.add.at(sums[1], group, np.stack(denominators))
        return float(THRESHOLDS[(sums[0] / sums[1]).mean(axis=0).argmax()])
