"""``tools/train.py`` and ``mmvars train``: train a segmentor or a classifier from a config."""

import glob
import logging
import os
import re
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import OPTIMIZERS

from mmvars.datasets import check_data_roots
from mmvars.engine.checks import check_num_classes, check_warmups
from mmvars.engine.errors import user_errors
from mmvars.engine.hooks import SaveOnInterruptHook, ensure_lipschitz_hook
from mmvars.engine.options import parse_cfg_options
from mmvars.engine.runner import (
    build_runner,
    closing_process_group,
    load_config,
    set_work_dir,
)
from mmvars.engine.safe_load import check_source, load_from_local
from mmvars.engine.shorthands import class_name
from mmvars.engine.strict import is_training_state
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
    logging.raiseExceptions = False  # a log on a full disk is not worth a traceback a line
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
    notes += _set_resume(cfg, args.resume)
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


def _set_resume(cfg: Config, resume: str | None) -> list[str]:
    """Decide what to resume from.

    Where there is no checkpoint yet, ``resume = True`` in a config starts a new run, as with
    mmengine; the flag does not.

    Returns:
        Lines for the log.
    """
    if resume is None and not cfg.get('resume'):
        if cfg.get('load_from'):
            check_source(cfg, cfg.load_from, 'load_from')
        return []
    path = cfg.get('load_from') if resume is None else resume
    notes = []
    if path not in (None, 'auto'):
        check_source(cfg, path, '--resume checkpoint')
    else:
        path, faults = _newest_state(cfg)
        if path is None and resume is None and not faults:
            cfg.resume = False
            return []
        if path is None:
            raise InputError(
                f'--resume: there is nothing to resume in {cfg.work_dir!r} '
                f'({"; ".join(faults[:3]) or "no last_checkpoint"}): check --work-dir, name a '
                'checkpoint, or start a new run without --resume'
            )
        if faults:
            notes = [f'resuming from {path}, the newest that can be loaded: {"; ".join(faults)}']
    cfg.resume = True
    cfg.load_from = path
    return notes


def _newest_state(cfg: Config) -> tuple[str | None, list[str]]:
    """What ``last_checkpoint`` names, else the newest training state that can be loaded.

    Returns:
        The path, and what was wrong with those before it.
    """
    work_dir, faults = Path(cfg.work_dir), []
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    folders = {work_dir, Path(hook.get('out_dir') or cfg.work_dir, work_dir.name)}
    names = {'*.pth', re.sub(r'\{.*?\}', '*', glob.escape(hook.get('filename_tmpl') or '*.pth'))}
    paths = [
        path for folder in folders for name in names for path in folder.glob(name) if path.is_file()
    ]
    paths.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    last = ''
    try:
        last = (work_dir / 'last_checkpoint').read_text(errors='replace').strip()
    except OSError as error:
        if paths:
            faults = [f'last_checkpoint cannot be read ({error.strerror})']
    else:
        here = work_dir / os.path.basename(last)  # where the work dir was moved since
        other_runner = cfg.get('runner_type') not in (None, 'FlexibleRunner')
        if '://' in last or os.path.isdir(last) or other_runner:  # DeepSpeed writes folders
            return last, []
        paths.insert(0, Path(last) if os.path.exists(last) else here)
    for path in dict.fromkeys(paths):
        try:
            if is_training_state(load_from_local(str(path), 'cpu')):
                return str(path), faults
            if path.name == os.path.basename(last):
                faults.append(f'{path}, named in last_checkpoint, holds weights only')
        except InputError as error:
            faults.append(str(error))
    return None, faults
