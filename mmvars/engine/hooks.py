"""Stop training on a signal without losing work."""

import os
import signal
import sys
import time
from copy import deepcopy
from multiprocessing.util import register_after_fork
from threading import Thread
from types import FrameType

import torch
from mmengine.dist import all_reduce, barrier, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmvars.registry import HOOKS

__all__ = ['SaveOnInterruptHook', 'TrainingInterrupted']

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ECHO_SECONDS = 1.0  # a launcher may pass on the Ctrl-C that the terminal already delivered


class TrainingInterrupted(SystemExit):
    """Training stopped on a signal, and its state was saved.

    Exit status 128 + signal number (130 for Ctrl-C, 143 for SIGTERM), as shells have it.
    """

    def __init__(self, signum: int, checkpoint: str) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.checkpoint = checkpoint


@HOOKS.register_module()
class SaveOnInterruptHook(Hook):
    """On SIGINT or SIGTERM: finish the step, save a checkpoint, leave.

    All ranks agree on the stop after every training step (one integer is all-reduced), so a signal
    to any of them stops all. The checkpoint is written like those of ``CheckpointHook`` and named
    in ``last_checkpoint``, so ``--resume`` goes on from it. During validation a signal is honoured
    after the batch in a single process, and after the validation in distributed runs, where ranks
    may be at different batches; a run that was stopped in its last validation makes it when it is
    resumed. A second Ctrl-C stops at once, without saving; one that comes within a second counts as
    the same, since launchers pass signals on.

    In a loop by iterations, a resumed run goes on with the next iteration. mmengine's loop by
    epochs can only begin at the start of an epoch: the interrupted epoch is run again, with the
    weights reached so far and the learning rate of its start.
    """

    # After every other hook: ParamSchedulerHook has stepped, CheckpointHook has saved.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._signum = 0
        self._when = 0.0
        self._process = 0
        self._previous: dict[int, object] = {}
        self._training = False
        self._epoch_start: dict = {}

    def install(self) -> None:
        """Take over the signals. Done before training; the tools do it before data workers start.

        Workers that are forked later do not heed them: a terminal, slurm and torchrun send them to
        all processes of the group, and workers must outlive the last step.
        """
        if self._previous:
            return
        self._process = os.getpid()
        try:
            self._previous = {s: signal.signal(s, self._on_signal) for s in _SIGNALS}
            register_after_fork(self, SaveOnInterruptHook._shield_worker)
        except ValueError:  # not the main thread: whoever started it handles signals
            self._previous = {}

    def _shield_worker(self) -> None:
        """In a data worker: end on a SIGTERM of the parent, and of nobody else.

        The inherited handler ignores SIGINT there, but torch's workers replace that of SIGTERM by
        one that dies whoever sent it, which fails the step that is to be finished.
        """
        if self._previous and hasattr(signal, 'sigwaitinfo'):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            Thread(target=_wait_for_parent, daemon=True).start()

    def uninstall(self) -> None:
        """Give the signals back."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def before_train(self, runner: Runner) -> None:
        self.install()
        self._training = True
        if self._only_validation_is_left(runner):
            runner.val_loop.run()

    def after_train(self, runner: Runner) -> None:
        self._training = False
        self.uninstall()

    @staticmethod
    def _only_validation_is_left(runner: Runner) -> bool:
        """Whether a run was resumed at its end, as after a stop in the last validation.

        mmengine's loops validate after a step alone, so that validation would never be made.
        """
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        done, length = ((runner.epoch, runner.max_epochs) if by_epoch else
                        (runner.iter, runner.max_iters))
        return runner.val_loop is not None and done >= length > 0

    def before_train_epoch(self, runner: Runner) -> None:
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._epoch_start = dict(
                groups=[{k: v for k, v in group.items() if k != 'params'}
                        for group in runner.optim_wrapper.optimizer.param_groups],
                schedulers=deepcopy([s.state_dict() for s in runner.param_schedulers or []]))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None,
                         outputs: dict | None = None) -> None:
        self._stop_if_asked(runner, next_iter=runner.iter + 1)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None,
                       outputs: list | None = None) -> None:
        if self._training and get_world_size() == 1:
            self._stop_if_asked(runner, next_iter=runner.iter)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data worker: the parent decides
            return
        if not self._signum:
            self._signum, self._when = signum, time.monotonic()
            _say(f'{signal.Signals(signum).name} received: finishing this step and saving a '
                 'checkpoint; once more stops at once, without saving')
        elif signum == signal.SIGINT and time.monotonic() - self._when > _ECHO_SECONDS:
            self.uninstall()
            raise KeyboardInterrupt

    def _stop_if_asked(self, runner: Runner, next_iter: int) -> None:
        signum = _agree(self._signum)
        if not signum:
            return
        path = self._save(runner, next_iter)
        self.uninstall()
        runner.visualizer.close()
        runner.logger.info(f'Stopped on {signal.Signals(signum).name} after iteration '
                           f'{next_iter}; state saved to {path}; --resume goes on from there')
        raise TrainingInterrupted(signum, path)

    def _save(self, runner: Runner, next_iter: int) -> str:
        meta = dict(epoch=runner.epoch, iter=next_iter)
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            meta['iter'] = runner.epoch * len(runner.train_loop.dataloader)
            self._restore(runner)
        name = f'iter_{next_iter}.pth'
        path = os.path.join(runner.work_dir, name)
        # Written beside its place and moved: a kill in the middle destroys no checkpoint.
        runner.save_checkpoint(runner.work_dir, f'{name}.part', meta=meta, by_epoch=False)
        if is_main_process():
            os.replace(f'{path}.part', path)
            pointer = os.path.join(runner.work_dir, 'last_checkpoint')
            with open(f'{pointer}.part', 'w', encoding='utf-8') as file:
                file.write(path)
            os.replace(f'{pointer}.part', pointer)
        barrier()
        return path

    def _restore(self, runner: Runner) -> None:
        """Learning rates and schedulers as they were when the epoch began."""
        groups = runner.optim_wrapper.optimizer.param_groups
        for group, saved in zip(groups, self._epoch_start['groups'], strict=True):
            group.update(saved)
        for scheduler, saved in zip(runner.param_schedulers or [],
                                    self._epoch_start['schedulers'], strict=True):
            scheduler.load_state_dict(saved)


def _wait_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _agree(signum: int) -> int:
    """The largest signal number that any rank has received; 0: none."""
    if get_world_size() == 1:
        return signum
    flag = torch.tensor(signum)
    all_reduce(flag, op='max')
    return int(flag)


def _say(text: str) -> None:
    # print() may be interrupted inside itself by a signal handler; a plain write may not.
    if os.environ.get('RANK', '0') == '0':
        os.write(sys.__stderr__.fileno(), f'\nmmvars: {text}\n'.encode())
