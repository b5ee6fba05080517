"""Attention maps of models that are not ours."""

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope

from mmvars.visualization.attention import attention_maps

PREPROCESSOR = dict(mean=[0.0] * 3, std=[255.0] * 3)
WINDOWS = dict(mode='slide', crop_size=(32, 32), stride=(16, 16))
MODEL = {
    'segmentation': lambda backbone, test_cfg: dict(
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            bgr_to_rgb=True,
            test_cfg=dict(size_divisor=8),
            **PREPROCESSOR,
        ),
        backbone=backbone,
        decode_head=dict(
            type='FCNHead',
            in_channels=16,
            in_index=0,
            channels=8,
            num_classes=4,
            loss_decode=dict(type='CrossEntropyLoss'),
        ),
        test_cfg=test_cfg,
    ),
    'classification': lambda backbone, test_cfg: dict(
        type='ImageClassifier',
        data_preprocessor=dict(num_classes=5, to_rgb=True, **PREPROCESSOR),
        backbone=backbone,
        head=dict(type='DeiTClsHead', num_classes=5, in_channels=16),
    ),
}
SMALL = dict(embed_dims=16, num_layers=5, num_heads=2)
VIT = dict(type='VisionTransformer', img_size=(40, 56), patch_size=8, out_indices=(4,), **SMALL)
DEIT = dict(
    type='DistilledVisionTransformer',
    arch=SMALL | dict(feedforward_channels=32),
    img_size=(40, 56),
    patch_size=8,
)
TIMM = dict(
    type='TimmClassifier',
    model_name='vit_tiny_patch16_224',
    img_size=(48, 64),
    depth=5,
    embed_dim=16,
    num_heads=2,
    num_classes=5,
    loss=dict(type='CrossEntropyLoss'),
)
RESNET = dict(type='ResNet', depth=18, stem_channels=8, base_channels=8, out_indices=(1,))


def build(task: str, backbone: dict, test_cfg: dict | None = None) -> torch.nn.Module:
    init_default_scope('mmseg' if task == 'segmentation' else 'mmpretrain')
    torch.manual_seed(0)
    if backbone is TIMM:
        return MODELS.build(dict(TIMM, data_preprocessor=dict(PREPROCESSOR))).eval()
    config = ConfigDict(MODEL[task](backbone, test_cfg or dict(mode='whole')))
    return MODELS.build(config).eval()


@pytest.mark.parametrize(
    ('task', 'backbone', 'size', 'grid', 'num_prefix', 'blocks'),
    [
        ('segmentation', VIT, (38, 51), (5, 7), 1, lambda model: model.backbone.layers),
        ('classification', DEIT, (40, 56), (5, 7), 2, lambda model: model.backbone.layers),
        ('classification', TIMM, (48, 64), (3, 4), 1, lambda model: model.model.blocks),
    ],
    ids=['mmseg', 'mmpretrain', 'timm'],
)
def test_a_vit_of_others_shows_its_patch_tokens_after_the_same_block(
    make_sample, task, backbone, size, grid, num_prefix, blocks
) -> None:
    model, sample = build(task, backbone), make_sample(task, size)
    seen = []
    handle = blocks(model)[1].register_forward_hook(lambda *call: seen.append(call[-1]))
    (panel,) = attention_maps(model, sample)
    handle.remove()
    assert panel.note == 'token norms, block 1' and panel.values.shape == size
    norms = seen[0][0, num_prefix:].norm(dim=-1).reshape(grid).detach().numpy()
    stride = 16 if backbone is TIMM else 8
    middle = panel.values[stride // 2 - 1 :: stride, stride // 2 - 1 :: stride]
    middle = (middle + panel.values[stride // 2 :: stride, stride // 2 :: stride]) / 2
    ratio = middle / norms[: middle.shape[0], : middle.shape[1]]
    assert ratio == pytest.approx(np.full_like(ratio, ratio.mean()), rel=0.05)
    np.testing.assert_array_equal(panel.image, sample.picture(model))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(('backbone', 'test_cfg'), [(RESNET, None), (VIT, WINDOWS)])
def test_there_is_none_without_one_grid_of_patches(make_sample, backbone, test_cfg) -> None:
    model = build('segmentation', backbone, test_cfg)
    assert attention_maps(model, make_sample('segmentation', (40, 56))) == []


def test_ours_has_the_maps_of_the_pictures(make_model, make_sample, task) -> None:
    panels = attention_maps(make_model(task), make_sample(task, (64, 80)))
    titles = [panel.title for panel in panels]
    assert titles == ['Bottom-up attention', 'Token mask', 'Top-down attention']
    assert not np.array_equal(panels[0].values, panels[2].values)
