"""Fixation metrics: equal to pysaliency, right by hand, and deaf to planted mistakes."""

import math
from functools import partial

import numpy as np
import pytest
from record_pysaliency import RECORDED, SIGMA, cases, fixations

from mmvars.errors import InputError
from mmvars.saliency.fixations import (
    auc_judd,
    auc_shuffled,
    cc,
    checked_map,
    fixation_density,
    kl_divergence,
    nss,
    points_of_map,
    shuffled_points,
    sim,
)

PEAK = np.array([[0, 0, 0], [0, 9, 0], [0, 0, 0]], dtype=float)  # mean 1, variance 8, or 9
CENTER, CORNER = [1.0, 1.0], [0.0, 0.0]
BOTH = np.array([CENTER, CORNER])


@pytest.mark.parametrize('name', cases())
def test_pysaliency_says_the_same(name) -> None:
    reference = {
        key.partition('.')[2]: value
        for key, value in np.load(RECORDED).items()
        if key.startswith(f'{name}.')
    }
    index, saliency = list(cases()).index(name), cases()[name]
    points, sizes = fixations(), [each.shape for each in cases().values()]
    own, density = points[index], reference['density']
    others = shuffled_points(points, sizes, index)
    measured = dict(
        density=fixation_density(own, saliency.shape, SIGMA),
        nss=nss(saliency, own),
        auc_judd=auc_judd(saliency, own),
        auc_judd_ties=auc_judd(saliency, own, jitter=False),
        auc_shuffled=auc_shuffled(saliency, own, others),
        cc=cc(saliency, density),
        kl=kl_divergence(saliency, density),
        sim=sim(saliency, density),
    )
    assert measured.keys() == reference.keys()
    for key, value in measured.items():
        np.testing.assert_allclose(value, reference[key], rtol=0, atol=1e-9, err_msg=key)


def test_by_hand() -> None:
    center, corner = np.array([CENTER]), np.array([CORNER])
    assert nss(PEAK, center) == pytest.approx(8 / math.sqrt(8))
    assert nss(PEAK, BOTH) == pytest.approx(3.5 / math.sqrt(8))
    assert auc_judd(PEAK, center) == 1
    assert auc_judd(PEAK, corner, jitter=False) == 0.5
    assert auc_judd(PEAK, BOTH, jitter=False) == 0.75
    assert auc_shuffled(PEAK, center, BOTH) == 0.75
    density = np.zeros((3, 3))
    density[1, 1] = density[0, 0] = 0.5
    assert cc(PEAK, density) == pytest.approx(math.sqrt(7) / 4)
    assert sim(PEAK, density) == 0.5
    missed = math.log(0.5 / 2.2204e-16)  # the half that the map says is nowhere
    assert kl_divergence(PEAK, density) == pytest.approx((math.log(0.5) + missed) / 2)
    assert kl_divergence(PEAK, PEAK) == pytest.approx(0, abs=1e-12)


def test_where_the_matlab_code_differs() -> None:
    twice = np.array([CENTER, CENTER, CORNER])
    assert nss(PEAK, BOTH, 'matlab') == pytest.approx(3.5 / 3)  # std over H W - 1
    assert nss(PEAK, twice, 'matlab') == nss(PEAK, BOTH, 'matlab')  # a pixel counts once
    assert nss(PEAK, twice) == pytest.approx(5 / math.sqrt(8))
    # Two fixations of equal value, one of the other seven pixels above them. At the first of the
    # two the second counts as false: (0, 0), (2/7, 1/2), (1, 1).
    values = np.zeros((3, 3))
    values[2, 2] = 2
    values[0, 0] = values[1, 1] = 1
    assert auc_judd(values, BOTH, 'matlab', jitter=False) == pytest.approx(
        (2 / 7 * 0.5 + (1 / 7 - 2 / 7) * 1.5 + 6 / 7 * 2) / 2
    )
    assert auc_judd(values, BOTH, jitter=False) == pytest.approx((1 / 7 + 6 / 7 * 2) / 2)
    # A constant added to a map.
    assert sim(PEAK + 5, PEAK, 'matlab') == pytest.approx(1)
    assert sim(PEAK + 5, PEAK) == pytest.approx(14 / 54)


def test_no_information_is_worth_nothing() -> None:
    constant, rng = np.full((20, 30), 0.2), np.random.default_rng(0)
    points = rng.uniform(0, 20, (9, 2))
    density = fixation_density(points, constant.shape, 2)
    assert nss(constant, points) == 0
    assert auc_judd(constant, points, jitter=False) == 0.5
    assert auc_shuffled(constant, points, points) == 0.5
    assert cc(constant, density) == 0
    # A map of the center bias that all fixations share earns nothing in the shuffled AUC alone.
    rows, columns = np.mgrid[:50, :50]
    center = np.exp(-((rows - 25) ** 2 + (columns - 25) ** 2) / 200)
    mine, others = rng.normal(25, 6, (200, 2)), rng.normal(25, 6, (5000, 2))
    assert auc_judd(center, mine) > 0.8
    assert auc_shuffled(center, mine, others.clip(0, 49)) == pytest.approx(0.5, abs=0.05)


def test_points_are_x_y_and_scaled_to_the_other_image() -> None:
    saliency = np.zeros((4, 8))
    saliency[1, 6] = 1
    assert nss(saliency, np.array([[6.9, 1.9]])) > 5  # parts of a pixel are cut off
    scaled = shuffled_points([[[0, 0]], [[6, 1]]], [(8, 4), (4, 8)], 0)
    np.testing.assert_array_equal(scaled, [[3, 2]])


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: nss(PEAK, fixation_density(BOTH, (3, 3), 1)), r'x and y in pixels, got .*3, 3'),
        (lambda: auc_judd(PEAK, np.eye(4)), 'another number'),
        (lambda: auc_shuffled(PEAK, BOTH, PEAK), 'other_points must be fixations'),
        (lambda: fixation_density(PEAK, (3, 3), 1), 'must be fixations'),
        (lambda: nss(np.zeros((3, 9)), np.array([[1, 7]])), 'not .row, column.'),
        (lambda: nss(PEAK, np.array([[-0.5, 1]])), 'outside'),
        (lambda: nss(PEAK, np.array([[np.nan, 1]])), 'outside'),
        (lambda: nss(PEAK, np.zeros((0, 2))), 'no fixation'),
        (lambda: nss(PEAK / 0, BOTH), 'finite'),
        (lambda: nss(PEAK, BOTH, 'octave'), 'definition'),
        (lambda: auc_judd(PEAK * 1e-7, BOTH), 'jitter=False'),
        (lambda: cc(PEAK, np.ones((3, 4))), 'fixation_density'),
        (lambda: sim(PEAK, np.ones((3, 3))), 'constant'),
        (lambda: points_of_map(fixation_density(BOTH, (30, 30), 3)), 'blurred'),
        (lambda: points_of_map(np.zeros((30, 30))), 'empty'),
        (lambda: shuffled_points([BOTH], [(3, 3)], 0), 'one image'),
    ],
)
@pytest.mark.filterwarnings('ignore:.*(divide|invalid value)')
def test_what_is_something_else_is_refused(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_a_map_of_points_gives_them_back() -> None:
    points = np.array([[3.0, 1.0], [0.0, 2.0]])
    counts = np.zeros((9, 9))
    counts[[1, 2], [3, 0]] = 255
    np.testing.assert_array_equal(points_of_map(counts), points)


@pytest.mark.parametrize('kind', ['smooth', 'ties', 'outlier', 'negative'])
def test_what_is_taken_in_pieces_is_what_the_definitions_say(kind) -> None:
    """A map larger than a piece, against one line of NumPy for each score."""
    rng = np.random.default_rng(0)
    values = rng.random((211, 300))
    if kind == 'ties':
        values = np.round(4 * values)
    elif kind == 'outlier':  # all else is in one bin
        values[7, 9] = 1e9
    elif kind == 'negative':
        values -= 0.5
    points, others = (rng.random((n, 2)) * (300, 211) for n in (40, 5000))
    density = fixation_density(points, values.shape, 9)
    own, other = (values[tuple(p.astype(int).T[::-1])] for p in (points, others))
    rest = np.delete(values.ravel(), np.unique(points.astype(int) @ (1, 300)))
    thresholds = np.sort(own)[::-1]
    hits, false = (
        np.concatenate([[0], [(each >= t).mean() for t in thresholds], [1]]) for each in (own, rest)
    )
    shares = [(each - min(each.min(), 0)) for each in (values, density)]
    saliency, truth = (each / each.sum() for each in shares)
    expected = dict(
        nss=((own - values.mean()) / values.std()).mean(),
        auc_judd=(np.diff(false) * (hits[1:] + hits[:-1])).sum() / 2,
        auc_shuffled=np.mean((own[:, None] > other) + (own[:, None] == other) / 2),
        cc=np.corrcoef(values.ravel(), density.ravel())[0, 1],
        kl=(truth * np.log(2.2204e-16 + truth / (saliency + 2.2204e-16))).sum(),
        sim=np.minimum(saliency, truth).sum(),
    )
    for each, truth in ((values, density), map(partial(checked_map, ''), (values, density))):
        measured = dict(
            nss=nss(each, points),
            auc_judd=auc_judd(each, points, jitter=False),
            auc_shuffled=auc_shuffled(each, points, others),
            cc=cc(each, truth),
            kl=kl_divergence(each, truth),
            sim=sim(each, truth),
        )
        assert measured == pytest.approx(expected, abs=1e-10)
