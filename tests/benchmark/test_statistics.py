"""Numbers about numbers."""

import math

import pytest

from mmvars.benchmark.statistics import crossing, growth_exponent, paired_ratio, spread


@pytest.mark.parametrize('exponent', [0, 1, 1.5, 2])
def test_a_power_law_gives_its_exponent(exponent):
    sizes = [196, 1024, 2025, 4096, 8100]
    times = [3e-6 * size**exponent for size in sizes]
    assert growth_exponent(sizes, times, 1024, 8192) == pytest.approx(exponent, abs=1e-9)


def test_growth_is_fitted_in_its_range_only():
    sizes = [100, 1024, 2048, 4096, 100_000]
    times = [50, 1024, 2048, 4096, 1]
    assert growth_exponent(sizes, times, 1024, 8192) == pytest.approx(1)
    # noise of alternating sign leaves the slope nearly alone
    noisy = [size * factor for size, factor in zip(sizes, (1, 1.1, .9, 1.1, 1), strict=True)]
    assert growth_exponent(sizes, noisy, 1024, 8192) == pytest.approx(1, abs=.01)


@pytest.mark.parametrize('sizes, values', [
    ([1024], [1]), ([1024, 1024], [1, 2]), ([10, 20], [1, 2]), ([], []), ([1024, 2048], [0, 1])])
def test_no_growth_from_too_little(sizes, values):
    assert growth_exponent(sizes, values, 1024, 8192) is None


def test_the_crossing_is_interpolated():
    sizes = [100, 200, 400, 800]
    assert crossing(sizes, [2, 2, .5, .2]) == pytest.approx(math.sqrt(200 * 400))
    assert crossing(sizes, [2, 1, .5, .2]) == pytest.approx(200)
    assert crossing(sizes, [.9, 1.5, .5, .2]) > 200  # below once is not below from there on
    assert crossing(sizes, [.9, .8, .5, .2]) == 0
    assert crossing(sizes, [2, .5, .5, 1.1]) is None
    assert crossing([], []) is None


def test_ratios_are_paired():
    """A round that is slow for both says nothing about their ratio."""
    reference = [1, 10, 1, 3, 1, 1, 1]
    found = paired_ratio([2 * time for time in reference], reference)
    assert found == (2, 2, 2)
    noisy = paired_ratio([2, 3, 2, 2, 1, 2, 2], [1] * 7)
    assert noisy.low <= noisy.median == 2 <= noisy.high
    assert paired_ratio([2, 3, 1], [1, 1, 1]) == paired_ratio([2, 3, 1], [1, 1, 1])


def test_spread():
    assert spread([5, 1, 3, 2, 4]) == (2, 3, 4)
    assert spread([7]) == (7, 7, 7)
