"""Layer-wise decay: the rate of every parameter, in either kind of model."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmvars.errors import InputError
from mmvars.models import AbSViT

LR, DECAY, RATE, LAYERS = 0.1, 0.05, 0.5, 5  # 3 blocks + embedding + the end


class Segmentor(nn.Module):
    """Like mmseg's: asks nothing of its backbone's depth."""

    def __init__(self, arch: dict) -> None:
        super().__init__()
        self.backbone = AbSViT(arch=arch, img_size=32)
        self.decode_head = nn.Sequential(nn.Conv2d(48, 4, 1), nn.BatchNorm2d(4))


class Classifier(Segmentor):
    """Like mmpretrain's: forwards the question to the backbone."""

    def get_layer_depth(self, name: str) -> tuple[int, int]:
        if name.startswith('backbone.'):
            return self.backbone.get_layer_depth(name, 'backbone.')
        return LAYERS - 1, LAYERS


def groups(model: nn.Module, **paramwise) -> dict[str, dict]:
    wrapper = build_optim_wrapper(model, dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=LR, weight_decay=DECAY),
        constructor='mmvars.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=RATE, **paramwise)))
    found = {g['param_name']: g for g in wrapper.optimizer.param_groups}
    assert len(found) == len(wrapper.optimizer.param_groups)
    return found


@pytest.mark.parametrize('host', [Segmentor, Classifier])
def test_rates_fall_towards_the_input(host, tiny_arch) -> None:
    model = host(tiny_arch)
    found = groups(model)
    assert set(found) == {n for n, p in model.named_parameters() if p.requires_grad}
    network = 'backbone.network.'
    for name, layer in [('trunk.patch_embed.proj.weight', 0), ('trunk.cls_token', 0),
                        ('trunk.blocks.0.attn.qkv.weight', 1), ('trunk.blocks.2.mlp.fc2.bias', 3),
                        ('feedback.decoders.1.chain.weight', 2), ('trunk.norm.weight', 4),
                        ('prior.query', 4)]:
        assert found[network + name]['lr'] == pytest.approx(LR * RATE ** (4 - layer)), name
    assert found['decode_head.0.weight']['lr'] == LR


def test_norms_and_biases_are_not_decayed_by_default(tiny_arch) -> None:
    found = groups(Segmentor(tiny_arch))
    for name, group in found.items():
        flat = group['params'][0].ndim == 1
        assert group.get('weight_decay', DECAY) == (0 if flat else DECAY), name


def test_custom_keys_multiply_with_the_layer_rate(tiny_arch) -> None:
    found = groups(Segmentor(tiny_arch), norm_decay_mult=1., custom_keys={
        'pos_embed': dict(decay_mult=0.), 'decode_head': dict(lr_mult=10.),
        'blocks.0': dict(lr_mult=2.)})
    assert found['backbone.network.trunk.pos_embed']['weight_decay'] == 0
    assert found['decode_head.0.weight']['lr'] == pytest.approx(10 * LR)
    assert found['backbone.network.trunk.blocks.0.norm1.weight']['lr'] == pytest.approx(
        2 * LR * RATE ** 3)
    assert found['backbone.network.trunk.norm.weight']['weight_decay'] == DECAY


def test_frozen_parameters_are_left_out(tiny_arch) -> None:
    model = Segmentor(tiny_arch)
    model.backbone.network.trunk.requires_grad_(False)
    assert not any('trunk' in name for name in groups(model))


def test_the_optimiser_steps(tiny_arch) -> None:
    model = Segmentor(tiny_arch)
    before = model.backbone.network.prior.query.detach().clone()
    wrapper = build_optim_wrapper(model, dict(
        optimizer=dict(type='SGD', lr=LR), paramwise_cfg=dict(layer_decay_rate=1),
        constructor='mmvars.LayerDecayOptimWrapperConstructor'))
    wrapper.update_params(model.decode_head(model.backbone(torch.randn(2, 3, 32, 32))[-1]).sum()
                          + model.backbone.network.prior.query.sum())
    assert not torch.equal(before, model.backbone.network.prior.query)


@pytest.mark.parametrize('rate', [None, 0, -1, 1.5, 'a', True])
def test_a_bad_rate_is_refused(rate, tiny_arch) -> None:
    with pytest.raises(InputError, match='layer_decay_rate must be'):
        build_optim_wrapper(Segmentor(tiny_arch), dict(
            optimizer=dict(type='SGD', lr=LR), paramwise_cfg=dict(layer_decay_rate=rate),
            constructor='mmvars.LayerDecayOptimWrapperConstructor'))


def test_a_backbone_without_depth_is_named() -> None:
    model = nn.Module()
    model.backbone = nn.Conv2d(3, 3, 1)
    with pytest.raises(InputError, match='get_layer_depth, which Conv2d has not'):
        groups(model)
