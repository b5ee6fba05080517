"""The exact rewrites change no output, are never stale, and save the products that they claim."""

import copy
import weakref
from contextlib import nullcontext

import pytest
import torch
from mmengine.model import ExponentialMovingAverage

from mmvars.benchmark.multiply_adds import count_multiply_adds
from mmvars.layers.signals import FoldedSignal
from mmvars.networks import build_network, plain_path
from mmvars.networks.chain_error import chain_error

SMALL = dict(num_classes=5, img_size=64)
TRUNKS = {
    'vit_tiny_patch16': dict(embed_dim=48, depth=3, num_heads=3),
    'vit_tiny_patch8_gap': dict(embed_dim=48, depth=3, num_heads=3, patch_size=16),
    'deit_convstem_tiny': dict(embed_dim=48, depth=3, num_heads=3),
    'rvt_tiny': dict(embed_dim=(24, 48), depth=(2, 1), num_heads=(2, 4)),
    'fan_tiny': dict(embed_dim=64, depth=2, num_heads=4),
}
CASES = [(name, mixer, design) for name in TRUNKS for mixer in (None, 'vars_d', 'vars_sd', 'vars_s',
                                                                'performer')
         for design in ('absvit', 'absvit_qkv', 'feedback', 'mask_attention')
         if (mixer is None or name[:3] in ('dei', 'rvt')) and (mixer is None or design == 'absvit')]


def small(name='vit_tiny_patch16', **arguments):
    return build_network(name, **TRUNKS[name] | SMALL | dict(top_down='absvit') | arguments).eval()


def outputs(network, images, plain=False, **arguments):
    with plain_path() if plain else nullcontext():
        output = network(images, out_indices=(0, 1), **arguments)
        found = [*output.final.intermediates, output.final.tokens, output.bottom_up.tokens,
                 network.logits(output.final)]
        signals = output.decoded_signals()
        return found + [s for s in signals if isinstance(s, torch.Tensor)]


def close(found, expected, tolerance):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize('size', [(64, 64), (48, 80)])
@pytest.mark.parametrize('name, mixer, design', CASES)
def test_same_outputs_as_the_equations_step_by_step(name, mixer, design, size):
    network = small(name, mixer=mixer, top_down=design).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    for _ in range(2):  # the second time from what was kept
        with torch.no_grad():
            close(outputs(network, images), outputs(network, images, plain=True), 1e-12)
    close(outputs(network, images), outputs(network, images, plain=True), 1e-12)  # with gradients


def test_same_outputs_in_single_precision():
    network, images = small(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        close(outputs(network, images), outputs(network, images, plain=True), 1e-5)
        network.train()
        close(outputs(network, images), outputs(network, images, plain=True), 1e-5)


def test_same_gradients_as_step_by_step():
    gradients = []
    for plain in (False, True):
        torch.manual_seed(0)
        network = small().double().train()
        images = torch.randn(9, 3, 64, 64, dtype=torch.float64)  # enough tokens to fold
        with plain_path() if plain else nullcontext():
            output = network(images, reconstruction=True, pooled_only=True)
        assert isinstance(output.top_down_signals[1], FoldedSignal) != plain
        (network.logits(output.final).square().sum() + output.reconstruction.sum()).backward()
        gradients.append([p.grad for p in network.parameters()])
    close(*gradients, 1e-10)


def test_half_precision_stays_as_close_as_step_by_step():
    network, images = small(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        exact = outputs(network, images, plain=True)
        for dtype, tolerance in ((torch.bfloat16, 5e-2), (torch.float16, 5e-3)):
            with torch.autocast('cpu', dtype):
                close([t.float() for t in outputs(network, images)], exact, tolerance)
            low = copy.deepcopy(network).to(dtype)
            close([t.float() for t in outputs(low, images.to(dtype))], exact, tolerance)


class TestNeverStale:
    """After each way in which weights change, the outputs are those of a network made afresh."""

    @staticmethod
    def check(network, images):
        with torch.no_grad():
            close(outputs(network, images), outputs(copy.deepcopy(network), images), 0)
            close(outputs(network, images), outputs(network, images, plain=True), 1e-5)

    @pytest.fixture
    def warm(self):
        network, images = small(), torch.randn(1, 3, 64, 64)
        self.check(network, images)
        return network, images

    def test_optimiser_steps(self, warm):
        network, images = warm
        for optimiser in (torch.optim.SGD(network.parameters(), .5),
                          torch.optim.AdamW(network.parameters(), .1, foreach=True)):
            network.logits(network(images).final).sum().backward()
            optimiser.step()  # still in eval mode: no switch of modes tells
            self.check(network, images)

    @pytest.mark.parametrize('assign', [False, True])
    def test_load_state_dict(self, warm, assign):
        network, images = warm
        state = {k: v + torch.randn_like(v) for k, v in network.state_dict().items()}
        network.load_state_dict(state, assign=assign)
        self.check(network, images)

    def test_precision(self, warm):
        network, images = warm
        self.check(network.double(), images.double())
        with torch.no_grad():
            outputs(network.half(), images.half())
        self.check(network.float(), images)

    def test_averaged_weights_swapped_in_and_out(self, warm):
        network, images = warm
        average = ExponentialMovingAverage(network)
        for parameter in average.module.parameters():
            parameter.data.add_(torch.randn_like(parameter))
        for _ in range(2):  # as mmengine's EMAHook does it
            for ours, theirs in zip(network.parameters(), average.module.parameters(), strict=True):
                kept = ours.data.clone()
                ours.data.copy_(theirs.data)
                theirs.data.copy_(kept)
            self.check(network, images)

    def test_copies_live_their_own_lives(self, warm):
        network, images = warm
        twin = copy.deepcopy(network)
        for parameter in twin.parameters():
            parameter.data.mul_(2)
        self.check(twin, images)
        self.check(network, images)

    @pytest.mark.parametrize('leave', [lambda n: n.train(), lambda n: n.to('meta')])
    def test_nothing_is_held_where_it_is_of_no_use(self, warm, leave):
        network, images = warm
        made = []
        keep = network.feedback._kept
        keep.derive('another', images, lambda: made.append(weakref.ref(t := torch.ones(3))) or t)
        assert made[0]() is not None
        del keep
        leave(network)
        assert made[0]() is None

    def test_one_number_of_one_weight(self, warm):
        network, images = warm
        for weight in (network.feedback.decoders[1].readout.weight,
                       network.feedback.decoders[2].chain.weight,
                       network.trunk.blocks[1].attn.qkv.weight):
            weight.data[-1, 7] += 100
            self.check(network, images)

    def test_a_weight_that_is_computed_from_a_buffer(self, warm):
        network, images = warm
        scale = torch.nn.BatchNorm1d(1, affine=False)  # some module with a buffer
        scale.forward = lambda weight: weight * scale.running_var
        chain = network.feedback.decoders[1].chain
        torch.nn.utils.parametrize.register_parametrization(chain, 'weight', scale)
        for factor in (2, 3):
            scale.running_var.fill_(factor)
            with torch.no_grad():
                found = outputs(network, images)
                close(found, outputs(network, images, plain=True), 1e-5)

    def test_other_weights_by_a_functional_call(self, warm):
        network, images = warm
        other = {k: v + torch.randn_like(v) for k, v in network.state_dict().items()}
        with torch.no_grad():
            found = torch.func.functional_call(network, other, images).final.tokens
            network.load_state_dict(other)
            close([found], [network(images).final.tokens], 1e-6)


class TestTransforms:
    """What torch.func does to a network is the same with the rewrites as without."""

    def test_networks_and_images_side_by_side(self):
        networks, images = [small(), small()], torch.randn(2, 3, 64, 64)
        weights = torch.func.stack_module_state(networks)

        def run(state, image):
            call = torch.func.functional_call(networks[0], state, image[None])
            return call.final.tokens[0]

        with torch.no_grad():
            found = torch.func.vmap(run)(weights, images)
            for network, image, tokens in zip(networks, images, found, strict=True):
                close([tokens], [network(image[None]).final.tokens[0]], 1e-5)

    def test_gradients_of_the_reconstruction_errors(self):
        network, images = small(), torch.randn(1, 3, 64, 64)
        weights = dict(network.named_parameters())

        def error(weights):
            call = torch.func.functional_call(network, weights, images, dict(reconstruction=True))
            return call.reconstruction.sum()

        found = torch.func.grad(error)(weights)
        error(weights).backward()
        for name, weight in weights.items():
            if name.endswith('chain.weight'):
                close([found[name]], [weight.grad], 1e-5)


class TestCounts:
    """Products per forward, in C x C products of all tokens where not said otherwise."""

    @staticmethod
    def macs(network, **arguments):
        images = torch.zeros(1, 3, 64, 64, device='meta')
        network = copy.deepcopy(network).to('meta')
        with torch.no_grad():
            network(images)  # what is made once is made
            return count_multiply_adds(lambda: network(images, **arguments), [network]).all

    def test_one_product_a_block_and_block_0_projected_once(self):
        network, tokens, width, depth = small(), 17, 48, 3
        one_pass = self.macs(network, feedback=False)
        embedding = 16 * width * 3 * 16 * 16
        product = tokens * width**2
        assert self.macs(network) == 2 * one_pass - embedding + (depth - 3) * product
        with plain_path():  # chain and readout; the value projection is one of the sum
            assert self.macs(network) == 2 * one_pass - embedding + 2 * depth * product

    def test_last_block_for_the_class_token_alone(self):
        network, tokens, width = small(), 17, 48
        saved = self.macs(network) - self.macs(network, pooled_only=True)
        per_token = width**2 * (1 + 1 + 8) + 2 * tokens * width
        assert saved == (tokens - 1) * per_token
        gap = small('vit_tiny_patch8_gap')
        assert self.macs(gap) == self.macs(gap, pooled_only=True)

    def test_masked_tokens_are_not_multiplied(self):
        network, images = small(), torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            output = network(images)
            wanted = int((output.token_mask != 0).sum())
            assert 0 < wanted < .8 * 17
            assert all(len(s.tokens) == wanted for s in output.top_down_signals)
            assert torch.equal(output.decoded_signals()[0] == 0,
                               (output.token_mask == 0).expand(-1, -1, 48))
            everything = network(images, prior=output.bottom_up.tokens.mean(dim=1))
        assert all(s.rows is None for s in everything.top_down_signals)

    def test_four_priors_cost_four_second_passes_and_one_first(self):
        network = small()
        with torch.no_grad():
            images, priors = torch.randn(2, 3, 64, 64), torch.randn(4, 48)
            first = network.look(images)
            together = [network.attend(first, prior).final.tokens for prior in priors]
            apart = [network(images, prior=prior).final.tokens for prior in priors]
        for a, b in zip(together, apart, strict=True):
            assert torch.equal(a, b)
        meta, images = copy.deepcopy(network).to('meta'), images.to('meta')
        with torch.no_grad():
            meta(images)
            one = count_multiply_adds(lambda: meta(images), [meta]).all
            looked = count_multiply_adds(lambda: meta.look(images), [meta]).all
            first = meta.look(images)
            again = count_multiply_adds(lambda: meta.attend(first), [meta]).all
        assert looked + again == one
        assert looked > .45 * one


def test_error_of_a_chain_and_its_gradient():
    weight = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    output, target = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    error = chain_error(weight, output, target)
    expected = torch.nn.functional.mse_loss(output @ weight.t(), target)
    torch.testing.assert_close(error, expected)
    found, = torch.autograd.grad(3 * error, weight)
    torch.testing.assert_close(found, torch.autograd.grad(3 * expected, weight)[0])
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        chain_error(weight, output, target)
    assert [t.shape for t in saved] == [(6, 6)]
