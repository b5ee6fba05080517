"""The inner rings must work where OpenMMLab is not installed."""

import subprocess
import sys
from pathlib import Path

import pytest

RINGS = ('layers', 'networks', 'checkpoints')
LEAST_MODULES = 25  # a sweep that finds nothing must not be green

BLOCKED_IMPORT = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {'mmengine', 'mmcv', 'mmseg', 'mmpretrain'}:
            raise ModuleNotFoundError(f'{name} is blocked', name=name)

sys.meta_path.insert(0, Blocker())
count = 0
for ring in sys.argv[1:]:
    package = importlib.import_module(f'mmvars.{ring}')
    for info in pkgutil.walk_packages(package.__path__, f'mmvars.{ring}.'):
        importlib.import_module(info.name)
        count += 1
print(count)
"""


def test_the_inner_rings_import_without_openmmlab(repo: Path) -> None:
    done = subprocess.run(
        [sys.executable, '-c', BLOCKED_IMPORT, *RINGS],
        cwd=repo,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= LEAST_MODULES


@pytest.mark.parametrize(
    'module', [pytest.param('mmvars.engine', marks=pytest.mark.slow), 'mmvars.registry']
)
def test_the_blocker_blocks(repo: Path, module: str) -> None:
    code = BLOCKED_IMPORT.split('count = 0')[0] + f'import {module}'
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=repo, capture_output=True, text=True, check=False
    )
    assert 'is blocked' in done.stderr
