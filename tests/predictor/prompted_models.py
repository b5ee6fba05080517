"""Tiny models with random weights, and what they give without a predictor."""

from typing import Any

import numpy as np
import torch
from mmengine.config import Config

import mmvars

WIDTH, NUM_CLASSES = 24, 5
SLIDE = dict(mode='slide', crop_size=(48, 48), stride=(32, 32))
BATCHED = SLIDE | dict(window_batch=3)
MISSING = object()


def classifier(design: str = 'absvit', out_type: str = 'pooled', **backbone: Any) -> Config:
    """A classifier whose images are resized to a shorter side of 80, and cropped to 64 x 64."""
    arch = dict(embed_dims=WIDTH, num_layers=3, num_heads=2, patch_size=16)
    features = dict(type='mmvars.AbSViT', arch=arch, design=design, img_size=64)
    if design == 'none':
        features = dict(type='mmvars.ViT', arch=arch, img_size=64)
    pipeline = [
        dict(type='mmvars.LoadImageFromFile'),
        dict(type='mmpretrain.ResizeEdge', scale=80, edge='short'),
        dict(type='mmpretrain.CenterCrop', crop_size=64),
        dict(type='mmpretrain.PackInputs'),
    ]
    names = ('cat', 'dog', 'horse', 'cow')
    dataset = dict(type='mmpretrain.CustomDataset', metainfo=dict(classes=names), pipeline=pipeline)
    return Config(
        dict(
            default_scope='mmpretrain',
            model=dict(
                type='mmvars.ImageClassifier',
                data_preprocessor=dict(
                    type='mmpretrain.ClsDataPreprocessor', mean=[120] * 3, std=[60] * 3, to_rgb=True
                ),
                backbone=features | dict(out_type=out_type) | backbone,
                head=dict(
                    type='mmpretrain.LinearClsHead',
                    num_classes=len(names),
                    in_channels=None,
                    loss=dict(type='mmpretrain.CrossEntropyLoss'),
                ),
            ),
            test_dataloader=dict(dataset=dataset),
        )
    )


def segmentor(
    design: str = 'absvit', timm: bool = False, test_cfg: Any = None, **backbone: Any
) -> Config:
    """A segmentor whose images are resized to 96 pixels at most, and padded to 64 at least."""
    arch: dict = dict(embed_dims=WIDTH, num_layers=3, num_heads=2, patch_size=16, global_pool='avg')
    if timm:
        arch = dict(trunk='timm/vit_tiny_patch16_224', num_layers=2)
    features = dict(type='mmvars.AbSViT', arch=arch, design=design, img_size=64)
    if design == 'none':
        features = dict(type='mmvars.ViT', arch=arch, img_size=64)
    pipeline = [
        dict(type='mmvars.LoadImageFromFile'),
        dict(type='Resize', scale=(96, 64), keep_ratio=True),
        dict(type='LoadAnnotations'),
        dict(type='mmseg.PackSegInputs'),
    ]
    names = ('road', 'sidewalk', 'building', 'wall', 'fence')
    dataset = dict(type='mmseg.BaseSegDataset', metainfo=dict(classes=names), pipeline=pipeline)
    head = dict(
        type='mmseg.FCNHead',
        channels=8,
        num_convs=1,
        concat_input=False,
        num_classes=NUM_CLASSES,
        in_index=0,
        in_channels=None,
        align_corners=False,
    )
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(
                type='mmvars.EncoderDecoder',
                data_preprocessor=dict(
                    type='mmseg.SegDataPreProcessor',
                    mean=[123.675, 116.28, 103.53],
                    std=[58.395, 57.12, 57.375],
                    bgr_to_rgb=True,
                    size=(64, 64),
                    pad_val=0,
                    seg_pad_val=255,
                    test_cfg=dict(size_divisor=16),
                ),
                backbone=features | backbone,
                decode_head=head,
                test_cfg=test_cfg or dict(mode='whole'),
            ),
            test_dataloader=dict(dataset=dataset),
        )
    )


def pattern(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


@torch.no_grad()
def by_the_model(predictor: mmvars.Predictor, picture: np.ndarray, prior: Any = MISSING) -> Any:
    """What the model's own ``predict`` gives, through its own pipeline."""
    packed = predictor._engine.pipeline(dict(img=np.ascontiguousarray(picture[..., ::-1])))
    if prior is not MISSING:
        packed['data_samples'].set_field(prior, 'prior')
    data = dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']])
    return predictor.model.test_step(data)[0]
