"""Each measure by hand, against another library, and on answers whose number is known."""

import numpy as np
import pytest

from mmvars.steerability.estimates import Resamples, Tally, ThresholdTally
from mmvars.steerability.measures import (
    THRESHOLDS,
    average_ranks,
    class_counts,
    counts_above,
    follows,
    random_prior,
    roc_auc,
    scores_follow,
    share_inside,
)


@pytest.fixture
def regions() -> tuple[np.ndarray, np.ndarray]:
    """Two classes in an image of 8x8, and pixels of neither."""
    labels = np.random.default_rng(0).integers(0, 3, (8, 8))
    return labels == 0, labels == 1


def test_an_oracle_follows_and_what_ignores_the_prior_does_not(regions) -> None:
    a, b = regions
    rng = np.random.default_rng(0)
    assert follows(a.astype(float), b.astype(float), a, b)
    assert not follows(b.astype(float), a.astype(float), a, b)
    assert not follows(np.zeros((8, 8)), np.zeros((8, 8)), a, b)
    hits = []
    for _ in range(2000):
        first, second = rng.random((2, 8, 8))
        assert not follows(first, first, a, b)
        hits.append(follows(first, second, a, b))
    assert np.mean(hits) == pytest.approx(0.25, abs=0.04)


def test_one_right_answer_of_two_is_none() -> None:
    a, b = np.array([True, False]), np.array([False, True])
    right, wrong = np.array([0.6, 0.4]), np.array([0.6, 0.4])
    assert follows(right, np.array([0.1, 0.2]), a, b)
    assert not follows(right, wrong, a, b)
    assert not follows(np.array([0.5, 0.5]), np.array([0.1, 0.2]), a, b)


def test_scores() -> None:
    a, b, other = [0.5, 0.2, 0.3], [0.1, 0.5, 0.4], [0.2, 0.3, 0.5]
    a, b, other = map(np.array, (a, b, other))
    assert scores_follow(a, b, 0, 1) == (True, True)
    assert scores_follow(a, other, 0, 1) == (True, False)
    assert scores_follow(a, a, 0, 1) == (False, False)
    assert scores_follow(b, a, 0, 1) == (False, False)


@pytest.mark.parametrize('levels', [3, 1000])
def test_auc_is_that_of_scikit_learn(levels) -> None:
    """With few levels most pairs are ties."""
    metrics = pytest.importorskip('sklearn.metrics')
    rng = np.random.default_rng(levels)
    values, region = rng.integers(0, levels, (12, 9)) / levels, rng.random((12, 9)) < 0.3
    expected = metrics.roc_auc_score(region.ravel(), values.ravel())
    assert roc_auc(average_ranks(values), region) == pytest.approx(expected, abs=1e-12)
    assert roc_auc(average_ranks(np.full(region.shape, 0.7)), region) == 0.5


def test_share_and_counts_by_hand() -> None:
    values, region = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[True, False], [True, False]])
    assert share_inside(values, region) == pytest.approx(0.4)
    assert share_inside(0 * values, region) is None
    counts = dict(zip(THRESHOLDS.tolist(), counts_above(np.array([0.5, 0.49, 1, 0])), strict=True))
    assert (counts[0.5], counts[0.51], counts[0.49], counts[0.01]) == (2, 1, 3, 3)
    assert counts_above(np.array([0.5, 0.3], np.float32))[49] == 1  # 0.5 itself is marked
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
    for seed in range(200):
        tally = Tally()
        for image, hit in enumerate(rng.random(60) < 0.7):
            tally.add(image, hit)
        estimate = Resamples(60, seed).estimate(tally)
        covered += estimate.low <= 0.7 <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99


def test_differences_are_paired() -> None:
    first, second = Tally(), Tally()
    for image, value in enumerate(np.random.default_rng(0).random(20)):
        first.add(image, value)
        second.add(image, value - 0.1)
    difference = Resamples(20, seed=0).estimate(first, second)
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.1, 0.1, 0.1))


def test_the_best_threshold_is_that_of_the_best_mean_iou() -> None:
    tally, mask = ThresholdTally(), np.array([True, True, False, False])
    for image, answer in enumerate(([0.9, 0.62, 0.61, 0.1], [0.8, 0.7, 0.3, 0.2])):
        values = np.array(answer)
        both = counts_above(values[mask])
        tally.add(image, both, mask.sum() + counts_above(values) - both)
    assert tally.best_threshold() == pytest.approx(0.62)
    assert tally.at(0.62).mean(np.ones((1, 2)))[0] == 1
    assert tally.at(0.5).mean(np.ones((1, 2)))[0] == pytest.approx(4 / 5)
