"""Configs of models that are not ours, as texts; ``DATA`` is set before them."""

import json
from pathlib import Path

from mmvars.robustness import cli

__all__ = ['ABSVIT', 'CLASSIFICATION', 'FCN', 'RESNET', 'SEGMENTATION', 'run']

STATISTICS = 'mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]'
LOADER = """
test_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict({dataset}, pipeline=pipeline))
test_cfg = dict(type='TestLoop')
"""

SEGMENTATION = f"""
default_scope = 'mmseg'
pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(56, 40), keep_ratio=True),
            dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
data_preprocessor = dict(type='SegDataPreProcessor', {STATISTICS}, bgr_to_rgb=True,
                         test_cfg=dict(size_divisor=8))
""" + LOADER.format(
    dataset="type='BaseSegDataset', data_root=DATA, img_suffix='.png', seg_map_suffix='.png', "
    "data_prefix=dict(img_path='img', seg_map_path='ann'), reduce_zero_label=False, "
    "metainfo=dict(classes=('sky', 'road', 'tree', 'car'))"
)

FCN = """
model = dict(
    type='EncoderDecoder', data_preprocessor=data_preprocessor,
    backbone=dict(type='ResNetV1c', depth=18, stem_channels=8, base_channels=8),
    decode_head=dict(type='FCNHead', in_channels=64, in_index=3, channels=8, num_convs=1,
                     num_classes=4, loss_decode=dict(type='CrossEntropyLoss')),
    test_cfg=dict(mode='whole'))
"""

ABSVIT = """
model = dict(
    type='EncoderDecoder', data_preprocessor=data_preprocessor,
    backbone=dict(type='mmvars.AbSViT', img_size=48, arch=dict(
        embed_dims=16, num_layers=2, num_heads=2, patch_size=8, global_pool='avg')),
    decode_head=dict(type='FCNHead', in_channels=16, in_index=0, channels=8, num_convs=1,
                     num_classes=4, loss_decode=dict(type='CrossEntropyLoss')),
    test_cfg=dict(mode='whole'))
"""

CLASSIFICATION = (
    """
default_scope = 'mmpretrain'
pipeline = [dict(type='LoadImageFromFile'), dict(type='ResizeEdge', scale=40, edge='short'),
            dict(type='CenterCrop', crop_size=32), dict(type='PackInputs')]
test_evaluator = dict(type='Accuracy', topk=(1,))
"""
    + f'data_preprocessor = dict(num_classes=5, {STATISTICS}, to_rgb=True)\n'
    + LOADER.format(dataset="type='CustomDataset', data_root=DATA")
)

RESNET = """
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=5, in_channels=64))
"""


SHORT = ['--corruptions', 'fog', 'contrast', '--severities', '1', '5']


def run(model: tuple[str, str], out: Path, *options: str) -> dict:
    """What a run writes as JSON."""
    cli.main([*model, '--out', str(out), *SHORT, *options])
    return json.loads(Path(out, 'robustness.json').read_text())
