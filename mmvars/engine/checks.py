"""What is checked of a training run once its Runner is built, before the first step."""

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from mmengine.runner import Runner

from mmvars.datasets.checks import dataset_entries
from mmvars.engine.shorthands import class_entries, class_name
from mmvars.errors import InputError

__all__ = ['check_answers', 'check_num_classes', 'check_warmups']

_LOW_SHARE = 0.1
"""A run whose learning rate never reaches this share of the optimizer's is warned about."""


def check_answers(answers: Sequence[str] | None, trained: Sequence[str] | None) -> None:
    """Refuse a vocabulary that a model was not trained with: each of its answers would be another.

    Args:
        answers: Of the data.
        trained: Those that the checkpoint names; ``None``: it names none.

    Raises:
        InputError: With the first answer that differs.
    """
    pairs = zip_longest(answers or (), trained or ())
    others = [(k, a, b) for k, (a, b) in enumerate(pairs) if a != b]
    if answers and trained and others:
        number, answer, expected = others[0]
        raise InputError(
            f'the data set has other answers than the checkpoint was trained with, in {len(others)}'
            f' places: number {number} is {answer!r}, was {expected!r}. Set its answer_file (or '
            'metainfo.classes) to the vocabulary of the training'
        )


def check_num_classes(runner: Runner) -> None:
    """Refuse heads, losses and label checks that count other classes than one another or the data.

    Such a model trains: with too many outputs in silence, with too few until such a label comes.

    Raises:
        InputError: With all numbers, and the options that correct them.
    """
    cfg = runner.cfg
    loaders = {'train_dataloader': runner.train_dataloader}
    if runner.val_loop is not None:
        loaders['val_dataloader'] = runner.val_dataloader
    counts = {
        f'{path}.num_classes': node['num_classes']
        for path, node in class_entries(cfg)
        if path.partition('.')[0] in ('model', *loaders)
        and not {'data_preprocessor', 'train_cfg'} & {*path.split('.')}  # used by few recipes
    }
    in_model = [count for path, count in counts.items() if path.startswith('model.')]
    in_data, names = {}, []
    for key, loader in loaders.items():
        if classes := (getattr(loader.dataset, 'metainfo', None) or {}).get('classes'):
            in_data[f'{key}.dataset'] = len(classes)
            names += [path for path, _ in dataset_entries(cfg[key].dataset, f'{key}.dataset')]
    if not in_model or len({*counts.values(), *in_data.values()}) == 1:
        return
    remedies = [f'{path}.metainfo.classes=NAME,NAME,...' for path in names]
    if len({*in_data.values()}) < 2:
        expected = next(iter(in_data.values()), in_model[0])
        remedies.insert(0, f'--cfg-options num_classes={expected}{" or else" * bool(names)}')
    listed = ', '.join(f'{path}={count}' for path, count in counts.items())
    of_data = ''.join(f', {path} has {count} classes' for path, count in in_data.items())
    raise InputError(
        f'config: the numbers of classes differ: {listed}{of_data}. Set {" ".join(remedies)}'
    )


def check_warmups(runner: Runner) -> None:
    """Drop warm-ups of a single step, and warn of those that the run does not get out of.

    A warm-up of one step ends before mmengine raises the rate, which then stays at its first value.
    """
    runner.param_schedulers = _without_short_warmups(runner.param_schedulers, runner)


def _without_short_warmups(schedules: Any, runner: Runner) -> Any:
    if isinstance(schedules, dict) and 'type' not in schedules:  # of several optimizers
        return {name: _without_short_warmups(part, runner) for name, part in schedules.items()}
    if not isinstance(schedules, dict | list | tuple):
        return schedules
    kept, share, hint = [], 1.0, ''
    for schedule in [schedules] if isinstance(schedules, dict) else schedules:
        kind = class_name(schedule.get('type')) if isinstance(schedule, dict) else ''
        if kind not in ('LinearLR', 'ConstantLR') or schedule.get('begin'):
            kept.append(schedule)
            continue
        by_epoch = schedule.get('by_epoch', True)
        length = runner.max_epochs if by_epoch else runner.max_iters
        scale = len(runner.train_dataloader) if schedule.get('convert_to_iter_based') else 1
        steps = schedule.get('end', length) * scale
        if steps < 2:
            runner.logger.info(f'param_scheduler: a warm-up of one step is left out: {schedule}')
            continue
        progress = min(1.0, (length * scale - 1) / (steps - 1))
        if kind == 'ConstantLR':
            progress = math.floor(progress)
        start = schedule.get('start_factor', schedule.get('factor', 1 / 3))
        share *= start + (schedule.get('end_factor', 1.0) - start) * progress
        hint = f'param_scheduler.{len(kept)}.end={max(1, length // 10)}'
        kept.append(schedule)
    if share < _LOW_SHARE:
        runner.logger.warning(
            f'param_scheduler: all of this run is warm-up, with at most {share:.2g} of the '
            f'learning rate. Let the warm-up end within it, as with --cfg-options {hint}'
        )
    return kept
