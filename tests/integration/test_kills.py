"""SIGKILL at every step of saving: nothing lost, and the run goes on to the same weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_kills_at_chosen_moments(repo) -> None:
    script = Path(__file__).with_name('kill_matrix.py')
    done = subprocess.run(
        [sys.executable, script, '--random=0', '--processes=1', '--frameworks=cls', '--only-kills'],
        env=dict(os.environ, PYTHONPATH=str(repo)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith('  13 trials, faults: 0\n'), done.stdout + done.stderr[-2000:]
    assert done.returncode == 0
