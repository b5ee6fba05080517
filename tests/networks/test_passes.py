"""First and second pass: what they compute, what each costs, and what can replace the first."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmvars.errors import InputError
from mmvars.networks import TopDown, create_model, token_weights

VIT = dict(embed_dim=48, depth=4, num_heads=3, patch_size=16)
RVT = dict(embed_dim=(24, 48), depth=(2, 1), num_heads=(2, 4))
FAN = dict(embed_dim=64, depth=2, num_heads=4)
TRUNKS = {'vit_tiny': VIT, 'rvt_tiny': RVT, 'fan_tiny': FAN}


def build(name='vit_tiny', **arguments):
    return (
        create_model(name, 'absvit', num_classes=5, img_size=64, **TRUNKS[name], **arguments)
        .double()
        .eval()
    )


def images(batch=2, height=64, width=96):
    return torch.randn(batch, 3, height, width, dtype=torch.float64)


@pytest.mark.parametrize('name', TRUNKS)
@torch.no_grad()
def test_the_forward_is_the_ten_lines_of_the_method(name):
    """Analysis by synthesis written out, with every product of the feedback."""
    network, x = build(name), images(height=50)
    trunk, decoders = network.trunk, network.feedback.decoders
    embedded, grid = trunk.forward_embed(x)
    grids = trunk.block_grids(grid)
    first = trunk.forward_blocks(embedded, grid)
    z = first.tokens[:, 1:] if name == 'fan_tiny' else first.tokens
    prior = z.mean(dim=(0, 1))
    cosine = torch.nn.functional.cosine_similarity(z, prior.expand_as(z), dim=-1)
    weights = cosine.clamp(0, 1)[..., None]
    signal, top_down = 3 * weights * z, []
    for index in reversed(range(trunk.depth)):
        if name == 'rvt_tiny' and index == 1:  # back across the pooling
            maps = network.feedback.upsamples['1'].conv(grids[2].to_map(signal))
            maps = maps[..., : grids[1].height, : grids[1].width]
            signal = maps.flatten(2).transpose(1, 2)
        signal = signal @ decoders[index].to_below.weight.T
        top_down.insert(0, signal @ decoders[index].to_value.weight.T)
    tokens = embedded
    for index, block in enumerate(trunk.blocks):
        tokens, block_grid = trunk.pre_block(index, tokens, grids[max(index - 1, 0)])
        tokens = block(tokens, block_grid, top_down[index])
    expected, _ = trunk.forward_norm(tokens, grids[-1])
    output = network(x, prior=prior, alpha=3.0)
    assert weights.max() > 0.2
    for result, tensor in (
        (output.second.tokens, expected),
        (output.first.tokens, first.tokens),
        (output.token_weights, weights),
        *zip(output.top_down, top_down, strict=True),
    ):
        torch.testing.assert_close(result, tensor, rtol=0, atol=1e-12)


@pytest.mark.parametrize('name', TRUNKS)
def test_reconstruction_errors_are_those_of_the_second_pass(name):
    network, x = build(name), images(1, 48)
    inputs_and_outputs = []
    for block in network.trunk.blocks:
        block.register_forward_hook(
            lambda _, args, output: inputs_and_outputs.append((args[0], output))
        )
    output = network(x, prior=torch.randn(network.trunk.embed_dim), reconstruction=True)
    depth = network.trunk.depth
    assert len(inputs_and_outputs) == 2 * depth and output.reconstruction.shape == (depth,)
    expected = [
        (block_output @ decoder.to_below.weight.T - block_input).square().mean()
        for decoder, (block_input, block_output) in zip(
            network.feedback.decoders, inputs_and_outputs[depth:], strict=True
        )
    ]
    torch.testing.assert_close(output.reconstruction, torch.stack(expected))
    assert output.second.block_io == ()


@torch.no_grad()
def test_many_second_passes_share_a_first():
    network, x = build(), images()
    first = network.forward_first_pass(x)
    for prior in torch.randn(4, 48, dtype=torch.float64):
        apart = network(x, prior=prior, out_indices=(1, 3))
        together = network.forward_second_pass(first, prior, out_indices=(1, 3))
        assert torch.equal(together.second.tokens, apart.second.tokens)
        assert all(map(torch.equal, together.second.intermediates, apart.second.intermediates))
        assert len(together.second.intermediates) == 2
        assert torch.equal(together.first.tokens, apart.first.tokens)


class TestCosts:
    """Multiply-adds, in C x C products of all N tokens where not said otherwise."""

    tokens, width, depth = 17, 48, 4

    @staticmethod
    @torch.no_grad()
    def count(run) -> int:
        # The counter has no formula for the fused attention of a CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops() // 2

    def test_a_second_pass_costs_a_first_and_the_feedback(self):
        network, x = build(), images(1, 64, 64)
        embedding = 16 * self.width * 3 * 16 * 16
        product = self.tokens * self.width**2
        one_pass = self.count(lambda: network.trunk(x)) - embedding
        assert one_pass > self.depth * 12 * product
        both = self.count(lambda: network(x))
        assert both == embedding + 2 * one_pass + 2 * self.depth * product
        network.fuse()  # one product a block instead of two
        assert self.count(lambda: network(x)) == both - self.depth * product
        first = network.forward_first_pass(x)
        assert self.count(lambda: network.forward_first_pass(x)) == embedding + one_pass
        assert self.count(lambda: network.forward_second_pass(first)) == (
            one_pass + self.depth * product
        )

    def test_the_last_block_for_the_class_token_alone(self):
        network, x = build(), images(1, 64, 64)
        saved = self.count(lambda: network(x)) - self.count(lambda: network(x, pooled_only=True))
        # Queries, output projection and perceptron; scores and their products with the values.
        per_token = (1 + 8) * self.width**2 + 2 * self.tokens * self.width
        assert saved == (self.tokens - 1) * per_token

    def test_average_pooling_needs_all_tokens(self):
        x = images(1, 64, 64)
        network = (
            create_model('absvit_tiny_patch8_gap', img_size=64, num_classes=5, **VIT)
            .double()
            .eval()
        )
        assert self.count(lambda: network(x)) == self.count(lambda: network(x, pooled_only=True))


@pytest.mark.parametrize(
    ('name', 'top_down'),
    [
        ('vit_tiny', None),
        ('vit_tiny', 'absvit'),
        ('vit_tiny', 'absvit_qkv'),
        ('vit_tiny', 'mask_attention'),
        ('vit_tiny', 'perceiver_io'),
        ('rvt_tiny', 'absvit'),
        ('fan_tiny', 'absvit'),
        ('vit_tiny_patch8_gap', 'absvit'),
    ],
)
@torch.no_grad()
def test_pooled_only_changes_no_score(name, top_down):
    network = (
        create_model(name, top_down, num_classes=5, img_size=64, **TRUNKS.get(name, VIT))
        .double()
        .eval()
    )
    x = images(height=50)
    everything, pooled = network(x), network(x, pooled_only=True)
    if top_down:
        assert torch.equal(everything.first.tokens, pooled.first.tokens) or (
            top_down == 'perceiver_io'
        )
        everything, pooled = everything.second, pooled.second
    alone = name == 'vit_tiny'
    assert pooled.tokens.shape[1] == 1 if alone else pooled.tokens.shape == everything.tokens.shape
    torch.testing.assert_close(
        network.forward_head(pooled), network.forward_head(everything), rtol=0, atol=1e-12
    )


class TestSmallFirstPass:
    @torch.no_grad()
    def test_half_resolution(self):
        network, x = build(first_pass_scale=0.5), images()
        output = network(x)
        assert output.first.grid[:2] == (2, 3) and output.second.grid[:2] == (4, 6)
        assert output.token_weights.shape == (2, 25, 1)
        small = torch.nn.functional.interpolate(x, scale_factor=0.5, mode='bilinear')
        assert torch.equal(output.first.tokens, network.trunk(small).tokens)

    @torch.no_grad()
    def test_written_out(self):
        """Tokens of the small pass are interpolated; the class token is as it is."""
        network, x = build(first_pass_scale=0.5), images()
        output, trunk = network(x), network.trunk
        maps = output.first.tokens[:, 1:].transpose(1, 2).unflatten(2, (2, 3))
        maps = torch.nn.functional.interpolate(maps, (4, 6), mode='bilinear')
        z = torch.cat([output.first.tokens[:, :1], maps.flatten(2).transpose(1, 2)], dim=1)
        weights = token_weights(z, network.prior.default())
        embedded, grid = trunk.forward_embed(x)
        top_down = network.feedback(z, weights, trunk.block_grids(grid))
        expected = trunk.forward_blocks(embedded, grid, top_down).tokens
        torch.testing.assert_close(output.second.tokens, expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize('name', TRUNKS)
    @pytest.mark.parametrize('checkpointing', [False, True])
    def test_training(self, name, checkpointing):
        gradients = []
        for grad_checkpointing in (False, checkpointing):
            torch.manual_seed(0)
            network = build(name, first_pass_scale=0.5, grad_checkpointing=grad_checkpointing)
            network.train()
            x = images()
            tokens = network.trunk(x).tokens
            output = network(x, prior=tokens.detach().mean(dim=(0, 1)), reconstruction=True)
            loss = network.forward_head(output.second).square().sum()
            (loss + output.reconstruction.sum()).backward()
            gradients.append(
                {
                    name: p.grad
                    for name, p in network.named_parameters()
                    if not name.startswith('prior.')
                }
            )
        for key, gradient in gradients[0].items():
            assert gradient.abs().max() > 0, key
            torch.testing.assert_close(gradients[1][key], gradient, msg=key)

    @pytest.mark.parametrize('scale', [0.2, 1e-3])
    def test_below_one_patch(self, scale):
        network = build(first_pass_scale=scale)
        with pytest.raises(InputError, match=f'first_pass_scale={scale:g} makes images of 64x96'):
            network(images())

    @pytest.mark.parametrize('scale', [0, 2, 1e-9, float('nan'), 'half'])
    def test_scales_that_cannot_be(self, scale):
        with pytest.raises(InputError, match='first_pass_scale'):
            build(first_pass_scale=scale)

    def test_it_needs_a_second_pass(self):
        with pytest.raises(InputError, match='needs a second pass'):
            create_model('vit_tiny', 'perceiver_io', first_pass_scale=0.5, **VIT)
        network = create_model('vit_tiny', 'mask_attention', first_pass_scale=0.5, **VIT)
        output = network.eval()(images().float())
        assert output.first.grid != output.second.grid
        assert output.token_weights.shape[1] == output.second.tokens.shape[1]


class TestPrevious:
    @torch.no_grad()
    def test_an_output_stands_in_for_the_first_pass(self):
        network, x = build(), images()
        whole = network(x)
        again = network.forward_second_pass(network.forward_first_pass(x, previous=whole.first))
        torch.testing.assert_close(again.second.tokens, whole.second.tokens, rtol=0, atol=1e-12)
        smaller = network.forward_first_pass(x[..., :64], previous=whole.second)
        later = network.forward_second_pass(smaller)
        assert later.second.grid[:2] == (4, 4)
        assert later.second.tokens.isfinite().all()

    @torch.no_grad()
    def test_a_third_pass_is_one_with_the_second_as_previous(self):
        network, x = build(), images()
        thrice = TopDown(network.trunk, network.prior, network.feedback, num_passes=3)
        second = network(x).second
        later = network.forward_second_pass(network.forward_first_pass(x, previous=second))
        torch.testing.assert_close(thrice(x).second.tokens, later.second.tokens, rtol=0, atol=1e-12)

    def test_what_does_not_fit(self):
        network, x = build(), images()
        output = network(x).second
        with pytest.raises(InputError, match='previous must be an output for 1 images'):
            network.forward_first_pass(x[:1], previous=output)
        with pytest.raises(InputError, match='previous must be a TrunkOutput.*got Tensor'):
            network.forward_first_pass(x, previous=output.tokens)
        with pytest.raises(InputError, match='previous must be an output for 2 images with 48'):
            narrow = output._replace(tokens=output.tokens[..., :24])
            network.forward_first_pass(x, previous=narrow)
