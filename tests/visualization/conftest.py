"""Tiny models and configs of both frameworks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from tiny_models import WIDTH, classification, segmentation

from mmvars.networks import TOP_DOWN_DESIGNS
from mmvars.visualization.model import Sample

NUM_SEG = 19
CLASS_NAMES = ('tench, Tinca tinca', 'golden retriever', 'tabby', 'crane', 'pier', 'bubble')


def backbone(kind: str, out_type: str = 'featmap') -> tuple[dict, int]:
    """Backbone and width of its last map: ``AbSViT``, ``ViT``, ``GFNet``, ``RVT``, or the name of a
    mixer in an RVT trunk (``rvt:vars_d``) or one with class token (``deit_convstem:vars_d``).

    ``AbSViT/WORD/...`` is an AbSViT with average pooling and any of a trunk (``rvt``, ``fan``; or
    ``timm``, with a class token), a
    mixer, a design, a number of passes, ``half`` for a first pass at half the resolution."""
    if kind.startswith('AbSViT/'):
        return top_down_backbone(kind.split('/')[1:], out_type)
    trunk, _, mixer = kind.partition(':')
    if trunk in ('AbSViT', 'ViT'):
        arch = dict(embed_dims=WIDTH, num_layers=3, num_heads=2, patch_size=16)
        return dict(
            type=f'mmvars.{kind}',
            img_size=64,
            arch=arch,
            out_type='featmap' if out_type == 'featmap' else 'cls_token',
        ), WIDTH
    arch = dict(embed_dims=WIDTH, num_layers=3, num_heads=2)
    if trunk in ('RVT', 'rvt'):  # two stages: the grids of blocks 1 and 2 differ
        arch = dict(embed_dims=[WIDTH, 2 * WIDTH], num_layers=[2, 1], num_heads=[2, 4])
    config = dict(type=f'mmvars.{trunk}', arch=arch)
    if mixer:
        config = dict(type='mmvars.VARS', arch=dict(trunk=trunk, **arch), mixer=mixer)
        if mixer == 'vars_s':  # the release's 3.5 leaves no code at this width
            config['mixer_cfg'] = dict(sparsity=0.1)
    width = WIDTH * len(np.atleast_1d(arch['num_layers']))
    return config | dict(img_size=64, out_type=out_type), width


def top_down_backbone(words: list[str], out_type: str) -> tuple[dict, int]:
    arch = dict(embed_dims=WIDTH, num_layers=3, num_heads=2)
    config = dict(type='mmvars.AbSViT', img_size=64, out_type=out_type)
    for word in words:
        if word == 'rvt':  # two stages: the mask has the grid of the second
            arch = dict(embed_dims=[WIDTH, 2 * WIDTH], num_layers=[2, 1], num_heads=[2, 4])
        if word in ('rvt', 'fan'):
            arch['trunk'] = word
        elif word == 'timm':  # with a class token and four registers
            arch = dict(trunk='timm/vit_small_patch14_reg4_dinov2.lvd142m', num_layers=3)
        elif word in TOP_DOWN_DESIGNS:
            config['design'] = word
        elif word.isdigit():
            config['num_passes'] = int(word)
        elif word == 'half':
            config['first_pass_scale'] = 0.5
        else:
            config['mixer'] = word
    if 'trunk' not in arch:
        arch |= dict(patch_size=16, global_pool='avg')
    width = 384 if 'timm' in words else WIDTH
    return config | dict(arch=arch), 2 * width if 'rvt' in words else width


def segmentation_config(kind: str = 'AbSViT') -> Config:
    features, width = backbone(kind)
    head = dict(in_channels=width, norm_cfg=dict(type='SyncBN'))
    dataset = dict(type='mmseg.CityscapesDataset')
    return segmentation(features, dataset, NUM_SEG, (100, 60), decode_head=head, train_cfg={})


def classification_config(kind: str = 'AbSViT') -> Config:
    return classification(backbone(kind, 'avg_featmap')[0], CLASS_NAMES, short_edge=72)


CONFIGS = {'segmentation': segmentation_config, 'classification': classification_config}


def build(cfg: Config) -> torch.nn.Module:
    """The config's model with random weights whose feedback is strong enough to be seen."""
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'feedback.' in name or 'head.' in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=sorted(CONFIGS))
def task(request) -> str:
    """Both frameworks."""
    return request.param


@pytest.fixture
def make_config():
    """``make_config(task, kind='AbSViT')``."""
    return lambda task, kind='AbSViT': CONFIGS[task](kind)


@pytest.fixture
def make_model():
    """``make_model(task, kind='AbSViT')``: in eval mode, with random weights."""
    return lambda task, kind='AbSViT': revert_sync_batchnorm(build(CONFIGS[task](kind))).eval()


@pytest.fixture
def make_sample():
    """``make_sample(task, (H, W))``: random pixels as the framework packs them."""

    def make(task: str, size: tuple[int, int]) -> Sample:
        init_default_scope(CONFIGS[task]().default_scope)
        kind = 'mmseg.PackSegInputs' if task == 'segmentation' else 'mmpretrain.PackInputs'
        pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
        packed = TRANSFORMS.build(dict(type=kind))(
            dict(img=pixels, img_path='a.png', ori_shape=size, img_shape=size)
        )
        return Sample(packed['inputs'], packed['data_samples'])

    return make


@pytest.fixture
def write_config(tmp_path):
    """Writes the config of a task, and a checkpoint of it as mmengine's Runner would."""

    def write(task: str, kind: str = 'AbSViT') -> tuple[Path, Path]:
        cfg = CONFIGS[task](kind)
        stem = f'{task}_{kind}'.replace('/', '-')
        config, checkpoint = tmp_path / f'{stem}.py', tmp_path / f'{stem}.pth'
        cfg.dump(config)
        torch.save(
            {'meta': {'epoch': 1}, 'state_dict': build(cfg).state_dict(), 'message_hub': {}},
            checkpoint,
        )
        return config, checkpoint

    return write
