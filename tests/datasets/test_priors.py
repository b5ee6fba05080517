"""AskForClass: the prior is a class of the labels, and they call all else background."""

import numpy as np
import pytest

from mmvars.datasets import AskForClass
from mmvars.errors import InputError


def _results() -> dict:
    return dict(gt_seg_map=np.array([[0, 3, 3], [5, 255, 0]], np.uint8))


def test_what_is_asked_for_keeps_its_label():
    asked = set()
    for _ in range(40):
        results = AskForClass(prob=1)(_results())
        labels, prior = results['gt_seg_map'], results['prior']
        expected = dict(gt_seg_map=_results()['gt_seg_map'])['gt_seg_map']
        expected[(expected != prior) & (expected != 255)] = 0
        np.testing.assert_array_equal(labels, expected)
        assert labels.dtype == np.uint8 and type(prior) is int
        asked.add(prior)
    assert asked == {3, 5}


def test_where_nothing_is_asked_all_labels_stay():
    results = AskForClass(prob=0, background=7)(_results())
    np.testing.assert_array_equal(results['gt_seg_map'], _results()['gt_seg_map'])
    assert results['prior'] == 7
    assert AskForClass(prob=0)({})['prior'] == 0  # inference has no labels


def test_an_image_without_classes_is_not_asked():
    results = AskForClass(prob=1)(dict(gt_seg_map=np.array([[0, 255]])))
    assert results['prior'] == 0


def test_the_share_that_is_asked():
    asked = [AskForClass(prob=0.6)(_results())['prior'] > 0 for _ in range(1000)]
    assert 0.55 < np.mean(asked) < 0.65


def test_bad_arguments():
    with pytest.raises(InputError, match='prob'):
        AskForClass(prob=1.5)
    with pytest.raises(InputError, match='after LoadAnnotations'):
        AskForClass(prob=1)({})
