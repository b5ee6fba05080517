"""Kills training runs with SIGKILL at chosen and random moments, and fills their disks.

Not collected by pytest; ``test_kills.py`` runs it with the chosen moments alone. By hand:

    python tests/integration/kill_matrix.py [--random 50] [--processes 1 2] [--frameworks cls seg]

After every kill each file under a final name must load, nothing that had stood may be lost, and
``--resume`` must reach the weights of a run that was not killed, in every bit. The runs are forked
from one process that has imported everything.
"""

import argparse
import gc
import itertools
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault('OMP_NUM_THREADS', '1')

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.registry import HOOKS, METRICS
from mmengine.runner import ValLoop

from mmvars import cli, write
from mmvars.checkpoints import read_checkpoint
from mmvars.engine import checkpoint_hook, train  # noqa: F401  what a forked run would import
from mmvars.engine.checkpoint_hook import KeepingCheckpointHook
from mmvars.errors import InputError

STEPS = 6
CONFIG = f"""
train_cfg = dict(type='IterBasedTrainLoop', max_iters={STEPS}, val_interval=2)
default_hooks['checkpoint'] = dict(
    type='CheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=1, save_best='step',
    rule='greater')
val_evaluator = dict(type='StepMetric')
custom_hooks = [dict(type='Trace')]
train_dataloader['dataset']['pipeline'] = [
    *pipeline[:-1], dict(type='RandomFlip', prob=0.5), pipeline[-1]]
model['backbone']['drop_path_rate'] = 0.3
"""

MOMENTS = {
    'inside the write of a checkpoint': ('half', 'iter_3.pth'),
    'before its renaming': ('whole', 'iter_3.pth'),
    'before last_checkpoint is written': ('renamed', 'iter_3.pth'),
    'inside the write of last_checkpoint': ('half', 'last_checkpoint', 3),
    'before the renaming of last_checkpoint': ('whole', 'last_checkpoint', 3),
    'before the removal of the older one': ('remove', 'iter_2.pth'),
    'after the removal of the older one': ('removed', 'iter_2.pth'),
    'in validation': ('validate', '', 2),
    'inside the write of the best': ('half', 'best_step_iter_4.pth'),
    'before the best is noted': ('renamed', 'best_step_iter_4.pth'),
    'inside the second write of a checkpoint': ('half', 'iter_4.pth', 2),
    'before the removal of the older best': ('remove', 'best_step_iter_2.pth'),
    'inside the write on Ctrl-C': ('half', 'iter_3.pth', 2),
}


class Events:
    """What happens to the files of this process, noted in a file; may end in a kill."""

    def __init__(self, trace: Path, moment: tuple | None) -> None:
        self.file = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.moment = (*moment, 1)[:3] if moment else ()
        self.seen: Counter = Counter()

    def __call__(self, kind: str, name: str = '') -> None:
        self.seen[kind, name] += 1
        if (kind, name, self.seen[kind, name]) == self.moment:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(self.file, f'{kind} {name}\n'.encode())

    def install(self) -> None:
        """Report every step of a write, whoever makes it."""
        put, replace = LocalBackend.put, os.replace
        remove, validate = KeepingCheckpointHook._remove, ValLoop.run_iter

        def traced_put(backend: LocalBackend, content: bytes, path: str) -> None:
            put(backend, content[: len(content) // 2], path)
            self('half', _final_name(path))
            put(backend, content, path)

        def traced_write(path: Path, content: bytes, overwrite: bool = False) -> None:
            with write.whole_or_nothing(path, overwrite) as file:
                file.write(content[:5])
                file.flush()
                self('half', Path(path).name)
                file.write(content[5:])

        def traced_replace(source: Path, target: Path) -> None:
            self('whole', Path(target).name)
            replace(source, target)
            self('renamed', Path(target).name)

        def traced_remove(hook: KeepingCheckpointHook, runner: Any, path: str) -> None:
            self('remove', Path(path).name)
            remove(hook, runner, path)
            self('removed', Path(path).name)

        def traced_validation(loop: ValLoop, *args: Any) -> None:
            self('validate')
            validate(loop, *args)

        LocalBackend.put, write.os.replace = traced_put, traced_replace
        write.write_bytes = traced_write
        KeepingCheckpointHook._remove, ValLoop.run_iter = traced_remove, traced_validation


def _final_name(path: str) -> str:
    return Path(path).name.removeprefix('.').partition('.pth.')[0] + '.pth'


EVENTS: Events


@HOOKS.register_module()
class Trace(Hook):
    """Says which step is made; sends Ctrl-C where the trial wants one."""

    priority = 'VERY_HIGH'
    interrupt = 0

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        EVENTS('step', str(runner.iter + 1))
        if runner.iter + 1 == self.interrupt:
            os.kill(os.getpid(), signal.SIGINT)


@METRICS.register_module()
class StepMetric(BaseMetric):
    """The later the better: every validation has a new best checkpoint."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict:
        return dict(step=float(MessageHub.get_current_instance().get_info('iter')))


def prepare_forks() -> None:
    """Do once what costs every run most of its time, and has nothing to do with files."""
    for name in ('mmpretrain.utils', 'mmseg.utils'):
        import_module(name).register_all_modules(init_default_scope=False)
    for name in ('mmvars.models', 'matplotlib.pyplot', 'mmvars.visualization.hook'):
        import_module(name)
    Config.pretty_text = property(lambda cfg: repr(cfg))  # mmengine formats it in every save
    gc.collect()
    gc.freeze()


class Run:
    """A training in ``processes`` forked processes."""

    def __init__(
        self, config: Path, work_dir: Path, processes: int, *arguments: str, **events: Any
    ) -> None:
        self.trace = work_dir.with_suffix('.trace')
        self.log = work_dir.with_suffix('.log')
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port = probe.getsockname()[1]
        command = ['train', str(config), '--work-dir', str(work_dir), *arguments]
        if processes > 1:
            command += ['--launcher', 'pytorch']
        self.children = [
            self._fork(command, rank, processes, port, **events) for rank in range(processes)
        ]

    def _fork(
        self,
        command: list[str],
        rank: int,
        processes: int,
        port: int,
        moment: tuple | None = None,
        interrupt: int = 0,
        prepare: Callable[[], None] | None = None,
    ) -> int:
        if child := os.fork():
            return child
        status = 70
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            global EVENTS
            EVENTS = Events(self.trace if rank == 0 else Path(os.devnull), None if rank else moment)
            EVENTS.install()
            Trace.interrupt = interrupt
            if prepare is not None:
                prepare()
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(processes),
                MASTER_ADDR='127.0.0.1',
                MASTER_PORT=str(port),
            )
            try:
                status = cli.main(command)
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def events(self) -> list[tuple[str, str]]:
        text = self.trace.read_text() if self.trace.exists() else ''
        return [tuple(line.split(' ', 1)) for line in text.splitlines()]

    def kill(self) -> None:
        for child in self.children:
            os.kill(child, signal.SIGKILL)

    def wait(self, seconds: float = 120) -> list[int | None]:
        """Exit statuses; a process that outlives another for that long is ended, with ``None``."""
        statuses: list[int | None] = []
        for child in self.children:
            end = time.monotonic() + seconds
            while (found := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
                time.sleep(0.01)
            if found[0] == 0:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            statuses.append(os.waitstatus_to_exitcode(found[1]) if found[0] else None)
        return statuses


def newest_state(work_dir: Path) -> int:
    """Step of the newest loadable state; 0 if there is none."""
    return max((read_checkpoint(p)['meta']['iter'] for p in work_dir.glob('iter_*.pth')), default=0)


def faults_of(work_dir: Path, events: list[tuple[str, str]]) -> list[str]:
    """What a kill broke: half files under final names, and files that had stood."""
    faults = []
    for path in [p for p in work_dir.glob('*.pth') if not p.name.startswith('.')]:
        try:
            read_checkpoint(path)
        except InputError as error:
            faults.append(f'half: {error}')
    if faults:
        return faults
    pointer = work_dir / 'last_checkpoint'
    if pointer.exists() and not Path(pointer.read_text()).is_file():
        faults.append(f'half: last_checkpoint holds {pointer.read_text()!r}')
    stood = [name for kind, name in events if kind == 'renamed']
    if 'last_checkpoint' in stood:
        states = [n for n in stood[: _last(stood, 'last_checkpoint')] if n.startswith('iter_')]
        if newest_state(work_dir) < _step(states[-1]):
            faults.append(f'lost: {states[-1]}')
    best = [name for name in stood if name.startswith('best_')]
    left = [_step(path.name) for path in work_dir.glob('best_*.pth')]
    if best and _step(best[-1]) not in left:
        faults.append(f'lost: {best[-1]}')
    return faults


def _last(values: list, value: Any) -> int:
    return len(values) - 1 - values[::-1].index(value)


def _step(name: str) -> int:
    return int(name.rpartition('_')[2].removesuffix('.pth'))


def resume_faults(config: Path, work_dir: Path, processes: int, whole: Path) -> list[str]:
    """Whether ``--resume`` ends as the run ``whole`` did, and leaves no partial file."""
    arguments = ['--resume'] if newest_state(work_dir) else []
    run = Run(config, work_dir, processes, *arguments)
    statuses = run.wait()
    if any(statuses):
        return [f'--resume: exit statuses {statuses}, {run.log}']
    faults = [f'not removed: {path.name}' for path in work_dir.glob('.*.partial')]
    ends = [read_checkpoint(folder / f'iter_{STEPS}.pth') for folder in (work_dir, whole)]
    for part in ('state_dict', 'optimizer'):
        if not _equal(*(end[part] for end in ends)):
            faults.append(f'another {part} than without the kill')
    return faults


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


def chosen(
    config: Path, root: Path, processes: int, whole: Path, every: int
) -> dict[str, list[str]]:
    """Moment -> what went wrong."""
    results = {}
    for index, (title, moment) in enumerate(list(MOMENTS.items())[::every]):
        work_dir = root / f'chosen{index}'
        run = Run(
            config, work_dir, processes, moment=moment, interrupt=3 if 'Ctrl-C' in title else 0
        )
        statuses = run.wait()
        faults = [] if statuses[0] == -signal.SIGKILL else [f'never killed: {statuses}']
        faults += faults_of(work_dir, run.events())
        results[title] = faults or resume_faults(config, work_dir, processes, whole)
    return results


def at_random(
    config: Path, root: Path, processes: int, whole: Path, index: int, pause: float
) -> list[str]:
    """Kill all processes at once, some time after some step."""
    draw = random.Random(index)
    step, delay = draw.randrange(1, STEPS), draw.uniform(0, pause)
    for attempt in itertools.count():
        work_dir = root / f'random{index}_{attempt}'
        run = Run(config, work_dir, processes)
        while ('step', str(step)) not in run.events():
            time.sleep(0.001)
        time.sleep(delay / 2**attempt)
        run.kill()
        if set(run.wait()) == {-signal.SIGKILL}:  # else it had ended before
            break
    return faults_of(work_dir, run.events()) or resume_faults(config, work_dir, processes, whole)


def full_disk(config: Path, root: Path, processes: int, index: int) -> list[str] | None:
    """From its ``index``-th flush on the disk is full; ``None`` if there are not so many."""
    work_dir = root / f'full{index}'
    fsync, count = os.fsync, itertools.count()

    def refuse(file: int) -> None:
        if next(count) >= index:
            EVENTS('full')
            raise OSError(28, 'No space left on device')
        fsync(file)

    def prepare() -> None:
        write.os.fsync = refuse

    run = Run(config, work_dir, processes, prepare=prepare)
    statuses, events = run.wait(), run.events()
    if ('full', '') not in events:
        return None
    faults = faults_of(work_dir, events)
    pointer = work_dir / 'last_checkpoint'
    at_end = pointer.is_file() and pointer.read_text().endswith(f'iter_{STEPS}.pth')
    if set(statuses) != {0 if at_end else 2}:
        faults.append(f'exit statuses: {statuses}, {run.log}')
    if index and ('step', str(STEPS)) not in events:
        faults.append(f'training: did not go on, {run.log}')
    faults += [f'not removed: {path.name}' for path in work_dir.glob('.*.partial')]
    return faults


def small_files(config: Path, root: Path, processes: int, whole: Path) -> list[str]:
    """The disk takes a third of a checkpoint: the write itself fails, in every save."""
    work_dir = root / 'small'
    size = (whole / f'iter_{STEPS}.pth').stat().st_size // 3

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    run = Run(config, work_dir, processes, prepare=prepare)
    statuses, events = run.wait(), run.events()
    faults = [f'half or not removed: {path.name}' for path in work_dir.glob('*iter_*')]
    if ('step', str(STEPS)) not in events:
        faults.append(f'training: did not go on, {run.log}')
    refused = run.log.read_text().count('cannot be written: File too large')
    if set(statuses) != {2} or refused < STEPS:
        faults.append(f'exit statuses: {statuses}, {refused} messages, {run.log}')
    return faults


def main() -> int:
    from conftest import make_toy

    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--random', type=int, default=50, help='random moments')
    parser.add_argument('--processes', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--frameworks', nargs='+', default=['cls', 'seg'])
    parser.add_argument('--every', type=int, default=1, help='one of so many chosen moments')
    parser.add_argument('--only-kills', action='store_true', help='leave out the other full disks')
    args = parser.parse_args()
    prepare_forks()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        toy = make_toy(Path(folder, 'toy'))
        for framework, processes in itertools.product(args.frameworks, args.processes):
            config = toy / f'{framework}.py'
            config = config.with_name(f'{framework}_killed.py')
            config.write_text((toy / f'{framework}.py').read_text() + CONFIG)
            root = Path(folder, f'{framework}{processes}')
            root.mkdir()
            whole = root / 'whole'
            start = time.monotonic()
            run = Run(config, whole, processes)
            if any(run.wait()):
                print(run.log.read_text())
                return 1
            pause = (time.monotonic() - start) / STEPS
            print(f'{framework}, {processes} processes', flush=True)
            results = {
                f'kill {title}': faults
                for title, faults in chosen(config, root, processes, whole, args.every).items()
            }
            results['no room for a write'] = small_files(config, root, processes, whole)
            for index in range(args.random):
                faults = at_random(config, root, processes, whole, index, pause)
                results[f'kill at random {index}'] = faults
            for index in itertools.count() if not args.only_kills else ():
                faults = full_disk(config, root, processes, index)
                if faults is None:
                    break
                results[f'disk full at write {index}'] = faults
            for title, faults in results.items():
                print(f'  {title:50} {"; ".join(faults) or "ok"}')
            kinds = Counter(fault.partition(':')[0] for f in results.values() for fault in f)
            print(f'  {len(results)} trials, faults: {dict(kinds) or 0}', flush=True)
            failed += sum(map(bool, results.values()))
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
