"""The counter on layers whose cost is known, and on networks whose cost is published."""

import math

import pytest
import torch
from get_flops import MultiplyAdds, count_multiply_adds, count_parameters, fourier_multiply_adds
from torch import nn
from torch.nn import functional as F

from mmvars.networks import create_model

DEVICES = ('cpu', 'meta')


def count(run, *modules) -> MultiplyAdds:
    return count_multiply_adds(run, modules)


@pytest.mark.parametrize('device', DEVICES)
class TestOperators:
    def test_linear_layers_and_products_stand_apart(self, device):
        layer = nn.Linear(6, 10, device=device)
        x = torch.zeros(2, 5, 6, device=device)
        assert count(lambda: layer(x), layer) == (2 * 5 * 6 * 10, 0, 0)
        assert count(lambda: layer(x)) == (0, 2 * 5 * 6 * 10, 0)
        # rows of a layer's weight, as the top-down signal meets them, are still the layer's
        rows = count(lambda: F.linear(x, layer.weight[4:], layer.bias[4:]), layer)
        assert rows == (2 * 5 * 6 * 6, 0, 0)

    def test_grouped_convolution(self, device):
        layer = nn.Conv2d(8, 16, 3, padding=1, groups=4, device=device)
        x = torch.zeros(2, 8, 7, 5, device=device)
        assert count(lambda: layer(x), layer) == (2 * 16 * 7 * 5 * 2 * 9, 0, 0)

    def test_fused_attention(self, device):
        q, k = torch.zeros(2, 3, 11, 8, device=device), torch.zeros(2, 3, 13, 8, device=device)
        with torch.no_grad():
            found = count(lambda: F.scaled_dot_product_attention(q, k, k))
        assert found == (0, 2 * 2 * 3 * 11 * 13 * 8, 0)

    @pytest.mark.parametrize(
        'product, macs',
        [
            (lambda a, b: a @ b, 4 * 5 * 6 * 7),
            (lambda a, b: torch.einsum('bij,bjk->ik', a, b), 4 * 5 * 6 * 7),
            (lambda a, b: a[0] @ b[0], 5 * 6 * 7),
            (lambda a, b: a[0] @ b[0, :, 0], 5 * 6),
            (
                lambda a, b: torch.baddbmm(torch.zeros(4, 5, 7, device=a.device), a, b),
                4 * 5 * 6 * 7,
            ),
            (lambda a, b: torch.zeros(4, 5, 7, device=a.device).baddbmm_(a, b), 4 * 5 * 6 * 7),
            (lambda a, b: torch.zeros(5, 7, device=a.device).addmm_(a[0], b[0]), 5 * 6 * 7),
            (
                lambda a, b: torch.zeros(5, 21, device=a.device)[:, 7:14].addmm_(a[0], b[0]),
                5 * 6 * 7,
            ),
            (lambda a, b: torch.zeros(5, device=a.device).addmv_(a[0], b[0, :, 0]), 5 * 6),
            (lambda a, b: torch.zeros(5, 7, device=a.device).addbmm_(a, b), 4 * 5 * 6 * 7),
            (lambda a, b: torch.mm(a[0], b[0], out=torch.zeros(5, 7, device=a.device)), 5 * 6 * 7),
            (
                lambda a, b: torch.bmm(a, b, out=torch.zeros(4, 5, 7, device=a.device)),
                4 * 5 * 6 * 7,
            ),
            (
                lambda a, b: torch.addmm(
                    b[0, 0], a[0], b[0], out=torch.zeros(5, 7, device=a.device)
                ),
                5 * 6 * 7,
            ),
        ],
        ids=[
            'bmm',
            'einsum',
            'mm',
            'mv',
            'baddbmm',
            'baddbmm_',
            'addmm_',
            'addmm_ into a part',
            'addmv_',
            'addbmm_',
            'mm into',
            'bmm into',
            'addmm into',
        ],
    )
    def test_products(self, device, product, macs):
        a, b = torch.zeros(4, 5, 6, device=device), torch.zeros(4, 6, 7, device=device)
        assert count(lambda: product(a, b)) == (0, macs, 0)
        with torch.inference_mode():
            assert count(lambda: product(a, b)) == (0, macs, 0)

    def test_fourier_transforms_and_complex_products(self, device):
        x = torch.zeros(3, 8, 16, device=device)
        spectrum = torch.zeros(3, 8, 9, dtype=torch.complex64, device=device)
        real = 3 * 1.25 * 128 * 7
        assert count(lambda: torch.fft.rfft2(x)).fourier == real
        assert count(lambda: torch.fft.irfft(spectrum, n=16)).fourier == 3 * 8 * 1.25 * 16 * 4
        assert count(lambda: torch.fft.ifft(spectrum, dim=1)).fourier == 3 * 9 * 2.5 * 8 * 3
        assert count(lambda: spectrum * spectrum).fourier == 4 * 3 * 8 * 9
        assert count(lambda: spectrum * x[..., :9]).fourier == 2 * 3 * 8 * 9
        assert count(lambda: spectrum @ spectrum.mT).fourier == 4 * 3 * 8 * 8 * 9
        assert count(lambda: x * x) == (0, 0, 0)


def test_the_formula_of_the_transform():
    assert fourier_multiply_adds((4, 8), real=False) == 2.5 * 32 * 5
    assert fourier_multiply_adds((14, 14), real=True) == 1.25 * 196 * math.log2(196)


def test_a_backward_pass_costs_twice_a_forward_pass():
    layer = nn.Linear(6, 10)
    x = torch.zeros(5, 6, requires_grad=True)
    assert count(lambda: layer(x).sum().backward(), layer).all == 3 * 5 * 6 * 10


def test_fused_attention_backwards_costs_two_and_a_half_times_itself():
    q = torch.zeros(2, 3, 11, 8, requires_grad=True)
    both = count(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward()).products
    assert both == 3.5 * (2 * 2 * 3 * 11 * 11 * 8)


def test_a_prior_that_is_a_view_of_a_parameter_is_no_obstacle():
    network = create_model('absvit_tiny_patch16', **TINY)
    images = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        two_passes = count(lambda: network(images), network).linear
        assert two_passes > count(lambda: network.trunk(images), network).linear


TINY = dict(embed_dim=24, depth=2, num_heads=2, img_size=32)
# Millions, and G: lin+conv and all. Known from independent counts of the published models.
KNOWN = {
    'vit_tiny_patch16': (5.717, 1.075, 1.254),
    'vit_small_patch16': (22.051, 4.241, 4.599),
    'vit_base_patch16': (86.568, 16.849, 17.564),
    'gfnet_tiny': (7.512, 1.272, 1.272),
    'rvt_tiny': (8.646, 1.133, 1.284),
    'rvt_small': (22.148, 4.291, 4.645),
    'rvt_base': (86.224, 16.783, 17.491),
}


@pytest.mark.parametrize('name', KNOWN)
def test_known_networks(name):
    with torch.device('meta'), torch.no_grad():
        network = create_model(name).eval()
        images = torch.empty(1, 3, 224, 224)
        found = count(lambda: network.forward_head(network(images)), network)
    params, linear, total = KNOWN[name]
    assert round(count_parameters(network)[0] / 1e6, 3) == params
    assert (round(found.linear / 1e9, 3), round(found.all / 1e9, 3)) == (linear, total)
    assert round(found.fourier / 1e9, 3) == (0.013 if name == 'gfnet_tiny' else 0)


def test_frozen_numbers_are_parameters_and_running_statistics_are_not():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    module.register_buffer('fixed', torch.zeros(7))
    module.register_buffer('grid', torch.tensor([2, 3]))
    module[0].bias.requires_grad_(False)
    assert count_parameters(module) == (12 + 4 + 8 + 7, 12 + 8)
