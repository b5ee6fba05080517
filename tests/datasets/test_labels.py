"""CheckLabels: passes what the classes hold, refuses the rest by file, values and remedy."""

import numpy as np
import pytest

from mmvars.datasets import CheckLabels
from mmvars.errors import InputError


def _results(labels, **extra) -> dict:
    return dict(gt_seg_map=np.asarray(labels, np.uint8), seg_map_path='a/b.png', **extra)


@pytest.mark.parametrize('labels', [[[0, 1, 2]], [[255, 255, 255]], [[2, 255, 0]]])
def test_good_labels_pass_unchanged(labels):
    results = _results(labels, ori_shape=(1, 3), img_path='a/b.jpg')
    before = results['gt_seg_map'].copy()
    assert CheckLabels(3)(results) is results
    np.testing.assert_array_equal(results['gt_seg_map'], before)


def test_values_outside_are_counted_and_named():
    with pytest.raises(InputError) as error:
        CheckLabels(3)(_results([[0, 7, 7], [19, 255, 3]]))
    message = str(error.value)
    for word in ["'a/b.png'", 'values 3, 7, 19 in 4 of 6 pixels', 'num_classes=3', '0 to 2', '255']:
        assert word in message


def test_labels_from_one_point_at_reduce_zero_label():
    with pytest.raises(InputError, match='set reduce_zero_label=True'):
        CheckLabels(3)(_results([[0, 1, 3]]))
    with pytest.raises(InputError, match='With reduce_zero_label 0 became ignored'):
        CheckLabels(3)(_results([[0, 1, 3]], reduce_zero_label=True))


def test_another_ignored_value():
    CheckLabels(3, ignore_index=9)(_results([[0, 9]]))
    with pytest.raises(InputError, match='values 255'):
        CheckLabels(3, ignore_index=9)(_results([[0, 255]]))


def test_color_labels_are_refused():
    with pytest.raises(InputError, match='3 channels.*one class id a pixel'):
        CheckLabels(3)(_results(np.zeros((4, 5, 3))))


def test_size_must_be_that_of_the_image():
    with pytest.raises(InputError, match=r"\(4, 5\) pixels.*'a/b.jpg' has \(5, 4\)"):
        CheckLabels(3)(_results(np.zeros((4, 5)), ori_shape=(5, 4), img_path='a/b.jpg'))
    # Test pipelines resize the image first, training pipelines both.
    CheckLabels(3)(_results(np.zeros((4, 5)), ori_shape=(4, 5), img_shape=(8, 10)))
    CheckLabels(3)(_results(np.zeros((8, 10)), ori_shape=(4, 5), img_shape=(8, 10)))


def test_channels_in_the_shape_of_the_image_do_not_count():
    """Some transforms of mmseg (RandomMosaic, Rgb2Gray) write ``img.shape`` with its channels."""
    CheckLabels(3)(_results(np.zeros((4, 5)), ori_shape=(9, 9), img_shape=(4, 5, 3)))


def test_order_and_absence():
    with pytest.raises(InputError, match='after LoadAnnotations'):
        CheckLabels(3)(dict(seg_map_path='a/b.png'))
    assert CheckLabels(3)(dict(img_path='a.jpg')) == dict(img_path='a.jpg')  # inference
    with pytest.raises(InputError, match='num_classes must be positive, got 0'):
        CheckLabels(0)
