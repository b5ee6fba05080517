"""Runs of `mmvars robustness` that are killed, and that share a folder."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmvars.robustness import STANDARD, cli

pytestmark = pytest.mark.slow

NUM_KILLS = 20
MANY = ['--protocol', 'segmentation', '--corruptions', *(c for c in STANDARD if c != 'frost')]
NUM_MANY = 71  # without those of frost, which needs textures


def start(model, out: Path, log: Path, *options: str) -> int:
    """Start a run in a process of its own, which need not import anything again."""
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(log, 'a')  # noqa: SIM115
        status = 1
        try:
            status = cli.main([*model, '--out', str(out), *options])
        finally:
            sys.stdout.flush()
            os._exit(status)
    return child


def reports(folder: Path) -> list[bytes]:
    return [
        (folder / f'robustness.{suffix}').read_bytes() for suffix in ('txt', 'json', 'csv', 'md')
    ]


def made(log: Path) -> list[str]:
    """Settings that are said to be made, in order."""
    lines = log.read_text().splitlines()
    return [line.split(': ')[0].split('] ')[1] for line in lines if line.startswith('[')]


def test_runs_that_are_killed_at_random_moments_make_the_same_table(segmentor, tmp_path) -> None:
    whole, broken, log = tmp_path / 'whole', tmp_path / 'broken', tmp_path / 'log'
    begin = time.monotonic()
    assert os.waitpid(start(segmentor, whole, tmp_path / 'log0', *MANY), 0)[1] == 0
    duration = time.monotonic() - begin
    draw, written = random.Random(0), {}
    for _ in range(NUM_KILLS):
        child = start(segmentor, broken, log, *MANY)
        target = len(written) + draw.randint(1, NUM_MANY // NUM_KILLS - 1)
        while len(rows(broken)) < target:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, duration / NUM_MANY))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert rows(broken) | written == rows(broken)  # none is written again
        written = rows(broken)
    assert len(written) < NUM_MANY
    assert os.waitpid(start(segmentor, broken, log, *MANY), 0)[1] == 0
    assert reports(broken) == reports(whole)
    assert len(made(log)) == len(set(made(log))) and len(made(log)) >= NUM_MANY - NUM_KILLS


def rows(folder: Path) -> dict[Path, int]:
    """Rows that are there, and when they were written."""
    files = [path for path in folder.glob('rows/*/*.json') if path.name != 'run.json']
    return {path: path.stat().st_mtime_ns for path in files}


def test_two_processes_share_the_work(segmentor, tmp_path) -> None:
    logs = [tmp_path / 'log1', tmp_path / 'log2']
    children = [start(segmentor, tmp_path / 'shared', log, *MANY) for log in logs]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    parts = [made(log) for log in logs]
    assert all(parts)  # while one waits for the clean images, the other makes some
    assert len(parts[0] + parts[1]) == len({*parts[0], *parts[1]}) == NUM_MANY
    os.waitpid(start(segmentor, tmp_path / 'alone', tmp_path / 'log3', *MANY), 0)
    assert reports(tmp_path / 'shared') == reports(tmp_path / 'alone')


def test_a_distributed_run_makes_the_same_table(segmentor, tmp_path, repo) -> None:
    few = ['--corruptions', 'snow', '--severities', '2']
    os.waitpid(start(segmentor, tmp_path / 'alone', tmp_path / 'log', *few), 0)
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2']
        + ['--master-port', str(random.randint(20000, 40000)), 'tools/test_robustness.py']
        + [*segmentor, '--out', str(tmp_path / 'both'), '--launcher', 'pytorch', *few],
        cwd=repo,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(repo)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('] clean:') == 1
    assert reports(tmp_path / 'both') == reports(tmp_path / 'alone')
