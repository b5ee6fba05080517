"""``tools/train.py`` and ``mmvars train``: train a segmentor or a classifier from a config."""

import os
from copy import deepcopy

from mmengine.config import Config
from mmengine.registry import OPTIMIZERS
from mmengine.runner import find_latest_checkpoint

from mmvars.datasets import check_data_roots
from mmvars.engine.checks import check_num_classes, check_warmups
from mmvars.engine.errors import user_errors
from mmvars.engine.hooks import SaveOnInterruptHook, ensure_lipschitz_hook
from mmvars.engine.options import class_name, parse_cfg_options
from mmvars.engine.runner import (
    build_runner,
    closing_process_group,
    load_config,
    set_work_dir,
)
from mmvars.engine.safe_load import check_checkpoint_file
from mmvars.errors import InputError, check_number
from mmvars.parsers.train import parse_args

__all__ = ['main']


def main(argv: list[str] | None = None) -> int:
    """Train as the command line says; returns the exit status 0.

    Raises:
        InputError: On arguments, a config or files that cannot be used. Nothing has been changed
            on disk then, but for a new log folder in the work dir.
        TrainingInterrupted: After SIGINT, SIGTERM or SIGHUP.
    """
    args = parse_args(argv)
    cfg, notes = load_config(args.config, parse_cfg_options(args.cfg_options))
    if cfg.get('train_dataloader') is None or cfg.get('train_cfg') is None:
        raise InputError(
            f'config {args.config!r} has no train_dataloader and train_cfg: it is for testing only'
        )
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
    cfg.custom_hooks = deepcopy(cfg.get('custom_hooks') or [])
    if not any(class_name(hook.get('type')) == 'SaveOnInterruptHook' for hook in cfg.custom_hooks):
        cfg.custom_hooks.append(dict(type='mmvars.SaveOnInterruptHook'))
    with closing_process_group():
        with user_errors():
            check_data_roots(cfg)
            _check_optimizer(cfg)
            runner = build_runner(cfg, args, notes)
        ensure_lipschitz_hook(runner)
        for hook in runner.hooks:
            if isinstance(hook, SaveOnInterruptHook):
                hook.install()  # before data workers start, so that they inherit the handler
        with user_errors(is_first_step=lambda: runner.iter == 0):
            check_num_classes(runner)
            check_warmups(runner)
            runner.train()
    return 0


def _check_optimizer(cfg: Config) -> None:
    """Look the optimizer up: mmengine takes one that it does not find for a class named None."""
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer')
    kind = optimizer.get('type') if isinstance(optimizer, dict) else None
    if not isinstance(kind, str):
        return
    with OPTIMIZERS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        if registry.get(kind) is None:
            raise InputError(
                f'config: optim_wrapper.optimizer.type {kind!r} is not known: check '
                'its spelling, as in torch.optim'
            )


def _use_amp(cfg: Config) -> None:
    kind = class_name(cfg.optim_wrapper.get('type', 'OptimWrapper'))
    if kind == 'AmpOptimWrapper':
        return
    if kind != 'OptimWrapper':
        raise InputError(
            '--amp works with optim_wrapper type OptimWrapper, the config has '
            f'{kind}: set up mixed precision in the config'
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def _use_auto_scale_lr(cfg: Config) -> None:
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise InputError(
            '--auto-scale-lr needs auto_scale_lr.base_batch_size in the config: the '
            'batch size that its learning rate is meant for'
        )
    cfg.auto_scale_lr.enable = True


def _set_resume(cfg: Config, resume: str | None) -> None:
    """Decide what to resume from.

    Where there is no checkpoint yet, ``resume = True`` in a config starts a new run, as with
    mmengine; the flag does not.
    """
    if resume is None and not cfg.get('resume'):
        if cfg.get('load_from'):
            check_checkpoint_file(cfg.load_from, 'load_from')
        return
    path = cfg.get('load_from') if resume is None else resume
    if path in (None, 'auto'):
        path = find_latest_checkpoint(cfg.work_dir) if os.path.isdir(cfg.work_dir) else None
        if path is None and resume is None:
            cfg.resume = False
            return
        if path is None:
            raise InputError(
                f'--resume: there is nothing to resume in {cfg.work_dir!r} (no '
                'last_checkpoint): check --work-dir, name a checkpoint, or leave '
                '--resume out to start a new run'
            )
        here = os.path.join(cfg.work_dir, os.path.basename(path))
        if not os.path.exists(path) and os.path.exists(here):
            path = here  # the work dir was moved after last_checkpoint was written
    check_checkpoint_file(path, '--resume checkpoint')
    cfg.resume = True
    cfg.load_from = path
