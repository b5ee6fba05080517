"""Layers that were wrapped, hooked, pruned or quantized act in both passes alike."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from mmvars.networks import create_model

SMALL = {
    'vit_tiny_patch16': dict(embed_dim=24, depth=2, num_heads=2),
    'deit_convstem_tiny': dict(embed_dim=24, depth=2, num_heads=2),
    'rvt_tiny': dict(embed_dim=(24, 48), depth=(1, 1), num_heads=(2, 4)),
    'fan_tiny': dict(embed_dim=24, depth=2, num_heads=2),
}
CASES = [
    ('vit_tiny_patch16', None),
    ('rvt_tiny', None),
    ('fan_tiny', None),
    ('rvt_tiny', 'masked_attention'),
    ('rvt_tiny', 'vars_s'),
    *(('deit_convstem_tiny', mixer) for mixer in ('performer', 'vars_d', 'vars_sd')),
]
DESIGNS = ('absvit', 'absvit_qkv', 'mask_attention', 'feedback')
cases = pytest.mark.parametrize(('name', 'mixer'), CASES)


def small(name='vit_tiny_patch16', mixer=None, top_down='absvit', **options):
    mixer_cfg = dict(sparsity=0.1) if mixer == 'vars_s' else None
    network = create_model(
        name,
        top_down,
        mixer=mixer,
        mixer_cfg=mixer_cfg,
        num_classes=5,
        img_size=64,
        **SMALL[name],
        **options,
    ).eval()
    for module in network.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)
    if getattr(network, 'prior', None) is not None:  # one that most tokens have a part of
        with torch.no_grad():
            network.prior.query.copy_(network.trunk(images(4, 64, 64)).tokens.mean(dim=(0, 1)))
            network.prior.query.add_(0.1)
    return network


def images(batch=2, height=48, width=80):
    return torch.randn(batch, 3, height, width)


def passes(network, x) -> tuple[Tensor, Tensor]:
    output = network(x)
    return output.first.tokens, output.second.tokens


class Doubled(nn.Module):
    """What adapters do to a layer: its ``weight`` is not all that acts."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.linear(x)


def projections(network) -> list[tuple[nn.Module, str]]:
    """Where the tokens are projected: the parent of each such layer, and its name."""
    return [
        (block.attn, name)
        for block in network.trunk.blocks
        for name in ('qkv', 'q', 'kv', 'qv', 'value')
        if hasattr(block.attn, name)
    ]


@pytest.mark.parametrize('design', DESIGNS)
@cases
@torch.no_grad()
def test_a_wrapped_projection_acts_in_both_passes(name, mixer, design):
    """Wrapped by ``2 * linear(x)``, the network is the one with twice the weights."""
    network, x = small(name, mixer, design), images()
    before, twin = passes(network, x), copy.deepcopy(network)
    assert projections(network)
    for parent, layer in projections(network):
        setattr(parent, layer, Doubled(getattr(parent, layer)))
    for parent, layer in projections(twin):
        for parameter in getattr(parent, layer).parameters():
            parameter.mul_(2)
    for result, expected, unwrapped in zip(
        passes(network, x), passes(twin, x), before, strict=True
    ):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(result, unwrapped, rtol=1e-3, atol=1e-3)


@cases
@torch.no_grad()
def test_a_wrapped_projection_counts_its_bias_once_where_that_is_asked_for(name, mixer):
    network, x = small(name, mixer, double_value_bias=False), images()
    expected = passes(network, x)
    for parent, layer in projections(network):
        setattr(parent, layer, nn.Sequential(getattr(parent, layer)))
    for result, plain in zip(passes(network, x), expected, strict=True):
        torch.testing.assert_close(result, plain, rtol=1e-5, atol=1e-5)


@cases
@torch.no_grad()
def test_a_hook_sees_both_passes_and_may_change_the_output(name, mixer):
    network, x = small(name, mixer), images()
    twin, calls = copy.deepcopy(network), []
    for index, (parent, layer) in enumerate(projections(network)):
        getattr(parent, layer).register_forward_hook(
            lambda module, args, output, index=index: calls.append(index) or 2 * output
        )
    for parent, layer in projections(twin):
        for parameter in getattr(parent, layer).parameters():
            parameter.mul_(2)
    for result, expected in zip(passes(network, x), passes(twin, x), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    # Once in the first pass; in the second for x and for its top-down input.
    for index in range(len(projections(network))):
        assert calls.count(index) in (2, 3)


@torch.no_grad()
def test_hooks_on_decoders_are_called():
    network, calls = small(), []
    for decoder in network.feedback.decoders:
        for module in (decoder, decoder.to_below, decoder.to_value):
            module.register_forward_hook(lambda module, *_: calls.append(module))
    network(images())
    assert len(calls) == 6 and len({id(module) for module in calls}) == 6


@cases
def test_pruned_networks_are_those_with_zeroed_weights_and_can_be_trained(name, mixer):
    network, x = small(name, mixer), images()
    twin = copy.deepcopy(network)
    linear_layers, twins = (
        [module for module in n.modules() if isinstance(module, nn.Linear)] for n in (network, twin)
    )
    for module, other in zip(linear_layers, twins, strict=True):
        prune.random_unstructured(module, 'weight', amount=0.3)
        other.weight.data = module.weight.detach().clone()
    with torch.no_grad():
        for result, expected in zip(passes(network, x), passes(twin, x), strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    for _ in range(3):  # the masks are applied anew in every step
        optimizer.zero_grad()
        output = network(images(6, 64, 64), reconstruction=True)
        loss = network.forward_head(output.second).square().sum() + output.reconstruction.sum()
        loss.backward()
        optimizer.step()
    for module in linear_layers:
        assert (module.weight[module.weight_mask == 0] == 0).all()


@pytest.mark.parametrize('fused', [False, True])
@cases
@torch.no_grad()
def test_dynamically_quantized_networks_stay_near(name, mixer, fused):
    network, x = small(name, mixer), images()
    expected = passes(network, x)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        quantized = torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)
        assert not any(type(module) is nn.Linear for module in quantized.modules())
        if fused:
            quantized.fuse()
        for result, exact in zip(passes(quantized, x), expected, strict=True):
            assert not torch.equal(result, exact)
            assert (result - exact).norm() < 0.1 * exact.norm()
