"""``tools/train.py`` and ``mmvars train``: train a segmentor or a classifier from a config."""

import argparse
import os
from copy import deepcopy

from mmengine.config import Config
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner, find_latest_checkpoint

from mmvars.datasets import check_data_roots
from mmvars.engine.hooks import SaveOnInterruptHook
from mmvars.engine.launch import (add_common_arguments, build_runner, clear_errors, load_config,
                                  set_work_dir)
from mmvars.engine.safe_load import check_checkpoint_file
from mmvars.engine.step_size import ensure_step_size_hook
from mmvars.errors import InputError, check_number

__all__ = ['main']


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description='Train a model. Ctrl-C finishes the step, saves a '
                                     'checkpoint and leaves; --resume goes on from it.')
    parser.add_argument('config', help='config file, or the name of one that mmvars ships')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT',
                        help='go on from a checkpoint; without a name (or with "auto") from the '
                        'last one in the work dir')
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument('--no-validate', action='store_true',
                        help='do not validate while training')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate by '
                        'the real batch size over auto_scale_lr.base_batch_size')
    add_common_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Train as the command line says.

    Args:
        argv: Arguments; None means the command line's.

    Returns:
        Exit status 0. After SIGINT or SIGTERM the process ends with status 130 or 143 instead
        (:class:`~mmvars.engine.hooks.TrainingInterrupted`).

    Raises:
        InputError: On arguments, a config or files that cannot be used. Nothing has been changed
            on disk then, but for a new log folder in the work dir where the model or data sets
            could not be built.
    """
    args = _parser().parse_args(argv)
    cfg, notes = load_config(args)
    if cfg.get('train_dataloader') is None or cfg.get('train_cfg') is None:
        raise InputError(f'config {args.config!r} has no train_dataloader and train_cfg: it is for '
                         'testing only')
    for key in ('max_iters', 'max_epochs', 'val_interval'):
        if key in cfg.train_cfg:
            check_number(f'train_cfg.{key}', cfg.train_cfg[key], 1, whole=True)
    set_work_dir(cfg, args)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        _use_amp(cfg)
    if args.auto_scale_lr:
        _use_auto_scale_lr(cfg)
    _set_resume(cfg, args.resume)
    _add_interrupt_hook(cfg)
    with clear_errors():
        check_data_roots(cfg)
        runner = build_runner(cfg, notes)
        _check_optimizer(cfg)
        ensure_step_size_hook(runner)
        _catch_signals_early(runner)
        runner.train()
    return 0


def _check_optimizer(cfg: Config) -> None:
    """Look the optimiser up: mmengine takes one that it does not find for a class named None."""
    optimizer = cfg.optim_wrapper.get('optimizer')
    kind = optimizer.get('type') if isinstance(optimizer, dict) else None
    if not isinstance(kind, str):
        return
    with OPTIMIZERS.switch_scope_and_registry(None) as registry:
        if registry.get(kind) is None:
            raise InputError(f'config: optim_wrapper.optimizer.type {kind!r} is not known: check '
                             'its spelling, as in torch.optim')


def _use_amp(cfg: Config) -> None:
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if kind == 'AmpOptimWrapper':
        return
    if kind != 'OptimWrapper':
        raise InputError('--amp works with optim_wrapper type OptimWrapper, the config has '
                         f'{kind}: set up mixed precision in the config')
    wrapper.type = 'AmpOptimWrapper'
    wrapper.setdefault('loss_scale', 'dynamic')


def _use_auto_scale_lr(cfg: Config) -> None:
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise InputError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config: the '
                         'batch size that its learning rate is meant for')
    cfg.auto_scale_lr.enable = True


def _set_resume(cfg: Config, resume: str | None) -> None:
    """Decide what to resume from, so that a run never silently starts from scratch instead."""
    if resume is None and not cfg.get('resume'):
        if cfg.get('load_from'):
            check_checkpoint_file(cfg.load_from, 'load_from')
        return
    path = cfg.get('load_from') if resume is None else resume
    if path in (None, 'auto'):
        path = find_latest_checkpoint(cfg.work_dir) if os.path.isdir(cfg.work_dir) else None
        if path is None:
            raise InputError(f'--resume: there is nothing to resume in {cfg.work_dir!r} (no '
                             'last_checkpoint): check --work-dir, name a checkpoint, or leave '
                             '--resume out to start a new run')
        here = os.path.join(cfg.work_dir, os.path.basename(path))
        if not os.path.exists(path) and os.path.exists(here):
            path = here  # the work dir was moved after last_checkpoint was written
    check_checkpoint_file(path, '--resume checkpoint')
    cfg.resume = True
    cfg.load_from = path


def _add_interrupt_hook(cfg: Config) -> None:
    hooks = deepcopy(cfg.get('custom_hooks') or [])
    if all(hook.get('type') != 'mmvars.SaveOnInterruptHook' for hook in hooks):
        hooks.append(dict(type='mmvars.SaveOnInterruptHook'))
    cfg.custom_hooks = hooks


def _catch_signals_early(runner: Runner) -> None:
    # Before data workers start (with the loops), so that they inherit the handler.
    for hook in runner.hooks:
        if isinstance(hook, SaveOnInterruptHook):
            hook.install()
