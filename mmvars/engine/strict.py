"""A Runner of mmengine whose checkpoints are loaded strictly."""

import errno
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process, master_only
from mmengine.fileio import FileClient, LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import CheckpointLoader, FlexibleRunner, Runner, load_state_dict
from torch import nn
from torch.utils.data import DataLoader

from mmvars.checkpoints.formats import MMVARS, mixer_meta, recorded_mixer
from mmvars.checkpoints.io import read_checkpoint, read_meta, tensor_fault
from mmvars.checkpoints.key_mapping import mixers_seen
from mmvars.checkpoints.mixers import check_constants
from mmvars.checkpoints.partial import recorded_trunk
from mmvars.checkpoints.report import ConversionReport, Status
from mmvars.engine.checkpoint_hook import KeepingCheckpointHook, told_by_main_process
from mmvars.engine.errors import building
from mmvars.engine.resume import build_train_loop, progress_meta, resume_progress
from mmvars.engine.samples import check_batch_size, check_pipelines
from mmvars.engine.trained_part import check_leaves_out, fill_in_frozen, leave_out_frozen
from mmvars.engine.training_state import check_training_state, leave_out_unreadable
from mmvars.errors import InputError, first_of
from mmvars.models.base import Backbone
from mmvars.networks import Trunk, rename_old_keys
from mmvars.write import WriteError, whole_or_nothing, write_text

__all__ = [
    'StrictRunner',
    'allowed_constants',
    'check_fills_backbone',
    'check_resumable',
    'is_training_state',
    'keeping',
    'leave_out_prior',
    'save_whole',
    'versions_of',
]

_DISK_ERRORS = (errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EROFS)
_KINDS = {
    'unexpected key in source state_dict': Status.UNEXPECTED,
    'missing keys in source state_dict': Status.MISSING,
}


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
    out or replace parts, such as a head with other classes, but must fill some of the backbone. The
    prior stays that of a file of ``mmvars prototypes`` in the backbone's ``init_cfg``.

    No tensor shows how many steps a mixer makes, or how sparse its codes are: checkpoints say it in
    their ``meta``, and one that was made with other constants is refused, but for those that the
    config names in ``allow_constants``.

    With ``save_trained_only`` in the config checkpoints hold what trains, see
    :mod:`mmvars.engine.trained_part`.
    """

    _training = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._stopped_hooks: list[Hook] = []
        super().__init__(*args, **kwargs)

    def train(self):
        self._training = True
        if self.cfg.get('save_trained_only'):
            check_leaves_out(self.model)
        return super().train()

    @staticmethod
    def build_dataloader(*args: Any, **kwargs: Any) -> DataLoader:
        """Build a data loader whose errors name the files of the sample; memory holds a batch."""
        dataloader = Runner.build_dataloader(*args, **kwargs)
        check_pipelines(dataloader.dataset)
        check_batch_size(dataloader)
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
        model = self._unwrapped_model()
        fill_in_frozen(checkpoint, model, filename, is_initialized=self._training)
        if self._resume:
            check_resumable(checkpoint, self, filename)
        if fine_tuning:
            leave_out_prior(self, checkpoint.get('state_dict', checkpoint), filename)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        versions = versions_of(model) if fine_tuning else {}
        try:
            self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
            self._fill(model, checkpoint, filename, strict, revise_keys)
            if (trunk := self._trunk()) is not None:
                report = ConversionReport(f'checkpoint {filename!r}')
                recorded = recorded_mixer(read_meta(filename, checkpoint), report.title)
                check_constants(trunk, recorded, report, allowed_constants(self.cfg))
            if fine_tuning:
                check_fills_backbone(self, checkpoint, filename, versions)
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

        Logs and pictures are written by hooks too, and are worth less than the run. What they leave
        in a checkpoint must be readable.
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
        if fn_name == 'before_save_checkpoint':
            if self.cfg.get('save_trained_only'):
                leave_out_frozen(kwargs['checkpoint'], self._unwrapped_model())
            leave_out_unreadable(kwargs['checkpoint'], self)

    def register_hook(self, hook: Hook | dict, priority: Any = None) -> None:
        super().register_hook(keeping(hook), priority)

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
        return save_whole(
            self,
            super().save_checkpoint,
            out_dir,
            filename,
            file_client_args=file_client_args,
            meta=({} if trunk is None else mixer_meta(trunk)) | progress_meta(self) | (meta or {}),
            backend_args=backend_args,
            **kwargs,
        )

    def _unwrapped_model(self) -> nn.Module:
        return self.model.module if is_model_wrapper(self.model) else self.model

    def _trunk(self) -> Trunk | None:
        return next((m for m in self.model.modules() if isinstance(m, Trunk)), None)


def versions_of(model: nn.Module) -> dict[str, int]:
    """How often each tensor of the backbone has been written to."""
    state = model.state_dict()
    return {name: state[key]._version for key, name in _network_names(state).items()}


def leave_out_prior(runner: Runner | FlexibleRunner, state: dict[str, Any], filename: str) -> None:
    """Take the prior from what is loaded for fine-tuning, where ``init_cfg`` gave prototypes.

    Prototypes, center and whitening belong together: those of two files are of no use. In a second
    stage the checkpoint has a center and a whitening too, but not those of the prototypes.

    Args:
        runner: A training run, the weights of ``init_cfg`` in its model.
        state: The weights of the file ``filename``; loses its ``prior.*``.
        filename: For the log.
    """
    left_out = [key for key, name in _network_names(state).items() if name.startswith('prior.')]
    path = next((m.init_file for m in runner.model.modules() if isinstance(m, Backbone)), '')
    if not left_out or not path or not _is_of_prototypes(path):
        return
    for key in left_out:
        del state[key]
    runner.logger.warning(
        f'load_from: the prior is that of {path}, which init_cfg names; left out of {filename} '
        f'are {", ".join(left_out)}. To have these, train without this init_cfg'
    )


def _is_of_prototypes(path: str) -> bool:
    """Whether a file holds a part of a network, with prototypes of classes."""
    content = read_checkpoint(path)
    names = _network_names(content.get('state_dict', content)).values()
    return not {'prior.prototypes', 'prior.texts'}.isdisjoint(names) and (
        recorded_trunk(read_meta(path, content), path) is not None
    )


def check_fills_backbone(
    runner: Runner | FlexibleRunner, checkpoint: dict, filename: str, before: Mapping[str, int]
) -> None:
    """Say what of the backbone is from a file for fine-tuning; refuse it if nothing is."""
    state = checkpoint.get('state_dict', checkpoint)
    source, target = _network_shapes(state), _network_shapes(runner.model.state_dict())
    filled = [
        name
        for name, version in versions_of(runner.model).items()
        if version > before[name] and name in source  # modules set some that a file lacks
    ]
    resampled = [name for name in filled if source.get(name) != target[name]]
    initial = [name for name in target if name not in filled]
    parts = [f'{len(filled) - len(resampled)} are those of the file']
    parts += [f'{len(resampled)} resampled from it ({first_of(resampled)})'] * bool(resampled)
    parts += [f'{len(initial)} keep initial values ({first_of(initial)})'] * bool(initial)
    runner.logger.info(
        f'load_from: of the {len(target)} tensors of the backbone {", ".join(parts)}'
    )
    if target and not filled:
        raise InputError(
            f'load_from {filename!r} fills no tensor of the backbone (its keys '
            f'are like {next(iter(state), None)!r}, the model has such as '
            f'{next(iter(runner.model.state_dict()))!r}): convert it with `mmvars '
            'convert`'
        )


def check_resumable(checkpoint: dict, runner: Any, filename: str, sharded: bool = False) -> None:
    """Refuse a checkpoint that a run, built and not yet started, cannot go on from.

    Args:
        checkpoint: As it was read.
        runner: The run.
        filename: For the message.
        sharded: Whether optimizer and averages have parts of parameters, which are not compared.

    Raises:
        InputError: If there is no training state, or one of another run.
    """
    if not is_training_state(checkpoint):
        raise InputError(
            f'checkpoint {filename!r} holds weights only, no training state to '
            'resume from: use --cfg-options load_from=... to start from it'
        )
    try:
        check_training_state(checkpoint, runner, sharded)
    except InputError as error:
        raise InputError(f'checkpoint {filename}: {error}') from None


def is_training_state(checkpoint: dict) -> bool:
    """Whether a run can be resumed from a checkpoint, which may hold weights alone."""
    meta = checkpoint.get('meta')
    return (
        'optimizer' in checkpoint and isinstance(meta, Mapping) and {'epoch', 'iter'} <= meta.keys()
    )


def keeping(hook: Hook | dict) -> Hook | dict:
    """:class:`KeepingCheckpointHook` in the place of a plain ``CheckpointHook``."""
    if isinstance(hook, dict):
        kind = hook.get('type')
        with HOOKS.switch_scope_and_registry(hook.get('_scope_')) as registry:
            if (registry.get(kind) if isinstance(kind, str) else kind) is CheckpointHook:
                return dict(hook, type=KeepingCheckpointHook)
    return hook


def save_whole(
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
        path = Path(out_dir, filename)  # a filename_tmpl may name a folder too
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_or_nothing(path, overwrite=True) as file:
            save(str(path.parent), os.path.basename(file.name), **kwargs)
    except (InputError, OSError) as error:
        runner.logger.warning(
            f'Checkpoint not saved: {error}. The earlier ones stay; make room in the folder '
            f'or allow writing there: the next checkpoint is tried again'
        )
        return False
    return True


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
