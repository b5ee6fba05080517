"""AbSViT and its rivals on other trunks than ViT: what trains is what a loss reaches."""

import pytest
import torch

from mmvars.errors import InputError
from mmvars.models import FAN, AbSViT
from mmvars.networks import TOP_DOWN_DESIGNS

IMAGES = (2, 3, 64, 50)
ARCHS = {
    'rvt': dict(trunk='rvt', embed_dims=[12, 24], num_layers=[2, 1], num_heads=[2, 4]),
    'fan': dict(trunk='fan', embed_dims=16, num_layers=3, num_heads=2),
    'deit_convstem': dict(trunk='deit_convstem', embed_dims=12, num_layers=3, num_heads=2),
    'vit': dict(embed_dims=12, num_layers=3, num_heads=2),
}


def reached(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.grad is not None}


def trainable(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.parametrize('design', TOP_DOWN_DESIGNS)
@pytest.mark.parametrize(
    'options',
    [
        dict(out_indices=(0, 2)),
        dict(out_indices=(0, 1)),
        dict(out_indices=(0, 1), num_passes=3),
        dict(final_norm=False),
        dict(frozen_stages=1),
    ],
)
def test_what_trains_is_what_a_loss_reaches(arch, design, options):
    last_is_out = options.get('out_indices', (2,))[-1] == 2 and options.get('final_norm', True)
    build = dict(arch=ARCHS[arch], design=design, img_size=64) | options
    if design == 'perceiver_io' and not last_is_out:
        with pytest.raises(InputError, match='reweights the output of the last block|has none'):
            AbSViT(**build)
        return
    backbone = AbSViT(**build).train()
    feats = backbone(torch.randn(IMAGES))
    assert [f.shape[1] for f in feats] == list(backbone.out_channels)
    sum(f.square().sum() for f in feats).backward()
    assert reached(backbone) == trainable(backbone)


@pytest.mark.parametrize('num_passes', [2, 3])
def test_a_pass_between_uses_the_decoders_above_the_last_output(num_passes):
    backbone = AbSViT(arch=ARCHS['vit'], img_size=64, out_indices=(0, 1), num_passes=num_passes)
    backbone(torch.randn(IMAGES))[1].square().sum().backward()
    decoder = backbone.network.feedback.decoders[2]
    assert decoder.to_value.weight.requires_grad == (num_passes == 3)
    assert (decoder.to_value.weight.grad is not None) == (num_passes == 3)
    assert decoder.to_below.weight.grad is not None


@pytest.mark.parametrize(
    'options', [dict(stop_gradient=False), dict(code_sparsity=0.1, mixer='vars_d')]
)
def test_a_loss_on_every_block_trains_every_decoder(options):
    backbone = AbSViT(
        arch=ARCHS['vit'],
        img_size=64,
        out_indices=(0, 1),
        reconstruction_loss_weight=0.1,
        **options,
    ).train()
    output = backbone(torch.randn(IMAGES), return_losses=True)
    (output.feats[1].square().sum() + output.losses['loss_reconstruction']).backward()
    decoder = backbone.network.feedback.decoders[2]
    assert decoder.to_value.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('arch', ARCHS)
def test_both_passes_and_the_reconstruction_reach_everything(arch):
    backbone = AbSViT(
        arch=ARCHS[arch], img_size=64, reconstruction_loss_weight=0.1, out_type='avg_featmap'
    ).train()
    output = backbone(torch.randn(IMAGES), return_losses=True)
    loss = sum(f.square().sum() for f in (*output.feats, *output.first_pass_feats))
    (loss + output.losses['loss_reconstruction']).backward()
    assert reached(backbone) == trainable(backbone)


@pytest.mark.parametrize(
    'options',
    [
        dict(out_indices=(0, 1)),
        dict(out_indices=(1, 2)),
        dict(final_norm=False),
        dict(out_type='cls_token'),
        dict(out_type='avg_featmap'),
        dict(frozen_stages=2),
    ],
)
def test_fan_trains_what_a_loss_reaches(options):
    arch = {key: value for key, value in ARCHS['fan'].items() if key != 'trunk'}
    backbone = FAN(arch=arch, **options).train()
    sum(f.square().sum() for f in backbone(torch.randn(IMAGES))).backward()
    assert reached(backbone) == trainable(backbone)


def test_layers_of_decoders_and_upsamples():
    backbone = AbSViT(arch=ARCHS['rvt'], img_size=64)
    depths = {name: backbone.get_layer_depth(name)[0] for name, _ in backbone.named_parameters()}
    assert depths['network.feedback.decoders.2.to_below.weight'] == 3
    assert depths['network.feedback.upsamples.1.conv.weight'] == 2
    assert depths['network.prior.query'] == 4


def test_rivals_have_no_decoders_to_train():
    with pytest.raises(InputError, match='decoders to train'):
        AbSViT(arch=ARCHS['rvt'], design='mask_attention', reconstruction_loss_weight=0.1)
    with pytest.raises(InputError, match="transfer='prompt' is for ViT sizes and timm's"):
        AbSViT(arch=ARCHS['rvt'], transfer='prompt')
