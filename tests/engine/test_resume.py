"""A run that is stopped and resumed is, bit for bit, the run that nobody stopped."""

import argparse
import random
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    METRICS,
    MODELS,
    TRANSFORMS,
    DefaultScope,
)
from mmengine.runner import FlexibleRunner, Runner
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import BatchSampler, RandomSampler

from mmvars.engine.resume import seed_generators
from mmvars.engine.runner import build_runner
from mmvars.engine.train import _newest_state
from mmvars.errors import InputError


@TRANSFORMS.register_module()
class AllGenerators:
    """A random transform that draws from all of the generators that transforms draw from."""

    def __call__(self, sample: dict) -> dict:
        noise = torch.rand(4) + np.random.rand() + random.random()
        return dict(x=noise, y=torch.tensor(sample['sample_idx'] % 3))


@DATASETS.register_module()
class Numbers(BaseDataset):
    def load_data_list(self) -> list[dict]:
        return [dict(number=number) for number in range(11)]


@DATA_SAMPLERS.register_module()
class GlobalSampler(RandomSampler):
    """Draws its order from torch's generator, not from a seed."""

    def __init__(self, dataset: Any, seed: int | None = None) -> None:
        super().__init__(dataset)


@MODELS.register_module()
class Tiny(BaseModel):
    """Batch norm, dropout, and what mixup in a data preprocessor draws."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))

    def forward(self, x: list, y: list, mode: str = 'tensor') -> Any:
        x, y = torch.stack(x), torch.stack(y)
        if mode == 'predict':
            return [(self.net(x) + torch.rand(1)).sum()]
        x = x * np.random.beta(0.8, 0.8) + x[torch.randperm(len(x))] * random.random()
        return dict(loss=nn.functional.cross_entropy(self.net(x), y))


@METRICS.register_module()
class Sum(BaseMetric):
    def process(self, data_batch: Any, data_samples: list) -> None:
        self.results += data_samples

    def compute_metrics(self, results: list) -> dict:
        return dict(sum=float(sum(map(float, results))))


@HOOKS.register_module()
class Record(Hook):
    """Iteration -> index in the epoch, batch, loss and rate of every step."""

    def __init__(self) -> None:
        self.steps: dict[int, tuple] = {}
        self.validations: list[tuple] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        batch = [float(value) for key in ('x', 'y') for x in data_batch[key] for value in x.ravel()]
        rate = runner.optim_wrapper.get_lr()['lr']
        self.steps[runner.iter] = batch_idx, batch, float(outputs['loss'].detach()), rate

    def after_val_epoch(self, runner, metrics=None) -> None:
        self.validations.append((runner.iter, metrics['sum']))


NUMBERS = dict(type='Numbers', serialize_data=False, pipeline=[dict(type='AllGenerators')])
BASE = dict(
    model=dict(type='Tiny'),
    train_dataloader=dict(
        batch_size=3,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        dataset=NUMBERS,
    ),
    train_cfg=dict(by_epoch=True, max_epochs=3, val_interval=2),
    optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.1)),
    param_scheduler=[
        dict(type='LinearLR', start_factor=0.1, end=3, by_epoch=False),
        dict(type='ExponentialLR', gamma=0.5, by_epoch=True),
    ],
    val_dataloader=dict(
        batch_size=5, sampler=dict(type='DefaultSampler', shuffle=False), dataset=NUMBERS
    ),
    val_cfg=dict(),
    val_evaluator=dict(type='Sum'),
    default_hooks=dict(
        checkpoint=dict(
            type='CheckpointHook', by_epoch=False, interval=1, save_best='sum', rule='greater'
        ),
        logger=dict(type='LoggerHook', interval=100),
    ),
    log_level='ERROR',
)
"""12 steps: 3 epochs of 4 batches, of which the last has two samples."""

SEED = dict(randomness=dict(seed=7))
BY_ITERATION = dict(train_cfg=dict(_delete_=True, by_epoch=False, max_iters=12, val_interval=4))
INFINITE = dict(train_dataloader=dict(sampler=dict(type='InfiniteSampler')), **BY_ITERATION)
WORKERS = dict(train_dataloader=dict(num_workers=2))
PERSISTENT = dict(train_dataloader=dict(num_workers=2, persistent_workers=True))
GLOBAL_SAMPLER = dict(train_dataloader=dict(sampler=dict(_delete_=True, type='GlobalSampler')))
BATCH_SAMPLER = dict(train_dataloader=dict(batch_sampler=dict(type=BatchSampler, drop_last=False)))
WRAPPERS = dict(
    train_dataloader=dict(
        batch_size=6,
        dataset=dict(
            _delete_=True,
            type='ConcatDataset',
            datasets=[NUMBERS, dict(type='RepeatDataset', dataset=NUMBERS, times=1)],
        ),
    )
)
EMA = dict(custom_hooks=[dict(type='Record'), dict(type='EMAHook', begin_iter=2)])
ONE_CYCLE = dict(
    param_scheduler=[dict(type='OneCycleLR', eta_max=0.1, total_steps=12, by_epoch=False)]
)
FLEXIBLE = dict(runner_type='FlexibleRunner')
ACCUMULATION = dict(optim_wrapper=dict(accumulative_counts=5))


@pytest.fixture(autouse=True)
def _quick(monkeypatch) -> None:
    """Without what costs most: printing the config, looking for compilers, waiting for the disk."""
    monkeypatch.setattr(Config, 'pretty_text', '')
    monkeypatch.setattr(Runner, '_log_env', lambda self, env: None)
    monkeypatch.setattr(FlexibleRunner, '_log_env', lambda self: None)
    monkeypatch.setattr('mmengine.runner.runner.get_git_hash', str)
    monkeypatch.setattr('os.fsync', lambda file: None)


def train(folder: Path, options: Sequence[dict] = (), resume: Path | None = None) -> dict[str, Any]:
    for owner in (MMLogger, MessageHub, Visualizer, DefaultScope):
        owner._instance_dict.clear()
    seed_generators(time.time_ns())  # the process may have done anything before
    cfg = Config(deepcopy(dict(BASE, custom_hooks=[dict(type='Record')], work_dir=str(folder))))
    for option in options:
        cfg.merge_from_dict(deepcopy(option))
    if resume is not None:
        cfg.merge_from_dict(dict(resume=True, load_from=str(resume)))
    runner = build_runner(cfg, argparse.Namespace(launcher='none', local_rank=0, brief=False), [])
    runner.train()
    record = next(hook for hook in runner.hooks if isinstance(hook, Record))
    return dict(
        steps=record.steps,
        validations=record.validations,
        state=torch.load(folder / 'iter_12.pth', weights_only=False),
    )


def assert_same(resumed: dict, whole: dict, first: int) -> None:
    assert list(resumed['steps']) == list(range(first, 12))
    for number, step in resumed['steps'].items():
        assert step == whole['steps'][number], number
    assert resumed['validations'] == [v for v in whole['validations'] if v[0] >= first]
    for entry in ('state_dict', 'optimizer', 'param_schedulers', 'ema_state_dict'):
        assert_equal(resumed['state'].get(entry), whole['state'].get(entry), entry)


def assert_equal(a: Any, b: Any, name: str) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), name
        for key in a:
            assert_equal(a[key], b[key], f'{name}.{key}')
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), name
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f'{name}.{index}')
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), name
    else:
        assert a == b, name


@pytest.mark.parametrize(
    'options',
    [
        pytest.param([SEED, EMA], id='epochs'),
        pytest.param([INFINITE, WORKERS], id='iterations'),
        pytest.param([PERSISTENT, ACCUMULATION], id='accumulation', marks=pytest.mark.slow),
        pytest.param([BY_ITERATION, GLOBAL_SAMPLER, EMA], id='passes'),
        pytest.param([FLEXIBLE, ACCUMULATION], id='flexible'),
        pytest.param([WRAPPERS, BATCH_SAMPLER, ONE_CYCLE], id='wrappers', marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_is_the_run_without_a_stop(options, tmp_path) -> None:
    """In the middle of an epoch or accumulation, and where epoch and validation end."""
    whole = train(tmp_path / 'whole', options)
    for done in (3, 8):
        checkpoint = tmp_path / 'whole' / f'iter_{done}.pth'
        assert_same(train(tmp_path / str(done), options, checkpoint), whole, first=done)


def test_batches_do_not_depend_on_workers_and_differ_in_every_epoch(tmp_path) -> None:
    alone, helped = train(tmp_path / 'a', [SEED]), train(tmp_path / 'b', [SEED, WORKERS])
    assert alone['steps'] == helped['steps']
    values = [value for _, batch, *_ in alone['steps'].values() for value in batch if value % 1]
    assert len(set(values)) == len(values) == 3 * 11 * 4


def test_the_log_says_why_a_run_is_not_the_one_without_a_stop(tmp_path, caplog) -> None:
    train(tmp_path, [SEED])
    path = tmp_path / 'iter_3.pth'
    checkpoint = torch.load(path, weights_only=False)

    def resumed(progress: Any, *options: dict) -> str:
        checkpoint['meta']['progress'] = progress
        torch.save(checkpoint, path)
        messages = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MMLogger, 'warning', lambda self, text, *args: messages.append(text))
            train(tmp_path / 'resumed', [SEED, *options], path)
        return '\n'.join(messages)

    progress = checkpoint['meta']['progress']
    assert 'not exactly' not in resumed(progress)
    assert 'not exactly' in (text := resumed(None)) and 'older mmvars' in text
    assert 'processes was 2, is 1' in resumed(progress | dict(processes=2))
    text = resumed(progress, dict(train_dataloader=dict(batch_size=6)))
    assert 'batches_per_epoch was 4, is 2' in text
    for wrong in (
        [],
        dict(gradients=None),
        progress | dict(processes='2'),
        progress | dict(gradients={'net.0.weight': torch.zeros(2)}),
        progress | dict(gradients={'net.0.weight': 0.5}),
        progress | dict(gradients={'none': torch.zeros(2)}),
    ):
        with pytest.raises(InputError, match=r'iter_3.pth.*meta.progress'):
            resumed(wrong)


def test_the_flexible_runner_refuses_what_the_strict_one_does(tmp_path) -> None:
    """And falls back from a damaged file; the log says what a sharded strategy does itself."""
    train(tmp_path, [FLEXIBLE])
    path, changed = tmp_path / 'iter_3.pth', tmp_path / 'changed.pth'
    for entry, change in (
        ('optimizer', lambda state: state.update(optimizer=None)),
        ('lr', lambda state: state['optimizer']['param_groups'][0].update(lr='x')),
        ('message_hub', lambda state: state['message_hub'].update(runtime_info=[1])),
        ('weights only', lambda state: state.pop('optimizer')),
    ):
        state = torch.load(path, weights_only=False)
        change(state)
        torch.save(state, changed)
        with pytest.raises(InputError, match=entry):
            train(tmp_path / 'changed', [FLEXIBLE], changed)
    (tmp_path / 'iter_12.pth').write_bytes(b'PK')
    cfg = Config(dict(work_dir=str(tmp_path), runner_type='FlexibleRunner'))
    changed.unlink()
    assert _newest_state(cfg)[0] == str(tmp_path / 'iter_11.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path))
    assert _newest_state(cfg) == (str(tmp_path), [])  # the folder of a strategy
