"""Checks of a training run before its first step: warm-ups, and numbers of classes."""

import logging
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS

from mmvars.engine.checks import check_num_classes, check_warmups
from mmvars.engine.options import apply_options
from mmvars.errors import InputError

read = cache(Config.fromfile)  # takes longer than the tests
CONFIGS = Path(__file__).parents[2] / 'configs'


def runner_of(
    cfg: Config, num_batches: int = 10, train: int | None = None, val: int | None = None
) -> SimpleNamespace:
    """A built Runner as far as the checks look at one; ``train``, ``val``: classes of the data."""

    class Loader(list):
        def __init__(self, count: int | None) -> None:
            super().__init__(range(num_batches))
            metainfo = {} if count is None else dict(classes=['x'] * count)
            self.dataset = SimpleNamespace(metainfo=metainfo)

    epochs = cfg.get('train_cfg', {}).get('max_epochs', 1)
    return SimpleNamespace(
        cfg=cfg,
        logger=logging.getLogger('checks'),
        param_schedulers=cfg.get('param_scheduler'),
        max_epochs=epochs,
        max_iters=cfg.get('train_cfg', {}).get('max_iters', epochs * num_batches),
        train_dataloader=Loader(train),
        val_dataloader=Loader(val),
        val_loop=object() if 'val_dataloader' in cfg else None,
    )


def learning_rates(runner: SimpleNamespace) -> list[float]:
    """Rates of a run as the Runner steps its schedules, for a base rate of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    per_epoch, built = len(runner.train_dataloader), []
    for schedule in runner.param_schedulers:
        default = runner.max_epochs if schedule.get('by_epoch', True) else runner.max_iters
        options = {'end': default, **schedule, 'optimizer': optimizer}
        if options.pop('convert_to_iter_based', False):
            scheduler = PARAM_SCHEDULERS.get(options.pop('type'))
            built.append(scheduler.build_iter_from_epoch(**options, epoch_length=per_epoch))
        else:
            built.append(PARAM_SCHEDULERS.build(options))
    rates = []
    for step in range(1, runner.max_iters + 1):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for schedule in built:
            if not schedule.by_epoch or step % per_epoch == 0:
                schedule.step()
    return rates


class TestWarmups:
    @pytest.mark.parametrize('name', ['absvit_upernet_ade20k', 'absvit_upernet_cityscapes'])
    @pytest.mark.parametrize('key', ['max_iters', 'train_cfg.max_iters'])
    @pytest.mark.parametrize('max_iters', [1, 2, 8, 16, 19, 20, 25])
    def test_the_rate_rises_in_the_shortest_runs(self, name, key, max_iters):
        cfg = deepcopy(read(CONFIGS / f'{name}.py'))
        apply_options(cfg, {key: max_iters})
        runner = runner_of(cfg)
        check_warmups(runner)
        assert max(learning_rates(runner)) > 0.8

    @pytest.mark.parametrize('convert', [True, False])
    @pytest.mark.parametrize('num_batches', [1, 2, 7])
    @pytest.mark.parametrize('max_epochs', [1, 2, 9, 20, 31])
    def test_by_epoch(self, max_epochs, num_batches, convert):
        cfg = deepcopy(read(next((CONFIGS / 'absvit').glob('absvit-base-p16_8xb128*'))))
        apply_options(cfg, {'max_epochs': max_epochs})
        cfg.param_scheduler[0].convert_to_iter_based = convert
        runner = runner_of(cfg, num_batches)
        check_warmups(runner)
        assert max(learning_rates(runner)) > 0.8

    @pytest.mark.parametrize(
        'schedules',
        [
            dict(type='LinearLR', start_factor=1e-6, by_epoch=False, end=1),
            [dict(type='ConstantLR', factor=0.01, by_epoch=False, begin=0, end=1)],
        ],
    )
    def test_one_step_in_the_file_itself(self, schedules):
        runner = runner_of(Config(dict(train_cfg=dict(max_iters=16), param_scheduler=schedules)))
        check_warmups(runner)
        assert runner.param_schedulers == []

    def test_other_schedules_stay(self):
        schedules = [
            dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=2),
            dict(type='PolyLR', by_epoch=False, begin=0, end=1),
            dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=3, end=4),
        ]
        cfg = Config(dict(train_cfg=dict(max_iters=16), param_scheduler=schedules))
        runner = runner_of(cfg)
        check_warmups(runner)
        assert runner.param_schedulers == schedules
        runner.param_schedulers = dict(first=[*schedules], second=dict(schedules[0], end=1))
        check_warmups(runner)
        assert runner.param_schedulers == dict(first=schedules, second=[])
        runner.param_schedulers = None
        check_warmups(runner)
        assert runner.param_schedulers is None

    @pytest.mark.parametrize(
        'schedule, max_iters, warns',
        [
            (dict(type='LinearLR', start_factor=1e-6, end=1500, by_epoch=False), 16, True),
            (dict(type='LinearLR', start_factor=1e-6, end=1500, by_epoch=False), 200, False),
            (dict(type='LinearLR', start_factor=1e-6, end=16, by_epoch=False), 16, False),
            (dict(type='LinearLR', start_factor=1e-6, by_epoch=False), 16, False),  # ends with it
            (dict(type='ConstantLR', factor=1e-3, end=20, by_epoch=False), 16, True),
            (dict(type='ConstantLR', factor=1e-3, end=10, by_epoch=False), 16, False),
            # Steps once an epoch, and a loop of iterations has none.
            (dict(type='LinearLR', start_factor=1e-3, end=5), 16, True),
        ],
    )
    def test_a_run_within_its_warmup_is_warned_about(self, schedule, max_iters, warns, caplog):
        cfg = Config(dict(train_cfg=dict(max_iters=max_iters), param_scheduler=[schedule]))
        runner = runner_of(cfg, num_batches=100)
        check_warmups(runner)
        assert ('all of this run is warm-up' in caplog.text) == warns
        assert (max(learning_rates(runner)) < 0.1) == warns
        if warns:  # the remedy works
            key, value = caplog.text.strip().rpartition(' ')[2].split('=')
            apply_options(cfg, {key: int(value)})
            runner = runner_of(cfg, num_batches=100)
            check_warmups(runner)
            assert max(learning_rates(runner)) > 0.8


class TestNumClasses:
    @pytest.fixture
    def seg(self) -> Config:
        return deepcopy(read(CONFIGS / 'absvit_upernet_voc12.py'))

    @pytest.fixture
    def cls(self) -> Config:
        return deepcopy(read(next((CONFIGS / 'absvit').glob('absvit-base-p16_8xb128*'))))

    def test_equal_numbers_pass(self, seg, cls):
        check_num_classes(runner_of(seg, train=21, val=21))
        check_num_classes(runner_of(seg))  # data that do not say
        check_num_classes(runner_of(cls, train=1000, val=1000))
        assert apply_options(cls, {'num_classes': 7})
        check_num_classes(runner_of(cls, train=7, val=7))

    @pytest.mark.parametrize(
        'change, words',
        [
            ({'model.decode_head.num_classes': 22}, 'model.decode_head.num_classes=22, model.aux'),
            ({'model.auxiliary_head.num_classes': 20}, 'model.auxiliary_head.num_classes=20'),
            ({'train_dataloader.dataset.pipeline.2.num_classes': 150}, 'pipeline.2.num_classes=15'),
        ],
    )
    def test_heads_that_disagree_are_refused(self, seg, change, words):
        seg.merge_from_dict(change)
        with pytest.raises(InputError, match='the numbers of classes differ') as error:
            check_num_classes(runner_of(seg, train=21, val=21))
        assert words in str(error.value)
        assert 'train_dataloader.dataset has 21 classes' in str(error.value)
        assert '--cfg-options num_classes=21 or else train_dataloader' in str(error.value)
        assert '\n' not in str(error.value)
        apply_options(seg, {'num_classes': 21})  # the remedy
        check_num_classes(runner_of(seg, train=21, val=21))

    def test_data_of_other_classes_are_refused(self, seg, cls):
        for cfg, train, val in ((seg, 3, 3), (seg, 3, None), (cls, 6, 6)):
            with pytest.raises(InputError, match=f'Set --cfg-options num_classes={train} or'):
                check_num_classes(runner_of(cfg, train=train, val=val))
        with pytest.raises(InputError, match='. Set train_dataloader.dataset.metainfo.classes='):
            check_num_classes(runner_of(seg, train=21, val=3))

    def test_losses_of_other_classes_are_refused(self, cls):
        cls.model.head.num_classes = 3
        with pytest.raises(InputError, match='model.head.loss.num_classes=1000'):
            check_num_classes(runner_of(cls, train=3, val=3))

    def test_parts_with_classes_of_their_own_pass(self, seg):
        seg.model.backbone.prior = dict(type='class_prototype', num_classes=1000)
        seg.model.auxiliary_head = [
            seg.model.auxiliary_head,
            dict(type='mmseg.STDCHead', num_classes=2),
        ]
        check_num_classes(runner_of(seg, train=21, val=21))
        tasks = dict(a=dict(num_classes=2), b=dict(num_classes=5))
        seg.model = dict(head=dict(type='MultiTaskHead', task_heads=tasks))
        check_num_classes(runner_of(seg))

    def test_binary_segmentation_with_one_output_passes(self, seg):
        apply_options(seg, {'num_classes': 2})
        seg.model.decode_head.out_channels = 1
        check_num_classes(runner_of(seg, train=2, val=2))

    def test_every_head_of_a_cascade_is_seen(self, seg):
        seg.model.decode_head = [seg.model.decode_head, dict(type='OCRHead', num_classes=3)]
        with pytest.raises(
            InputError, match='decode_head.0.num_classes=21, .*head.1.num_classes=3'
        ):
            check_num_classes(runner_of(seg, train=21))
