"""The configs, built once for all tests of this folder, however many processes run them."""

import fcntl
import json
import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
LEAVES = sorted(
    p for p in CONFIGS.rglob('*.py') if '_base_' not in p.parts and p.parent.name != 'meter'
)


def _process(path: Path) -> tuple[bool, bool]:
    """Configs of one framework share a process; models that are not ours have their own."""
    return path.parent.name in ('baselines', 'resnet'), 'upernet' in path.name


@pytest.fixture(scope='session')
def built(tmp_path_factory) -> dict[Path, dict]:
    """Facts of every config, from fresh processes in a folder that has nothing to do with us."""
    shared = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        shared = shared.parent  # of all workers
    facts = shared / 'built_configs.json'
    with open(shared / 'built_configs.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever comes second reads what the first one wrote
        if not facts.exists():
            entries = _build_all(tmp_path_factory.mktemp('elsewhere'))
            facts.write_text(json.dumps(entries))
    return {Path(entry['config']): entry for entry in json.loads(facts.read_text())}


def _build_all(elsewhere: Path) -> list[dict]:
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    environment |= {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    groups = [
        [*map(str, group)] for _, group in groupby(sorted(LEAVES, key=_process), key=_process)
    ]
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name('build_configs.py'))],
        input=json.dumps(groups),
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr
    lines = [line for line in run.stdout.splitlines() if line.startswith('SWEEP')]
    return [json.loads(line.removeprefix('SWEEP')) for line in lines]
