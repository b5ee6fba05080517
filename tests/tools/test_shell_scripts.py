"""The shell scripts: they parse, and say what is missing, without installing anything."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

SCRIPTS = (
    '_setup_env.sh',
    'quickstart.sh',
    'run_tests.sh',
    'dist_train.sh',
    'dist_test.sh',
    'slurm_train.sh',
)


def bash(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ['bash', *arguments],
        cwd=cwd,
        env=dict(os.environ, **env),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def clone(repo, tmp_path) -> Path:
    """What the set-up needs of a clone; no .venv in it."""
    shutil.copytree(repo / 'tools', tmp_path / 'tools', ignore=shutil.ignore_patterns('*.pyc'))
    shutil.copy(repo / 'setup.py', tmp_path)
    return tmp_path


def fake(folder: Path, name: str, script: str) -> str:
    """An executable ``name``; returns its path."""
    path = folder / name
    path.write_text(f'#!/bin/bash\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize('script', SCRIPTS)
def test_scripts_parse(script, repo) -> None:
    done = bash('-n', f'tools/{script}', cwd=repo)
    assert done.returncode == 0, done.stderr


def test_no_script_is_left_out(repo) -> None:
    assert sorted(SCRIPTS) == sorted(p.name for p in (repo / 'tools').glob('*.sh'))


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh'])
def test_launchers_print_their_usage(script, repo) -> None:
    done = bash(f'tools/{script}', cwd=repo)
    assert done.returncode == 2
    assert 'usage: ' in done.stderr


@pytest.mark.parametrize(
    'script, arguments, expected',
    [
        (
            'dist_train.sh',
            ['cfg.py', '2', '--amp'],
            '--nproc-per-node=2 tools/train.py cfg.py --launcher pytorch --amp',
        ),
        (
            'dist_test.sh',
            ['cfg.py', 'x.pth', '2', '--tta'],
            '--nproc-per-node=2 tools/test.py cfg.py x.pth --launcher pytorch --tta',
        ),
    ],
)
def test_launchers_pass_their_arguments_on(script, arguments, expected, repo, tmp_path) -> None:
    python = fake(tmp_path, 'python', 'echo "$@"')
    for found in (dict(PATH=f'{tmp_path}:{os.environ["PATH"]}'), dict(PYTHON=python)):
        done = bash(f'tools/{script}', *arguments, cwd=repo, **found)
        assert done.stdout.startswith('tools/_launch.py --nnodes=1'), done
        assert done.stdout.strip().endswith(expected), done


def test_slurm_asks_for_a_task_a_gpu(repo, tmp_path) -> None:
    fake(tmp_path, 'srun', 'echo "$@"')
    done = bash(
        'tools/slurm_train.sh',
        'part',
        'job',
        'cfg.py',
        '--resume',
        cwd=repo,
        GPUS='16',
        PATH=f'{tmp_path}:{os.environ["PATH"]}',
    )
    assert '--partition=part --job-name=job --gres=gpu:8 --ntasks=16' in done.stdout
    assert done.stdout.strip().endswith('cfg.py --launcher slurm --resume')


@pytest.mark.parametrize('script', ['quickstart.sh', 'run_tests.sh'])
class TestSetUp:
    """Each script stops before it installs anything, and says why."""

    def test_python_that_is_too_old(self, script, clone, tmp_path) -> None:
        old = fake(tmp_path, 'old', 'case "$1" in --version) echo Python 3.8.1;; *) exit 1;; esac')
        done = bash(f'tools/{script}', cwd=clone, PYTHON=old)
        assert done.returncode == 1
        assert 'no Python 3.10 or newer was found' in done.stderr
        assert not (clone / '.venv').exists()

    def test_python_without_venv(self, script, clone, tmp_path) -> None:
        bare = fake(tmp_path, 'bare', 'case "$2" in *ensurepip*) exit 1;; esac')
        done = bash(f'tools/{script}', cwd=clone, PYTHON=bare)
        assert done.returncode == 1
        assert 'apt install python3-venv' in done.stderr

    def test_environment_that_is_broken(self, script, clone) -> None:
        (clone / '.venv').mkdir()
        done = bash(f'tools/{script}', cwd=clone)
        assert done.returncode == 1
        assert 'rm -r .venv' in done.stderr

    @pytest.mark.parametrize(
        'output, words',
        [
            ('NewConnectionError: Temporary failure in name resolution', 'Connect to the network'),
            ('OSError: [Errno 28] No space left on device', 'the disk is full'),
            ('error: something else', 'pip failed'),
        ],
    )
    def test_pip_that_fails(self, script, output, words, clone, tmp_path) -> None:
        (clone / '.venv' / 'bin').mkdir(parents=True)
        fake(clone / '.venv' / 'bin', 'python', f'case "$2" in pip) echo "{output}"; exit 1;; esac')
        done = bash(f'tools/{script}', cwd=clone)
        assert done.returncode == 1
        assert words in done.stderr
        assert not list((clone / '.venv').glob('mmvars-*'))


class TestRunTests:
    """run_tests.sh, in an environment whose Python only plays ruff and pytest."""

    def run(self, clone: Path, pytest_status: int, ruff_status: int = 0, *arguments: str):
        (clone / '.venv' / 'bin').mkdir(parents=True)
        fake(
            clone / '.venv' / 'bin',
            'python',
            f'case "$2" in pip) ;; '
            f'ruff) exit {ruff_status};; pytest) echo "args: $*"; exit {pytest_status};; esac',
        )
        return bash('tools/run_tests.sh', *arguments, cwd=clone)

    @pytest.mark.parametrize('pytest_status, ruff_status', [(1, 0), (2, 0), (5, 0), (0, 1)])
    def test_it_fails_where_tests_or_linter_fail_or_nothing_ran(
        self, pytest_status, ruff_status, clone
    ) -> None:
        done = self.run(clone, pytest_status, ruff_status)
        assert done.returncode != 0
        assert ('no test was run' in done.stderr) == (pytest_status == 5)

    def test_it_passes_where_they_pass(self, clone) -> None:
        done = self.run(clone, 0, 0, '--all', '-k', 'x')
        assert done.returncode == 0, done.stderr
        args = '-n logical --maxprocesses 4 -m slow or not slow -k x'
        assert f'args: -m pytest {args}' in done.stdout
        assert list((clone / '.venv').glob('mmvars-*'))

    @pytest.mark.parametrize('wheel', ['', 'mmcv.whl'])
    def test_the_official_stack_has_an_environment_of_its_own(self, wheel, clone) -> None:
        (clone / '.venv-official' / 'bin').mkdir(parents=True)
        script = '[ "$1" != -c ] || [ "$2" = "" ] || [[ "$2" = *sys* ]] || exit 1; echo "args: $*"'
        fake(clone / '.venv-official' / 'bin', 'python', script)
        done = bash(
            'tools/run_tests.sh',
            *('--stack', 'official', '--all', '-k', 'x'),
            cwd=clone,
            MMCV_WHEEL=wheel,
        )
        assert done.returncode == 0, done.stderr
        pip = 'args: -m pip install --disable-pip-version-check -c tools/constraints-official.txt '
        mmcv = wheel or '--no-build-isolation --no-binary mmcv mmcv'
        runs = [line.removeprefix(pip) for line in done.stdout.splitlines() if 'args: -m' in line]
        assert runs[0] == 'torch torchvision'
        assert runs[2:4] == [mmcv, '-e .[openmmlab,dev]']
        assert ('half an hour' in done.stdout) == (not wheel)
        assert len(runs) == 5 and runs[4].startswith('args: -m pytest')
        assert runs[4].endswith('-m slow or not slow -k x')

    def test_an_unknown_stack_is_refused(self, clone) -> None:
        done = bash('tools/run_tests.sh', '--stack', 'offical', cwd=clone)
        assert done.returncode == 1
        assert "--stack takes onedl (the default) or official, not 'offical'" in done.stderr
        assert not list(clone.glob('.venv*'))
