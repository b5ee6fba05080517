"""The numbers that sum up a table, by hand."""

import numpy as np
import pytest

from mmvars.errors import InputError
from mmvars.parsers import robustness
from mmvars.robustness import STANDARD
from mmvars.robustness.protocols import (
    ALEXNET_ERRORS,
    CLEAN,
    PROTOCOLS,
    Setting,
    corruption_errors,
    corruption_means,
    summarize,
)


def test_alexnet_has_an_mce_of_100() -> None:
    spread = (-0.05, -0.02, 0, 0.03, 0.04)  # over the severities, 0 in the mean
    scores = {
        Setting(name, level): 1 - error + spread[level - 1]
        for name, error in ALEXNET_ERRORS.items()
        for level in range(1, 6)
    }
    numbers = summarize({CLEAN: 0.565, **scores})
    assert numbers['mCE'] == pytest.approx(1, abs=1e-12)
    assert numbers['mean error'] == pytest.approx(np.mean(list(ALEXNET_ERRORS.values())))
    assert set(ALEXNET_ERRORS) == set(STANDARD)


def test_a_table_by_hand() -> None:
    scores = {
        CLEAN: 0.8,
        Setting('fog', 1): 0.7,
        Setting('fog', 2): 0.5,  # mean 0.6
        Setting('snow', 1): 0.3,
        Setting('snow', 2): 0.1,  # mean 0.2
    }
    assert corruption_means(scores) == pytest.approx(dict(fog=0.6, snow=0.2))
    numbers = summarize(scores)
    assert numbers['P'] == 0.8 and numbers['mPC'] == pytest.approx(0.4)
    assert numbers['rPC'] == pytest.approx(0.5) == numbers['relative drop']
    assert 'mCE' not in numbers  # of all 15 at 5 severities only
    errors = corruption_errors(dict(fog=0.6))
    assert errors['fog'] == pytest.approx(0.4 / 0.819324)
    with pytest.raises(InputError, match='not for spatter'):
        corruption_errors(dict(spatter=0.5))


def test_draws_are_summed_up_one_by_one() -> None:
    scores = {CLEAN: np.array([0.8, 0.0]), Setting('fog', 1): np.array([0.4, 0.1])}
    np.testing.assert_array_equal(summarize(scores)['rPC'], [0.5, np.nan])


def test_clean_images_come_first_and_the_parser_knows_all_protocols() -> None:
    assert [s.name for s in PROTOCOLS['quick'].settings][:2] == ['clean', 'gaussian_noise-3']
    assert len(PROTOCOLS['segmentation'].settings) == 76
    assert PROTOCOLS.keys() == set(robustness.PROTOCOLS)
