"""Layer-wise decay: the rate of every parameter, in either kind of model."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmvars.errors import InputError
from mmvars.models import VARS, AbSViT

LR, DECAY, RATE, LAYERS = 0.1, 0.05, 0.5, 5  # 3 blocks + embedding + the end


class Segmentor(nn.Module):
    """Like mmseg's: without ``get_layer_depth``."""

    def __init__(self, arch: dict) -> None:
        super().__init__()
        self.backbone = AbSViT(arch=arch, img_size=32)
        self.decode_head = nn.Sequential(nn.Conv2d(48, 4, 1), nn.BatchNorm2d(4))


class Classifier(Segmentor):
    """Like mmpretrain's: with ``get_layer_depth``."""

    def get_layer_depth(self, name: str) -> tuple[int, int]:
        if name.startswith('backbone.'):
            return self.backbone.get_layer_depth(name, 'backbone.')
        return LAYERS - 1, LAYERS


def groups(model: nn.Module, **paramwise) -> dict[str, dict]:
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=LR, weight_decay=DECAY),
            constructor='mmvars.LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=RATE, **paramwise),
        ),
    )
    by_name = {g['param_name']: g for g in wrapper.optimizer.param_groups}
    assert len(by_name) == len(wrapper.optimizer.param_groups)
    return by_name


@pytest.mark.parametrize('framework', [Segmentor, Classifier])
def test_rates_fall_towards_the_input(framework, tiny_arch) -> None:
    model = framework(tiny_arch)
    by_name = groups(model)
    assert set(by_name) == {n for n, p in model.named_parameters() if p.requires_grad}
    network = 'backbone.network.'
    for name, layer in [
        ('trunk.patch_embed.proj.weight', 0),
        ('trunk.cls_token', 0),
        ('trunk.blocks.0.attn.qkv.weight', 1),
        ('trunk.blocks.2.mlp.fc2.bias', 3),
        ('feedback.decoders.1.to_below.weight', 2),
        ('trunk.norm.weight', 4),
        ('prior.query', 4),
    ]:
        assert by_name[network + name]['lr'] == pytest.approx(LR * RATE ** (4 - layer)), name
    assert by_name['decode_head.0.weight']['lr'] == LR


@pytest.mark.parametrize(
    'arch, layers',
    [
        (
            dict(trunk='rvt', embed_dims=[8, 16], num_layers=[2, 1], num_heads=[2, 4]),
            {
                'patch_embed.proj.0.weight': 0,
                'patch_embed.proj.1.bias': 0,
                'stages.0.blocks.0.attn.dictionary': 1,
                'stages.0.blocks.1.mlp.bn1.weight': 2,
                'pools.0.conv.weight': 3,
                'stages.1.blocks.0.attn.proj.weight': 3,
                'fc_norm.weight': 4,
            },
        ),
        (
            dict(trunk='deit_convstem', embed_dims=8, num_layers=3, num_heads=2),
            {
                'patch_embed.proj.3.weight': 0,
                'pos_embed': 0,
                'blocks.0.attn.dictionary': 1,
                'blocks.2.mlp.fc2.weight': 3,
                'fc_norm.weight': 4,
            },
        ),
        (
            dict(trunk='gfnet', embed_dims=8, num_layers=3, num_heads=2),
            {'pos_embed': 0, 'blocks.1.attn.dictionary': 2, 'norm.weight': 4},
        ),
    ],
    ids=['rvt', 'deit_convstem', 'gfnet'],
)
def test_rates_of_the_trunks_of_vars(arch, layers) -> None:
    model = Segmentor(dict(embed_dims=48, num_layers=1, num_heads=1))
    model.backbone = VARS(arch=arch, mixer='vars_s', img_size=32, out_indices=(0, -1))
    by_name = groups(model)
    assert set(by_name) == {n for n, p in model.named_parameters() if p.requires_grad}
    rates = {g['lr'] for g in by_name.values()}
    assert sorted(rates) == pytest.approx(sorted(LR * RATE**k for k in range(5)))
    for name, layer in layers.items():
        assert by_name[f'backbone.network.{name}']['lr'] == pytest.approx(
            LR * RATE ** (4 - layer)
        ), name
    for name, group in by_name.items():  # learned_lam and learned_L of the release: never decayed
        flat = group['params'][0].ndim == 1
        assert group.get('weight_decay', DECAY) == (0 if flat else DECAY), name


def test_norms_and_biases_are_not_decayed_by_default(tiny_arch) -> None:
    by_name = groups(Segmentor(tiny_arch))
    for name, group in by_name.items():
        flat = group['params'][0].ndim == 1
        assert group.get('weight_decay', DECAY) == (0 if flat else DECAY), name


def test_rates_fall_without_a_weight_decay_too(tiny_arch) -> None:
    """mmengine leaves all parameters in one group where paramwise_cfg says nothing else."""
    wrapper = build_optim_wrapper(
        Segmentor(tiny_arch),
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=LR),
            constructor='mmvars.LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=RATE),
        ),
    )
    assert len({group['lr'] for group in wrapper.optimizer.param_groups}) == LAYERS


def test_custom_keys_multiply_with_the_layer_rate(tiny_arch) -> None:
    by_name = groups(
        Segmentor(tiny_arch),
        norm_decay_mult=1.0,
        custom_keys={
            'pos_embed': dict(decay_mult=0.0),
            'decode_head': dict(lr_mult=10.0),
            'blocks.0': dict(lr_mult=2.0),
        },
    )
    assert by_name['backbone.network.trunk.pos_embed']['weight_decay'] == 0
    assert by_name['decode_head.0.weight']['lr'] == pytest.approx(10 * LR)
    assert by_name['backbone.network.trunk.blocks.0.norm1.weight']['lr'] == pytest.approx(
        2 * LR * RATE**3
    )
    assert by_name['backbone.network.trunk.norm.weight']['weight_decay'] == DECAY


def test_frozen_parameters_are_left_out(tiny_arch) -> None:
    model = Segmentor(tiny_arch)
    model.backbone.network.trunk.requires_grad_(False)
    assert not any('trunk' in name for name in groups(model))


def test_the_optimizer_steps(tiny_arch) -> None:
    model = Segmentor(tiny_arch)
    before = model.backbone.network.prior.query.detach().clone()
    wrapper = build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='SGD', lr=LR),
            paramwise_cfg=dict(layer_decay_rate=1),
            constructor='mmvars.LayerDecayOptimWrapperConstructor',
        ),
    )
    wrapper.update_params(
        model.decode_head(model.backbone(torch.randn(2, 3, 32, 32))[-1]).sum()
        + model.backbone.network.prior.query.sum()
    )
    assert not torch.equal(before, model.backbone.network.prior.query)


@pytest.mark.parametrize('rate', [None, 0, -1, 1.5, 'a', True])
def test_a_bad_rate_is_refused(rate, tiny_arch) -> None:
    with pytest.raises(InputError, match='layer_decay_rate must be'):
        build_optim_wrapper(
            Segmentor(tiny_arch),
            dict(
                optimizer=dict(type='SGD', lr=LR),
                paramwise_cfg=dict(layer_decay_rate=rate),
                constructor='mmvars.LayerDecayOptimWrapperConstructor',
            ),
        )


def test_a_backbone_without_depth_is_named() -> None:
    model = nn.Module()
    model.backbone = nn.Conv2d(3, 3, 1)
    with pytest.raises(InputError, match='get_layer_depth, which Conv2d has not'):
        groups(model)
