"""A data set of 16 tiny random scenes and configs that train on it within seconds."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader
from mmengine.visualization import Visualizer
from PIL import Image

HEAD = """
default_scope = {scope!r}
randomness = dict(seed=0)
data_root = {root!r}
arch = dict(embed_dims=48, num_layers=2, num_heads=3)


def _loader(batch_size, sampler, **dataset):
    return dict(batch_size=batch_size, num_workers=0, dataset=dataset,
                sampler=dict(type=sampler, shuffle=sampler == 'InfiniteSampler'))


optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01),
    constructor='mmvars.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.5))
param_scheduler = [dict(type='PolyLR', power=1., eta_min=1e-4, by_epoch=False, begin=0, end=6)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=6, val_interval=6)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
log_processor = dict(by_epoch=False)
default_hooks = dict(logger=dict(type='LoggerHook', interval=1),
                     checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3))
"""

# Group norm and no random transform, dropout or stochastic depth: what a run computes is then the
# same whether it is resumed or not, and does not depend on how images are spread over processes.
SEGMENTATION = (
    HEAD
    + """
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True),
            dict(type='PackSegInputs')]
train_dataloader = _loader(
    2, 'InfiniteSampler', type='ADE20KDataset', data_root=data_root, pipeline=pipeline,
    data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'))
val_dataloader = _loader(
    1, 'DefaultSampler', type='ADE20KDataset', data_root=data_root, pipeline=pipeline,
    data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'))
test_dataloader = val_dataloader
del _loader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale_factor=r, keep_ratio=True) for r in (1.0, 1.5)],
        [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0., 1.)],
        [dict(type='LoadAnnotations', reduce_zero_label=True)],
        [dict(type='PackSegInputs')]])]
model = dict(
    type='mmvars.EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True, size=(64, 64), pad_val=0, seg_pad_val=255),
    backbone=dict(type='mmvars.AbSViT', arch=arch, img_size=64, out_indices=(0, 1),
                  reconstruction_loss_weight=0.1),
    decode_head=dict(
        type='FCNHead', in_channels=48, in_index=1, channels=16, num_convs=1, concat_input=False,
        num_classes=150, dropout_ratio=0., norm_cfg=dict(type='GN', num_groups=4),
        loss_decode=dict(type='CrossEntropyLoss')),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
"""
)

CLASSIFICATION = (
    HEAD
    + """
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = _loader(2, 'InfiniteSampler', type='ImageNet', data_root=data_root,
                           split='train', pipeline=pipeline, metainfo=dict(classes=['a', 'b']))
val_dataloader = _loader(2, 'DefaultSampler', type='ImageNet', data_root=data_root,
                         split='val', pipeline=pipeline, metainfo=dict(classes=['a', 'b']))
test_dataloader = val_dataloader
del _loader
val_evaluator = dict(type='Accuracy', topk=1)
test_evaluator = val_evaluator
model = dict(
    type='mmvars.ImageClassifier',
    data_preprocessor=dict(type='ClsDataPreprocessor', mean=[123.675, 116.28, 103.53],
                           std=[58.395, 57.12, 57.375], to_rgb=True, num_classes=2),
    backbone=dict(type='mmvars.AbSViT', arch=arch, img_size=64, out_type='cls_token',
                  reconstruction_loss_weight=0.1),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=48,
              loss=dict(type='CrossEntropyLoss')))
"""
)


@pytest.fixture(scope='session')
def toy(tmp_path_factory) -> Path:
    """Folder with the configs ``seg.py`` and ``cls.py`` and their data."""
    return make_toy(tmp_path_factory.mktemp('toy'))


def make_toy(root: Path) -> Path:
    draw = np.random.default_rng(0)
    for split, short, count in (('training', 'train', 12), ('validation', 'val', 4)):
        for index in range(count):
            labels = np.full((64, 64), 3, np.uint8)
            labels[:, :8] = 0  # ignored
            row, column = draw.integers(8, 44, 2)
            labels[row : row + 20, column : column + 20] = 7
            noise = draw.integers(0, 40, (64, 64, 3))
            image = (labels[..., None] * 30 + noise).astype(np.uint8)
            _save(root / 'ade' / 'images' / split / f'{index}.jpg', image)
            _save(root / 'ade' / 'annotations' / split / f'{index}.png', labels)
            _save(
                root / 'in' / short / 'ab'[index % 2] / f'{index}.jpg',
                image if index % 2 else 255 - image,
            )
    for name, text, scope, data in (
        ('seg', SEGMENTATION, 'mmseg', 'ade'),
        ('cls', CLASSIFICATION, 'mmpretrain', 'in'),
    ):
        header = HEAD.format(scope=scope, root=str(root / data))
        (root / f'{name}.py').write_text(text.replace(HEAD, header))
    return root


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def losses():
    """Reader of a work dir's log: iteration -> loss, over all runs in it, later ones winning."""

    def read(work_dir: Path) -> dict[int, float]:
        rows = [
            json.loads(line)
            for log in sorted(work_dir.glob('*/vis_data/scalars.json'))
            for line in log.read_text().splitlines()
        ]
        return {row['step']: row['loss'] for row in rows if 'loss' in row}

    return read


@pytest.fixture(autouse=True)
def forget_runs() -> Iterator[Callable[[], None]]:
    """mmengine keeps loggers, hubs and loaders in globals; runs in one process must not share.

    Called after each test; a test with several runs calls it between them.
    """
    schemes = dict(CheckpointLoader._schemes)

    def forget() -> None:
        CheckpointLoader._schemes = dict(schemes)
        for owner in (MMLogger, MessageHub, Visualizer, DefaultScope):
            owner._instance_dict.clear()

    yield forget
    forget()
