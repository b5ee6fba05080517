"""LipschitzUpdateHook by itself: when it updates, what, and what it logs."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import HOOKS
from torch import nn

from mmvars.engine import LipschitzUpdateHook
from mmvars.engine.hooks import ensure_lipschitz_hook
from mmvars.errors import InputError
from mmvars.layers.vars_static import VARSStatic

GRID = (3, 4)


class Model(nn.Sequential):
    """Two VARS-S mixers, the second with a bound of its own in every forward."""

    def __init__(self) -> None:
        super().__init__(VARSStatic(4, 1, GRID), VARSStatic(4, 1, GRID, preset='thesis'))


class Recorder(logging.Handler):
    """Log lines as text."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f'{record.levelname} {record.getMessage()}')


@pytest.fixture
def runner():
    """What the hook needs of a Runner; ``lines`` are its log's."""
    logger = logging.Logger('test')
    recorder = Recorder()
    logger.addHandler(recorder)
    hooks = []
    return SimpleNamespace(
        model=Model(), logger=logger, lines=recorder.lines, hooks=hooks, register_hook=hooks.append
    )


def train(mixer: VARSStatic, factor: float = 2.0) -> None:
    """Scale the dictionary, as a step of training might: the bound it needs grows by factor^2."""
    with torch.no_grad():
        mixer.dictionary.mul_(factor)


def refreshed(hook: LipschitzUpdateHook, runner, count: int) -> list[int]:
    """The iterations out of ``count`` before which the hook changes the bound."""
    moved = []
    mixer = runner.model[0]
    for iteration in range(count):
        train(mixer, 1.01)
        before = mixer.lipschitz.clone()
        hook.before_train_iter(runner, iteration)
        if not torch.equal(before, mixer.lipschitz):
            moved.append(iteration)
    return moved


def test_defaults_are_those_of_the_release() -> None:
    hook = HOOKS.build(dict(type='mmvars.LipschitzUpdateHook'))
    assert (hook.interval, hook.rate) == (100, 0.1)


def test_configs_that_name_it_by_its_old_name_still_work() -> None:
    assert type(HOOKS.build(dict(type='mmvars.StepSizeHook', interval=5))) is LipschitzUpdateHook


def test_the_bound_moves_before_iteration_0_and_every_interval(runner) -> None:
    assert refreshed(LipschitzUpdateHook(interval=4), runner, 10) == [0, 4, 8]
    assert refreshed(LipschitzUpdateHook(), runner, 202) == [0, 100, 200]


@pytest.mark.parametrize('rate', [0.1, 0.5, 1.0])
def test_the_bound_moves_by_the_rate(rate, runner) -> None:
    mixer = runner.model[0]
    old = mixer.lipschitz.clone()
    train(mixer, 2.0)  # the largest eigenvalue of P'P grows by 2^2
    LipschitzUpdateHook(rate=rate).before_train_iter(runner, 0)
    torch.testing.assert_close(mixer.lipschitz, (1 - rate) * old + rate * 4 * old)
    assert not mixer.lipschitz.requires_grad


def test_wrapped_models_are_reached(runner) -> None:
    from mmengine.registry import MODEL_WRAPPERS

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    MODEL_WRAPPERS.register_module(module=Wrapper, name='WrapperOfThisTest', force=True)
    runner.model = Wrapper(Model())
    mixer = runner.model.module[0]
    before = mixer.lipschitz.clone()
    train(mixer)
    LipschitzUpdateHook().before_train_iter(runner, 0)
    assert not torch.equal(before, mixer.lipschitz)


def test_frozen_mixers_keep_their_bound(runner) -> None:
    mixer = runner.model[0].eval()
    before = mixer.lipschitz.clone()
    train(mixer)
    LipschitzUpdateHook().before_train_iter(runner, 0)
    assert torch.equal(before, mixer.lipschitz)


def test_it_says_what_it_does_and_that_there_is_nothing_to_do(runner) -> None:
    LipschitzUpdateHook(interval=7, rate=0.2).before_train(runner)
    assert runner.lines.pop() == (
        'INFO LipschitzUpdateHook: 1 VARS-S mixers, updated every 7 iterations with rate 0.2'
    )
    runner.model = runner.model[1]
    LipschitzUpdateHook().before_train(runner)
    assert runner.lines.pop().startswith('WARNING LipschitzUpdateHook has nothing to do: ')


def test_it_is_added_where_it_is_needed_and_missing(runner) -> None:
    ensure_lipschitz_hook(runner)
    assert [type(hook) for hook in runner.hooks] == [LipschitzUpdateHook]
    added = "added dict(type='mmvars.LipschitzUpdateHook', interval=100, rate=0.1)"
    assert added in runner.lines.pop()
    ensure_lipschitz_hook(runner)
    assert len(runner.hooks) == 1
    assert runner.lines == []


@pytest.mark.parametrize('mixer, count', [('vars_s', 1), ('vars_d', 0)])
def test_a_model_that_is_not_built_yet_is_judged_by_its_config(mixer, count, runner) -> None:
    runner.model = ConfigDict(backbone=dict(type='mmvars.VARS', mixer=mixer))
    ensure_lipschitz_hook(runner)
    assert len(runner.hooks) == count


def test_it_is_not_added_where_no_constant_is_kept(runner) -> None:
    runner.model = runner.model[1]
    ensure_lipschitz_hook(runner)
    assert runner.hooks == []
    assert runner.lines == []


@pytest.mark.parametrize('update_buffers', [False, True])
def test_an_average_is_left_to_the_averaging(update_buffers, runner) -> None:
    """It gets the model's bound, or the average of the bounds: both bound the averaged filters."""
    average = ExponentialMovingAverage(runner.model, momentum=0.5, update_buffers=update_buffers)
    mixer, averaged = runner.model[0], average.module[0]
    average.update_parameters(runner.model)
    fresh = mixer.lipschitz.clone()
    train(mixer)
    LipschitzUpdateHook(rate=1.0).before_train_iter(runner, 0)
    torch.testing.assert_close(averaged.lipschitz, fresh)  # untouched by the hook
    average.update_parameters(runner.model)
    expected = (fresh + 4 * fresh) / 2 if update_buffers else 4 * fresh
    torch.testing.assert_close(averaged.lipschitz, expected)
    exact = copy.deepcopy(averaged)
    exact.update_lipschitz(rate=1.0)
    assert (exact.lipschitz <= averaged.lipschitz * (1 + 1e-6)).all()
    assert (exact.lipschitz > fresh).all()


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(interval=0), 'interval must be a whole number of at least 1, got 0'),
        (dict(interval=2.5), 'interval must be a whole number'),
        (dict(rate=0), 'rate must be above 0'),
        (dict(rate=1.5), r'rate must be a number in \[0, 1\]'),
        (dict(rate='a'), 'rate must be a number'),
    ],
)
def test_values_that_make_no_sense(arguments, words) -> None:
    with pytest.raises(InputError, match=words):
        LipschitzUpdateHook(**arguments)
