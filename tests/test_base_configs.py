"""``_base_ = 'mmvars::...'``, and `mmvars configs`."""

import subprocess
import sys
from pathlib import Path

import pytest

from mmvars import cli, resources
from mmvars.errors import InputError
from mmvars.resources import shipped_config, shipped_configs

NAME = 'absvit/absvit-ti16_upernet_1xb8-400iter_mini-cityscapes-128x256.py'
OWN = f"_base_ = 'mmvars::{NAME}'\nmodel = dict(backbone=dict(alpha=3.0))\n"
READ = (
    'from mmvars.resources import shipped_config; cfg = Config.fromfile({path!r}); '
    'expected = Config.fromfile(shipped_config({name!r})); expected.model.backbone.alpha = 3.0; '
    "assert cfg.to_dict() == expected.to_dict(); print('read')"
)


@pytest.fixture
def own(tmp_path) -> Path:
    pytest.importorskip('mmengine')
    path = tmp_path / 'own.py'
    path.write_text(OWN)
    return path


@pytest.mark.parametrize(
    'imports',
    [
        'import mmvars, sys; assert not {"torch", "mmengine", "numpy"} & set(sys.modules); '
        'from mmengine.config import Config',
        pytest.param(
            'from mmengine.config import Config; import mmvars; mmvars.base_configs.enable()',
            marks=pytest.mark.slow,
        ),
    ],
    ids=['mmvars first', 'mmengine first'],
)
def test_a_config_inherits_a_shipped_one(imports, own, repo) -> None:
    done = subprocess.run(
        [sys.executable, '-c', f'{imports}; {READ.format(path=str(own), name=NAME)}'],
        cwd=repo,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'read\n'


def test_bases_of_other_kinds_are_found_as_before(tmp_path) -> None:
    config = pytest.importorskip('mmengine.config')
    pytest.importorskip('mmseg')
    (tmp_path / 'base.py').write_text('a = 1\n')
    path = tmp_path / 'own.py'
    path.write_text("_base_ = ['base.py', 'mmseg::_base_/default_runtime.py']\n")
    cfg = config.Config.fromfile(path)
    assert cfg.a == 1 and cfg.default_scope == 'mmseg'


def test_a_wrong_name_brings_the_nearest(own) -> None:
    config = pytest.importorskip('mmengine.config')
    own.write_text(OWN.replace('400iter', '40iter'))
    with pytest.raises(InputError, match=f"did you mean '{Path(NAME).name}'"):
        config.Config.fromfile(own)


def test_a_file_here_does_not_take_the_place_of_a_shipped_one(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'absvit').mkdir()
    (tmp_path / NAME).write_text('')
    assert shipped_config(NAME) == resources.resource_root() / 'configs' / NAME
    assert resources.config_path(f'mmvars::{NAME}') == shipped_config(NAME)


@pytest.mark.parametrize(
    'pattern, least', [((), 60), (('vars',), 10), (('absvit-b16*',), 2), (('vars/*.py',), 5)]
)
def test_configs_are_listed(pattern, least, capsys) -> None:
    assert cli.main(['configs', *pattern]) == 0
    names = capsys.readouterr().out.split()
    assert len(names) >= least and set(names) <= shipped_configs().keys()
    assert (len(names) == len(shipped_configs())) == (not pattern)


def test_what_is_not_there_is_refused(tmp_path, capsys) -> None:
    assert cli.main(['configs', 'absvit_upernet_ade2k']) == 2
    assert "did you mean 'absvit_upernet_ade20k'" in capsys.readouterr().err
    (tmp_path / 'absvit').mkdir()
    (tmp_path / NAME).write_text('mine')
    assert cli.main(['configs', NAME, '--copy', str(tmp_path)]) == 2
    assert 'exists' in capsys.readouterr().err
    assert (tmp_path / NAME).read_text() == 'mine' and not (tmp_path / '_base_').exists()


def test_a_copy_is_the_same_config(tmp_path, capsys) -> None:
    config = pytest.importorskip('mmengine.config')
    for _ in range(2):  # the same once more is no harm
        assert cli.main(['configs', NAME, '--copy', str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == 2 * [str(tmp_path / NAME)]
    copy, shipped = map(config.Config.fromfile, (tmp_path / NAME, shipped_config(NAME)))
    assert copy.to_dict() == shipped.to_dict()


@pytest.mark.slow
def test_a_copy_and_an_heir_train_an_iteration(own, tmp_path) -> None:
    pytest.importorskip('mmseg')
    assert cli.main(['configs', NAME, '--copy', str(tmp_path)]) == 0
    for path in (own, tmp_path / NAME):
        options = ['--no-validate', '--cfg-options', 'max_iters=1', 'train_dataloader.batch_size=2']
        done = subprocess.run(
            [
                sys.executable,
                '-m',
                'mmvars.cli',
                'train',
                path,
                '--work-dir',
                tmp_path / 'x',
                *options,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / 'x' / 'iter_1.pth').is_file()
