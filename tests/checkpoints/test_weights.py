"""Which of a file's weights are taken."""

import argparse

import pytest
import torch

from mmvars.checkpoints.report import ConversionReport, Status
from mmvars.checkpoints.weights import select_weights
from mmvars.errors import InputError

RAW, AVERAGE = torch.tensor([1.0]), torch.tensor([2.0])


def _chosen(content, weights='auto', ignore=()):
    report = ConversionReport('file')
    return select_weights(content, weights, report, ignore), report


RELEASE = dict(
    model={'w': RAW},
    model_ema={'w': AVERAGE},
    optimizer={'state': {0: RAW}},
    lr_scheduler={},
    epoch=4,
    scaler={},
    args=argparse.Namespace(),
)
TIMM = dict(state_dict={'w': RAW}, state_dict_ema={'module.w': AVERAGE}, arch='vit', version=2)
# mmengine's EMA hook swaps the two when it saves: `state_dict` is what its tools test.
RUNNER = dict(
    state_dict={'w': AVERAGE},
    ema_state_dict={'module.w': RAW, 'steps': torch.tensor(7)},
    meta={},
    message_hub={},
    optimizer={},
    param_schedulers=[],
)
SELF = dict(student={'module.w': RAW}, teacher={'w': AVERAGE}, epoch=3)  # DINO, iBOT


@pytest.mark.parametrize(
    ('content', 'weights', 'expected'),
    [
        (RELEASE, 'auto', RAW),
        (RELEASE, 'model', RAW),
        (RELEASE, 'ema', AVERAGE),
        (TIMM, 'auto', RAW),
        (TIMM, 'model', RAW),
        (TIMM, 'ema', AVERAGE),
        (RUNNER, 'auto', AVERAGE),
        (RUNNER, 'model', RAW),
        (RUNNER, 'ema', AVERAGE),
        (SELF, 'auto', AVERAGE),
        (SELF, 'teacher', AVERAGE),
        (SELF, 'student', RAW),
        (dict(model_ema={'w': AVERAGE}), 'auto', AVERAGE),
        ({'w': RAW}, 'auto', RAW),
        ({'w': RAW}, 'model', RAW),
    ],
)
def test_choice(content, weights, expected):
    found, report = _chosen(content, weights)
    assert list(found) == ['w']
    assert found['w'] is expected
    assert not report.problems
    entries = 0 if list(content) == ['w'] else len(content) - 1
    counters = 1 if content is RUNNER and weights == 'model' else 0
    assert len(report.of(Status.IGNORED)) == entries + counters
    assert all(line.note for line in report.entries)


@pytest.mark.parametrize(
    ('content', 'weights', 'said'),
    [
        ({'w': RAW}, 'ema', "no weights 'ema'"),
        ({'w': RAW}, 'teacher', "no weights 'teacher'"),
        (dict(model={'w': RAW}), 'ema', "entries are 'model'"),
        (SELF, 'model', 'no entry for --weights model .one of model, state_dict.; its entries'),
        ([RAW], 'auto', 'holds a list'),
        ({}, 'auto', 'not a dict of tensors'),
        (dict(epoch=3), 'auto', "entries are 'epoch'"),
        (dict(model=3), 'auto', 'is a int'),
        ({'w': RAW}, 'best', 'weights must be one of'),
    ],
)
def test_no_such_weights(content, weights, said):
    with pytest.raises(InputError, match=said):
        _chosen(content, weights)


def test_an_unknown_entry_with_tensors_is_a_problem_until_ignored():
    content = dict(model={'w': RAW}, queue={'heads': [{'w': RAW}]}, best=0.3)
    assert [line.source for line in _chosen(content)[1].problems] == ['[queue]']
    assert not _chosen(content, ignore=['que*'])[1].problems


def test_the_prefix_of_lightning_is_one_of_a_wrapper():
    assert list(_chosen(dict(state_dict={'model.w': RAW}))[0]) == ['w']


def test_wrappers_are_taken_off_every_key_or_none():
    assert list(_chosen({'module._orig_mod.module.w': RAW})[0]) == ['w']
    assert set(_chosen({'module.w': RAW, 'v': RAW})[0]) == {'module.w', 'v'}
