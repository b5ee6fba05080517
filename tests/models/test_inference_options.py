"""``test_cfg`` of the segmentor."""

import pytest

from mmvars.errors import InputError
from mmvars.models.sliding_window import InferenceOptions

SLIDE = dict(mode='slide', crop_size=(48, 64), stride=(31, 40))


@pytest.mark.parametrize(
    'wrong, words',
    [
        (dict(mode='slid'), r'test_cfg.mode must be one of slide, whole; got \'slid\''),
        (dict(mode='slide'), 'missing: crop_size, stride'),
        (SLIDE | dict(stride=None), 'missing: stride'),
        (SLIDE | dict(stride=(49, 40)), r'stride \(49, 40\) must not exceed test_cfg.crop_size'),
        (SLIDE | dict(crop_size=64), r'crop_size must be two whole numbers .* got 64'),
        (SLIDE | dict(stride=(0, 8)), r'stride must be two whole numbers of at least 1'),
        (SLIDE | dict(window_batch=0), 'window_batch must be a whole number of at least 1, got 0'),
        (SLIDE | dict(window_batch=True), 'window_batch must be a whole number .* got True'),
        (dict(window_batch=4), "window_batch=4 needs test_cfg.mode='slide'"),
        (dict(keep_logits='no'), "keep_logits must be True or False, got 'no'"),
        (dict(logits_device='gpu'), "logits_device must be one of cpu; got 'gpu'"),
        (dict(logits_dtype='half'), 'logits_dtype must be one of float32, float16, bfloat16'),
        (dict(window_bacth=4), "test_cfg has no 'window_bacth'; did you mean 'window_batch'"),
    ],
)
def test_options_that_cannot_be_used_are_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        InferenceOptions.from_cfg(wrong)


def test_keys_of_others_are_left_alone():
    assert InferenceOptions.from_cfg(dict(mode='whole', subdivision_steps=2)) == InferenceOptions()


@pytest.mark.parametrize(
    'options, by_class',
    [
        ({}, False),
        (SLIDE, False),
        (SLIDE | dict(window_batch=4), False),
        (dict(keep_logits=False), True),
        (dict(logits_device='cpu'), True),
        (dict(logits_dtype='float32'), True),
    ],
)
def test_full_size_logits_are_made_by_class_only_on_demand(options, by_class):
    assert InferenceOptions.from_cfg(options).by_class is by_class
