"""Config, environment and Runner of the train and test tools."""

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import CheckpointLoader, Runner

from mmvars.engine.brief import brief_console
from mmvars.engine.cpu import setup_cpu
from mmvars.engine.errors import building
from mmvars.engine.flexible import StrictFlexibleRunner
from mmvars.engine.hooks import TrainingInterrupted
from mmvars.engine.options import apply_options
from mmvars.engine.processes import end_with_parent
from mmvars.engine.resume import adopt_seed
from mmvars.engine.safe_load import check_source, load_from_local
from mmvars.engine.strict import StrictRunner
from mmvars.errors import InputError, check_choice
from mmvars.resources import config_path

__all__ = [
    'build_runner',
    'closing_process_group',
    'load_config',
    'set_for_test',
    'set_work_dir',
]

_LOG_LEVELS = ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL', 'NOTSET')
_LAST_WORK: list = []


def load_config(
    name: str, cfg_options: Mapping[str, Any] | None = None
) -> tuple[Config, list[str]]:
    """Read a config, by path or by the name of a shipped one, with ``--cfg-options`` in it.

    Returns:
        The config, and lines for the log that say what followed from the options.

    Raises:
        InputError: If the file does not exist or cannot be parsed, or an option names nothing.
    """
    path = config_path(name)
    try:
        cfg = Config.fromfile(str(path))
        notes = apply_options(cfg, cfg_options)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a config is Python: it can fail in any way
        options = ' with these --cfg-options' if cfg_options else ''
        raise InputError(
            f'config {path} cannot be read{options}: {type(error).__name__}: {error}'
        ) from error
    if not isinstance(cfg.get('model'), dict):
        raise InputError(
            f'config {path} defines no model: give a complete config, not a part of _base_'
        )
    check_choice('log_level', cfg.get('log_level', 'INFO'), _LOG_LEVELS)
    return cfg, notes


def set_work_dir(cfg: Config, args: argparse.Namespace) -> None:
    """Decide ``cfg.work_dir``: the flag, else the config, else ``work_dirs/<config name>``."""
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(args.config).stem)
    if os.path.exists(cfg.work_dir) and not os.path.isdir(cfg.work_dir):
        raise InputError(f'--work-dir {cfg.work_dir!r} is a file: give a folder')


def set_for_test(cfg: Config, args: argparse.Namespace) -> None:
    """Leave of a config what a test of ``args.checkpoint`` needs.

    Training parts would be built for nothing, and their data need not be on a test machine.

    Raises:
        InputError: If there is nothing to test, or no such checkpoint.
    """
    if cfg.get('test_dataloader') is None or cfg.get('test_cfg') is None:
        raise InputError(f'config {args.config!r} has no test_dataloader and test_cfg')
    check_source(cfg, args.checkpoint, 'checkpoint')
    cfg.load_from, cfg.resume = args.checkpoint, False
    for part in ('dataloader', 'cfg', 'evaluator'):
        cfg[f'train_{part}'] = cfg[f'val_{part}'] = None
    cfg.optim_wrapper = cfg.param_scheduler = None


def _check_work_dir(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            f'the work dir {folder!r} cannot be written ({error.strerror}): give another --work-dir'
        ) from None


def build_runner(cfg: Config, args: argparse.Namespace, notes: list[str]) -> Runner:
    """Build the Runner of a config: a :class:`StrictRunner`, or what ``runner_type`` names.

    ``runner_type='FlexibleRunner'`` is :class:`StrictFlexibleRunner`.

    Checkpoints that this process loads or downloads go through the safe reader from here on: those
    that a config names are as untrusted as those of the command line.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    _check_work_dir(cfg.work_dir)
    end_with_parent()
    cfg.launcher = args.launcher
    CheckpointLoader.register_scheme(['', 'http://', 'https://'], load_from_local, force=True)
    notes = notes + setup_cpu(cfg) + adopt_seed(cfg)
    console = brief_console() if args.brief else nullcontext()
    with building('the Runner'), console:
        if 'runner_type' not in cfg:
            runner = StrictRunner.from_cfg(cfg)
        elif cfg.runner_type == 'FlexibleRunner':
            cfg.setdefault('env_cfg', {})  # mmengine has no default that works
            runner = StrictFlexibleRunner.from_cfg(cfg)
        else:
            notes.append(f'runner_type {cfg.runner_type}: checkpoints are loaded by its own rules')
            runner = RUNNERS.build(cfg)
    for note in notes:
        runner.logger.info(note)
    return runner


@contextmanager
def closing_process_group() -> Iterator[None]:
    """Close the process group of a distributed run on the way out.

    Left open, its threads can abort the process at exit. They outlive
    ``destroy_process_group`` while a DDP model is alive, and one that drops the last reference to a
    finished operation while the interpreter shuts down aborts it too; so the handle of a last
    barrier is kept.
    """
    in_step = False  # whether all ranks come here
    try:
        yield
        in_step = True
    except TrainingInterrupted:
        in_step = True
        raise
    finally:
        if dist.is_initialized():
            if in_step:
                _LAST_WORK.append(dist.barrier(async_op=True))
                _LAST_WORK[-1].wait()
            dist.destroy_process_group()
