"""VARS, RVT and GFNet as backbones of both frameworks."""

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmvars.errors import InputError
from mmvars.models import RVT, VARS, GFNet

IMAGES = (2, 3, 64, 50)
RVT_ARCH = dict(embed_dims=[12, 24], num_layers=[2, 1], num_heads=[2, 4])
FLAT_ARCH = dict(embed_dims=12, num_layers=3, num_heads=2)
BACKBONES = [
    (VARS, dict(arch=dict(trunk='rvt') | RVT_ARCH, mixer='vars_d')),
    (VARS, dict(arch=dict(trunk='deit_convstem') | FLAT_ARCH, mixer='vars_sd')),
    (VARS, dict(arch=dict(trunk='gfnet') | FLAT_ARCH, mixer='vars_s')),
    (VARS, dict(arch=dict(trunk='vit', patch_size=8) | FLAT_ARCH, mixer='vars_d')),
    (RVT, dict(arch=RVT_ARCH)),
    (RVT, dict(arch=RVT_ARCH, mixer='performer')),
    (GFNet, dict(arch=FLAT_ARCH)),
]


def reached(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.grad is not None}


def trainable(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize('scope', ['mmseg', 'mmpretrain', 'mmengine'])
@pytest.mark.parametrize('name', ['VARS', 'RVT', 'GFNet'])
def test_builds_from_any_scope(scope, name):
    with DefaultScope.overwrite_default_scope(scope):
        backbone = MODELS.build(
            dict(
                type=f'mmvars.{name}',
                img_size=32,
                arch=(dict(trunk='rvt') if name == 'VARS' else {})
                | (FLAT_ARCH if name == 'GFNet' else RVT_ARCH),
            )
        )
    assert type(backbone).__name__ == name


@pytest.mark.parametrize('cls, arguments', BACKBONES)
@pytest.mark.parametrize(
    'options',
    [
        dict(out_indices=(0, -1)),
        dict(out_type='avg_featmap'),
        dict(out_indices=(0, 1)),
        dict(final_norm=False),
        dict(frozen_stages=0),
        dict(frozen_stages=3),
        dict(with_cp=True),
    ],
)
def test_what_trains_is_what_a_loss_reaches(cls, arguments, options):
    options = dict(img_size=64) | options
    backbone = cls(**arguments, **options).train()
    feats = backbone(torch.randn(IMAGES))
    assert [f.shape[1] for f in feats] == list(backbone.out_channels)
    if backbone.out_type == 'featmap':
        assert [f.shape[2:] for f in feats] == [
            (-(-64 // s), -(-50 // s)) for s in backbone.out_strides
        ]
    if feats[-1].requires_grad:
        sum(f.square().sum() for f in feats).backward()
    assert reached(backbone) == trainable(backbone)
    frozen = options.get('frozen_stages', -1)
    if frozen >= 0:
        assert not any(m.training for m in backbone.trunk.patch_embed.modules())
    assert (
        not any(name.startswith('network.patch_embed') for name in trainable(backbone))
        or frozen < 0
    )


@pytest.mark.parametrize('cls, arguments', BACKBONES)
def test_pooled_features_are_what_the_classifier_pools(cls, arguments):
    by_token = arguments['arch'].get('trunk') in ('deit_convstem', 'vit')
    out_type = 'cls_token' if by_token else 'avg_featmap'
    backbone = cls(**arguments, img_size=64, out_type=out_type).eval()
    images = torch.randn(IMAGES)
    output = backbone.network(images)
    torch.testing.assert_close(backbone(images)[0], backbone.trunk.pool(output))


def test_a_pyramid_of_two_strides():
    backbone = VARS(arch='rvt_tiny', mixer='vars_d', out_indices=(2, 5, 9, 11)).eval()
    assert backbone.out_channels == (192, 192, 192, 384)
    assert backbone.out_strides == (16, 16, 16, 32)
    with torch.no_grad():
        feats = backbone(torch.randn(1, 3, 100, 150))
    assert [tuple(f.shape[1:]) for f in feats] == [(192, 7, 10)] * 3 + [(384, 4, 5)]


def test_layers_for_the_decay_of_learning_rates():
    backbone = RVT(arch=RVT_ARCH, img_size=64)
    depths = {name: backbone.get_layer_depth(name) for name, _ in backbone.named_parameters()}
    assert {total for _, total in depths.values()} == {5}
    assert depths['network.patch_embed.proj.0.weight'][0] == 0
    assert depths['network.stages.0.blocks.1.attn.qkv.weight'][0] == 2
    assert depths['network.pools.0.conv.weight'][0] == 3
    assert depths['network.stages.1.blocks.0.mlp.fc1.weight'][0] == 3
    assert depths['network.fc_norm.weight'][0] == 4
    assert backbone.get_layer_depth('backbone.network.pools.0.conv.bias', 'backbone.')[0] == 3


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(arch='rvt_huge'), 'rvt_tiny'),
        (dict(arch=RVT_ARCH), 'embed_dims'),
        (dict(arch=FLAT_ARCH | dict(trunk='fan')), r"arch\['trunk'\]"),
        (dict(arch=dict(trunk='rvt', embed_dims=12)), 'num_layers'),
        (dict(arch=dict(trunk='rvt', depths=1) | RVT_ARCH), 'depths'),
        (dict(mixer='vars'), 'vars_sd'),
        (dict(arch='gfnet_tiny', mixer='self_attention'), 'linear'),
        (dict(mixer_cfg=dict(lam=1)), 'takes no option lam'),
        (dict(out_type='cls_token'), 'class'),
        (dict(mixer_cfg=dict(sparsity=-0.1)), 'sparsity'),
        (dict(out_indices=12), 'out_indices'),
        (dict(frozen_stages=13), 'frozen_stages'),
        (dict(img_size=8), 'img_size'),
        (dict(mixer=['vars_d']), "got .'vars_d'."),
        (dict(mixer_cfg=5), 'mixer_cfg must be a dict'),
        (dict(mixer_cfg='num_steps=3'), 'mixer_cfg must be a dict'),
        (dict(mixer_cfg={3: 4}), 'mixer_cfg must be a dict'),
        (dict(mixer_cfg=[]), 'mixer_cfg'),
        (dict(arch=dict(trunk='rvt') | RVT_ARCH | dict(embed_dims='24')), 'embed_dims, num_layers'),
        (dict(with_cp='no'), 'with_cp'),
        (dict(final_norm='no'), 'final_norm'),
        (dict(out_indices=True), 'out_indices'),
        (dict(init_cfg=5), 'init_cfg must be a dict'),
        (dict(init_cfg=['vars.pth']), 'init_cfg must be a dict'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        VARS(**arguments)


def test_mixer_cfg_reach_every_block():
    backbone = VARS(
        arch=dict(trunk='rvt') | RVT_ARCH,
        mixer='vars_sd',
        img_size=64,
        mixer_cfg=dict(preset='thesis', num_steps=2),
    )
    for block in backbone.trunk.blocks:
        assert block.attn.num_steps == 2
    assert backbone.trunk.mixer_cfg['preset'] == 'thesis'


def test_both_frameworks_take_them():
    pytest.importorskip('mmpretrain.models')
    from mmpretrain.structures import DataSample

    model = MODELS.build(
        dict(
            type='mmvars.ImageClassifier',
            backbone=dict(
                type='mmvars.VARS',
                arch=dict(trunk='rvt') | RVT_ARCH,
                mixer='vars_d',
                img_size=64,
                out_type='avg_featmap',
            ),
            head=dict(type='mmpretrain.LinearClsHead', num_classes=5, in_channels=24),
        )
    )
    losses = model.loss(torch.randn(IMAGES), [DataSample().set_gt_label(i) for i in (0, 3)])
    assert set(losses) == {'loss'} and losses['loss'].isfinite()
