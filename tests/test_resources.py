"""Finding the shipped configs from anywhere."""

import os
import re

import pytest

from mmvars import resources
from mmvars.errors import InputError
from mmvars.resources import config_path, resource_root

NAME = 'absvit_upernet_ade20k'


@pytest.mark.parametrize('name', [NAME, f'{NAME}.py', f'configs/{NAME}.py', f'configs/{NAME}'])
def test_shipped_configs_are_found_from_any_folder(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_path(name) == resource_root() / 'configs' / f'{NAME}.py'


def test_a_name_without_folder_is_found_in_sub_folders(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = next((resource_root() / 'configs' / 'absvit').glob('*.py'))
    assert config_path(shipped.name) == shipped


def test_what_is_here_comes_first(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / f'{NAME}.py'
    mine.write_text('')
    assert config_path(mine.name) == mine


@pytest.mark.parametrize('name', ['absvit_upernet_ade2k.py', 'absvit_upernet_ade2k'])
def test_a_misspelled_name_brings_the_nearest(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f'{NAME}.py'):
        config_path(name)


def test_a_network_of_timm_is_an_option_of_a_config() -> None:
    arch = 'timm/vit_small_patch14_dinov2.lvd142m'
    with pytest.raises(InputError, match=f'give (.*) and --cfg-options arch={arch}$') as caught:
        config_path(arch)
    config = re.search(r'give (\S+) and', str(caught.value))[1]
    assert "arch='timm/" in config_path(config).read_text()


def test_an_absolute_path_must_exist(tmp_path) -> None:
    with pytest.raises(InputError, match='does not exist'):
        config_path(str(tmp_path / f'{NAME}.py'))


def test_a_name_that_several_have_is_refused(tmp_path, monkeypatch) -> None:
    for folder in ('a', 'b'):
        (tmp_path / 'configs' / folder).mkdir(parents=True)
        (tmp_path / 'configs' / folder / 'x.py').write_text('')
    monkeypatch.setattr(resources, 'resource_root', lambda: tmp_path)
    with pytest.raises(InputError, match='a/x.py, b/x.py'):
        config_path('x')


def test_a_wheel_has_its_configs_in_mim(tmp_path, monkeypatch) -> None:
    package = tmp_path / 'mmvars'
    (package / '.mim' / 'configs').mkdir(parents=True)
    monkeypatch.setattr(resources, '__file__', str(package / 'resources.py'))
    assert resource_root() == package / '.mim'


def test_an_installation_without_configs_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(resources, '__file__', str(tmp_path / 'mmvars' / 'resources.py'))
    with pytest.raises(InputError, match='install it anew'):
        resource_root()


def test_a_full_disk_leaves_no_cut_copy(tmp_path, monkeypatch) -> None:
    def refuse(file: int) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', refuse)
    with pytest.raises(InputError, match='cannot be written: No space left'):
        resources.main([NAME, '--copy', str(tmp_path)])
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]
