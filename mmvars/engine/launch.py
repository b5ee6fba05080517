"""What the train and test tools share: arguments, config, environment, Runner, error messages."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmvars.engine.cfg_options import check_options
from mmvars.engine.cpu import adapt_to_cpu
from mmvars.engine.failures import explain, unquoted
from mmvars.engine.hooks import TrainingInterrupted
from mmvars.engine.overrides import apply_overrides
from mmvars.engine.runner import StrictRunner, use_safe_loading
from mmvars.errors import InputError
from mmvars.resources import config_path

__all__ = ['add_cfg_options', 'add_common_arguments', 'build_runner', 'clear_errors',
           'is_segmentation', 'load_config', 'set_work_dir']

_LOG_LEVELS = ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL', 'NOTSET')


class _Options(DictAction):
    """mmengine's ``KEY=VALUE`` action, with a message for arguments that are not of that form."""

    def __call__(self, parser, namespace, values, option_string=None):
        for value in [values] if isinstance(values, str) else values:
            if '=' not in value or value.startswith('='):
                raise argparse.ArgumentError(self, f'{value!r} is not of the form KEY=VALUE')
        try:
            super().__call__(parser, namespace, values, option_string)
        except AssertionError as error:
            raise argparse.ArgumentError(self, str(error)) from None


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that training and testing share, as MMSegmentation's tools name them."""
    parser.add_argument('--work-dir', help='folder for logs and results '
                        '(default: work_dir of the config, else work_dirs/<config name>)')
    add_cfg_options(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='how the processes of a distributed run were started')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help='set by launchers; not for hand use')


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options`` alone."""
    parser.add_argument('--cfg-options', nargs='+', action=_Options, metavar='KEY=VALUE',
                        help='override settings of the config, such as '
                        'train_dataloader.batch_size=4; lists are written "[a,b]" or a,b without '
                        'spaces. Shorthands that set all that depends on them: '
                        'data_root, crop_size, img_scale, arch, mixer, max_iters, max_epochs')


def load_config(args: argparse.Namespace) -> tuple[Config, list[str]]:
    """Read the config that the arguments name, with their ``--cfg-options`` and launcher.

    Args:
        args: Parsed arguments with ``config``, ``cfg_options``, ``launcher`` and ``local_rank``.

    Returns:
        The config, and lines for the log that say what followed from the options.

    Raises:
        InputError: If the file does not exist or cannot be parsed, or an option names nothing.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    path = config_path(args.config)
    try:
        cfg = Config.fromfile(str(path))
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a text config is Python: it can fail in any way
        raise InputError(f'config {path} cannot be read: {type(error).__name__}: '
                         f'{error}') from error
    options = args.cfg_options or {}
    try:
        check_options(cfg, options)
        notes = apply_overrides(cfg, options)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f'--cfg-options cannot be merged into {path.name}: '
                         f'{unquoted(error)}') from error
    except ImportError as error:  # configs that are imported resolve their imports late
        raise InputError(f'config {path} cannot be read: {type(error).__name__}: '
                         f'{error}') from error
    if cfg.get('log_level', 'INFO') not in _LOG_LEVELS:
        raise InputError(f'log_level must be one of {", ".join(_LOG_LEVELS)}, got '
                         f'{cfg.log_level!r}')
    if not isinstance(cfg.get('model'), dict):
        raise InputError(f'config {path} defines no model: give a complete config, not a part of '
                         '_base_')
    cfg.launcher = args.launcher
    return cfg, notes


def set_work_dir(cfg: Config, args: argparse.Namespace) -> None:
    """Decide ``cfg.work_dir``: the flag, else the config, else ``work_dirs/<config name>``."""
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(args.config).stem)
    if os.path.exists(cfg.work_dir) and not os.path.isdir(cfg.work_dir):
        raise InputError(f'--work-dir {cfg.work_dir!r} is a file: give a folder')


def is_segmentation(cfg: Config) -> bool:
    """Whether a config is for MMSegmentation (its models have a decode head)."""
    model = cfg.model.get('module', cfg.model)
    return 'decode_head' in model


def build_runner(cfg: Config, notes: list[str]) -> Runner:
    """Build the Runner of a config, on whatever accelerators there are.

    Args:
        cfg: Complete config; changed in place where there is no accelerator.
        notes: Lines for the log, written when there is one.

    Returns:
        :class:`~mmvars.engine.runner.StrictRunner`, or what ``runner_type`` names.
    """
    use_safe_loading()
    notes = notes + adapt_to_cpu(cfg)
    if 'runner_type' in cfg:
        notes.append(f'runner_type {cfg.runner_type}: checkpoints are loaded by its own rules')
        runner = RUNNERS.build(cfg)
    else:
        runner = StrictRunner.from_cfg(cfg)
    for note in notes:
        runner.logger.info(note)
    return runner


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn failures that a config causes into :class:`InputError`; leave all others alone.

    Which those are, :mod:`mmvars.engine.failures` says. The traceback remains as the cause
    (``MMVARS_DEBUG=1``). A process group is closed on the way out.
    """
    try:
        try:
            yield
        except TrainingInterrupted:  # all ranks agreed on it
            _wait_for_all()
            raise
        _wait_for_all()
    except InputError:
        raise
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        raise InputError(message) from error
    finally:
        if dist.is_initialized():  # left open, its threads can abort the process at exit
            dist.destroy_process_group()


def _wait_for_all() -> None:
    """A barrier whose handle lives as long as the interpreter.

    Gloo's threads outlive ``destroy_process_group`` while a DDP model is alive. One that drops the
    last reference to a finished operation needs Python's lock for that, and if the interpreter is
    shutting down by then, it aborts the process (seen in 1 of 10 runs on a busy machine).
    """
    if dist.is_initialized():
        work = dist.barrier(async_op=True)
        _LAST_WORK.append(work)
        work.wait()


_LAST_WORK: list = []
