"""Configs of tiny models of both frameworks, and what they give without a predictor."""

from typing import Any

import numpy as np
import torch
from mmengine.config import Config

import mmvars

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
WIDTH, NUM_CLASSES = 24, 5
SLIDE = dict(mode='slide', crop_size=(48, 48), stride=(32, 32))
BATCHED = SLIDE | dict(window_batch=3)
MISSING = object()


def classification(features: dict, names: tuple[str, ...], short_edge: int = 80) -> Config:
    """A classifier whose images are resized to a shorter edge, and cropped to 64 x 64."""
    pipeline = [
        dict(type='mmvars.LoadImageFromFile'),
        dict(type='mmpretrain.ResizeEdge', scale=short_edge, edge='short'),
        dict(type='mmpretrain.CenterCrop', crop_size=64),
        dict(type='mmpretrain.PackInputs'),
    ]
    dataset = dict(type='mmpretrain.CustomDataset', metainfo=dict(classes=names), pipeline=pipeline)
    statistics = dict(mean=MEAN, std=STD, to_rgb=True)
    head = dict(type='mmpretrain.LinearClsHead', num_classes=len(names), in_channels=None)
    return Config(
        dict(
            default_scope='mmpretrain',
            model=dict(
                type='mmvars.ImageClassifier',
                data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor', **statistics),
                backbone=features,
                head=head,
            ),
            test_dataloader=dict(dataset=dataset),
        )
    )


def segmentation(
    features: dict, dataset: dict, num_classes: int, scale: tuple[int, int] = (96, 64), **model: Any
) -> Config:
    """A segmentor whose images are resized to ``scale`` at most."""
    pipeline = [
        dict(type='mmvars.LoadImageFromFile'),
        dict(type='Resize', scale=scale, keep_ratio=True),
        dict(type='LoadAnnotations'),
        dict(type='mmseg.PackSegInputs'),
    ]
    preprocessor = dict(
        type='mmseg.SegDataPreProcessor',
        mean=MEAN,
        std=STD,
        bgr_to_rgb=True,
        size=(64, 64),
        pad_val=0,
        seg_pad_val=255,
    )
    head = dict(
        type='mmseg.FCNHead',
        channels=8,
        num_convs=1,
        concat_input=False,
        num_classes=num_classes,
        in_index=0,
        in_channels=None,
        align_corners=False,
    )
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(
                type='mmvars.EncoderDecoder',
                data_preprocessor=preprocessor | model.pop('data_preprocessor', {}),
                backbone=features,
                decode_head=head | model.pop('decode_head', {}),
                **dict(test_cfg=dict(mode='whole')) | model,
            ),
            test_dataloader=dict(dataset=dict(dataset, pipeline=pipeline)),
        )
    )


def _features(arch: dict, design: str, **options: Any) -> dict:
    """A backbone with top-down attention, or, for ``design='none'``, without."""
    if design == 'none':
        return dict(type='mmvars.ViT', arch=arch, img_size=64, **options)
    return dict(type='mmvars.AbSViT', arch=arch, design=design, img_size=64, **options)


def classifier(design: str = 'absvit', out_type: str = 'pooled', **backbone: Any) -> Config:
    """A classifier of four classes."""
    arch = dict(embed_dims=WIDTH, num_layers=3, num_heads=2, patch_size=16)
    features = _features(arch, design, out_type=out_type, **backbone)
    return classification(features, ('cat', 'dog', 'horse', 'cow'))


def segmentor(
    design: str = 'absvit', timm: bool = False, test_cfg: Any = None, **backbone: Any
) -> Config:
    """A segmentor of five classes whose images are padded to 64 at least."""
    arch: dict = dict(embed_dims=WIDTH, num_layers=3, num_heads=2, patch_size=16, global_pool='avg')
    if timm:
        arch = dict(trunk='timm/vit_tiny_patch16_224', num_layers=2)
    names = ('road', 'sidewalk', 'building', 'wall', 'fence')
    return segmentation(
        _features(arch, design, **backbone),
        dict(type='mmseg.BaseSegDataset', metainfo=dict(classes=names)),
        NUM_CLASSES,
        data_preprocessor=dict(test_cfg=dict(size_divisor=16)),
        test_cfg=test_cfg or dict(mode='whole'),
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
