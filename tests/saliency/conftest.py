"""Small models with random weights, small data, and commands run into a folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from mmvars.cli import run_tool

STATISTICS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
SMALL = dict(embed_dims=16, num_layers=2, num_heads=2)
BACKBONES = {
    'absvit': dict(type='mmvars.AbSViT', arch=dict(SMALL, patch_size=8), img_size=32),
    'vars': dict(
        type='mmvars.VARS',
        arch=dict(trunk='deit_convstem', **SMALL),
        mixer='vars_d',
        mixer_cfg=dict(num_steps=2),
        img_size=32,
    ),
    'foreign': dict(
        type='mmpretrain.VisionTransformer',
        arch=dict(SMALL, feedforward_channels=32),
        img_size=32,
        patch_size=8,
    ),
    'fan': dict(type='mmvars.AbSViT', arch=dict(trunk='fan', **SMALL), img_size=32),
    'mmseg': dict(
        type='mmseg.VisionTransformer',
        img_size=(32, 32),
        patch_size=8,
        embed_dims=16,
        num_layers=2,
        num_heads=2,
        out_indices=1,
    ),
    'resnet': dict(type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8),
}


@pytest.fixture(scope='session')
def write_model(tmp_path_factory):
    """Writes a config and a checkpoint with random weights."""

    def write(kind: str) -> tuple[str, str]:
        folder = tmp_path_factory.mktemp(kind)
        cfg = Config(
            dict(
                default_scope='mmpretrain',
                model=dict(type='ImageClassifier', backbone=BACKBONES[kind]),
                data_preprocessor=STATISTICS,
            )
        )
        cfg.dump(folder / 'config.py')
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), folder / 'model.pth')
        return str(folder / 'config.py'), str(folder / 'model.pth')

    return write


@pytest.fixture(scope='session')
def segmentor(tmp_path_factory, data) -> tuple[str, str]:
    """A network with a prior for each class, and labeled test data of its own."""
    folder = tmp_path_factory.mktemp('segmentor')
    pipeline = [dict(type='mmvars.LoadImageFromFile'), dict(type='mmseg.LoadAnnotations')]
    cfg = Config(
        dict(
            default_scope='mmseg',
            model=dict(
                type='mmvars.EncoderDecoder',
                data_preprocessor=dict(
                    type='mmseg.SegDataPreProcessor',
                    mean=[123.675, 116.28, 103.53],
                    std=[58.395, 57.12, 57.375],
                    bgr_to_rgb=True,
                ),
                backbone=dict(
                    type='mmvars.AbSViT',
                    arch=dict(embed_dims=16, num_layers=2, num_heads=2, patch_size=8),
                    img_size=32,
                    prior=dict(type='learned_classes'),
                ),
                decode_head=dict(type='mmvars.LinearHead', num_classes=6),
                test_cfg=dict(mode='whole'),
            ),
            test_dataloader=dict(
                dataset=dict(
                    type='mmseg.BaseSegDataset',
                    data_root=str(data),
                    img_suffix='.png',
                    seg_map_suffix='.png',
                    data_prefix=dict(img_path='images', seg_map_path='masks'),
                    metainfo=dict(classes=('floor', 'rug', 'square', 'dog', 'cat', 'corner')),
                    pipeline=pipeline,
                )
            ),
        )
    )
    cfg.dump(folder / 'config.py')
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        state = MODELS.build(cfg.model).state_dict()
    for key in state:
        if key.endswith('prior.prototypes'):
            state[key] = torch.randn_like(state[key])
    torch.save(dict(state_dict=state), folder / 'model.pth')
    return str(folder / 'config.py'), str(folder / 'model.pth')


@pytest.fixture(scope='session')
def data(tmp_path_factory) -> Path:
    """Three images with a bright square, at which people look, and which is an object."""
    root = tmp_path_factory.mktemp('data')
    (root / 'images').mkdir()
    (root / 'masks').mkdir()
    fixations = {}
    for index in range(3):
        rng = np.random.default_rng(index)
        pixels = rng.integers(0, 60, (40, 56 + index, 3)).astype(np.uint8)
        labels = np.zeros(pixels.shape[:2], dtype=np.uint8)
        rows, columns = slice(8, 24), slice(4 + 8 * index, 20 + 8 * index)
        pixels[rows, columns] += 150
        labels[rows, columns], labels[0], labels[-3:, -3:] = 2, 255, 5
        Image.fromarray(pixels).save(root / 'images' / f'{index}.png')
        Image.fromarray(labels).save(root / 'masks' / f'{index}.png')
        points = rng.uniform(0, 16, (2, 3, 2)) + (4 + 8 * index, 8)
        fixations[str(index)] = [*points.tolist(), [[-3, 5]]]
    (root / 'fixations.json').write_text(json.dumps(fixations))
    return root


@pytest.fixture(scope='session')
def masks(data, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('masks')
    for folder in ('images', 'masks'):
        (root / folder).symlink_to(data / folder)
    return root


@pytest.fixture
def run_into(tmp_path, capsys):
    """Exit status, what was said, and the JSON file of a command."""

    def call(main, stem, size, *arguments):
        out = tmp_path / 'out'
        options = ['--size', str(size), '--device', 'cpu', '--out', str(out)]
        status = run_tool(main, [*map(str, arguments), *options])
        captured = capsys.readouterr()
        file = out / f'{stem}.json'
        content = json.loads(file.read_text()) if file.exists() else None
        return status, captured.err if status else captured.out, content

    return call
