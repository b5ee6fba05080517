"""Checkpoints of a training run: the new one stands before an older one goes."""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import broadcast, is_main_process, master_only
from mmengine.fileio import join_path
from mmengine.hooks import CheckpointHook
from mmengine.runner import CheckpointLoader, Runner

from mmvars.checkpoints.io import tensor_fault
from mmvars.engine.resume import unite_processes
from mmvars.errors import InputError
from mmvars.write import WriteError, write_bytes, write_text

__all__ = ['KeepingCheckpointHook', 'save_state', 'told_by_main_process']


def save_state(
    runner: Runner, out_dir: str, filename: str, latest: bool = True, **options: Any
) -> bool:
    """Save a checkpoint; all processes of a run call this.

    Args:
        runner: With a :class:`~mmvars.engine.strict.StrictRunner` the disk may refuse; others of
            mmengine raise then.
        out_dir: Folder of the checkpoint.
        filename: Name of the checkpoint.
        latest: Whether the file ``last_checkpoint`` in the work dir is to name it.
        options: The further ones of ``Runner.save_checkpoint``.

    Returns:
        Whether all was written, the same in all processes. If not, a warning has said why.
    """
    unite_processes(runner)
    saved = runner.save_checkpoint(out_dir, filename, **options) is not False
    if saved and latest and is_main_process():
        path = join_path(out_dir, filename, backend_args=options.get('backend_args'))
        try:
            write_text(Path(runner.work_dir, 'last_checkpoint'), path, overwrite=True)
        except InputError as error:
            saved = False
            runner.logger.warning(f'{error}. It does not name {path}; give --resume that name')
    return told_by_main_process(saved)


def told_by_main_process(flag: bool) -> bool:
    """The flag of the main process, which alone writes, in all processes."""
    told = torch.tensor(int(flag))
    broadcast(told)
    return bool(told)


class KeepingCheckpointHook(CheckpointHook):
    """mmengine's hook, but it saves before it removes.

    ``mmvars train`` puts it in the place of a plain ``CheckpointHook``; its arguments, its files
    and their names are the same. An older checkpoint goes when the new one and ``last_checkpoint``
    stand, and an older best one when the new best one stands; while the weights hold NaN or
    infinity, the newest checkpoint that can be loaded stays beside them. If the disk refuses, the
    run goes on with the files that it has, and tries again at the next checkpoint.
    """

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self._due = None
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = list(self.keep_ckpt_ids)
            self._loadable = self.keep_ckpt_ids[-1:]

    def after_train(self, runner: Runner) -> None:
        super().after_train(runner)
        if self._due != self.last_ckpt:
            raise WriteError(
                f'training is finished, but {self._due} is not saved: make room, and --resume '
                f'makes the steps since {self.last_ckpt or "the start"} again'
            )

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        name = self.filename_tmpl.format(step)
        self._due = self._path(name)
        news = dict(last_ckpt=self._due)
        if self.max_keep_ckpts > 0:
            # With the outdated ones: if a kill prevents their removal, a resumed run removes them.
            news['keep_ckpt_ids'] = [*(kept for kept in self.keep_ckpt_ids if kept != step), step]
        saved = self._save(
            runner,
            name,
            news,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            **self.args,
        )
        if not saved:
            return
        self.last_ckpt = news['last_ckpt']
        if self.max_keep_ckpts > 0:
            if _is_finite(runner):
                self._loadable = [step]
            kept = news['keep_ckpt_ids']
            stay = {*kept[-self.max_keep_ckpts :], *self._loadable}
            for old in kept:
                if old not in stay:
                    self._remove(runner, self._path(self.filename_tmpl.format(old)))
            self.keep_ckpt_ids = [old for old in kept if old in stay]
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        if 'auto' in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        kind, step = ('epoch', runner.epoch) if self.by_epoch else ('iter', runner.iter)
        meta = dict(epoch=runner.epoch, iter=runner.iter)
        info = runner.message_hub.runtime_info
        better, outdated = False, []
        for key, rule in zip(self.key_indicators, self.rules, strict=True):
            suffix = f'_{key}' if len(self.key_indicators) > 1 else ''
            score = metrics[key]
            best = info.get(f'best_score{suffix}', self.init_value_map[rule])
            if score is None or not self.is_better_than[key](score, best):
                continue
            name = f'best_{key}_{self.filename_tmpl.format(step)}'.replace('/', '_')
            path, old = self._path(name), info.get(f'best_ckpt{suffix}')
            news = {f'best_score{suffix}': score, f'best_ckpt{suffix}': path}
            if not self._save(
                runner,
                name,
                news,
                latest=False,
                save_optimizer=False,
                save_param_scheduler=False,
                meta=meta,
                by_epoch=False,
            ):
                continue
            runner.logger.info(
                f'The best checkpoint with {score:0.4f} {key} at {step} {kind} is saved to {name}.'
            )
            better = True
            if suffix:
                self.best_ckpt_path_dict[key] = path
            else:
                self.best_ckpt_path = path
            if old and old != path and _is_finite(runner):
                outdated.append(old)
        if better and self.last_ckpt is not None:
            self._save_checkpoint_with_step(runner, step, meta)  # again, to know the new best one
        for old in outdated:
            self._remove(runner, old)

    @master_only
    def _publish_model(self, runner: Runner, ckpt_path: str) -> None:
        checkpoint = CheckpointLoader.load_checkpoint(ckpt_path, map_location='cpu')
        kept = {key: value for key, value in checkpoint.items() if key in self.published_keys}
        buffer = io.BytesIO()
        torch.save(kept, buffer)
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        path = f'{Path(ckpt_path).with_suffix("")}-{digest[:8]}.pth'
        try:
            write_bytes(path, buffer.getvalue(), overwrite=True)
        except InputError as error:
            runner.logger.warning(f'{error}; {ckpt_path} is not published')
        else:
            runner.logger.info(f'The checkpoint ({ckpt_path}) is published to {path}.')

    def _path(self, name: str) -> str:
        return self.file_backend.join_path(self.out_dir, name)

    def _save(self, runner: Runner, name: str, news: dict, **options: Any) -> bool:
        """Save with ``news`` in the message hub, which a checkpoint holds, unless that fails."""
        hub = runner.message_hub
        before = dict(hub.runtime_info)
        hub.update_info_dict(news)
        saved = save_state(
            runner,
            self.out_dir,
            name,
            file_client_args=self.file_client_args,
            backend_args=self.backend_args,
            **options,
        )
        if not saved:
            hub.runtime_info.clear()
            hub.runtime_info.update(before)
        return saved

    @master_only
    def _remove(self, runner: Runner, path: str) -> None:
        try:
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # of a strategy that writes one
                self.file_backend.rmtree(path)
        except OSError as error:
            runner.logger.warning(f'{path} is outdated, but cannot be removed: {error.strerror}')


def _is_finite(runner: Runner) -> bool:
    """Whether the reader of checkpoints takes the weights."""
    return not any(
        tensor_fault(value)
        for value in runner.model.state_dict().values()
        if isinstance(value, torch.Tensor)
    )
