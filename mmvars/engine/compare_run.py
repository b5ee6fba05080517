"""One training of a comparison: a subprocess that can be stopped, resumed, and read out."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device

from mmvars import __version__
from mmvars.checkpoints.files import write_text
from mmvars.errors import InputError
from mmvars.resources import resource_root

try:
    import fcntl
    import resource
except ImportError:  # Windows: no guard against two at a time, CPU seconds stay 0
    fcntl = resource = None

__all__ = ['Run', 'Stopped', 'environment', 'one_at_a_time', 'plain']

_NO_METRIC = {'data_time', 'time', 'step', 'iter', 'epoch', 'memory'}


class Stopped(Exception):
    """A signal ended the training; ``status`` is 128 + its number."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def environment() -> dict[str, str]:
    """What decides results besides the config. Runs of one table share it."""
    device = get_device()
    name = torch.cuda.get_device_name() if device == 'cuda' else device
    return dict(mmvars=__version__, torch=torch.__version__, device=name)


def plain(value: Any) -> Any:
    """``value`` as it comes back from a JSON file."""
    return json.loads(json.dumps(value, default=str))


class Run:
    """One variant with one seed, in a folder of its own.

    The folder is an ordinary work dir; ``run.json`` beside it keeps the config and the state.

    Args:
        variant: Its name.
        seed: Random seed.
        cfg: Complete config, seed included.
        notes: Lines for the log.
        work_dir: Of the comparison.
        here: The :func:`environment`.

    Raises:
        InputError: If the folder holds a run with another config or environment, or anything else.
    """

    def __init__(self, variant: str, seed: int, cfg: Config, notes: list[str], work_dir: Path,
                 here: dict[str, str]) -> None:
        self.variant, self.seed, self.cfg, self.notes = variant, seed, cfg, notes
        self.folder = work_dir / variant / f'seed_{seed}'
        self.config_file = work_dir / 'configs' / f'{variant}_seed_{seed}.py'
        self.log = self.folder / 'train.log'
        self._file = self.folder / 'run.json'
        self.record: dict[str, Any] = dict(
            variant=variant, seed=seed, status='new', environment=here, sessions=0, seconds=0.,
            cpu_seconds=0., metrics=None, config=plain(cfg.to_dict()))
        if self.folder.exists() and any(self.folder.iterdir()):
            self._take_up()

    @property
    def resumes(self) -> bool:
        """Whether :meth:`train` would go on from a checkpoint."""
        return (self.folder / 'last_checkpoint').is_file()

    @property
    def finished(self) -> bool:
        return self.record['status'] == 'finished'

    def value(self, metric: str) -> float:
        """One metric of the last validation.

        Raises:
            InputError: If there is none of that name; lists those that are.
        """
        metrics = {k: v for k, v in self.record['metrics'].items() if isinstance(v, int | float)}
        if metric not in metrics:
            raise InputError(f'--metric {metric!r} is not among those of the last validation: '
                             f'{", ".join(metrics)}')
        return metrics[metric]

    def train(self, lock: int | None) -> None:
        """Train, or go on, to the end, and take the result.

        Args:
            lock: File descriptor that tells others this folder is at work; the training holds it
                too, so that they are told even if this process is killed.

        Raises:
            Stopped: On SIGINT or SIGTERM; :meth:`train` goes on from there.
            InputError: If the training fails; it may be tried again.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config_file.parent.mkdir(exist_ok=True)
        self.cfg.dump(str(self.config_file))
        resumes = self.resumes
        if not resumes:  # what an earlier try took is not part of this run
            self.record |= dict(sessions=0, seconds=0., cpu_seconds=0.)
        self._save(status='running', sessions=self.record['sessions'] + 1)
        command = [sys.executable, str(resource_root() / 'tools' / 'train.py'),
                   str(self.config_file), '--work-dir', str(self.folder),
                   *(['--resume'] if resumes else [])]
        start, cpu = time.monotonic(), _children_seconds()
        with open(self.log, 'a', encoding='utf-8') as log:
            log.write(''.join(f'{note}\n' for note in self.notes))
            log.flush()
            status, signum = _run(command, log, lock)
        self.record['seconds'] += time.monotonic() - start
        self.record['cpu_seconds'] += _children_seconds() - cpu
        if status == 0:
            self._save(status='finished', metrics=self._last_validation())
        else:
            self._save(status='stopped')
            signum = signum or (-status if status < 0 else status - 128)
        if signum in (signal.SIGINT, signal.SIGTERM):  # sent to us, or to the training alone
            raise Stopped(128 + signum)
        if status == 0:
            return
        raise InputError(f'the training of variant {self.variant!r}, seed {self.seed} failed '
                         f'({_ending(status)}): {self._last_words()}\nIts log is {self.log}; the '
                         'same command line tries it again')

    def _take_up(self) -> None:
        try:
            found = json.loads(self._file.read_text(encoding='utf-8'))
            old = dict(config=found['config'], environment=found['environment'])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f'{self.folder} holds something else than a run of this command: '
                             'choose another --work-dir') from None
        new = {key: self.record[key] for key in old}
        changes = list(_differences(old['config'], new['config'])) + list(
            _differences(old['environment'], new['environment']))
        if changes:
            more = f' and {len(changes) - 4} more' if len(changes) > 4 else ''
            raise InputError(f'{self.folder} was trained with other settings: '
                             f'{"; ".join(changes[:4])}{more}. Results are not mixed: use the old '
                             'settings, or choose another --work-dir')
        self.record = found

    def _save(self, **changes: Any) -> None:
        self.record |= changes
        write_text(self._file, json.dumps(self.record, indent=1) + '\n', overwrite=True)

    def _last_validation(self) -> dict[str, float]:
        # The newest log: the last validation is made by whoever ends the training.
        logs = sorted(self.folder.glob('*/vis_data/scalars.json'))
        lines = logs[-1].read_text(encoding='utf-8').splitlines() if logs else []
        rows = [row for row in map(json.loads, lines) if 'lr' not in row]
        if not rows:
            raise InputError(f'the training in {self.folder} ended without a validation: see '
                             'train_cfg.val_begin and val_interval')
        return {key: value for key, value in rows[-1].items() if key not in _NO_METRIC}

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text('utf-8', 'replace').splitlines()]
        return next((line for line in reversed(lines) if line), 'it said nothing')


def _differences(old: Any, new: Any, path: str = '') -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            below = f'{path}.{key}' if path else key
            yield from _differences(old.get(key, 'unset'), new.get(key, 'unset'), below)
    elif old != new:
        shown = [text if len(text) < 60 else f'{text[:57]}...' for text in (f'{old}', f'{new}')]
        yield f'{path} {shown[0]} there, {shown[1]} now'


@contextlib.contextmanager
def one_at_a_time(work_dir: Path) -> Iterator[int | None]:
    """Hold the folder's lock; gives its file descriptor.

    Raises:
        InputError: If another process holds it, such as a training whose parent was killed.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield None
        return
    with open(work_dir / '.compare.lock', 'w', encoding='utf-8') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f'--work-dir {str(work_dir)!r}: another comparison, or a training that'
                             ' one left behind, is at work there: wait for it, or end it') from None
        yield file.fileno()


def _run(command: list[str], log: Any, lock: int | None) -> tuple[int, int]:
    """Run to the end, passing SIGINT and SIGTERM on; returns Popen's status and the signal, or 0.

    In a session of its own, so that a terminal's Ctrl-C comes once, and from here: training takes
    a second one for the wish to stop at once, without saving.
    """
    child = None
    received = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        if child is not None:
            child.send_signal(signum)

    previous = {s: signal.signal(s, pass_on) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        # The modules of this process, wherever it was started.
        env = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env,
                                 stdin=subprocess.DEVNULL, start_new_session=True,
                                 pass_fds=() if lock is None else (lock, ))
        if received:  # while it was being started
            child.send_signal(received[-1])
        status = child.wait()
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    return status, received[0] if received else 0


def _children_seconds() -> float:
    if resource is None:
        return 0.
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _ending(status: int) -> str:
    if status >= 0:
        return f'exit status {status}'
    hint = ', as when memory runs out' if status == -signal.SIGKILL else ''
    return f'killed by {signal.Signals(-status).name}{hint}'
