"""Whole networks at other image sizes than they were made for."""

import pytest
import torch
from torch import Tensor

from mmvars.networks import create_model

TINY = dict(num_classes=5, img_size=64)
SINGLE = dict(embed_dim=12, depth=2, num_heads=2)
NETWORKS = {
    'rvt_tiny': dict(embed_dim=(12, 24), depth=(1, 1), num_heads=(2, 2)),
    'rvt_tiny_plus': dict(embed_dim=(12, 24), depth=(1, 1), num_heads=(2, 2), num_masked_blocks=1),
    'deit_convstem_tiny': SINGLE,
    'gfnet_tiny': SINGLE,
}


def logits(network: torch.nn.Module, images: Tensor) -> Tensor:
    return network.forward_head(network(images))


COMBINATIONS = [
    ('rvt_tiny_plus', None),
    ('gfnet_tiny', None),
    *(
        (name, mixer)
        for name in NETWORKS
        if name != 'rvt_tiny_plus'
        for mixer in ('performer', 'vars_s', 'vars_d', 'vars_sd')
    ),
]


@pytest.mark.parametrize(('name', 'mixer'), COMBINATIONS)
def test_a_network_of_another_image_size_runs_the_same(name, mixer):
    """What is trained at 64x64 and loaded for 48x80 is what runs at 48x80 by itself."""
    trained, fresh = (
        create_model(name, mixer=mixer, **NETWORKS[name] | TINY | size).eval()
        for size in ({}, dict(img_size=(48, 80)))
    )
    fresh.load_state_dict(trained.state_dict(), strict=True)
    for size in ((48, 80), (64, 64), (33, 100)):
        images = torch.randn(2, 3, *size)
        out = logits(trained, images)
        assert out.shape == (2, 5) and out.isfinite().all()
        if size == (48, 80):
            torch.testing.assert_close(logits(fresh, images), out)


@pytest.mark.parametrize('mixer', [None, 'performer', 'vars_s', 'vars_d'])
@pytest.mark.parametrize('size', [(64, 64), (48, 80), (128, 96)])
def test_constant_and_translated_images(mixer, size):
    """Without positions a GFNet maps shifted patches to shifted features, a constant to one."""
    network = create_model('gfnet_tiny', mixer=mixer, **SINGLE | TINY).eval()
    torch.nn.init.zeros_(network.pos_embed)
    constant = torch.randn(1, 3, 1, 1).expand(-1, -1, *size)
    features = network(constant).tokens
    torch.testing.assert_close(features, features[:, :1].expand_as(features), rtol=1e-3, atol=1e-4)
    if mixer is None:  # the gain of a constant does not depend on the size
        own = logits(network, constant[..., :1, :1].expand(-1, -1, 64, 64))
        torch.testing.assert_close(logits(network, constant), own, rtol=1e-4, atol=1e-5)
    images = torch.randn(1, 3, *size)
    outputs = [
        network(moved).tokens.unflatten(1, (size[0] // 16, -1))
        for moved in (images, images.roll((16, 32), dims=(2, 3)))
    ]
    torch.testing.assert_close(
        outputs[0].roll((1, 2), dims=(1, 2)), outputs[1], rtol=1e-3, atol=1e-4
    )
