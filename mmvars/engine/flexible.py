"""mmengine's FlexibleRunner, as near to StrictRunner as it allows."""

from collections.abc import Callable
from functools import partial
from typing import Any

from mmengine._strategy import BaseStrategy, DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import FlexibleRunner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmvars.checkpoints.formats import mixer_meta, recorded_mixer
from mmvars.checkpoints.mixers import check_constants
from mmvars.checkpoints.report import ConversionReport
from mmvars.engine.checkpoint_hook import told_by_main_process
from mmvars.engine.resume import progress_meta, resume_progress
from mmvars.engine.strict import (
    StrictRunner,
    allowed_constants,
    check_fills_backbone,
    check_resumable,
    keeping,
    leave_out_prior,
    save_whole,
    versions_of,
)
from mmvars.engine.training_state import leave_out_unreadable
from mmvars.errors import InputError
from mmvars.networks import Trunk

__all__ = ['StrictFlexibleRunner']


class StrictFlexibleRunner(FlexibleRunner):
    """What ``runner_type='FlexibleRunner'`` stands for in ``mmvars train`` and ``mmvars test``.

    mmengine loads with ``strict=False`` and logs what does not fit. Here testing and resuming need
    every key to match, and the constants of the mixer are written and compared, as with
    :class:`StrictRunner`. The loops are those of :mod:`mmvars.engine.resume`, and a training state
    is compared before it is taken up. With FSDP the optimizer's is not, nor is what ``load_from``
    fills looked at. DeepSpeed and ColossalAI read their own files themselves.
    """

    _training = False
    build_dataloader = staticmethod(StrictRunner.build_dataloader)
    build_train_loop = StrictRunner.build_train_loop

    def train(self) -> Any:
        self._training = True
        if self.cfg.get('save_trained_only'):
            raise InputError(
                'save_trained_only needs the plain Runner, and this config has '
                "runner_type='FlexibleRunner': leave one of them out"
            )
        return super().train()

    def build_strategy(self, *args: Any, **kwargs: Any) -> BaseStrategy:
        strategy = super().build_strategy(*args, **kwargs)
        load = strategy.load_model_state_dict

        def load_strictly(state_dict: dict, strict: bool = False, **options: Any) -> None:
            fine_tuning = self._training and not self._resume
            if fine_tuning:
                leave_out_prior(self, state_dict, self._load_from)
            before = versions_of(self.model) if fine_tuning and self._is_whole() else None
            try:
                load(state_dict, strict=strict or not fine_tuning, **options)
            except RuntimeError as error:  # mmengine's and torch's lists of keys and shapes
                if 'state dict' not in str(error) and 'state_dict' not in str(error):
                    raise
                raise InputError(
                    f'the checkpoint does not fit the model of this config: {error}\n'
                    'Use the config that it was trained with'
                ) from error
            if before is not None:
                check_fills_backbone(self, state_dict, self._load_from, before)

        strategy.load_model_state_dict = load_strictly
        if isinstance(strategy, FSDPStrategy):
            if not strategy._is_full_state_dict():  # its files need code that the reader refuses
                raise InputError(
                    'FSDPStrategy would write checkpoints that cannot be read again: set '
                    "strategy.state_dict_cfg='full' (--cfg-options strategy.state_dict_cfg=full)"
                )
            strategy.load_optim_state_dict = partial(_load_sharded_optimizer, strategy)
            strategy.build_optim_wrapper = partial(
                _with_whole_weights, strategy.build_optim_wrapper
            )
            if get_device() == 'cpu':  # torch would let both moments of Adam share one buffer
                strategy.optim_state_dict_config.offload_to_cpu = False
        return strategy

    def register_hook(self, hook: Hook | dict, priority: Any = None) -> None:
        super().register_hook(keeping(hook), priority)

    def save_checkpoint(
        self, out_dir: str, filename: str, meta: dict | None = None, **kwargs: Any
    ) -> bool:
        """As that of :class:`StrictRunner`; strategies that write folders do so as in mmengine.

        A ``meta`` with epoch and iteration is right, where mmengine would count one more.
        """
        self._meta = dict(meta or {})
        if isinstance(self.strategy, FSDPStrategy):
            return _save_gathered(self, super().save_checkpoint, out_dir, filename, **kwargs)
        if self._is_whole() and is_main_process():
            return save_whole(self, super().save_checkpoint, out_dir, filename, **kwargs)
        super().save_checkpoint(out_dir, filename, **kwargs)
        return True

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        trunk = next((m for m in self._modules() if isinstance(m, Trunk)), None)
        if fn_name == 'before_save_checkpoint':
            checkpoint = kwargs['checkpoint']
            mixer = {} if trunk is None else mixer_meta(trunk)
            checkpoint['meta'] = mixer | progress_meta(self) | checkpoint['meta'] | self._meta
        if fn_name == 'after_load_checkpoint' and self._training and self._resume:
            self._check_state(kwargs['checkpoint'])
        if trunk is not None and fn_name == 'after_load_checkpoint':
            report = ConversionReport('checkpoint')
            recorded = recorded_mixer(kwargs['checkpoint'].get('meta') or {}, report.title)
            check_constants(trunk, recorded, report, allowed_constants(self.cfg))
        super().call_hook(fn_name, **kwargs)
        if fn_name == 'before_save_checkpoint':
            leave_out_unreadable(kwargs['checkpoint'], self)

    def _check_state(self, checkpoint: dict) -> None:
        """Before anything of a checkpoint is taken up."""
        if not self._is_whole():
            self.logger.warning(
                f'{type(self.strategy).__name__}: the state of the optimizer is taken up by '
                'its rules, not compared with this run before'
            )
        if isinstance(self.strategy, SingleDeviceStrategy):
            check_resumable(checkpoint, self, self._load_from, sharded=not self._is_whole())
            resume_progress(self, checkpoint['meta'], self._load_from)

    def _is_whole(self) -> bool:
        """Whether each process has the whole model."""
        return type(self.strategy) in (SingleDeviceStrategy, DDPStrategy)

    def _modules(self) -> Any:
        """Of the model, which is a config until training or testing starts."""
        return self.strategy.model.modules() if self.strategy._prepared else ()


def _save_gathered(
    runner: FlexibleRunner, save: Callable, out_dir: str, filename: str, **kwargs: Any
) -> bool:
    """:func:`save_whole` of a ``save`` in which all processes gather what the main one writes.

    They begin when it has opened the file, and leave it out together if the disk refuses that.
    """
    begun = False

    def save_together(*args: Any, **options: Any) -> None:
        nonlocal begun
        begun = told_by_main_process(True)
        save(*args, **options)

    if is_main_process():
        saved = save_whole(runner, save_together, out_dir, filename, **kwargs)
        if not begun:
            told_by_main_process(False)
        return saved
    if told_by_main_process(False):  # what is told is the main process's
        save(out_dir, filename, **kwargs)
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
