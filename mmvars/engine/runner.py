"""Config, environment and Runner of the train and test tools; checkpoints are loaded strictly."""

import argparse
import errno
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial, reduce
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
import torch.distributed as dist
from mmengine._strategy import BaseStrategy, DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process, master_only
from mmengine.fileio import FileClient, LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import CheckpointLoader, FlexibleRunner, Runner, load_state_dict
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader

from mmvars.checkpoints.formats import MMVARS, mixer_meta, recorded_mixer
from mmvars.checkpoints.io import read_meta, tensor_fault
from mmvars.checkpoints.key_mapping import mixers_seen
from mmvars.checkpoints.load import check_constants
from mmvars.checkpoints.report import ConversionReport, Status
from mmvars.engine.brief import brief_console
from mmvars.engine.checkpoint_hook import KeepingCheckpointHook, told_by_main_process
from mmvars.engine.cpu import setup_cpu
from mmvars.engine.errors import building
from mmvars.engine.hooks import TrainingInterrupted
from mmvars.engine.options import apply_options
from mmvars.engine.processes import end_with_parent
from mmvars.engine.resume import adopt_seed, build_train_loop, progress_meta, resume_progress
from mmvars.engine.safe_load import load_from_local
from mmvars.engine.samples import check_pipelines
from mmvars.engine.training_state import check_training_state
from mmvars.errors import InputError, check_choice
from mmvars.networks import Trunk, rename_old_keys
from mmvars.resources import config_path
from mmvars.write import WriteError, whole_or_nothing, write_text

__all__ = [
    'StrictFlexibleRunner',
    'StrictRunner',
    'allowed_constants',
    'build_runner',
    'closing_process_group',
    'is_training_state',
    'load_config',
    'set_work_dir',
]

_LOG_LEVELS = ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL', 'NOTSET')
_KINDS = {
    'unexpected key in source state_dict': Status.UNEXPECTED,
    'missing keys in source state_dict': Status.MISSING,
}
_DISK_ERRORS = (errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EROFS)
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


def allowed_constants(cfg: Mapping) -> tuple[str, ...]:
    """Constants of the mixer in which a config lets a checkpoint differ: ``allow_constants``."""
    names = cfg.get('allow_constants') or ()
    return (names,) if isinstance(names, str) else tuple(map(str, names))


def _naming(section: str, build: Callable) -> Callable:
    """A method of the Runner that builds a part, with errors that name the part's section."""

    def build_part(self: Runner, cfg: Any) -> Any:
        with building(section):
            return build(self, cfg)

    return build_part


class StrictRunner(Runner):
    """A Runner that refuses checkpoints which do not fit, where mmengine only logs them.

    Testing and resuming need every key to match. Fine-tuning (``load_from`` in training) may leave
    out or replace parts, such as a head with other classes, but must fill some of the backbone.

    No tensor shows how many steps a mixer makes, or how sparse its codes are: checkpoints say it in
    their ``meta``, and one that was made with other constants is refused, but for those that the
    config names in ``allow_constants``.
    """

    _training = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._stopped_hooks: list[Hook] = []
        super().__init__(*args, **kwargs)

    def train(self):
        self._training = True
        return super().train()

    @staticmethod
    def build_dataloader(*args: Any, **kwargs: Any) -> DataLoader:
        """Build a data loader whose errors name the files of the sample."""
        dataloader = Runner.build_dataloader(*args, **kwargs)
        check_pipelines(dataloader.dataset)
        return dataloader

    build_model = _naming('model', Runner.build_model)
    build_train_loop = _naming('train_dataloader or train_cfg', build_train_loop)
    build_val_loop = _naming('val_dataloader, val_cfg or val_evaluator', Runner.build_val_loop)
    build_test_loop = _naming('test_dataloader, test_cfg or test_evaluator', Runner.build_test_loop)
    build_optim_wrapper = _naming('optim_wrapper', Runner.build_optim_wrapper)
    build_param_scheduler = _naming('param_scheduler', Runner.build_param_scheduler)

    def dump_config(self) -> None:
        """Wait until all parts have proved usable: the file replaces that of an earlier run."""

    def load_or_resume(self) -> None:
        """Load what was asked for, and then write the config of a training run into the work dir.

        That of a test has lost its training parts, and may have augmentation around its model: it
        would take the place of the config that the checkpoints beside it were trained with.
        """
        super().load_or_resume()
        if self._training:
            name = os.path.basename(self.cfg.filename or f'{self.timestamp}.py')
            fault = None
            if is_main_process():
                try:
                    write_text(Path(self.work_dir, name), self.cfg.dump(), overwrite=True)
                except WriteError as error:
                    fault = error
            if not told_by_main_process(fault is None):
                raise fault or WriteError('the main process cannot write the config')

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = 'cpu',
        strict: bool | None = None,
        revise_keys: Sequence[tuple[str, str]] = ((r'^module.', ''),),
    ) -> dict:
        """Load a checkpoint into the model; ``strict`` None means: in testing and resuming.

        Raises:
            InputError: If it does not fit the model, or cannot be resumed from; then the model is
                as it was.
        """
        fine_tuning = self._training and not self._resume
        strict = not fine_tuning if strict is None else strict
        checkpoint = CheckpointLoader.load_checkpoint(filename, map_location, 'current')
        if self._resume:
            if not is_training_state(checkpoint):
                raise InputError(
                    f'checkpoint {filename!r} holds weights only, no training state to '
                    'resume from: use --cfg-options load_from=... to start from it'
                )
            try:
                check_training_state(checkpoint, self)
            except InputError as error:
                raise InputError(f'checkpoint {filename}: {error}') from None
        model = self.model.module if is_model_wrapper(self.model) else self.model
        before = {name: value.clone() for name, value in model.state_dict().items()}
        versions = self._versions() if fine_tuning else {}
        try:
            self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
            self._fill(model, checkpoint, filename, strict, revise_keys)
            if (trunk := self._trunk()) is not None:
                report = ConversionReport(f'checkpoint {filename!r}')
                recorded = recorded_mixer(read_meta(filename, checkpoint), report.title)
                check_constants(trunk, recorded, report, allowed_constants(self.cfg))
            if fine_tuning:
                self._check_fills_backbone(checkpoint, filename, versions)
            elif self._resume:
                resume_progress(self, checkpoint['meta'], filename)
        except BaseException:
            model.load_state_dict(before)
            raise
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint

    def _fill(
        self,
        model: nn.Module,
        checkpoint: dict,
        filename: str,
        strict: bool,
        revise_keys: Sequence[tuple[str, str]],
    ) -> None:
        """Copy the weights of a checkpoint into the model."""
        weights = checkpoint.get('state_dict', checkpoint)
        renamed = OrderedDict(
            (reduce(lambda name, rule: re.sub(*rule, name), revise_keys, key), value)
            for key, value in weights.items()
        )
        renamed._metadata = getattr(weights, '_metadata', None)  # type: ignore[attr-defined]
        for name, target in model.state_dict().items():
            if name in renamed and (fault := tensor_fault(renamed[name], target)):
                raise InputError(f'checkpoint {filename}: {name} is {fault}')
        try:
            load_state_dict(model, renamed, strict, 'current')
        except RuntimeError as error:
            if 'do not match exactly' not in str(error):
                raise
            report = _report_of(
                str(error), f'checkpoint {filename!r} into the model of this config'
            )
            report.raise_problems(
                f'{_other_mixer(report)}Use the config that it was trained with; '
                'a released or timm file goes through `mmvars convert` first'
            )

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call all hooks; in training, one that a full disk stops is left out with a warning.

        Logs and pictures are written by hooks too, and are worth less than the run.
        """
        for hook in self._hooks:
            if hasattr(hook, fn_name):
                try:
                    getattr(hook, fn_name)(self, **kwargs)
                except TypeError as error:
                    raise TypeError(f'{error} in {hook}') from None
                except OSError as error:
                    if not self._training or error.errno not in _DISK_ERRORS:
                        raise
                    if hook not in self._stopped_hooks:
                        self._stopped_hooks.append(hook)
                        self.logger.warning(
                            f'{type(hook).__name__} cannot write ({error}): its output is '
                            'incomplete until there is room; training goes on'
                        )

    def register_hook(self, hook: Hook | dict, priority: Any = None) -> None:
        super().register_hook(_keeping(hook), priority)

    @master_only
    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        meta: dict | None = None,
        backend_args: dict | None = None,
        **kwargs: Any,
    ) -> bool:
        """Write a checkpoint, in its place once it is whole and on the disk.

        The constants of the token mixer and :func:`progress_meta` go into ``meta`` too. A disk that
        refuses costs the checkpoint, not the run. Files of a remote backend are written as mmengine
        does.

        Returns:
            Whether the file was written; ``None`` in other processes than the main one.
        """
        trunk = self._trunk()
        return _save_whole(
            self,
            super().save_checkpoint,
            out_dir,
            filename,
            file_client_args=file_client_args,
            meta=({} if trunk is None else mixer_meta(trunk)) | progress_meta(self) | (meta or {}),
            backend_args=backend_args,
            **kwargs,
        )

    def _trunk(self) -> Trunk | None:
        return next((m for m in self.model.modules() if isinstance(m, Trunk)), None)

    def _versions(self) -> dict[str, int]:
        """How often each tensor of the backbone has been written to."""
        state = self.model.state_dict()
        return {name: state[key]._version for key, name in _network_names(state).items()}

    def _check_fills_backbone(
        self, checkpoint: dict, filename: str, before: Mapping[str, int]
    ) -> None:
        """Say what of the backbone is from a file for fine-tuning; refuse it if nothing is."""
        state = checkpoint.get('state_dict', checkpoint)
        source, target = _network_shapes(state), _network_shapes(self.model.state_dict())
        filled = [name for name, version in self._versions().items() if version > before[name]]
        resampled = [name for name in filled if source.get(name) != target[name]]
        initial = [name for name in target if name not in filled]
        parts = [f'{len(filled) - len(resampled)} are those of the file']
        parts += [f'{len(resampled)} resampled from it ({_first_of(resampled)})'] * bool(resampled)
        parts += [f'{len(initial)} keep initial values ({_first_of(initial)})'] * bool(initial)
        self.logger.info(
            f'load_from: of the {len(target)} tensors of the backbone {", ".join(parts)}'
        )
        if target and not filled:
            raise InputError(
                f'load_from {filename!r} fills no tensor of the backbone (its keys '
                f'are like {next(iter(state), None)!r}, the model has such as '
                f'{next(iter(self.model.state_dict()))!r}): convert it with `mmvars '
                'convert`, or give a file of a plain backbone to one with top-down attention by '
                '--cfg-options model.backbone.init_cfg.type=Pretrained '
                f'model.backbone.init_cfg.checkpoint={filename}'
            )


def is_training_state(checkpoint: dict) -> bool:
    """Whether a run can be resumed from a checkpoint, which may hold weights alone."""
    meta = checkpoint.get('meta')
    return (
        'optimizer' in checkpoint and isinstance(meta, Mapping) and {'epoch', 'iter'} <= meta.keys()
    )


class StrictFlexibleRunner(FlexibleRunner):
    """What ``runner_type='FlexibleRunner'`` stands for in ``mmvars train`` and ``mmvars test``.

    mmengine loads with ``strict=False`` and logs what does not fit. Here testing and resuming need
    every key to match, and the constants of the mixer are written and compared, as with
    :class:`StrictRunner`. Fine-tuning (``load_from`` in training) goes by
    mmengine's rules. DeepSpeed and ColossalAI read their own files themselves.
    """

    _training = False
    build_dataloader = staticmethod(StrictRunner.build_dataloader)

    def train(self) -> Any:
        self._training = True
        return super().train()

    def build_strategy(self, *args: Any, **kwargs: Any) -> BaseStrategy:
        strategy = super().build_strategy(*args, **kwargs)
        load = strategy.load_model_state_dict

        def load_strictly(state_dict: dict, strict: bool = False, **options: Any) -> None:
            fine_tuning = self._training and not self._resume
            try:
                load(state_dict, strict=strict or not fine_tuning, **options)
            except RuntimeError as error:  # mmengine's and torch's lists of keys and shapes
                if 'state dict' not in str(error) and 'state_dict' not in str(error):
                    raise
                raise InputError(
                    f'the checkpoint does not fit the model of this config: {error}\n'
                    'Use the config that it was trained with'
                ) from error

        strategy.load_model_state_dict = load_strictly
        if isinstance(strategy, FSDPStrategy):
            strategy.load_optim_state_dict = partial(_load_sharded_optimizer, strategy)
            strategy.build_optim_wrapper = partial(
                _with_whole_weights, strategy.build_optim_wrapper
            )
            if get_device() == 'cpu':  # torch would let both moments of Adam share one buffer
                strategy.optim_state_dict_config.offload_to_cpu = False
        return strategy

    def register_hook(self, hook: Hook | dict, priority: Any = None) -> None:
        super().register_hook(_keeping(hook), priority)

    def save_checkpoint(self, out_dir: str, filename: str, **kwargs: Any) -> bool:
        """As that of :class:`StrictRunner`; sharded strategies write as mmengine does."""
        if type(self.strategy) in (SingleDeviceStrategy, DDPStrategy) and is_main_process():
            return _save_whole(self, super().save_checkpoint, out_dir, filename, **kwargs)
        super().save_checkpoint(out_dir, filename, **kwargs)
        return True

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        trunk = next((m for m in self._modules() if isinstance(m, Trunk)), None)
        if trunk is not None and fn_name == 'before_save_checkpoint':
            checkpoint = kwargs['checkpoint']
            checkpoint['meta'] = mixer_meta(trunk) | checkpoint['meta']
        if trunk is not None and fn_name == 'after_load_checkpoint':
            report = ConversionReport('checkpoint')
            recorded = recorded_mixer(kwargs['checkpoint'].get('meta') or {}, report.title)
            check_constants(trunk, recorded, report, allowed_constants(self.cfg))
        super().call_hook(fn_name, **kwargs)

    def _modules(self) -> Any:
        """Of the model, which is a config until training or testing starts."""
        return self.strategy.model.modules() if self.strategy._prepared else ()


def _keeping(hook: Hook | dict) -> Hook | dict:
    """:class:`KeepingCheckpointHook` in the place of a plain ``CheckpointHook``."""
    if isinstance(hook, dict):
        kind = hook.get('type')
        with HOOKS.switch_scope_and_registry(hook.get('_scope_')) as registry:
            if (registry.get(kind) if isinstance(kind, str) else kind) is CheckpointHook:
                return dict(hook, type=KeepingCheckpointHook)
    return hook


def _save_whole(
    runner: Runner,
    save: Callable,
    out_dir: str,
    filename: str,
    file_client_args: dict | None = None,
    backend_args: dict | None = None,
    **kwargs: Any,
) -> bool:
    """Call mmengine's ``save`` of a checkpoint so that it appears at once; whether it did."""
    kwargs.update(file_client_args=file_client_args, backend_args=backend_args)
    if file_client_args is None:
        backend = get_file_backend(out_dir, backend_args=backend_args)
    else:
        backend = FileClient.infer_client(file_client_args, out_dir).client
    if not isinstance(backend, LocalBackend):
        save(out_dir, filename, **kwargs)
        return True
    try:
        os.makedirs(out_dir, exist_ok=True)
        with whole_or_nothing(Path(out_dir, filename), overwrite=True) as file:
            save(out_dir, os.path.basename(file.name), **kwargs)
    except (InputError, OSError) as error:
        runner.logger.warning(
            f'Checkpoint not saved: {error}. The earlier ones stay; make room in the folder '
            f'or allow writing there: the next checkpoint is tried again'
        )
        return False
    return True


def _with_whole_weights(build: Callable, optim_wrapper: Any, model: nn.Module) -> Any:
    """Build an optimizer where parameters have their shapes and names.

    FSDP leaves each process one-dimensional pieces, for all of which ``flat_decay_mult=0`` would
    switch weight decay off.
    """
    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        return build(optim_wrapper, model)


def _load_sharded_optimizer(strategy: FSDPStrategy, state_dict: dict) -> None:
    """As mmengine's, with the arguments in the order that torch has since 2.1."""
    optimizer = strategy.optim_wrapper.optimizer
    sharded = FullyShardedDataParallel.optim_state_dict_to_load(
        strategy.model, optimizer, state_dict
    )
    strategy.optim_wrapper.load_state_dict(sharded)


def _network_names(keys: Iterable[str]) -> dict[str, str]:
    """Key in a model's state dict -> name in the backbone, as present networks have it."""
    names = {
        key: match[0]
        for key in keys
        if (match := MMVARS.to_network(key.removeprefix('module.'))) is not None
    }
    present = rename_old_keys(names.values(), plain=False)
    return {key: present[name] for key, name in names.items()}


def _network_shapes(state_dict: Mapping[str, Any]) -> dict[str, torch.Size]:
    return {
        name: getattr(state_dict[key], 'shape', ())
        for key, name in _network_names(state_dict).items()
    }


def _first_of(names: Sequence[str]) -> str:
    more = f' and {len(names) - 5} more' if len(names) > 5 else ''
    return ', '.join(names[:5]) + more


def _other_mixer(report: ConversionReport) -> str:
    """A sentence on the mixers, where those of the file are none of the model's."""
    theirs, ours = [
        mixers_seen(
            _network_names(
                entry.source or '' for entry in report.entries if entry.status is status
            ).values()
        )
        for status in (Status.UNEXPECTED, Status.MISSING)
    ]
    if not theirs or not ours or theirs.keys() & ours.keys():
        return ''
    return (
        f'The file mixes tokens with {", ".join(sorted(theirs))}, the model with '
        f'{", ".join(sorted(ours))}. '
    )


def _report_of(misfits: str, title: str) -> ConversionReport:
    """mmengine's list of what does not fit as a report, in which like keys share a line."""
    report = ConversionReport(title)
    for line in filter(None, misfits.splitlines()[1:]):
        kind, _, rest = line.partition(': ')
        if kind.startswith('size mismatch for '):
            source, target = [
                tuple(map(int, re.findall(r'\d+', shape)))
                for shape in re.findall(r'torch\.Size\(\[([^]]*)\]\)', rest)
            ][:2]
            report.add(
                Status.MISSHAPED,
                kind.removeprefix('size mismatch for '),
                shape=source,
                target_shape=target,
            )
        elif kind in _KINDS:
            for key in rest.split(', '):
                report.add(_KINDS[kind], key)
        else:
            report.add(Status.BROKEN, note=line)
    return report
