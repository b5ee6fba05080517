"""The wheel and the source distribution carry what `pip install` alone must bring."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from mmvars import __version__

pytest.importorskip('setuptools')

SKIPPED = shutil.ignore_patterns(
    '.*', '__pycache__', 'build', 'dist', '*.egg-info', 'work_dirs', 'tests', 'quickstart_output'
)


@pytest.fixture(scope='module')
def built(tmp_path_factory) -> Path:
    """Folder with both distributions, built from a copy of the sources."""
    repo = Path(__file__).resolve().parents[1]
    copy = tmp_path_factory.mktemp('build') / 'mmvars'
    shutil.copytree(repo, copy, ignore=SKIPPED)
    done = subprocess.run(
        [sys.executable, 'setup.py', '-q', 'sdist', 'bdist_wheel'],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return copy / 'dist'


@pytest.fixture(scope='module')
def wheel(built) -> zipfile.ZipFile:
    return zipfile.ZipFile(built / f'mmvars-{__version__}-py3-none-any.whl')


def test_configs_and_tools_are_in_the_wheel(wheel, repo) -> None:
    names = set(wheel.namelist())
    for folder, least in (('configs', 100), ('tools', 8)):
        files = [
            p.relative_to(repo)
            for p in (repo / folder).rglob('*')
            if p.suffix in {'.py', '.yml', '.sh', '.md'} and '__pycache__' not in p.parts
        ]
        assert len(files) >= least
        missing = [f for f in files if f'mmvars/.mim/{f.as_posix()}' not in names]
        assert not missing


def test_types_and_published_numbers_are_in_the_wheel(wheel) -> None:
    names = set(wheel.namelist())
    assert 'mmvars/py.typed' in names
    for name in (
        'benchmark.py',
        'get_flops.py',
        'published.yml',
        'reference_absvit.py',
        'timing.py',
    ):
        assert f'mmvars/.mim/tools/benchmark/{name}' in names
    assert 'mmvars/.mim/tools/compare_runs.py' in names


def test_the_embedded_data_sets_are_in_the_wheel(wheel, repo) -> None:
    names = set(wheel.namelist())
    for folder, least in (('mini', 64 * 2 * 3), ('photos', 32 * 2 + 2)):  # images and labels
        data = repo / 'mmvars' / 'data' / folder
        paths = [p for p in data.rglob('*') if p.is_file() and '__pycache__' not in p.parts]
        assert len(paths) >= least
        files = [path.relative_to(repo).as_posix() for path in paths]
        assert not [f for f in files if f not in names]


def test_the_page_is_in_the_wheel(wheel) -> None:
    static = {name for name in wheel.namelist() if name.startswith('mmvars/steer/static/')}
    assert {name.rpartition('.')[2] for name in static} == {'css', 'html', 'js', 'svg'}


def test_the_model_index_leads_to_metafiles(wheel) -> None:
    names = set(wheel.namelist())
    index = wheel.read('mmvars/.mim/model-index.yml').decode()
    metafiles = re.findall(r'-\s+(\S+\.yml)', index)
    assert metafiles
    for path in metafiles:
        assert f'mmvars/.mim/{path}' in names


def test_nothing_else_is_in_the_wheel(wheel) -> None:
    roots = {name.split('/')[0] for name in wheel.namelist()}
    assert roots == {'mmvars', f'mmvars-{__version__}.dist-info'}
    assert not [name for name in wheel.namelist() if '__pycache__' in name]


def test_the_metadata_asks_for_no_more_than_needed(wheel) -> None:
    text = wheel.read(f'mmvars-{__version__}.dist-info/METADATA').decode()
    required = re.findall(r'^Requires-Dist: ([\w-]+)([^;\n]*)$', text, re.MULTILINE)
    assert {name for name, _ in required} == {
        'torch',
        'timm',
        'safetensors',
        'numpy',
        'pillow',
        'matplotlib',
    }
    assert not [pin for _, pin in required if '==' in pin or '<' in pin]
    # Four packages and torchvision; and three that the official ones do not ask for.
    for extra, count in (('onedl', 5), ('openmmlab', 8)):
        assert len(re.findall(rf'extra == "{extra}"', text)) == count
    scripts = wheel.read(f'mmvars-{__version__}.dist-info/entry_points.txt').decode()
    assert 'mmvars = mmvars.cli:main' in scripts


def test_the_source_distribution_can_build_the_same(built) -> None:
    with tarfile.open(built / f'mmvars-{__version__}.tar.gz') as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    assert {
        'setup.py',
        'LICENSE',
        'configs/model-index.yml',
        'tools/train.py',
        'tools/constraints.txt',
        'tools/benchmark/published.yml',
        'mmvars/cli.py',
        'mmvars/py.typed',
    } <= names
