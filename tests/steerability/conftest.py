"""Tiny models and data sets of both frameworks."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

NAMES, SIZE = ('sky', 'road', 'tree', 'car'), (32, 48)
STATISTICS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


def backbone(design: str | None, **options) -> dict:
    """Of a design; ``None``: without top-down attention."""
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, patch_size=8, global_pool='avg')
    if design is None:
        return dict(type='mmvars.ViT', arch=arch, img_size=32, **options)
    return dict(type='mmvars.AbSViT', design=design, arch=arch, img_size=32, **options)


@pytest.fixture(scope='session')
def segmentation_data(tmp_path_factory) -> Path:
    """Six images of stripes, with the pixels of one class each left without label."""
    root = tmp_path_factory.mktemp('stripes')
    for folder in ('img', 'ann'):
        (root / folder).mkdir()
    for index in range(6):
        rng = np.random.default_rng(index)
        labels = np.tile(np.repeat(rng.permutation(4)[:3], 16), (32, 1)).astype(np.uint8)
        labels[:, :2] = 255
        pixels = (60 * (labels[..., None] % 4) + rng.integers(0, 60, (*SIZE, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(root / 'img' / f'{index}.png')
        Image.fromarray(labels).save(root / 'ann' / f'{index}.png')
    return root


@pytest.fixture(scope='session')
def classification_data(tmp_path_factory) -> Path:
    """Three images of each of five classes."""
    root = tmp_path_factory.mktemp('classes')
    for label in range(5):
        (root / f'c{label}').mkdir()
        for index in range(3):
            rng = np.random.default_rng((label, index))
            pixels = rng.integers(40 * label, 40 * label + 60, (40, 50, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / f'c{label}' / f'{index}.png')
    return root


def segmentation_config(root: Path, design: str | None, steerable: bool) -> Config:
    prior = {} if design in (None, 'feedback') else dict(prior='learned_classes')
    steering = dict(
        prior_sampler=dict(type='mmvars.PriorSampler', mosaic=0),
        prompt_head=dict(type='mmvars.PromptHead', norm_cfg=dict(type='BN')),
    )
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(
                type='mmvars.EncoderDecoder',
                data_preprocessor=dict(
                    type='mmseg.SegDataPreProcessor', bgr_to_rgb=True, size=(32, 48), **STATISTICS
                ),
                backbone=backbone(design, out_type='featmap', **prior),
                decode_head=dict(type='mmvars.LinearHead', num_classes=4),
                **(steering if steerable else {}),
            ),
            test_dataloader=dict(
                dataset=dict(
                    type='mmseg.BaseSegDataset',
                    metainfo=dict(classes=NAMES),
                    data_root=str(root),
                    data_prefix=dict(img_path='img', seg_map_path='ann'),
                    img_suffix='.png',
                    seg_map_suffix='.png',
                    reduce_zero_label=False,
                    pipeline=[
                        dict(type='mmvars.LoadImageFromFile'),
                        dict(type='Resize', scale=(48, 32), keep_ratio=True),
                        dict(type='LoadAnnotations'),
                        dict(type='mmseg.PackSegInputs'),
                    ],
                )
            ),
        )
    )


def classification_config(root: Path, design: str | None) -> Config:
    return Config(
        dict(
            default_scope='mmpretrain',
            model=dict(
                type='mmvars.ImageClassifier',
                data_preprocessor=dict(
                    type='mmpretrain.ClsDataPreprocessor', num_classes=5, to_rgb=True, **STATISTICS
                ),
                backbone=backbone(design, out_type='avg_featmap'),
                head=dict(type='mmpretrain.LinearClsHead', num_classes=5),
            ),
            test_dataloader=dict(
                dataset=dict(
                    type='mmpretrain.CustomDataset',
                    data_root=str(root),
                    pipeline=[
                        dict(type='mmvars.LoadImageFromFile'),
                        dict(type='mmpretrain.ResizeEdge', scale=36, edge='short'),
                        dict(type='CenterCrop', crop_size=32),
                        dict(type='mmpretrain.PackInputs'),
                    ],
                )
            ),
        )
    )


@pytest.fixture(scope='session')
def write_model(tmp_path_factory, segmentation_data, classification_data):
    """Writes a config and a checkpoint of random weights: ``[config, checkpoint]``."""

    @functools.cache
    def write(task: str, design: str | None, steerable: bool = True) -> tuple[str, str]:
        cfg = (
            segmentation_config(segmentation_data, design, steerable)
            if task == 'segmentation'
            else classification_config(classification_data, design)
        )
        init_default_scope(cfg.default_scope)
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        folder = tmp_path_factory.mktemp('run')
        config, checkpoint = str(folder / f'{task}_{design}.py'), str(folder / 'iter_1.pth')
        cfg.dump(config)
        torch.save(dict(meta={}, state_dict=model.state_dict()), checkpoint)
        return config, checkpoint

    return write
