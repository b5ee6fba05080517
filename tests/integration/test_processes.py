"""Processes that are killed: the others of the run end too, and say why."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
LONG = """
train_cfg.update(max_iters=100_000, val_interval=100_000)
default_hooks['checkpoint']['interval'] = 100_000
train_dataloader.update(num_workers=1, persistent_workers=True)
"""


class Started:
    """A command on a long training; all its processes have the work dir in their command lines."""

    def __init__(self, kind: str, repo: Path, toy: Path, folder: Path) -> None:
        config, self.work_dir, self.log = folder / 'long.py', folder / 'work', folder / 'log.txt'
        config.write_text((toy / 'cls.py').read_text() + LONG)
        place = ['--work-dir', str(self.work_dir)]
        command = {
            'train': [sys.executable, 'tools/train.py', str(config)],
            'dist_train': ['bash', 'tools/dist_train.sh', str(config), '2'],
            'compare': [sys.executable, 'tools/compare_runs.py', str(config), '--variant', 'plain'],
        }[kind]
        env = dict(
            os.environ,
            PYTHON=sys.executable,
            PYTHONPATH=os.pathsep.join([str(repo), *sys.path]),
            OMP_NUM_THREADS='1',
            CUDA_VISIBLE_DEVICES='',
            PORT=str(_free_port()),
        )
        with open(self.log, 'wb') as log:
            self.process = subprocess.Popen(
                [*command, *place], cwd=repo, env=env, stdout=log, stderr=log
            )
        self.wait(lambda: re.search(r'Iter\(train\)', self.text()), 'to train', 200)

    def text(self) -> str:
        logs = [self.log, *self.work_dir.glob('*/seed_*/train.log')]
        return ''.join(log.read_text(errors='replace') for log in logs)

    def processes(self) -> dict[int, int]:
        """Those that run, and the parent of each."""
        found = {}
        for path in Path('/proc').glob('[0-9]*'):
            try:
                if str(self.work_dir).encode() in (path / 'cmdline').read_bytes():
                    fields = (path / 'stat').read_text().rpartition(')')[2].split()
                    if fields[0] != 'Z':
                        found[int(path.name)] = int(fields[1])
            except (FileNotFoundError, ProcessLookupError):  # ended in between
                continue
        return found

    def wait(self, done, what: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, f'waited {seconds} s {what}: {self.text()[-3000:]}'
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@pytest.fixture
def start(repo, toy, tmp_path):
    if not Path('/proc/self/stat').exists():
        pytest.skip('looks processes up in /proc')
    started = []

    def run(kind: str) -> Started:
        started.append(Started(kind, repo, toy, tmp_path))
        return started[0]

    yield run
    for each in started:
        each.process.kill()
        for pid in each.processes():
            os.kill(pid, signal.SIGKILL)
        each.process.wait()


def test_the_other_rank_ends_and_says_why(start) -> None:
    run = start('dist_train')
    launcher = run.process.pid
    ranks = [pid for pid, parent in run.processes().items() if parent == launcher]
    assert len(ranks) == 2
    os.kill(max(ranks), signal.SIGKILL)
    assert run.process.wait(120) != 0
    text = run.text()
    assert text.count('another process of this run has ended') == 1
    assert '--resume' in text
    # A data worker of the killed rank may complain that its parent is gone.
    assert set(re.findall(r'^(.*)Traceback', text, re.MULTILINE)) <= {'[rank1]: '}
    run.wait(lambda: not run.processes(), 'for the workers to end', 30)


@pytest.mark.parametrize('kind', ['train', 'dist_train', 'compare'])
def test_nothing_outlives_a_killed_parent(kind, start) -> None:
    run = start(kind)
    assert len(run.processes()) >= {'train': 2, 'dist_train': 5, 'compare': 3}[kind]
    run.process.kill()
    run.wait(lambda: not run.processes(), 'for the others to end', 60)
    if kind != 'train':  # what was killed is the launcher; the training saved its state
        assert list(run.work_dir.rglob('iter_*.pth'))
