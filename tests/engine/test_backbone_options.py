"""``arch`` and ``mixer`` of ``--cfg-options``: what the model derives is left out of the config."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmseg.models import ResNetV1c
from torch import nn

from mmvars.engine.options import apply_options, check_options
from mmvars.errors import InputError
from mmvars.models import VARS
from mmvars.models.segmentors import EncoderDecoder
from mmvars.resources import config_path

CONFIGS = Path(__file__).parents[2] / 'configs'
IMAGENET = 'absvit-base-p16_8xb128-coslr-300e_in1k'
TIMM = 'convit-tiny_8xb128-coslr-300e_in1k'
DEIT = CONFIGS / 'vars' / 'deit-convstem-tiny-p16-vars-sd_8xb128-coslr-300e_in1k.py'


@pytest.fixture
def rvt() -> Config:
    return Config(
        dict(
            model=dict(
                type='mmvars.EncoderDecoder',
                backbone=dict(
                    type='mmvars.VARS',
                    arch='rvt_small',
                    mixer='vars_s',
                    mixer_cfg=dict(atoms_per_channel=3),
                    out_indices=(2, 5, 8, 11),
                ),
                decode_head=dict(type='UPerHead', in_index=[0, 1, 2, 3]),
                auxiliary_head=dict(type='FCNHead', in_index=2),
            )
        )
    )


@pytest.fixture
def deit() -> Config:
    return Config.fromfile(DEIT)


@pytest.mark.parametrize('key', ['arch', 'model.backbone.arch'])
def test_arch_leaves_the_channels_of_the_heads_to_the_model(rvt, key):
    rvt.model.decode_head.in_channels = [384] * 4
    notes = apply_options(rvt, {key: 'rvt_tiny'})
    assert rvt.model.backbone.arch == 'rvt_tiny'
    assert 'arch' not in rvt
    assert 'in_channels' not in rvt.model.decode_head
    assert 'in_channels' not in rvt.model.auxiliary_head
    assert 'model.decode_head.in_channels: [384, 384, 384, 384] -> left out' in notes


def test_channels_that_are_named_or_that_a_neck_makes_stay(rvt):
    rvt.model.auxiliary_head.in_channels = 5
    apply_options(rvt, {'arch': 'rvt_tiny', 'model.auxiliary_head.in_channels': 7})
    assert rvt.model.auxiliary_head.in_channels == 7
    rvt.model.neck = dict(type='mmpretrain.GlobalAveragePooling')
    apply_options(rvt, {'arch': 'rvt_small'})
    assert rvt.model.auxiliary_head.in_channels == 7


def test_a_neck_that_takes_other_channels_is_refused(rvt):
    """The message names those of the new arch, which work when they are typed."""
    neck = dict(type='mmseg.MultiLevelNeck', in_channels=[384] * 4, out_channels=64, scales=[1] * 4)
    heads = dict(channels=8, num_classes=3)
    rvt.model.neck = neck
    rvt.model.decode_head.update(heads)
    rvt.model.auxiliary_head.update(heads)
    apply_options(rvt, {'arch': 'rvt_tiny', 'mixer': 'vars_sd'})
    with pytest.raises(InputError, match='neck=None, or in_channels=.* in the neck') as error:
        built(rvt)
    widths = [192, 192, 192, 384]
    assert f'MultiLevelNeck has in_channels={[384] * 4}, ' in str(error.value)
    assert f'in_channels={widths} in the neck' in str(error.value)
    apply_options(rvt, {'model.neck.in_channels': widths})
    assert built(rvt).decode_head.in_channels == [64] * 4


def test_models_of_the_frameworks_need_their_channels(rvt):
    """They take none from the backbone: what is stated must stay."""
    rvt.model.type, rvt.model.decode_head.in_channels = 'mmseg.EncoderDecoder', [384] * 4
    apply_options(rvt, {'arch': 'rvt_tiny'})
    assert rvt.model.decode_head.in_channels == [384] * 4


def test_arch_may_be_a_dict_and_parts_of_one_may_change(rvt):
    size = dict(trunk='rvt', embed_dims=[24, 48], num_layers=[2, 1], num_heads=[2, 4])
    apply_options(rvt, {'arch': size})
    assert rvt.model.backbone.arch == size
    rvt.model.decode_head.in_channels = [48] * 4
    apply_options(rvt, {'model.backbone.arch.embed_dims': [12, 24]})
    assert rvt.model.backbone.arch == dict(size, embed_dims=[12, 24])
    assert 'in_channels' not in rvt.model.decode_head


@pytest.mark.parametrize('key', ['mixer', 'model.backbone.mixer'])
def test_a_new_mixer_starts_from_its_defaults(rvt, key):
    notes = apply_options(rvt, {key: 'vars_d'})
    assert rvt.model.backbone.mixer == 'vars_d'
    assert rvt.model.backbone.mixer_cfg == {}
    assert 'model.backbone.mixer_cfg.atoms_per_channel: 3 -> left out' in notes
    assert 'mixer' not in rvt


def test_the_same_mixer_keeps_its_options_and_a_new_one_those_that_are_named(rvt):
    assert apply_options(rvt, {'mixer': 'vars_s'}) == []
    assert rvt.model.backbone.mixer_cfg == dict(atoms_per_channel=3)
    apply_options(
        rvt,
        {
            'mixer': 'vars_d',
            'model.backbone.mixer_cfg.preset': 'thesis',
            'model.backbone.mixer_cfg.num_steps': 1,
        },
    )
    assert rvt.model.backbone.mixer_cfg == dict(preset='thesis', num_steps=1)


def test_a_classifier_reads_what_the_network_s_own_head_would(deit):
    """VARS-S comes without class token, and so do some sizes."""
    apply_options(deit, {'mixer': 'vars_s'})
    assert deit.model.backbone.out_type == 'pooled'
    apply_options(deit, {'model.backbone.out_type': 'avg_featmap', 'mixer': 'vars_d'})
    assert deit.model.backbone.out_type == 'avg_featmap'


def test_a_shorthand_and_its_full_name_exclude_each_other(rvt):
    with pytest.raises(InputError, match='model.backbone.mixer twice, in full and as shorthand'):
        apply_options(rvt, {'mixer': 'vars_d', 'model.backbone.mixer': 'vars_d'})


@pytest.mark.parametrize('key', ['mixer', 'model.backbone.mixer'])
def test_a_backbone_without_a_choice_of_mixers_says_so(key):
    vit = Config(dict(model=dict(backbone=dict(type='mmvars.ViT', arch='tiny'))))
    apply_options(vit, {key: 'vars_d'})
    with pytest.raises(InputError, match="mmvars.ViT takes no 'mixer'.*mmvars.ViT takes arch"):
        MODELS.build(vit.model.backbone)


def test_another_type_of_backbone_may_be_named_beside_its_size_and_mixer():
    cfg = Config(
        dict(
            model=dict(type='mmvars.EncoderDecoder', backbone=dict(type='mmvars.ViT', arch='base'))
        )
    )
    apply_options(
        cfg, {'arch': 'rvt_small', 'mixer': 'vars_sd', 'model.backbone.type': 'mmvars.VARS'}
    )
    assert cfg.model.backbone == dict(type='mmvars.VARS', arch='rvt_small', mixer='vars_sd')


def test_pure_python_configs_hold_classes():
    cfg = Config(
        dict(
            model=dict(
                type=EncoderDecoder,
                backbone=dict(type=VARS, arch='rvt_tiny'),
                decode_head=dict(in_channels=5),
            )
        )
    )
    apply_options(cfg, {'arch': 'rvt_small', 'mixer': 'vars_sd'})
    assert cfg.model.backbone == dict(type=VARS, arch='rvt_small', mixer='vars_sd')
    assert cfg.model.decode_head == {}
    cfg.model.backbone.type = ResNetV1c
    with pytest.raises(InputError, match='arch applies to backbones of mmvars'):
        apply_options(cfg, {'arch': 'rvt_small'})


def test_options_of_the_mixer_are_open_to_the_command_line(rvt):
    """Every mixer has its own; it refuses what it does not take."""
    check_options(rvt, {'model.backbone.mixer_cfg.num_steps': 2, 'mixer': 'vars_d'})
    del rvt.model.backbone['mixer_cfg']
    check_options(rvt, {'model.backbone.mixer_cfg.num_steps': 2})


def built(cfg: Config) -> nn.Module:
    """The model of a config, without memory for its weights."""
    scope = cfg.get('default_scope', 'mmseg')
    with DefaultScope.overwrite_default_scope(scope), torch.device('meta'):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize(
    'config, options, channels',
    [
        ('absvit_upernet_ade20k', {'arch': 'tiny'}, 192),
        (
            'rvt-ti16-vars-sd_upernet_1xb8-400iter_mini-cityscapes-128x256',
            {'arch': 'rvt_small'},
            384,
        ),
        ('rvt-ti16-vars-sd_upernet_1xb8-400iter_mini-cityscapes-128x256', {'mixer': 'vars_s'}, 384),
        ('absvit-base-p16_8xb128-coslr-300e_in1k', {'arch': 'tiny_patch8_gap'}, 192),
        (DEIT.stem, {'mixer': 'vars_s'}, 192),
        (DEIT.stem, {'mixer': 'performer', 'arch': 'deit_convstem_small'}, 384),
    ],
)
def test_shipped_models_can_be_built_with_another_size_or_mixer(config, options, channels):
    cfg = Config.fromfile(config_path(config))
    apply_options(cfg, options)
    model = built(cfg)
    head = model.decode_head if 'decode_head' in cfg.model else model.head
    assert (head.in_channels[-1] if 'decode_head' in cfg.model else head.in_channels) == channels
    assert model.backbone.out_channels[-1] == channels


@pytest.mark.parametrize('config', ['absvit_upernet_ade20k', IMAGENET, TIMM])
def test_models_can_be_built_with_other_classes(config):
    """Every classifier of the model has the new number of outputs, and every loss knows it."""
    cfg = Config.fromfile(config_path(config))
    old = 150 if 'upernet' in config else 1000
    apply_options(cfg, {'num_classes': 3} | ({} if config == TIMM else {'arch': 'tiny'}))
    model = built(cfg)
    widths = [
        layer.weight.shape[0]
        for layer in model.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.shape[0] in (3, old)
    ]
    assert set(widths) == {3} and len(widths) == 1 + ('upernet' in config)
    numbers = {getattr(module, 'num_classes', 3) for module in model.modules()}
    assert numbers <= {3, 0, None}


@pytest.mark.parametrize(
    'options, words',
    [
        ({'mixer': 'vars'}, ['mixer', 'vars_sd', "'vars'"]),
        ({'mixer': 'global_filter'}, ['mixer', 'global_filter', 'rvt']),
        (
            {'mixer': 'vars_d', 'model.backbone.mixer_cfg.atoms_per_channel': 3},
            ['vars_d', 'atoms_per_channel', 'feature_ratio'],
        ),
        ({'arch': 'rvt_huge'}, ['arch', 'rvt_huge', 'rvt_small']),
        (
            {'arch': 'rvt_tiny', 'model.backbone.out_indices': [9, 11]},
            ['in_index', 'the backbone has 2'],
        ),
    ],
)
def test_what_the_model_cannot_be_built_with_is_named(options, words):
    cfg = Config.fromfile(
        config_path('rvt-ti16-vars-sd_upernet_1xb8-400iter_mini-cityscapes-128x256')
    )
    apply_options(cfg, options)
    with pytest.raises(InputError) as error:
        built(cfg)
    assert all(word in str(error.value) for word in words), str(error.value)
