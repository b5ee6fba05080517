"""Models and data sets of the two frameworks that are not ours run as their configs are."""

import json
from pathlib import Path

import pytest
from robustness_models import CLASSIFICATION, FCN, RESNET, SEGMENTATION, run

from mmvars.robustness import cli
from mmvars.robustness.attacks import ATTACKS, Attack

pytestmark = pytest.mark.slow

LOSS = "loss_decode=dict(type='CrossEntropyLoss')"
SEGMENTORS = {
    'segformer': """
backbone=dict(type='MixVisionTransformer', embed_dims=8, num_stages=4, num_layers=[1, 1, 1, 1],
              num_heads=[1, 1, 2, 2], sr_ratios=[8, 4, 2, 1], patch_sizes=[7, 3, 3, 3]),
decode_head=dict(type='SegformerHead', in_channels=[8, 8, 16, 16], in_index=[0, 1, 2, 3],
                 channels=16, num_classes=4, LOSS), test_cfg=dict(mode='whole')""",
    'deeplabv3plus': """
backbone=dict(type='ResNetV1c', depth=18, stem_channels=8, base_channels=8, dilations=(1, 1, 2, 4),
              strides=(1, 2, 1, 1), contract_dilation=True),
decode_head=dict(type='DepthwiseSeparableASPPHead', in_channels=64, in_index=3, channels=8,
                 dilations=(1, 2), c1_in_channels=8, c1_channels=4, num_classes=4, LOSS),
auxiliary_head=dict(type='FCNHead', in_channels=32, in_index=2, channels=8, num_classes=4, LOSS),
test_cfg=dict(mode='whole')""",
    'upernet swin': """
backbone=dict(type='SwinTransformer', pretrain_img_size=32, embed_dims=8, depths=[1, 1, 1, 1],
              num_heads=[1, 1, 2, 2], window_size=4, patch_size=4),
decode_head=dict(type='UPerHead', in_channels=[8, 16, 32, 64], in_index=[0, 1, 2, 3], channels=8,
                 pool_scales=(1, 2), num_classes=4, LOSS), test_cfg=dict(mode='whole')""",
    'upernet convnext of mmpretrain': """
backbone=dict(type='mmpretrain.ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 16, 16]),
              out_indices=[0, 1, 2, 3], gap_before_final_norm=False),
decode_head=dict(type='UPerHead', in_channels=[8, 8, 16, 16], in_index=[0, 1, 2, 3], channels=8,
                 pool_scales=(1, 2), num_classes=4, LOSS), test_cfg=dict(mode='whole')""",
    'pspnet, sliding window': """
backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8),
decode_head=dict(type='PSPHead', in_channels=64, in_index=3, channels=8, pool_scales=(1, 2),
                 num_classes=4, LOSS), test_cfg=dict(mode='slide', crop_size=(32, 32),
                 stride=(16, 16))""",
    'segmenter vit': """
backbone=dict(type='VisionTransformer', img_size=(40, 56), patch_size=8, embed_dims=16,
              num_layers=2, num_heads=2, out_indices=(0, 1)),
decode_head=dict(type='FCNHead', in_channels=16, in_index=1, channels=8, num_classes=4, LOSS),
test_cfg=dict(mode='whole')""",
}
CASCADE = """
model = dict(
    type='CascadeEncoderDecoder', num_stages=2, data_preprocessor=data_preprocessor,
    backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8),
    decode_head=[
        dict(type='FCNHead', in_channels=64, in_index=3, channels=8, num_classes=4, LOSS),
        dict(type='OCRHead', in_channels=64, in_index=3, channels=8, ocr_channels=8,
             num_classes=4, LOSS)],
    test_cfg=dict(mode='whole'))
"""
CLASSIFIERS = {
    'deit': """
backbone=dict(type='DistilledVisionTransformer', arch=dict(embed_dims=16, num_layers=2,
              num_heads=2, feedforward_channels=32), img_size=32, patch_size=8),
head=dict(type='DeiTClsHead', num_classes=5, in_channels=16)""",
    'vit': """
backbone=dict(type='VisionTransformer', arch=dict(embed_dims=16, num_layers=2, num_heads=2,
              feedforward_channels=32), img_size=32, patch_size=8),
head=dict(type='VisionTransformerClsHead', num_classes=5, in_channels=16)""",
    'swin': """
backbone=dict(type='SwinTransformer', arch=dict(embed_dims=8, depths=[1, 1, 1, 1],
              num_heads=[1, 1, 2, 2]), img_size=32, window_size=4, pad_small_map=True),
neck=dict(type='GlobalAveragePooling'),
head=dict(type='LinearClsHead', num_classes=5, in_channels=64)""",
    'convnext': """
backbone=dict(type='ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 16, 16])),
head=dict(type='LinearClsHead', num_classes=5, in_channels=16)""",
    'mobilenet': """
backbone=dict(type='MobileNetV2', widen_factor=0.1),
neck=dict(type='GlobalAveragePooling'),
head=dict(type='LinearClsHead', num_classes=5, in_channels=1280)""",
}
TIMM = """
model = dict(type='TimmClassifier', model_name='resnet10t', pretrained=False, num_classes=5,
             loss=dict(type='CrossEntropyLoss'))
"""


@pytest.mark.parametrize('name', [*SEGMENTORS, 'cascade'])
def test_segmentors(make_model, segmentation_data, tmp_path, monkeypatch, name) -> None:
    text = CASCADE
    if name in SEGMENTORS:
        text = "model = dict(type='EncoderDecoder', data_preprocessor=data_preprocessor, {})"
        text = text.replace('{}', SEGMENTORS[name])
    model = make_model(SEGMENTATION + text.replace('LOSS', LOSS), segmentation_data)
    check(run(model, tmp_path, '--severities', '1', '--images', '3'), 'mIoU')
    check_attack(model, tmp_path, 'cospgd', monkeypatch)


@pytest.mark.parametrize('name', [*CLASSIFIERS, 'timm'])
def test_classifiers(make_model, classification_data, tmp_path, monkeypatch, name) -> None:
    text = TIMM
    if name in CLASSIFIERS:
        text = f"model = dict(type='ImageClassifier', {CLASSIFIERS[name]})"
    model = make_model(CLASSIFICATION + text, classification_data)
    check(run(model, tmp_path, '--severities', '1', '--images', '6'), 'top-1')
    check_attack(model, tmp_path, 'pgd20', monkeypatch)


def test_data_sets_that_wrap_others(make_model, segmentation_data, tmp_path) -> None:
    wrap = """
test_dataloader['dataset'] = dict(type='ConcatDataset', datasets=[
    dict(type='RepeatDataset', times=2, dataset=test_dataloader['dataset']),
    test_dataloader['dataset']])
"""
    model = make_model(SEGMENTATION + wrap + FCN, segmentation_data)
    content = run(model, tmp_path, '--severities', '1')
    check(content, 'mIoU')
    assert content['about']['images'] == '21 of 21, evenly spaced'


def test_half_precision_and_workers(make_model, classification_data, tmp_path) -> None:
    text = CLASSIFICATION.replace('num_workers=0', 'num_workers=2, persistent_workers=True')
    model = make_model(text + RESNET, classification_data)
    check(run(model, tmp_path, '--severities', '1'), 'top-1')


def check_attack(model: tuple[str, str], out: Path, name: str, monkeypatch) -> None:
    """Its logits carry a gradient, and what it is told of the attack stands in the report."""

    def loss(logits, labels, done):  # weights that were drawn may saturate the softmax
        return ATTACKS['pgd'].loss(logits / logits.detach().abs().max(), labels, done)

    monkeypatch.setitem(ATTACKS, name, Attack(loss, 2, 0.5))
    options = ['--protocol', 'attacks', '--attacks', name, '--images', '2']
    cli.main([*model, '--out', str(out / 'attack'), *options])
    content = json.loads((out / 'attack' / 'robustness.json').read_text())
    assert list(content['numbers']) == ['clean', f'{name}, 1/255', 'worst case, 1/255']
    row = json.loads(next((out / 'attack').glob(f'rows/*/{name}-1.json')).read_text())
    assert max(row['zero_gradient']) < 1


def check(content: dict, score: str) -> None:
    assert content['score'] == score
    assert list(content['settings']) == ['clean', 'fog-1', 'contrast-1']
    assert content['about']['preprocessing'].startswith('as in training')
    json.dumps(content, allow_nan=False)
