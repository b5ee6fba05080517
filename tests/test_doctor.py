"""The doctor's checks, on faked environments."""

import pytest

from mmvars import doctor
from mmvars.doctor import Environment, diagnose

GOOD = {
    'torch': '2.14.1',
    'torchvision': '0.29.1',
    'timm': '1.0.31',
    'safetensors': '0.8.0',
    'numpy': '2.4.6',
    'pillow': '13.0.0',
    'matplotlib': '3.11.2',
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmsegmentation': '1.4.2',
    'onedl-mmpretrain': '1.3.6',
    'setuptools': '84.2.1',
}
OFFICIAL = {k: v for k, v in GOOD.items() if not k.startswith('onedl')} | {
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmsegmentation': '1.2.2',
    'mmpretrain': '1.2.0',
    'setuptools': '80.9.0',
    'torch': '2.4.1',
    'numpy': '1.26.4',
}
NO_OPS = {'mmcv.ops': "ModuleNotFoundError: No module named 'mmcv._ext'"}


def env(versions=GOOD, failures=NO_OPS, python=(3, 11), without=(), **changed) -> Environment:
    changed = {name.replace('_', '-'): version for name, version in changed.items()}
    installed = {k: v for k, v in (versions | changed).items() if k not in without}
    return Environment(python, installed, failures)


@pytest.mark.parametrize('good', [env(), env(OFFICIAL, {}), env(python=(3, 14))])
def test_a_good_environment_has_no_findings(good: Environment) -> None:
    assert diagnose(good) == []


INCOMPATIBLE = (
    'Traceback\nAssertionError: MMCV==2.2.0 is used but incompatible. '
    'Please install mmcv>=2.0.0rc4.'
)


@pytest.mark.parametrize(
    'bad, problem, remedy',
    [
        (env(python=(3, 9)), 'Python 3.9 is too old', '3.10'),
        (
            env(mmengine='0.10.7'),
            'two stacks are installed (onedl-mmengine, onedl-mmcv, ',
            'pip uninstall',
        ),
        (env(mmcv_lite='2.1.0'), 'mmcv-lite and onedl-mmcv are both installed', 'pip uninstall'),
        (
            env(OFFICIAL, {}, without=('mmengine',))._replace(
                versions={
                    **{k: v for k, v in OFFICIAL.items() if k != 'mmengine'},
                    'onedl-mmengine': '0.10.12',
                }
            ),
            'two stacks are installed (onedl-mmengine and ',
            'pip uninstall',
        ),
        (env(without=('onedl-mmpretrain',)), 'packages are missing: mmpretrain', 'mmvars[onedl]'),
        (
            env(OFFICIAL, {}, without=('mmpretrain',)),
            'packages are missing: mmpretrain',
            'mmvars[openmmlab]',
        ),
        (
            env(without=('timm', 'safetensors')),
            'not installed: timm, safetensors',
            'pip install timm safetensors',
        ),
        (env(timm='0.4.12'), 'timm 0.4.12 is too old', 'timm>=1.0'),
        (env(OFFICIAL, {}, torch='2.3.1'), 'torch 2.3.1 is too old', 'torch>=2.4'),
        (env(without=('matplotlib',)), 'not installed: matplotlib', 'pip install matplotlib'),
        (
            env(OFFICIAL, NO_OPS | {'mmseg': NO_OPS['mmcv.ops']}),
            'compiled ops do not load',
            'mmvars[onedl]',
        ),
        (
            env(OFFICIAL, {'mmseg': INCOMPATIBLE}, mmcv='2.2.0'),
            'MMCV==2.2.0 is used but incompatible',
            'mmcv==2.1.0',
        ),
        (env(OFFICIAL, {}, setuptools='82.0.0'), 'pkg_resources is missing', 'setuptools<81'),
        (
            env(
                OFFICIAL,
                {'mmengine': "ModuleNotFoundError: No module named 'pkg_resources'"},
                without=('setuptools',),
            ),
            'installed: none',
            'setuptools<81',
        ),
        (
            env(
                failures=NO_OPS
                | {'torchvision': 'RuntimeError: operator torchvision::nms does not exist'}
            ),
            'torchvision 0.29.1 does not load with torch 2.14.1',
            'together',
        ),
        (
            env(OFFICIAL, {}, torch='2.1.0', numpy='2.1.0'),
            'numpy 2.1.0 does not work with torch 2.1.0',
            'numpy<2',
        ),
        (
            env(failures=NO_OPS | {'torch': 'RuntimeError: Numpy is not available'}),
            'does not work with torch',
            'numpy',
        ),
        (env(numpy='1.26.4'), 'needs numpy 2', 'numpy>2'),
        (
            env(
                failures={'mmpretrain': 'TypeError: NoneType takes no arguments'},
                transformers='5.24.0',
            ),
            'where pycocotools is installed beside transformers 5.24.0',
            'transformers<4.47',
        ),
        (
            env(failures=NO_OPS | {'mmvars backbone': 'Traceback\nZeroDivisionError: by zero'}),
            'mmvars backbone does not work: ZeroDivisionError: by zero',
            'fresh environment',
        ),
    ],
)
def test_a_bad_environment_is_named_with_its_remedy(
    bad: Environment, problem: str, remedy: str
) -> None:
    findings = diagnose(bad)
    matching = [f for f in findings if problem in f.problem]
    assert matching, findings
    assert remedy in matching[0].remedy


def test_look_runs_every_trial_and_keeps_what_fails() -> None:
    asked = []

    def run(code: str) -> str | None:
        asked.append(code)
        return 'boom' if 'timm' in code else None

    found = doctor.look(run)
    assert asked == list(doctor.TRIALS.values())
    assert found.failures == {'timm': 'boom'}
    assert 'torch' in found.versions


@pytest.mark.parametrize(
    'code, fails', [('pass', False), ('raise SystemExit(3)', True), ('import os; os.abort()', True)]
)
def test_a_trial_is_judged_by_its_exit(code: str, fails: bool) -> None:
    assert (doctor._in_child(code) is not None) == fails


@pytest.mark.parametrize('found, status', [(env(), 0), (env(without=('timm',)), 1)])
def test_the_exit_status_says_whether_it_works(found, status, monkeypatch, capsys) -> None:
    monkeypatch.setattr(doctor, 'look', lambda: found)
    assert doctor.main([]) == status
    printed = capsys.readouterr().out
    assert ('Remedy' in printed) == bool(status)
    assert 'torch ' in printed


def test_an_old_torch_is_said_to_load_unsafely(monkeypatch, capsys) -> None:
    for versions, said in ((OFFICIAL, True), (GOOD, False)):
        monkeypatch.setattr(doctor, 'look', lambda versions=versions: env(versions, {}))
        assert doctor.main([]) == 0
        assert ('CVE-2025-32434' in capsys.readouterr().out) == said


@pytest.mark.slow
@pytest.mark.parametrize('framework, refused', [('mmseg', False), ('mmpretrain', True)])
def test_the_round_trip_fails_where_a_checkpoint_cannot_be_read(framework, refused) -> None:
    pytest.importorskip(f'{framework}.models', exc_type=ImportError)
    code = doctor.TRIALS[f'mmvars train with {framework}']
    if refused:
        code = f"""
from mmvars.engine import runner
from mmvars.errors import InputError
def refuse(*args, **kwargs): raise InputError('refused')
runner.load_from_local = refuse
{code}"""
    output = doctor._in_child(code)
    assert (output or '').endswith('mmvars: refused\n' if refused else ''), output
    assert (output is not None) == refused, output
