"""Training of which every step depends on the seed and its number alone, so that it can go on.

Before each pass over the data, each batch that is loaded, each training step and each validation
the generators of random numbers are seeded for it. A checkpoint therefore needs no states of
generators, of samplers or of data workers, nor those of other processes: the seed and the numbers
of epoch and iteration say all, in the middle of an epoch too. The batches do not depend on the
number of data workers, validation and data loading leave no trace in the training.
"""

import os
import random
from collections.abc import Iterator
from functools import partial
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import all_reduce, all_reduce_params, get_rank, get_world_size
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import LOOPS
from mmengine.runner import Runner, loops
from mmengine.runner.base_loop import BaseLoop
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader, Dataset

from mmvars.checkpoints.io import read_checkpoint, read_meta, tensor_fault
from mmvars.errors import InputError, check_number

__all__ = [
    'EpochBasedTrainLoop',
    'IterBasedTrainLoop',
    'TrainLoader',
    'adopt_seed',
    'build_train_loop',
    'is_accumulating',
    'progress_meta',
    'resume_progress',
    'seed_generators',
    'unite_processes',
]

_PASS, _BATCH, _STEP, _VALIDATION = range(4)


def seed_generators(*key: int) -> None:
    """Seed Python's, NumPy's and torch's generators (of all devices) for what ``key`` numbers.

    Different keys give unrelated seeds: NumPy's ``SeedSequence`` mixes them.
    """
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(words.tobytes())
    np.random.seed(words)
    torch.manual_seed(int.from_bytes(words[:2].tobytes(), 'little'))


class NumberedBatches:
    """Batches of indices of a batch sampler with their number in the run, ``(number, indices)``.

    All other attributes are those of the batch sampler.

    Args:
        batches: The batch sampler.
        sampler: What mmengine calls ``set_epoch`` of.
        seed: Of the run.

    Attributes:
        epoch: Number of the next pass over the sampler.
        endless: Whether pass follows pass in one iteration, as loops by iterations need it.
        done: Batches that the next iteration leaves out; nothing of them is loaded.
    """

    def __init__(self, batches: Any, sampler: Any, seed: int) -> None:
        self.batches, self.seed = batches, seed
        self.epoch, self.endless, self.done = 0, False, 0
        samplers = sampler, getattr(batches, 'sampler', None)
        self._set_epoch = next(
            (s.set_epoch for s in samplers if hasattr(s, 'set_epoch')), lambda epoch: None
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        done, self.done = self.done, 0
        passes = self._passes() if self.endless else self._pass(self.epoch)
        yield from islice(enumerate(passes, self.epoch * len(self)), done, None)

    def _passes(self) -> Iterator[list[int]]:
        for epoch in count():
            if epoch:
                self._set_epoch(epoch)
            yield from self._pass(epoch)

    def _pass(self, epoch: int) -> Iterator[list[int]]:
        seed_generators(self.seed, _PASS, epoch)  # for samplers that draw from them
        batch = None
        for batch in self.batches:
            yield batch
        if batch is None:
            raise InputError(
                'train_dataloader gives no batch: its data set is empty, or smaller than batch_size'
            )


class TrainLoader(DataLoader):
    """Takes the place of a DataLoader; its batches depend on the seed and their number alone.

    Random transforms then draw neither from what a data worker has drawn before nor, without
    workers, from the training's generators.

    Args:
        loader: A DataLoader with a batch sampler.
        seed: Of the run.
    """

    def __init__(self, loader: DataLoader, seed: int) -> None:
        vars(self).update(vars(loader))
        self.numbered = NumberedBatches(loader.batch_sampler, loader.sampler, seed)
        vars(self)['batch_sampler'] = self.numbered  # DataLoader itself lets nobody set it
        # The method by which DataLoader loads a batch at once; the data set stays what it is.
        self.dataset.__getitems__ = partial(_load_batch, self.dataset, seed, get_rank())

    def __iter__(self) -> Iterator[Any]:
        # Begins with the first batch, not before: mmengine 0.10.7 asks before it resumes.
        yield from super().__iter__()


def _load_batch(dataset: Dataset, seed: int, rank: int, batch: tuple[int, list[int]]) -> list:
    number, indices = batch
    seed_generators(seed, _BATCH, number, rank)
    if hasattr(type(dataset), '__getitems__'):
        return type(dataset).__getitems__(dataset, indices)
    return [dataset[index] for index in indices]


class EpochBasedTrainLoop(loops.EpochBasedTrainLoop):
    """mmengine's loop by epochs, which can also begin in the middle of one."""

    dataloader: TrainLoader

    def run(self) -> nn.Module:
        self.runner.call_hook('before_train')
        length = len(self.dataloader)
        done = self._iter - self._epoch * length
        if not 0 <= done <= length:  # epochs had another length: begin this one again
            done, self._iter = 0, self._epoch * length
        if self._iter and not done:
            self._validate_if_due()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch(done)
            done = 0
            self._validate_if_due()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self, done: int = 0) -> None:
        """Run one epoch but for the first ``done`` batches."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        self.dataloader.numbered.epoch, self.dataloader.numbered.done = self._epoch, done
        for idx, data_batch in enumerate(self.dataloader, start=done):
            self.run_iter(idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Any) -> None:
        seed_generators(self.runner.seed, _STEP, self._iter)
        super().run_iter(idx, data_batch)

    def _validate_if_due(self) -> None:
        self._decide_current_val_interval()
        _validate_if_due(self, self._epoch, self._max_epochs)


class IterBasedTrainLoop(loops.IterBasedTrainLoop):
    """mmengine's loop by iterations, which resumes without loading what was trained on."""

    dataloader: TrainLoader

    def run(self) -> nn.Module:
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        if self._iter:
            self._validate_if_due()
        self.dataloader.numbered.endless, self.dataloader.numbered.done = True, self._iter
        batches = iter(self.dataloader)
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(batches))
            self._validate_if_due()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_iter(self, data_batch: Any) -> None:
        seed_generators(self.runner.seed, _STEP, self._iter)
        super().run_iter(data_batch)

    def _validate_if_due(self) -> None:
        self._decide_current_val_interval()
        _validate_if_due(self, self._iter, self._max_iters)


def _validate_if_due(loop: Any, done: int, length: int) -> None:
    """Validate after ``done`` of ``length`` epochs or iterations, where the config wants it.

    A resumed loop begins with it: checkpoints are saved before the validation, or in it.
    """
    if loop.runner.val_loop is None or done < loop.val_begin:
        return
    if done % loop.val_interval == 0 or done == length:
        seed_generators(loop.runner.seed, _VALIDATION, loop.iter)
        loop.runner.val_loop.run()


def build_train_loop(runner: Runner, loop: Any) -> BaseLoop:
    """Build the training loop of a config.

    mmengine's two loops become those of this module. A loop of another class, and one over a data
    set without indices, stays what it is, and so does one with ``fast_forward_on_resume``.
    """
    kind = _kind_of_loop(loop)
    if kind is not None:
        loader = runner.build_dataloader(
            runner._train_dataloader,
            seed=runner.seed,
            diff_rank_seed=runner._randomness_cfg.get('diff_rank_seed', False),
        )
        runner._train_dataloader = loader
        if loader.batch_sampler is not None:
            runner._train_dataloader = TrainLoader(loader, runner.seed)
            loop = {key: value for key, value in loop.items() if key != 'by_epoch'}
            loop['type'] = kind
    return Runner.build_train_loop(runner, loop)


def _kind_of_loop(loop: Any) -> type | None:
    """The class of this module for a loop's config, if there is one."""
    if not isinstance(loop, dict) or loop.get('fast_forward_on_resume'):
        return None
    if {'type', 'by_epoch'} <= loop.keys():
        return None  # mmengine refuses it
    if 'by_epoch' in loop:
        return EpochBasedTrainLoop if loop['by_epoch'] else IterBasedTrainLoop
    kind = loop.get('type')
    kind = LOOPS.get(kind) if isinstance(kind, str) else kind
    return {
        loops.EpochBasedTrainLoop: EpochBasedTrainLoop,
        loops.IterBasedTrainLoop: IterBasedTrainLoop,
    }.get(kind)


def adopt_seed(cfg: Config) -> list[str]:
    """Give a run that is resumed the seed that it was started with, before anything is built.

    Returns:
        Lines for the log.

    Raises:
        InputError: If the file cannot be read, or its seed is none.
    """
    if not cfg.get('resume') or not cfg.get('load_from'):
        return []
    if cfg.get('runner_type') not in (None, 'FlexibleRunner') or '://' in str(cfg.load_from):
        return []
    if os.path.isdir(cfg.load_from):  # of DeepSpeed
        return []
    seed = read_meta(cfg.load_from, read_checkpoint(cfg.load_from)).get('seed')
    if seed is None:
        return []
    check_number(f'checkpoint {cfg.load_from}: meta.seed', seed, 0, 2**32 - 1, whole=True)
    randomness = dict(cfg.get('randomness') or {})
    notes = []
    if randomness.get('seed') not in (None, seed):
        notes.append(
            f'randomness.seed {randomness["seed"]} of the config is not used: the run goes on with '
            f'{seed}, which it was started with'
        )
    cfg.randomness = randomness | dict(seed=seed)
    return notes


def unite_processes(runner: Runner) -> None:
    """Average what each process has of its own, so that the checkpoint of one is that of all.

    These are the statistics of batch norm, which mmengine averages before a validation too, and
    the gradients since the last step of the optimizer. The training goes on with the averages.
    """
    if get_world_size() > 1 and isinstance(runner.train_dataloader, TrainLoader):
        all_reduce_params(runner.model.buffers(), op='mean')
        for gradient in _gradients(runner).values():
            all_reduce(gradient, op='mean')


def progress_meta(runner: Runner) -> dict[str, Any]:
    """What the ``meta`` of a checkpoint says beside seed, epoch and iteration."""
    gradients = {name: gradient.cpu() for name, gradient in _gradients(runner).items()}
    return dict(progress=_situation(runner) | dict(gradients=gradients))


def resume_progress(runner: Runner, meta: dict[str, Any], filename: str) -> None:
    """Take up the gradients of :func:`progress_meta`; log what makes the run go on otherwise.

    Raises:
        InputError: If the entry is not of its kind.
    """
    progress, differences = meta.get('progress'), []
    if progress is None:
        differences.append('the checkpoint is of an older mmvars or of mmengine alone')
    elif not isinstance(progress, dict) or not isinstance(progress.get('gradients'), dict):
        raise InputError(f'checkpoint {filename}: meta.progress is not what mmvars writes')
    else:
        for name, value in _situation(runner).items():
            then = progress.get(name)
            check_number(f'checkpoint {filename}: meta.progress.{name}', then, 0, whole=True)
            if then != value:
                differences.append(f'{name} was {then}, is {value}')
        _set_gradients(_parameters(runner), progress['gradients'], filename)
        if progress['gradients']:
            runner.logger.info(
                'The gradients since the last step of the optimizer are those of the checkpoint: '
                'none are lost, as mmengine will warn'
            )
    if not isinstance(runner.train_dataloader, TrainLoader):
        differences.append('its loop or its data set is none that can go on from any batch')
    if differences:
        runner.logger.warning(
            'The run goes on, but not exactly as it would have without the stop: '
            f'{"; ".join(differences)}'
        )


def _situation(runner: Runner) -> dict[str, int]:
    return dict(processes=get_world_size(), batches_per_epoch=len(runner.train_dataloader))


def _parameters(runner: Runner) -> dict[str, nn.Parameter]:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return dict(model.named_parameters())


def is_accumulating(optim_wrapper: Any) -> bool:
    """Whether there are gradients that no step of the optimizer has used (``accumulative_counts``).

    Several optimizers, and those of a DeepSpeed strategy, do not say.
    """
    return (
        isinstance(optim_wrapper, OptimWrapper)
        and not isinstance(optim_wrapper, OptimWrapperDict)
        and not optim_wrapper.should_update()
    )


def _gradients(runner: Runner) -> dict[str, Tensor]:
    """Gradients since the last step of the optimizer, by parameter."""
    if not is_accumulating(runner.optim_wrapper) or isinstance(
        runner.model, FullyShardedDataParallel
    ):  # whose processes have other parts each: mmengine warns that they are lost
        return {}
    return {
        name: parameter.grad
        for name, parameter in _parameters(runner).items()
        if parameter.grad is not None
    }


def _set_gradients(
    parameters: dict[str, nn.Parameter], gradients: dict[str, Tensor], filename: str
) -> None:
    for name, gradient in gradients.items():
        target = parameters.get(name)
        fault = 'no parameter of the model' if target is None else tensor_fault(gradient, target)
        if not fault and target.shape != gradient.shape:
            fault = f'of shape {tuple(gradient.shape)}, not {tuple(target.shape)}'
        if fault:
            raise InputError(f'checkpoint {filename}: meta.progress.gradients {name!r} is {fault}')
        target.grad = gradient.to(target.device, target.dtype)
