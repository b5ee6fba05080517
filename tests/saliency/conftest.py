"""Small models with random weights, and commands run into a folder."""

import json

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

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
