"""Hooks: stop on a signal; step sizes of VARS-S; fused weights and colored label maps in tests."""

import os
import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.util import register_after_fork
from threading import Thread
from types import FrameType
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmvars.engine.checkpoint_hook import save_state
from mmvars.engine.checks import check_answers
from mmvars.engine.resume import is_accumulating
from mmvars.errors import InputError, check_number
from mmvars.layers.vars_static import VARSStatic
from mmvars.registry import HOOKS
from mmvars.write import whole_or_nothing

__all__ = [
    'AnswersHook',
    'FuseHook',
    'LabelMapHook',
    'LipschitzUpdateHook',
    'SaveOnInterruptHook',
    'TrainingInterrupted',
    'ensure_lipschitz_hook',
]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, *filter(None, [getattr(signal, 'SIGHUP', None)]))
_ECHO_SECONDS = 1.0  # a launcher may pass on the Ctrl-C that the terminal already delivered


class TrainingInterrupted(SystemExit):
    """Training stopped on a signal, and its state was saved to ``checkpoint``, if the disk let it.

    Exit status 128 + signal number (130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP), as shells
    have it.
    """

    def __init__(self, signum: int, checkpoint: str | None) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.checkpoint = checkpoint


@HOOKS.register_module()
class SaveOnInterruptHook(Hook):
    """On SIGINT, SIGTERM or SIGHUP: finish the step, save a checkpoint for ``--resume``, leave.

    All ranks agree on the stop after every step of the optimizer (one integer is all-reduced), so a
    signal to any of them stops all. During validation a signal takes effect after the batch in a
    single process, and after the validation in distributed runs, where ranks may be at different
    batches.
    A second Ctrl-C stops at once, without saving. A signal that was ignored at the start stays so,
    as nohup and background jobs of shells want it.
    """

    # After every other hook: ParamSchedulerHook has stepped, CheckpointHook has saved.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._signum = 0
        self._received_at = 0.0
        self._process = 0
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Take over the signals; the tools do it before data workers start.

        Workers that are forked later ignore them: a terminal, slurm and torchrun send them to all
        processes of the group, and workers must outlive the last step.
        """
        if self._previous:
            return
        self._process = os.getpid()
        try:
            self._previous = {
                signum: signal.signal(signum, self._on_signal)
                for signum in _SIGNALS
                if signal.getsignal(signum) is not signal.SIG_IGN
            }
            register_after_fork(self, SaveOnInterruptHook._shield_worker)
        except ValueError:  # not the main thread: whoever started it handles signals
            self._previous = {}

    def _shield_worker(self) -> None:
        # torch's workers have a handler of their own for SIGTERM, which ends them whoever sent it.
        if self._previous and hasattr(signal, 'sigwaitinfo'):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            Thread(target=_exit_with_parent, daemon=True).start()

    def uninstall(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def before_train(self, runner: Runner) -> None:
        self.install()

    def after_train(self, runner: Runner) -> None:
        self.uninstall()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        # Until the optimizer makes a step, each process has gradients of its own.
        if get_world_size() == 1 or not is_accumulating(runner.optim_wrapper):
            self._stop_if_signaled(runner, next_iter=runner.iter + 1)

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: list | None = None,
    ) -> None:
        if self._previous and get_world_size() == 1:  # in training
            self._stop_if_signaled(runner, next_iter=runner.iter)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data worker: the parent decides
            return
        if not self._signum:
            self._signum, self._received_at = signum, time.monotonic()
            if os.environ.get('RANK', '0') == '0' and sys.__stderr__ is not None:
                # print() may be interrupted inside itself by a signal handler; write() may not.
                name = signal.Signals(signum).name
                text = (
                    f'\nmmvars: {name} received: finishing this step and saving a checkpoint; once '
                    'more stops at once, without saving\n'
                )
                os.write(sys.__stderr__.fileno(), text.encode())
        elif signum == signal.SIGINT and time.monotonic() - self._received_at > _ECHO_SECONDS:
            self.uninstall()
            raise KeyboardInterrupt

    def _stop_if_signaled(self, runner: Runner, next_iter: int) -> None:
        signum = self._signum
        if get_world_size() > 1:  # the largest signal number that any rank has received
            flag = torch.tensor(signum)
            all_reduce(flag, op='max')
            signum = int(flag)
        if not signum:
            return
        name = f'iter_{next_iter}.pth'
        meta = dict(epoch=runner.epoch, iter=next_iter)
        saved = save_state(runner, runner.work_dir, name, meta=meta, by_epoch=False)
        path = os.path.join(runner.work_dir, name) if saved else None
        self.uninstall()
        runner.visualizer.close()
        stopped = f'Stopped on {signal.Signals(signum).name} after iteration {next_iter}'
        if path is None:
            runner.logger.error(f'{stopped}; its state is NOT saved, as warned above')
        else:
            runner.logger.info(f'{stopped}; state saved to {path}; --resume goes on from there')
        raise TrainingInterrupted(signum, path)


def _exit_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


@HOOKS.register_module(name=['LipschitzUpdateHook', 'StepSizeHook'])  # the latter: old configs
class LipschitzUpdateHook(Hook):
    """Update the Lipschitz constants of every VARS-S mixer before some training iterations.

    VARS-S descends with the step 1 / L, where L (the buffer ``lipschitz``) bounds the largest
    eigenvalue of the Gram matrix of the dictionary. The dictionary is trained, so L must follow:

        L <- (1 - rate) L + rate * bound(dictionary)

    before iterations 0, ``interval``, 2 ``interval``, ... of every epoch, or of the run in a loop
    by iterations. The released training does so with the defaults. All ranks compute the same bits,
    since L depends on the old L and the weights alone. Mixers that do not train
    (``frozen_stages``) keep theirs. An averaged copy of the model (``EMAHook``) is not touched: it
    gets the L of the model or the average, and both bound the averaged dictionary (the bound is
    convex).

    ``mmvars train`` adds this hook with its defaults where a model needs it and the config has
    none. Other training scripts need ``dict(type='mmvars.LipschitzUpdateHook')`` in
    ``custom_hooks``.

    Args:
        interval: Iterations between two updates.
        rate: Share of the new bound, in (0, 1]; 1 forgets the old one.

    Raises:
        InputError: If a value is out of range.
    """

    priority = 'VERY_HIGH'  # other hooks before a step see the bound that it is made with

    def __init__(self, interval: int = 100, rate: float = 0.1) -> None:
        check_number('LipschitzUpdateHook: interval', interval, 1, whole=True)
        check_number('LipschitzUpdateHook: rate', rate, 0, 1)
        if rate == 0:
            raise InputError(
                'LipschitzUpdateHook: rate must be above 0, or no step size ever '
                'changes; the released training has 0.1'
            )
        self.interval = interval
        self.rate = rate

    def before_train(self, runner: Runner) -> None:
        count = len(_updated_mixers(runner.model))
        if count:
            runner.logger.info(
                f'LipschitzUpdateHook: {count} VARS-S mixers, updated every '
                f'{self.interval} iterations with rate {self.rate}'
            )
        else:
            runner.logger.warning(
                'LipschitzUpdateHook has nothing to do: the model has no mixer '
                "'vars_s' that keeps its Lipschitz constant in a buffer"
            )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        # mmengine counts batch_idx from 0 in every epoch, and over the run in loops by iterations.
        if batch_idx % self.interval:
            return
        with _whole_weights(runner.model):
            for mixer in _updated_mixers(runner.model):
                if mixer.training:
                    mixer.update_lipschitz(self.rate)


def ensure_lipschitz_hook(runner: Runner) -> None:
    """Add a :class:`LipschitzUpdateHook` to a Runner whose model needs one and that has none."""
    model = runner.model  # a FlexibleRunner builds it only when training starts
    needed = (
        bool(_updated_mixers(model)) if isinstance(model, nn.Module) else "'vars_s'" in str(model)
    )
    if needed and not any(isinstance(hook, LipschitzUpdateHook) for hook in runner.hooks):
        runner.register_hook(LipschitzUpdateHook())
        runner.logger.info(
            'The model has VARS-S mixers and custom_hooks no '
            'mmvars.LipschitzUpdateHook: added '
            "dict(type='mmvars.LipschitzUpdateHook', interval=100, rate=0.1)"
        )


def _updated_mixers(model: nn.Module) -> list[VARSStatic]:
    """The VARS-S mixers that keep their Lipschitz constant in a buffer."""
    return [m for m in model.modules() if isinstance(m, VARSStatic) and hasattr(m, 'lipschitz')]


def _whole_weights(model: nn.Module) -> AbstractContextManager:
    """Where FSDP has spread the weights over the processes, each has all of them inside."""
    if isinstance(model, FullyShardedDataParallel):
        return FullyShardedDataParallel.summon_full_params(model, writeback=False)
    return nullcontext()


class AnswersHook(Hook):
    """Refuse to test a checkpoint that was trained with other answers to questions."""

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        answers = (runner.test_loop.evaluator.dataset_meta or {}).get('classes')
        trained = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
        check_answers(answers, trained.get('classes'))


class FuseHook(Hook):
    """Fuse the backbone's weights for inference (its ``fuse``) before a test.

    Last of all hooks: an EMA hook may just have put averaged weights into the model.
    """

    priority = 'LOWEST'

    def before_test_epoch(self, runner: Runner) -> None:
        for module in list(runner.model.modules()):  # the model may be wrapped (DDP, TTA)
            if hasattr(getattr(module, 'backbone', None), 'fuse'):
                module.backbone.fuse()

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        # The EMA hook has put the trained weights back, through ``.data``, which no one can notice.
        for module in list(runner.model.modules()):
            if hasattr(getattr(module, 'backbone', None), 'unfuse'):
                module.backbone.unfuse()


class LabelMapHook(Hook):
    """Color the label maps that mmseg's metrics write into ``output_dir``.

    They are gray PNGs of class ids, which look black. Here they get the palette of the data set;
    the pixel values, which evaluation servers read, stay.

    Args:
        folder: The metrics' ``output_dir``.

    Raises:
        InputError: Before the test, if two maps would have one name, or ids need more than 8 bits.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def before_test_epoch(self, runner: Runner) -> None:
        dataset = runner.test_dataloader.dataset
        num_classes = len(dataset.metainfo.get('classes') or ())
        if num_classes + bool(dataset.metainfo.get('reduce_zero_label')) > 256:
            raise InputError(
                f'--out: label maps have 8 bits, and the data set has {num_classes} classes; '
                'leave it out, and write predictions in a metric of your own'
            )
        images: dict[str, str] = {}
        for index in range(len(dataset) if hasattr(dataset, 'get_data_info') else 0):
            path = dataset.get_data_info(index)['img_path']
            if (other := images.setdefault(self._map_of(path), path)) != path:
                raise InputError(
                    f'--out names label maps by their images, and {other!r} and {path!r} are named '
                    'alike: rename one, or test them one after the other'
                )

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        colors = runner.test_dataloader.dataset.metainfo.get('palette') or ()
        for sample in outputs:
            path = self._map_of(sample.img_path)
            with Image.open(path) as image:
                image.load()
            if image.mode != 'L':
                continue  # CityscapesMetric colors its own
            palette = np.zeros((256, 3), np.uint8)  # all, so that a pixel stays a byte
            first = int(bool(sample.get('reduce_zero_label')))
            palette[first : first + len(colors)] = colors
            image.putpalette(palette.tobytes())
            with whole_or_nothing(path, overwrite=True) as file:
                image.save(file, 'PNG')

    def _map_of(self, image: str) -> str:
        return os.path.join(self.folder, f'{os.path.splitext(os.path.basename(image))[0]}.png')
