"""Checkpoints of a training: whole or not at all, and the new one before the old one goes."""

import errno
import itertools
import os
import signal
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch import distributed as dist
from torch import nn

from mmvars.checkpoints import read_checkpoint
from mmvars.engine.checkpoint_hook import told_by_main_process
from mmvars.engine.flexible import _save_gathered
from mmvars.engine.hooks import SaveOnInterruptHook, TrainingInterrupted
from mmvars.engine.strict import StrictRunner
from mmvars.engine.train import _newest_state
from mmvars.errors import InputError


class Tiny(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        output = self.linear(torch.stack(list(inputs)).float())
        return dict(loss=output.square().mean()) if mode == 'loss' else list(output)


class Data(list):
    """A data set: a list that has attributes."""


class Rising(BaseMetric):
    """The later, the better in ``up``, the worse in ``down``."""

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        step = float(MessageHub.get_current_instance().get_info('iter')) + 1
        return dict(up=step, down=-step)


@pytest.fixture(autouse=True)
def _forget_runs():
    yield
    for owner in (MMLogger, MessageHub, Visualizer, DefaultScope):
        owner._instance_dict.clear()


@pytest.fixture
def build(tmp_path):
    """Builder of a Runner for four steps, with the options of its CheckpointHook and its hooks."""
    numbers = itertools.count()

    def build(*hooks, steps=4, checkpoint=None, folder=tmp_path / 'work', state=None, **options):
        data = Data([dict(inputs=torch.ones(1), data_samples=0)] * 4)
        loader = dict(
            dataset=data, batch_size=1, sampler=dict(type='DefaultSampler', shuffle=False)
        )
        endless = dict(loader, sampler=dict(type='InfiniteSampler', shuffle=False))
        options = dict(interval=1, by_epoch=False, max_keep_ckpts=1, save_last=False) | options
        return StrictRunner(
            Tiny(),
            str(folder),
            train_dataloader=endless,
            train_cfg=dict(by_epoch=False, max_iters=steps, val_interval=2),
            val_dataloader=loader,
            val_cfg=dict(),
            val_evaluator=Evaluator(Rising()),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
            default_hooks=dict(
                timer=None,
                sampler_seed=None,
                logger=None,
                param_scheduler=None,
                checkpoint=dict(type=checkpoint or 'CheckpointHook', **options),
            ),
            custom_hooks=list(hooks),
            randomness=dict(seed=0),
            resume=state is not None,
            load_from=state and str(state),
            log_level='ERROR',
            experiment_name=f'{folder.name}{next(numbers)}',
        )

    return build


BEST = dict(save_best='up', rule='greater')


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix != '.py')


def check_loadable(folder: Path) -> list[int]:
    """Every checkpoint loads, ``last_checkpoint`` names one; the steps that are there."""
    steps = [read_checkpoint(path)['meta']['iter'] for path in folder.glob('iter_*.pth')]
    for path in folder.glob('best_*.pth'):
        read_checkpoint(path)
    pointer = folder / 'last_checkpoint'
    assert not pointer.exists() or Path(pointer.read_text()).is_file()
    return steps


def test_the_new_one_stands_before_the_old_one_goes(build, tmp_path, monkeypatch):
    folder, removed = tmp_path / 'work', []
    remove = LocalBackend.remove

    def checked(backend, path):
        name = Path(path).name
        removed.append(name)
        kind = name.rpartition('_')[0]
        assert len(list(folder.glob(f'{kind}_*.pth'))) == 2, 'the new one beside the old one'
        assert (folder / 'last_checkpoint').read_text() != path
        check_loadable(folder)
        remove(backend, path)

    monkeypatch.setattr(LocalBackend, 'remove', checked)
    build(**BEST).train()
    assert removed == ['iter_1.pth', 'iter_2.pth', 'iter_3.pth', 'best_up_iter_2.pth']
    assert files(folder) == ['best_up_iter_4.pth', 'iter_4.pth', 'last_checkpoint']
    info = read_checkpoint(folder / 'iter_4.pth')['message_hub']['runtime_info']
    assert info['best_ckpt'] == str(folder / 'best_up_iter_4.pth')
    assert info['last_ckpt'] == (folder / 'last_checkpoint').read_text()


def test_names_and_numbers_are_those_of_mmengine(build, tmp_path):
    class Same(CheckpointHook):
        """A hook of the user's own stays."""

    options = dict(max_keep_ckpts=2, save_best=['up', 'down'], rule=['greater', 'less'])
    runners = []
    for kind, folder in ((Same, tmp_path / 'theirs'), (None, tmp_path / 'ours')):
        runners.append(build(checkpoint=kind, folder=folder, steps=5, **options))
        runners[-1].train()
    assert {type(hook) for hook in runners[0].hooks} >= {Same}
    assert files(tmp_path / 'ours') == files(tmp_path / 'theirs')
    ours, theirs = (
        read_checkpoint(tmp_path / name / 'iter_5.pth')['message_hub']['runtime_info']
        for name in ('ours', 'theirs')
    )
    for key in ('best_score_up', 'best_score_down', 'keep_ckpt_ids'):
        assert ours[key] == theirs[key]
    for key in ('best_ckpt_up', 'best_ckpt_down', 'last_ckpt'):
        assert Path(ours[key]).name == Path(theirs[key]).name


@pytest.mark.parametrize('name', ['it_{}.pt', 'states/{}'])
def test_other_names_are_resumed_too(build, tmp_path, name):
    newest, folder = tmp_path / 'work' / name.format(4), tmp_path / 'work'
    options = dict(filename_tmpl=name, max_keep_ckpts=-1, **BEST)
    build(**options).train()
    newest.write_bytes(b'')
    cfg = Config(dict(work_dir=str(folder), default_hooks=dict(checkpoint=options)))
    state, faults = _newest_state(cfg)
    assert state == str(folder / name.format(3)) and len(faults) == 1
    build(state=state, **options).train()
    assert read_checkpoint(newest)['meta']['iter'] == 4


def test_a_full_disk_costs_no_file_that_stood(build, tmp_path, monkeypatch):
    """Full from one write on, at every write."""
    fsync, left, refused = os.fsync, [0], []

    def flush(file):
        left[0] -= 1
        if left[0] < 0:
            refused.append(file)
            raise OSError(errno.ENOSPC, 'No space left on device')
        fsync(file)

    monkeypatch.setattr(os, 'fsync', flush)
    for room in itertools.count(2, 2):  # a file and its folder; the first is the config
        left[0], folder = room, tmp_path / f'room{room}'
        refused.clear()
        runner = build(folder=folder, steps=2, **BEST)
        try:
            runner.train()
        except InputError as error:
            assert 'iter_2.pth is not saved: make room, and --resume' in str(error)
        assert runner.iter == 2, 'training goes on'
        steps = check_loadable(folder)
        # Then the first checkpoint and last_checkpoint, the second and last_checkpoint, the best.
        assert max(steps, default=0) == (room >= 4) + (room >= 8)
        assert len(list(folder.glob('best_*.pth'))) == (room >= 12)
        assert not list(folder.glob('.*'))
        if not refused:
            break
    assert room == 16  # then the second again and last_checkpoint


def test_a_refusal_is_said_once_with_a_remedy(build, tmp_path, monkeypatch):
    runner = build(steps=1, interval=-1)
    runner.train()
    folder, said = tmp_path / 'work', []

    def refuse(source, target):
        raise OSError(errno.EROFS, 'Read-only file system')

    monkeypatch.setattr(runner.logger, 'warning', said.append)
    monkeypatch.setattr(os, 'replace', refuse)
    assert runner.save_checkpoint(str(folder), 'x.pth') is False
    said = [text for text in said if 'scheduler' not in text]
    assert len(said) == 1
    assert f'{folder / "x.pth"} cannot be written: Read-only file system' in said[0]
    assert 'make room' in said[0]
    assert files(folder) == []


def test_a_best_one_that_could_not_be_saved_is_not_noted(build, tmp_path, monkeypatch):
    save = StrictRunner.save_checkpoint
    monkeypatch.setattr(
        StrictRunner,
        'save_checkpoint',
        lambda self, folder, name, **options: (
            not name.startswith('best') and save(self, folder, name, **options)
        ),
    )
    build(**BEST).train()
    info = read_checkpoint(tmp_path / 'work' / 'iter_4.pth')['message_hub']['runtime_info']
    assert not {'best_score', 'best_ckpt'} & info.keys()


def test_ctrl_c_on_a_full_disk_says_that_nothing_is_saved(build, tmp_path, monkeypatch):
    class Press(Hook):
        def after_train_iter(self, runner, *args, **kwargs):
            if runner.iter == 2:
                os.kill(os.getpid(), signal.SIGINT)
                monkeypatch.setattr(os, 'fsync', refuse)

    def refuse(file):
        raise OSError(errno.EDQUOT, 'Disk quota exceeded')

    runner, said = build(Press(), SaveOnInterruptHook(), interval=2), []
    monkeypatch.setattr(runner.logger, 'error', said.append)
    with pytest.raises(TrainingInterrupted) as caught:
        runner.train()
    assert caught.value.code == 130 and caught.value.checkpoint is None
    assert len(said) == 1 and 'its state is NOT saved' in said[0]
    assert files(tmp_path / 'work') == ['iter_2.pth', 'last_checkpoint']
    check_loadable(tmp_path / 'work')


def test_while_weights_are_nan_the_last_good_one_stays(build, tmp_path):
    class Diverge(Hook):
        def after_train_iter(self, runner, *args, **kwargs):
            if runner.iter >= 2:
                runner.model.linear.weight.data.fill_(float('nan'))

    build(Diverge(), **BEST).train()
    folder = tmp_path / 'work'
    # The best of step 2 stays too, though the metric takes NaN for better.
    assert files(folder) == [
        'best_up_iter_2.pth',
        'best_up_iter_4.pth',
        'iter_2.pth',
        'iter_4.pth',
        'last_checkpoint',
    ]


def test_what_a_kill_kept_from_being_removed_goes_when_the_run_is_resumed(build, tmp_path):
    folder = tmp_path / 'work'
    build(steps=2).train()
    (folder / 'iter_1.pth').write_bytes(b'')
    build(state=folder / 'iter_2.pth').train()
    assert files(folder) == ['iter_4.pth', 'last_checkpoint']


def test_publishing_is_whole_too(build, tmp_path):
    build(published_keys=['state_dict'], save_last=True).train()
    (published,) = (tmp_path / 'work').glob('iter_4-*.pth')
    assert read_checkpoint(published).keys() == {'state_dict'}


def test_a_remote_backend_is_left_alone(build, monkeypatch):
    saved = []
    monkeypatch.setattr(Runner, 'save_checkpoint', lambda self, *args, **_: saved.append(args))
    runner = build(steps=1, interval=-1)
    runner.train()
    assert runner.save_checkpoint('http://host', 'x.pth') is True
    assert saved == [('http://host', 'x.pth')]


class Full(Hook):
    calls = 0

    def after_train_iter(self, runner, *args, **kwargs):
        type(self).calls += 1
        raise OSError(self.number, os.strerror(self.number))


def test_a_log_on_a_full_disk_does_not_end_the_training(build, monkeypatch):
    said = []
    hook = Full()
    hook.number = errno.ENOSPC
    runner = build(hook, interval=-1)
    monkeypatch.setattr(runner.logger, 'warning', said.append)
    runner.train()
    assert hook.calls == runner.iter == 4
    assert [text for text in said if 'Full cannot write' in text] == said[-1:]


def test_other_errors_of_a_hook_do(build):
    hook = Full()
    hook.number = errno.ECONNRESET
    with pytest.raises(ConnectionResetError):
        build(hook, interval=-1).train()


def test_outdated_checkpoints_that_are_folders_go_too(build, tmp_path):
    """Strategies such as DeepSpeed's write them."""

    class Folders(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            path = tmp_path / 'work' / f'iter_{runner.iter}.pth'
            if runner.iter and path.is_file():
                path.unlink()
                path.mkdir()
                (path / 'rank0.pth').touch()

    build(Folders()).train()
    assert [path.name for path in (tmp_path / 'work').glob('iter_*')] == ['iter_4.pth']


def test_signals_that_are_ignored_at_the_start_stay_ignored():
    """SIGHUP is for ``nohup mmvars train``, SIGINT for background jobs of shells."""
    child = os.fork()
    if not child:
        hook = SaveOnInterruptHook()
        ignored = signal.SIGHUP, signal.SIGINT
        for signum in ignored:
            signal.signal(signum, signal.SIG_IGN)
        hook.install()
        for signum in ignored:
            signal.raise_signal(signum)
        reacted = hook._signum
        signal.raise_signal(signal.SIGTERM)
        hook.uninstall()
        stay = all(signal.getsignal(signum) is signal.SIG_IGN for signum in ignored)
        os._exit(0 if not reacted and hook._signum == signal.SIGTERM and stay else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize('refuses', ['nothing', 'opening', 'writing'])
def test_processes_that_gather_agree_where_the_disk_refuses(refuses, tmp_path):
    """As with FSDP: each has a part of what the main one writes, and none waits for ever."""
    folder = tmp_path / 'work'
    if refuses == 'opening':
        folder.touch()
    runner = SimpleNamespace(logger=MMLogger.get_instance('gathering', log_level='ERROR'))

    def save(out_dir, filename, **options):
        dist.barrier()  # where the parts are gathered
        if dist.get_rank() == 0:
            Path(out_dir, filename).write_bytes(b'whole' if refuses == 'nothing' else b'wh')
            if refuses == 'writing':
                raise OSError(errno.ENOSPC, 'No space left on device')

    def run(rank):
        seconds = timedelta(seconds=20)
        store = f'file://{tmp_path}/store'
        dist.init_process_group('gloo', store, seconds, rank=rank, world_size=2)
        saved = told_by_main_process(_save_gathered(runner, save, str(folder), 'a.pth'))
        dist.destroy_process_group()
        os._exit(0 if saved is (refuses == 'nothing') else 1)

    children = []
    for rank in range(2):
        children.append(os.fork())
        if not children[-1]:
            try:
                run(rank)
            finally:
                os._exit(2)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    left = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    assert left == (['a.pth'] if refuses == 'nothing' else [])
