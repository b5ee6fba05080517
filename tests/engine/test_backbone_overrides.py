"""``arch`` and ``mixer`` of ``--cfg-options`` reach the heads and the options of the mixer."""

from pathlib import Path

import pytest
from mmengine.config import Config

from mmvars.engine.cfg_options import check_options
from mmvars.engine.overrides import apply_overrides
from mmvars.errors import InputError

CONFIGS = Path(__file__).parents[2] / 'configs'
RVT = CONFIGS / 'vars' / 'rvt-s16-vars-s_upernet_2xb8-40k_cityscapes-512x1024.py'
DEIT = CONFIGS / 'vars' / 'deit-convstem-tiny-p16-vars-sd_8xb128-coslr-300e_in1k.py'


@pytest.fixture
def rvt() -> Config:
    return Config.fromfile(RVT)


@pytest.fixture
def deit() -> Config:
    return Config.fromfile(DEIT)


def test_arch_gives_every_head_the_channels_of_the_maps_it_reads(rvt):
    rvt.model.auxiliary_head.in_index = 1
    apply_overrides(rvt, {'arch': 'rvt_tiny'})
    assert rvt.model.decode_head.in_channels == [192, 192, 192, 384]
    assert rvt.model.auxiliary_head.in_channels == 192
    apply_overrides(rvt, {'arch': 'rvt_tiny', 'model.auxiliary_head.in_index': 3})
    assert rvt.model.auxiliary_head.in_channels == 384


def test_arch_follows_the_outputs(rvt):
    """Stages of a dict, and ``out_indices`` and ``in_index`` of the same options."""
    apply_overrides(rvt, {
        'arch': dict(trunk='rvt', embed_dims=[24, 48], num_layers=[2, 1], num_heads=[2, 4]),
        'model.backbone.out_indices': [0, 2], 'model.decode_head.in_index': [0, 1],
        'model.auxiliary_head.in_index': 0})
    assert rvt.model.decode_head.in_channels == [24, 48]
    assert rvt.model.auxiliary_head.in_channels == 24


@pytest.mark.parametrize('key', ['mixer', 'model.backbone.mixer'])
def test_a_new_mixer_starts_from_its_defaults(rvt, key):
    notes = apply_overrides(rvt, {key: 'vars_d'})
    assert rvt.model.backbone.mixer == 'vars_d'
    assert rvt.model.backbone.mixer_cfg == {}
    assert 'model.backbone.mixer_cfg.atoms_per_channel: 3 -> its default' in ' '.join(notes)
    assert rvt.model.decode_head.in_channels == [384] * 4
    assert 'mixer' not in rvt


def test_the_same_mixer_keeps_its_options_and_a_new_one_those_that_are_named(rvt):
    assert apply_overrides(rvt, {'mixer': 'vars_s'}) == []
    assert rvt.model.backbone.mixer_cfg == dict(atoms_per_channel=3)
    apply_overrides(rvt, {'mixer': 'vars_d', 'model.backbone.mixer_cfg.preset': 'thesis',
                          'model.backbone.mixer_cfg.num_steps': 1})
    assert rvt.model.backbone.mixer_cfg == dict(preset='thesis', num_steps=1)


def test_mixer_decides_what_a_classifier_reads(deit):
    """VARS-S comes without class token."""
    apply_overrides(deit, {'mixer': 'vars_s'})
    assert deit.model.backbone.out_type == 'avg_featmap'
    apply_overrides(deit, {'mixer': 'performer', 'arch': 'deit_convstem_small'})
    assert deit.model.backbone.out_type == 'cls_token'
    assert deit.model.head.in_channels == 384


@pytest.mark.parametrize('options, words', [
    ({'mixer': 'vars'}, ['mixer', 'vars_sd', "'vars'"]),
    ({'mixer': 'global_filter'}, ['mixer', 'global_filter', 'rvt']),
    ({'mixer': 'vars_d', 'model.backbone.mixer_cfg.atoms_per_channel': 3},
     ['vars_d', 'atoms_per_channel', 'feature_ratio']),
    ({'arch': 'rvt_huge'}, ['arch', 'rvt_huge', 'rvt_small']),
    ({'arch': 'rvt_tiny', 'model.backbone.out_indices': [9, 11]},
     ['decode_head.in_index', '2 output', 'out_indices']),
    ({'mixer': 'vars_d', 'model.backbone.mixer': 'vars_d'}, ['mixer', 'model.backbone.mixer']),
])
def test_bad_backbones_are_named(rvt, options, words):
    with pytest.raises(InputError) as error:
        apply_overrides(rvt, options)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize('key', ['mixer', 'model.backbone.mixer'])
def test_a_backbone_without_a_choice_of_mixers_says_so(key):
    vit = Config.fromfile(next((CONFIGS / 'vit').glob('vit-b16_upernet_*cityscapes*')))
    with pytest.raises(InputError, match='mixer does not apply: mmvars.ViT.*mmvars.VARS'):
        apply_overrides(vit, {key: 'vars_d'})


def test_options_of_the_mixer_are_open_to_the_command_line(rvt):
    """Every mixer has its own; it refuses what it does not take."""
    check_options(rvt, {'model.backbone.mixer_cfg.num_steps': 2, 'mixer': 'vars_d'})
    del rvt.model.backbone['mixer_cfg']
    check_options(rvt, {'model.backbone.mixer_cfg.num_steps': 2})
