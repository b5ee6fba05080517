"""What a checkpoint leaves out is what its config gives: without a Runner, on bare models."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from mmvars.engine.trained_part import check_leaves_out, fill_in_frozen, leave_out_frozen
from mmvars.errors import InputError
from mmvars.models import AbSViT, ViT

ARCH = dict(embed_dims=8, num_layers=2, num_heads=2)


def build(cls, transfer, seed=0, file=None):
    torch.manual_seed(seed)
    init_cfg = file and dict(type='Pretrained', checkpoint=str(file))
    backbone = cls(arch=ARCH, img_size=32, transfer=transfer, init_cfg=init_cfg)
    return nn.ModuleDict(dict(backbone=backbone, head=nn.Linear(8, 3)))


def saved(model):
    state = OrderedDict((name, value.clone()) for name, value in model.state_dict().items())
    averages = {f'module.{name}': value + 1 for name, value in state.items()}
    checkpoint = dict(meta={}, state_dict=state, ema_state_dict=averages | dict(steps=3))
    leave_out_frozen(checkpoint, model)
    return checkpoint


@pytest.mark.parametrize('cls', [ViT, AbSViT])
@pytest.mark.parametrize('transfer', ['linear', 'bias', 'prompt', 'top-down'])
def test_a_file_holds_what_trains_and_is_completed(cls, transfer, tmp_path):
    if cls is ViT and transfer == 'top-down':
        pytest.skip('no feedback')
    model = build(cls, transfer)
    torch.save(model.backbone.state_dict(), tmp_path / 'trunk.pth')
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(1)
    checkpoint = saved(model)
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    trunk = 'backbone.network.' + 'trunk.' * (cls is AbSViT)
    left_out = model.state_dict().keys() - checkpoint['state_dict'].keys()
    assert left_out == {name for name in model.state_dict() if name.startswith(trunk)} - trained
    assert checkpoint['ema_state_dict'].keys() == {
        'steps',
        *(f'module.{name}' for name in checkpoint['state_dict']),
    }
    other = build(cls, transfer, 1, tmp_path / 'trunk.pth')
    fill_in_frozen(checkpoint, other, 'x.pth', is_initialized=False)
    other.load_state_dict(checkpoint['state_dict'])
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )
    name = f'{trunk}blocks.0.attn.qkv.weight'
    averages, frozen = checkpoint['ema_state_dict'], model.state_dict()[name]
    assert torch.equal(averages[f'module.{name}'], frozen)
    with pytest.raises(InputError, match=r'x\.pth.* on the trunk vit_tiny .* pretrained='):
        fill_in_frozen(saved(model), build(cls, transfer, 1), 'x.pth', is_initialized=True)


def test_a_whole_file_stays_as_it_is():
    model = build(ViT, 'linear')
    checkpoint = dict(meta={}, state_dict={})
    fill_in_frozen(checkpoint, model, 'x.pth', is_initialized=False)
    assert checkpoint == dict(meta={}, state_dict={})


def test_frozen_decoders_are_named_by_their_hash(tmp_path):
    pytest.importorskip('peft')
    model = build(AbSViT, 'top-down-lite')
    torch.save(model.backbone.state_dict(), tmp_path / 'all.pth')
    checkpoint = saved(model)
    inside = [name for name in checkpoint['state_dict'] if '.feedback.' in name]
    assert inside and all('.lora_' in name for name in inside)
    other = build(AbSViT, 'top-down-lite', 1, tmp_path / 'all.pth')
    fill_in_frozen(checkpoint, other, 'x.pth', is_initialized=False)
    assert checkpoint['state_dict'].keys() == model.state_dict().keys()
    other.backbone.network.feedback.decoders[1].to_value.base_layer.weight.data.add_(1)
    with pytest.raises(InputError, match=r'frozen decoders, and those of this network are others'):
        fill_in_frozen(saved(model), other, 'x.pth', is_initialized=True)


def test_what_could_not_be_left_out_is_refused(tmp_path):
    for model, message in (
        (build(ViT, 'end2end', file='x.pth'), 'nothing of this backbone is frozen'),
        (nn.ModuleDict(dict(backbone=nn.Linear(2, 2))), 'nothing of this backbone is frozen'),
        (build(ViT, 'linear'), 'must come from a file: give the backbone init_cfg'),
    ):
        with pytest.raises(InputError, match=message):
            check_leaves_out(model)
    check_leaves_out(build(ViT, 'linear', file='x.pth'))
