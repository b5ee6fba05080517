"""double_value_bias and channels_last of create_model."""

import pytest
import torch
from torch import nn

from mmvars.errors import InputError
from mmvars.layers import GridResizeMixin
from mmvars.networks import create_model

SMALL = {
    'vit_tiny_patch16': dict(embed_dim=24, depth=2, num_heads=2),
    'deit_convstem_tiny': dict(embed_dim=24, depth=2, num_heads=2),
    'gfnet_tiny': dict(embed_dim=24, depth=2, num_heads=2),
    'rvt_tiny': dict(embed_dim=(24, 48), depth=(1, 1), num_heads=(2, 4)),
    'rvt_tiny_plus': dict(embed_dim=(24, 48), depth=(1, 1), num_heads=(2, 4), num_masked_blocks=1),
    'fan_tiny': dict(embed_dim=24, depth=2, num_heads=2),
    'fan_tiny_hybrid': dict(embed_dim=24, depth=2, num_heads=2, stem_widths=(8, 16)),
}
DYNAMIC = ('performer', 'vars_d', 'vars_sd')
WITH_VALUE = [(name, None) for name in SMALL if name != 'gfnet_tiny'] + [
    (name, mixer)
    for name in ('deit_convstem_tiny', 'rvt_tiny', 'gfnet_tiny')
    for mixer in (*DYNAMIC, 'vars_s')
]
PLAIN = [*((name, None) for name in SMALL), *(case for case in WITH_VALUE if case[1])]


def small(name, top_down=None, mixer=None, **options):
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
            nn.init.normal_(module.bias, std=0.3)
    return network


class TestValueBias:
    @pytest.mark.parametrize(('name', 'mixer'), WITH_VALUE)
    @pytest.mark.parametrize('design', ['absvit', 'absvit_qkv', 'feedback'])
    @torch.no_grad()
    def test_counted_once_alpha_0_is_the_plain_network(self, name, mixer, design):
        network = small(name, design, mixer, double_value_bias=False)
        for upsample in network.feedback.upsamples.values():  # its bias is no part of the rule
            upsample.conv.bias.zero_()
        images = torch.randn(2, 3, 50, 64)
        expected, output = network.trunk(images), network(images, alpha=0.0)
        assert all((top_down == 0).all() for top_down in output.top_down)
        torch.testing.assert_close(output.second.tokens, expected.tokens, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize(
        ('name', 'mixer'),
        [case for case in WITH_VALUE if case[1] != 'vars_s' or case[0] == 'rvt_tiny'],
    )
    @torch.no_grad()
    def test_counted_twice_as_released_it_is_not(self, name, mixer):
        network, images = small(name, 'absvit', mixer), torch.randn(1, 3, 64, 64)
        output = network(images, alpha=0.0)
        assert not torch.allclose(output.second.tokens, output.first.tokens, rtol=1e-3, atol=1e-3)

    @torch.no_grad()
    def test_without_biases_both_rules_are_the_same(self):
        for design in ('absvit', 'absvit_qkv'):
            once, twice = (
                small('vit_tiny_patch16', design, qkv_bias=False, double_value_bias=rule)
                for rule in (False, True)
            )
            once.load_state_dict(twice.state_dict())
            images = torch.randn(1, 3, 48, 80)
            torch.testing.assert_close(once(images).second.tokens, twice(images).second.tokens)

    def test_anything_else_is_refused(self):
        with pytest.raises(InputError, match="double_value_bias must be True or False, got 'once'"):
            small('vit_tiny_patch16', 'absvit', double_value_bias='once')


class TestMemoryFormat:
    @pytest.mark.parametrize(('name', 'mixer'), PLAIN)
    @pytest.mark.parametrize('size', [(64, 64), (50, 100)])
    @torch.no_grad()
    def test_parameters_and_tokens_are_contiguous(self, name, mixer, size):
        network = small(name, None, mixer)
        assert all(p.is_contiguous() for p in network.state_dict().values())
        output = network(torch.randn(2, 3, *size), out_indices=(0, 1))
        assert output.tokens.is_contiguous()
        assert all(tokens.is_contiguous() for tokens in output.intermediates)

    @torch.no_grad()
    def test_top_down_networks_too(self):
        for name in ('vit_tiny_patch16', 'rvt_tiny', 'fan_tiny'):
            network = small(name, 'absvit')
            assert all(p.is_contiguous() for p in network.state_dict().values())
            output = network(torch.randn(2, 3, 50, 100), out_indices=(0, 1))
            for tokens in (*output.top_down, *output.second.intermediates, output.second.tokens):
                assert tokens.is_contiguous()

    @pytest.mark.parametrize('top_down', [None, 'absvit'])
    @pytest.mark.parametrize('name', [name for name in SMALL if name != 'gfnet_tiny'])
    @torch.no_grad()
    def test_channels_last_gives_the_same(self, name, top_down):
        network, twin = small(name, top_down), small(name, top_down, channels_last=True)
        convolutions = [module for module in twin.modules() if isinstance(module, nn.Conv2d)]
        assert convolutions
        for module in convolutions:
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
        twin.load_state_dict(network.state_dict())
        for module in convolutions:  # loading changes no layout
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
        for images in (torch.randn(2, 3, 64, 64), torch.randn(1, 3, 50, 100)):
            a, b = network(images), twin(images)
            a, b = (a, b) if top_down is None else (a.second, b.second)
            torch.testing.assert_close(b.tokens, a.tokens, rtol=1e-5, atol=1e-5)
            as_they_come = twin(images.to(memory_format=torch.channels_last))
            tokens = (as_they_come if top_down is None else as_they_come.second).tokens
            torch.testing.assert_close(tokens, a.tokens, rtol=1e-5, atol=1e-5)

    def test_tensors_of_a_grid_are_left_as_they_are(self):
        network = small('rvt_tiny', None, 'vars_s', channels_last=True)
        tensors = [
            getattr(module, name)
            for module in network.modules()
            if isinstance(module, GridResizeMixin)
            for name in module.grid_tensors
        ]
        assert tensors and all(tensor.is_contiguous() for tensor in tensors)
        network.to(memory_format=torch.channels_last)
        assert all(tensor.is_contiguous() for tensor in tensors)

    def test_anything_else_is_refused(self):
        with pytest.raises(InputError, match='channels_last must be True or False, got 1'):
            small('vit_tiny_patch16', channels_last=1)
