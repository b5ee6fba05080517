"""SIGKILL at every step of saving: nothing lost, and the run goes on to the same weights.

And a disk on which no write succeeds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize('processes, every, trials', [(1, 1, 14), (2, 5, 4)])
def test_kills_at_chosen_moments(repo, processes, every, trials) -> None:
    script = Path(__file__).with_name('kill_matrix.py')
    done = subprocess.run(
        [sys.executable, script, '--random=0', '--frameworks=cls', '--only-kills']
        + [f'--processes={processes}', f'--every={every}'],
        env=dict(os.environ, PYTHONPATH=str(repo)),
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr[-2000:]
    assert done.stdout.endswith(f'  {trials} trials, faults: 0\n'), output
    assert done.returncode == 0
