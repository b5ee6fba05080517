"""Tiny configs of both hosts, with checkpoints of their models."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
WIDTH = 24
ARCH = dict(embed_dims=WIDTH, num_layers=2, num_heads=2)

BACKBONES = {
    'absvit': dict(type='mmvars.AbSViT', arch=ARCH),
    'absvit_rvt': dict(type='mmvars.AbSViT', arch=dict(trunk='rvt', embed_dims=[12, WIDTH],
                                                       num_layers=[1, 1], num_heads=[2, 2])),
    'vit': dict(type='mmvars.ViT', arch=ARCH),
    'gfnet': dict(type='mmvars.GFNet', arch=ARCH),
    'rvt': dict(type='mmvars.RVT', arch=dict(embed_dims=[12, WIDTH], num_layers=[1, 1],
                                             num_heads=[2, 2])),
    'fan': dict(type='mmvars.FAN', arch=ARCH),
    **{mixer: dict(type='mmvars.VARS', arch=dict(trunk='deit_convstem', **ARCH), mixer=mixer)
       for mixer in ('vars_s', 'vars_d', 'vars_sd')},
}


def model_of(kind: str, task: str) -> tuple[str, dict]:
    """Default scope and model."""
    backbone = BACKBONES[kind] | dict(img_size=64)
    if task == 'classification':
        return 'mmpretrain', dict(
            type='mmvars.ImageClassifier',
            data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor', mean=MEAN, std=STD,
                                   num_classes=5, to_rgb=True),
            backbone=backbone | dict(out_type='avg_featmap'),
            head=dict(type='mmpretrain.LinearClsHead', num_classes=5, in_channels=WIDTH))
    head = dict(type='mmseg.FCNHead', in_channels=WIDTH, in_index=0, channels=8, num_convs=1,
                concat_input=False, num_classes=5, norm_cfg=dict(type='SyncBN'),
                align_corners=False)
    return 'mmseg', dict(
        type='mmvars.EncoderDecoder',
        data_preprocessor=dict(type='mmseg.SegDataPreProcessor', mean=MEAN, std=STD,
                               bgr_to_rgb=True, size=(64, 64), pad_val=0, seg_pad_val=255),
        backbone=backbone, decode_head=head,
        test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(48, 48)))


@pytest.fixture
def trained(tmp_path: Path) -> Callable[[str, str], tuple[str, str]]:
    """``trained(kind, task)``: paths of a config and of a checkpoint of its model."""

    def make(kind: str, task: str = 'segmentation') -> tuple[str, str]:
        scope, model = model_of(kind, task)
        config, checkpoint = tmp_path / f'{kind}.py', tmp_path / f'{kind}.pth'
        Config(dict(default_scope=scope, model=model)).dump(config)
        init_default_scope(scope)
        network = MODELS.build(model)
        with torch.no_grad():  # outputs that would show a mistake
            for name, parameter in network.named_parameters():
                if 'feedback.' in name or 'head.' in name:
                    torch.nn.init.normal_(parameter, std=.3)
        torch.save(dict(state_dict=network.state_dict(), meta={}), checkpoint)
        return str(config), str(checkpoint)

    return make
