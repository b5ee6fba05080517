"""Many priors of an image share its first pass, in training too."""

import pytest
import torch

from mmvars.errors import InputError
from mmvars.models import AbSViT, ViT

ARCH = dict(embed_dims=16, num_layers=2, num_heads=2)
IMAGES = torch.randn(2, 3, 32, 32)
PRIORS = torch.randn(6, 12)


def make(**options):
    options = dict(arch=ARCH, img_size=32, prior=dict(type='text', text_dim=12)) | options
    return AbSViT(**options).eval()


@pytest.mark.parametrize('out_type', ['featmap', 'featmap_cls_token'])
@pytest.mark.parametrize('design', ['absvit', 'mask_attention', 'perceiver_io'])
def test_three_priors_an_image_are_three_forwards(design, out_type):
    backbone = make(design=design, out_type=out_type)
    (shared,) = backbone.forward_second_pass(
        backbone.forward_first_pass(IMAGES), PRIORS, priors_per_image=3
    )
    (expected,) = backbone(IMAGES.repeat_interleave(3, dim=0), PRIORS)
    torch.testing.assert_close(shared, expected)


@pytest.mark.parametrize('design', ['absvit', 'perceiver_io'])
def test_the_losses_and_gradients_are_those_of_forward(design):
    weight = dict(reconstruction_loss_weight=0.3) if design == 'absvit' else {}
    backbone = make(design=design, out_indices=[0, 1], **weight)
    images = IMAGES.clone().requires_grad_()
    gradients = []
    for run in (
        lambda: backbone(images.repeat_interleave(3, dim=0), PRIORS, return_losses=True),
        lambda: backbone.forward_second_pass(
            backbone.forward_first_pass(images),
            PRIORS,
            priors_per_image=3,
            return_losses=True,
        ),
    ):
        output = run()
        total = sum(feat.square().sum() for feat in output.feats) + sum(output.losses.values())
        gradients.append((total, torch.autograd.grad(total, [images])[0]))
        assert len(output.losses) == len(weight)
    torch.testing.assert_close(*gradients)


def test_one_pass_networks_share_it_too():
    backbone = ViT(arch=ARCH, img_size=32, out_type='featmap_cls_token').eval()
    first = backbone.forward_first_pass(IMAGES)
    (shared,) = backbone.forward_second_pass(first, priors_per_image=2)
    (expected,) = backbone(IMAGES.repeat_interleave(2, dim=0))
    torch.testing.assert_close(shared, expected)
    with pytest.raises(InputError, match='mmvars.ViT has no top-down attention and takes no prior'):
        backbone.forward_second_pass(first, PRIORS[:2])


def test_the_first_pass_runs_once():
    backbone = make()
    sizes = []
    backbone.trunk.blocks[0].register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    backbone.forward_second_pass(backbone.forward_first_pass(IMAGES), PRIORS, priors_per_image=3)
    assert sizes == [2, 6]
