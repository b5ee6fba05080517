"""Top-down attention on every trunk and mixer, and its rivals."""

import pytest
import torch

from mmvars.errors import InputError
from mmvars.layers.signals import AddedToAll, MaskedValue
from mmvars.networks import DESIGNS, TRUNK_MIXERS, build_network

PARAMETERS = {  # millions, prototypes built from the released trunks (variants of Table 2.2)
    'rvt_tiny': 10.64, 'rvt_small': 25.69, 'rvt_base': 100.38, 'fan_tiny': 8.20,
    'fan_small': 31.88, 'fan_base': 61.58, 'vit_tiny_patch16': 6.602, 'vit_small_patch16': 25.590,
    'vit_base_patch16': 100.724,
}
SMALL = {
    'rvt_tiny': dict(embed_dim=(24, 48), depth=(2, 1), num_heads=(2, 4)),
    'deit_convstem_tiny': dict(embed_dim=24, depth=2, num_heads=2),
    'vit_tiny_patch16': dict(embed_dim=24, depth=2, num_heads=2),
    'fan_tiny': dict(embed_dim=24, depth=2, num_heads=2),
    'gfnet_tiny': dict(embed_dim=24, depth=2, num_heads=2),
}
CELLS = [(trunk, mixer) for trunk in SMALL for mixer in TRUNK_MIXERS[trunk.split('_')[0]]
         if (trunk, mixer) != ('vit_tiny_patch16', 'vars_s') and mixer != 'global_filter']


def small(trunk, mixer=None, top_down=None, **options):
    # The first block of an untrained RVT codes nothing with the release's sparsity of 3.5.
    mixed = dict(mixer_options=dict(sparsity=.1)) if mixer == 'vars_s' else {}
    return build_network(trunk, top_down, mixer=mixer,
                         **dict(img_size=64, num_classes=5) | SMALL[trunk] | mixed | options)


@pytest.mark.parametrize('name', PARAMETERS)
def test_number_of_parameters(name):
    with torch.device('meta'):
        network = build_network(name, 'absvit')
    count = sum(p.numel() for p in network.parameters()) / 1e6
    assert count == pytest.approx(PARAMETERS[name], abs=6e-3)


@pytest.mark.parametrize('design', DESIGNS)
@pytest.mark.parametrize(('trunk', 'mixer'), CELLS)
def test_every_cell_runs_forward_and_backward_at_any_size(trunk, mixer, design):
    network = small(trunk, mixer, design)
    decoders = network.reconstructs
    if design == 'perceiver_io':  # a class token unlike the prior would be clamped away, and all
        with torch.no_grad():     # gradients with it
            tokens = network(torch.randn(2, 3, 64, 64), feedback=False).final.tokens
            network.prior.query.copy_(tokens.mean(dim=0)[0])
    for size in ((64, 64), (50, 100)):
        network.zero_grad()
        output = network(torch.randn(2, 3, *size), out_indices=(0, 1), reconstruction=decoders)
        loss = network.logits(output.final).square().sum()
        (loss + output.reconstruction.sum() if decoders else loss).backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name
        assert len(output.final.intermediates) == 2
        assert output.token_mask.shape[:1] == (2, )


@pytest.mark.parametrize('trunk', [t for t in SMALL if t != 'gfnet_tiny'])
@pytest.mark.parametrize('design', DESIGNS)
def test_feedback_off_is_the_plain_twin_to_the_last_bit(trunk, design):
    plain, network = small(trunk).eval(), small(trunk, top_down=design).eval()
    network.trunk.load_state_dict(plain.trunk.state_dict())
    images = torch.randn(2, 3, 50, 64)
    expected, output = plain(images).final, network(images)
    assert torch.equal(expected.tokens, network(images, feedback=False).final.tokens)
    assert torch.equal(expected.tokens, output.bottom_up.tokens)
    assert not torch.allclose(expected.tokens, output.final.tokens)


@pytest.mark.parametrize('design', DESIGNS)
def test_gfnet_has_nowhere_for_a_signal(design):
    if DESIGNS[design].get('feedback', 'decoders') is None:
        assert small('gfnet_tiny', top_down=design).feedback is None  # one pass, no signal
        return
    with pytest.raises(InputError, match='GlobalFilter, which has no value path'):
        small('gfnet_tiny', top_down=design)


class TestDesigns:

    images = torch.linspace(-2, 2, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64).sin()

    def run(self, design, **options):
        torch.manual_seed(3)
        network = small('vit_tiny_patch16', top_down=design).eval()
        return network, network(self.images, **options)

    @pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.int64])
    def test_alpha_of_any_precision(self, dtype):
        network, output = self.run('absvit', alpha=torch.tensor([2., 2.]).to(dtype))
        torch.testing.assert_close(output.final.tokens, network(self.images, alpha=2.).final.tokens)

    def test_feedback_weighs_all_tokens_the_same(self):
        network, output = self.run('feedback')
        assert network.prior is None and (output.token_mask == 1).all()
        with pytest.raises(InputError, match='without a prior'):
            network(self.images, prior=torch.ones(24))

    def test_perceiver_io_puts_out_the_reweighted_tokens(self):
        network, output = self.run('perceiver_io')
        assert output.top_down_signals is None and output.decoded_signals() is None
        torch.testing.assert_close(output.final.tokens,
                                   output.token_mask * output.bottom_up.tokens)
        twice = network(self.images, alpha=2.).final.tokens
        torch.testing.assert_close(twice, 2 * output.final.tokens)

    def test_mask_attention_multiplies_the_values(self):
        network, output = self.run('mask_attention')
        assert all(isinstance(s, MaskedValue) for s in output.top_down_signals)
        assert all(torch.equal(s.mask, output.token_mask) for s in output.top_down_signals)
        attn, grid = network.trunk.blocks[0].attn, output.bottom_up.grid
        x, mask = torch.randn(2, 17, 24), output.token_mask
        q, k, v = (p.unflatten(2, (2, 12)).transpose(1, 2) for p in attn.qkv(x).chunk(3, -1))
        weights = (q @ k.transpose(-2, -1) / 12**.5).softmax(-1)
        expected = attn.proj((weights @ (v * mask[:, None])).transpose(1, 2).flatten(2))
        torch.testing.assert_close(attn(x, grid, MaskedValue(mask)), expected)
        assert network.state_dict().keys() - small('vit_tiny_patch16').state_dict().keys() == {
            'prior.query'}

    def test_qkv_adds_the_signal_everywhere(self):
        network, output = self.run('absvit_qkv')
        _, value_alone = self.run('absvit')
        assert all(isinstance(s, AddedToAll) for s in output.top_down_signals)
        for both, one in zip(output.top_down_signals, value_alone.decoded_signals(), strict=True):
            assert torch.equal(both.tokens, one)
        assert not torch.allclose(output.final.tokens, value_alone.final.tokens)
        attn, grid = network.trunk.blocks[0].attn, output.bottom_up.grid
        x, t = torch.randn(2, 17, 24), torch.randn(2, 17, 24)
        q, k, v = ((a + b).unflatten(2, (2, 12)).transpose(1, 2) for a, b in zip(
            attn.qkv(x).chunk(3, -1), attn.qkv(t).chunk(3, -1), strict=True))
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        torch.testing.assert_close(attn(x, grid, AddedToAll(t)),
                                   attn.proj(expected.transpose(1, 2).flatten(2)))

    @pytest.mark.parametrize('design', ['mask_attention', 'perceiver_io'])
    def test_without_decoders_nothing_is_reconstructed(self, design):
        with pytest.raises(InputError, match='decoders'):
            self.run(design, reconstruction=True)


def test_rounds_of_feedback_continue_from_the_last_pass():
    torch.manual_seed(0)
    three = small('vit_tiny_patch16', top_down='absvit', num_passes=3).eval()
    two = small('vit_tiny_patch16', top_down='absvit').eval()
    two.load_state_dict(three.state_dict())
    images = torch.randn(1, 3, 64, 64)
    second, third = two(images), three(images)
    tokens, grid = two.trunk.embed(images)
    modulated = third.token_mask * second.top_down.tokens
    signals = two.feedback(modulated, third.token_mask, two.trunk.block_grids(grid))
    by_hand = two.trunk.run(tokens, grid, top_down=signals)
    torch.testing.assert_close(third.final.tokens, by_hand.tokens)
    assert not torch.equal(second.final.tokens, third.final.tokens)
    with pytest.raises(InputError, match='num_passes'):
        small('vit_tiny_patch16', top_down='absvit', num_passes=1)


def test_masks_of_rvt_reach_the_finer_stage():
    output = small('rvt_tiny', top_down='mask_attention').eval()(torch.randn(1, 3, 80, 112))
    assert [s.mask.shape[1] for s in output.top_down_signals] == [35, 35, 12]


def test_fan_sends_back_the_patches_alone():
    output = small('fan_tiny', top_down='absvit').eval()(torch.randn(1, 3, 48, 64))
    assert output.bottom_up.tokens.shape[1] == 13 and output.token_mask.shape[1] == 12
    assert [s.shape[1] for s in output.decoded_signals()] == [12, 12]


def test_unknown_designs_and_mixers_of_fan_are_refused():
    with pytest.raises(InputError, match='mask_attention'):
        build_network('rvt_tiny', 'abs')
    with pytest.raises(InputError, match='self_attention'):
        build_network('fan_tiny', mixer='vars_d')
    with pytest.raises(InputError, match='takes no option num_steps'):
        build_network('fan_tiny', mixer_options=dict(num_steps=3))
