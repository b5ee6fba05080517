"""Each measure by hand, against another library, and on answers whose number is known."""

import numpy as np
import pytest

from mmvars.steerability.estimates import Resamples, Tally, ThresholdTally
from mmvars.steerability.measures import (
    THRESHOLDS,
    class_counts,
    follows,
    map_stats,
    random_prior,
    scores_follow,
)


@pytest.fixture
def regions() -> np.ndarray:
    """Two regions in an image of 8x8, and pixels of neither."""
    return np.random.default_rng(0).integers(0, 3, 64)


def means(values, regions) -> np.ndarray:
    return map_stats(np.asarray(values, float), regions, 2).means


def test_an_oracle_follows_and_what_ignores_the_prior_does_not(regions) -> None:
    a, b = means(regions == 0, regions), means(regions == 1, regions)
    assert follows(a, b, 0, 1) and follows(b, a, 1, 0)
    assert not follows(b, a, 0, 1)
    constant, hits = np.full(64, 0.1, np.float32), []
    assert not follows(means(constant, regions), means(3 * constant, regions), 0, 1)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        first, second = (means(each, regions) for each in rng.random((2, 64)))
        assert not follows(first, first, 0, 1)
        hits.append(follows(first, second, 0, 1))
    assert np.mean(hits) == pytest.approx(0.25, abs=0.04)


def test_one_right_answer_of_two_is_none() -> None:
    right, wrong = np.array([0.6, 0.4]), np.array([0.6, 0.4])
    assert follows(right, np.array([0.1, 0.2]), 0, 1)
    assert not follows(right, wrong, 0, 1)
    assert not follows(np.array([0.5, 0.5]), np.array([0.1, 0.2]), 0, 1)


def test_scores() -> None:
    a, b, other = [0.5, 0.2, 0.3], [0.1, 0.5, 0.4], [0.2, 0.3, 0.5]
    a, b, other = map(np.array, (a, b, other))
    assert scores_follow(a, b, 0, 1) == (True, True)
    assert scores_follow(a, other, 0, 1) == (True, False)
    assert scores_follow(a, a, 0, 1) == (False, False)
    assert scores_follow(b, a, 0, 1) == (False, False)


@pytest.mark.parametrize('levels', [3, 1000])
def test_auc_counts_pairs_of_pixels_and_ties_half(levels, regions) -> None:
    """With few levels most pairs are ties."""
    values = np.random.default_rng(levels).integers(0, levels, 64) / levels
    auc = map_stats(values, regions, 2).auc
    for k in range(2):
        inside, outside = values[regions == k][:, None], values[regions != k]
        expected = (inside > outside).mean() + (inside == outside).mean() / 2
        assert auc[k] == pytest.approx(expected, abs=1e-12)
    assert map_stats(np.full(64, 0.7), regions, 2).auc.tolist() == [0.5, 0.5]


def test_shares_and_marked_pixels_by_hand() -> None:
    regions = np.array([0, 1, 0, 1])
    stats = map_stats(np.array([1.0, 2.0, 3.0, 4.0]), regions, 1)
    assert stats.shares == pytest.approx(0.4) and stats.means == pytest.approx(2)
    assert np.isnan(map_stats(np.zeros(4), regions, 1).shares)
    # A float32 0.5 is marked at 0.5; 0.3 lies above 0.3, and 0.7 below 0.7.
    stats = map_stats(np.array([0.5, 0.3, 0, 0.7], np.float32), regions, 1)
    marked = dict(zip(THRESHOLDS.tolist(), stats.marked[0], strict=True))
    everything = dict(zip(THRESHOLDS.tolist(), stats.all_marked, strict=True))
    assert [marked[t] for t in (0.01, 0.5, 0.51)] == [1, 1, 0]
    assert [everything[t] for t in (0.01, 0.3, 0.31, 0.5, 0.69, 0.7)] == [3, 3, 2, 2, 1, 0]
    both, either = class_counts(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1]), 4)
    assert both.tolist() == [1, 1, 0, 0] and either.tolist() == [2, 3, 1, 0]


def test_a_random_prior_has_the_norm_and_no_direction() -> None:
    rng = np.random.default_rng(0)
    vectors = np.stack([random_prior(3.0, 64, rng) for _ in range(200)])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 3, rtol=1e-5)
    assert np.linalg.norm(vectors.mean(axis=0)) < 0.6


def test_a_tally_is_the_mean_over_groups_of_quotients_of_sums() -> None:
    tally = Tally()
    for image, both, either, k in [(0, 1, 2, 0), (1, 3, 4, 0), (1, 0, 5, 1)]:
        tally.add(image, both, either, k)
    estimate = Resamples(2, seed=0).estimate(tally)
    assert estimate.value == pytest.approx((4 / 6 + 0) / 2) and estimate.count == 3
    # The first image twice ((1/2 + 0) / 2, the 0 of class 1 over all images), both, the second.
    assert (estimate.low, estimate.high) == pytest.approx((1 / 4, 3 / 8))
    assert np.isnan(Resamples(2, seed=0).estimate(Tally()).value)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(0), 0
    for seed in range(100):
        tally = Tally()
        for image, hit in enumerate(rng.random(60) < 0.7):
            tally.add(image, hit)
        estimate = Resamples(60, seed).estimate(tally)
        covered += estimate.low <= 0.7 <= estimate.high
    assert 0.88 <= covered / 100 <= 0.99


def test_differences_are_paired() -> None:
    first, second = Tally(), Tally()
    for image, value in enumerate(np.random.default_rng(0).random(20)):
        first.add(image, value)
        second.add(image, value - 0.1)
    difference = Resamples(20, seed=0).estimate(first, second)
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.1, 0.1, 0.1))


def test_the_best_threshold_is_that_of_the_best_mean_iou() -> None:
    tally = ThresholdTally()
    for image, answer in enumerate(([0.9, 0.62, 0.61, 0.1], [0.8, 0.7, 0.3, 0.2])):
        stats = map_stats(np.array(answer), np.array([0, 0, 1, 1]), 1)
        tally.add(image, stats.marked[0], 2 + stats.all_marked - stats.marked[0])
    assert tally.best_threshold() == pytest.approx(0.62)
    assert tally.at(0.62).mean(np.ones((1, 2)))[0] == 1
    assert tally.at(0.5).mean(np.ones((1, 2)))[0] == pytest.approx(4 / 5)
