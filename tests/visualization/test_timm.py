"""Pictures of what a trunk of timm attends to."""

import pytest
import torch
from PIL import Image

from mmvars.registry import MODELS
from mmvars.visualization.cli import main

pytest.importorskip('mmpretrain.models', exc_type=ImportError)

CONFIG = """
_base_ = ['{repo}/configs/absvit/absvit-tiny-p16_1xb16-20e_mini-imagenet-64px.py']
model = dict(
    backbone=dict(_delete_=True, type='mmvars.AbSViT', arch=dict(trunk='timm/test_vit',
        num_layers=2), out_type='cls_token'),
    head=dict(in_channels=None))
"""


@pytest.mark.slow
def test_passes_priors_and_attention_of_a_trunk_of_timm(repo, tmp_path) -> None:
    from mmvars.visualization.model import read_config

    config = tmp_path / 'config.py'
    config.write_text(CONFIG.format(repo=repo))
    model = MODELS.build(read_config(str(config)).model)
    for decoder in model.backbone.network.feedback.decoders:
        torch.nn.init.constant_(decoder.gate, 1.0)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    Image.effect_noise((90, 70), 100).convert('RGB').save(tmp_path / 'photo.png')
    arguments = [str(config), str(tmp_path / 'model.pth'), str(tmp_path / 'photo.png')]
    options = ['--prior', 'query', 'class:0', '--class-attention', '--average-attention']
    out = ['--out-dir', str(tmp_path / 'out')]
    assert main([*arguments, *options, *out, '--alpha', '1', '5']) == 0
    assert [path.suffix for path in (tmp_path / 'out').iterdir()] == ['.png']
