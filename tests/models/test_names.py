"""One name of a network serves configs, ``create_model`` and ``mmvars convert``."""

import pytest

pytest.importorskip('mmengine')

from mmvars.errors import InputError
from mmvars.models.arguments import _resolve_arch
from mmvars.networks import MODELS
from mmvars.networks.factory import network_name
from mmvars.parsers import convert

ALL_TRUNKS = ('vit', 'rvt', 'deit_convstem', 'gfnet', 'gfnet_convstem', 'fan')


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('suffix', ['', '_patch16'])
def test_every_name_serves_everywhere(name, suffix) -> None:
    typed = name if 'patch' in name else f'{name}{suffix}'
    trunk = name.replace('absvit_', 'vit_')
    assert network_name(typed) == name
    assert convert.parse_args(['a', 'b', '--arch', typed]).arch == name
    assert _resolve_arch(typed, ALL_TRUNKS) == (trunk, {})


@pytest.mark.parametrize(
    'arch, trunks, name',
    [
        ('base', ALL_TRUNKS, 'vit_base'),
        ('tiny_patch8_gap', ('vit',), 'vit_tiny_patch8_gap'),
        ('tiny_plus', ('rvt',), 'rvt_tiny_plus'),
        ('rvt_tiny_plus', ('rvt',), 'rvt_tiny_plus'),
    ],
)
def test_configs_may_leave_out_the_trunk(arch, trunks, name) -> None:
    assert _resolve_arch(arch, trunks) == (name, {})


@pytest.mark.parametrize(
    'arch, trunks', [('absvit_base', ('vit',)), ('fan_tiny', ('rvt',)), ('vit_huge', ALL_TRUNKS)]
)
def test_a_backbone_refuses_what_it_is_not(arch, trunks) -> None:
    with pytest.raises(InputError, match='arch must be one of'):
        _resolve_arch(arch, trunks)
