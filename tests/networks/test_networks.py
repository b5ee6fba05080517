"""Laws of the networks; the numbers themselves are held by tests/parity."""

import copy

import pytest
import torch

from mmvars.errors import InputError
from mmvars.networks import VARIANTS, ClassPrototype, TopDown, build_network, token_mask

PARAMETERS = {  # variants of Table 2.2 with a 1000-class head, counted from the released models
    'absvit_tiny_patch16': 6_602_344, 'absvit_small_patch16': 25_589_992,
    'absvit_base_patch16': 100_724_200, 'absvit_tiny_patch8_gap': 6_604_648,
}


@pytest.mark.parametrize('name', PARAMETERS)
def test_number_of_parameters(name):
    with torch.device('meta'):
        network = build_network(name)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize('name', [name for name in VARIANTS if 'vit_' in name])
@pytest.mark.parametrize('size', [(64, 64), (48, 100), (17, 130)])
def test_any_image_size(name, size, tiny_size):
    if 'patch8' in name:
        tiny_size |= dict(patch_size=8)
    network = build_network(name, num_classes=5, **tiny_size).eval()
    output = network(torch.randn(1, 3, *size), out_indices=(0, 2))
    grid = output.final.grid
    patch = network.trunk.patch_embed.patch_size
    assert (grid.height, grid.width) == (-(-size[0] // patch), -(-size[1] // patch))
    assert network.logits(output.final).shape == (1, 5)
    assert [tuple(t.shape) for t in output.final.intermediates] == 2 * [
        (1, 1 + grid.num_patches, 48)]


def test_feedback_off_is_the_plain_network_to_the_last_bit(tiny_size):
    plain = build_network('vit_tiny_patch16', num_classes=5, **tiny_size).eval()
    network = build_network('absvit_tiny_patch16', num_classes=5, **tiny_size).eval()
    network.trunk.load_state_dict(plain.trunk.state_dict())
    images = torch.randn(2, 3, 64, 80)
    expected, output = plain(images), network(images)
    assert torch.equal(expected.final.tokens, network(images, feedback=False).final.tokens)
    assert torch.equal(expected.final.tokens, output.bottom_up.tokens)
    assert not torch.allclose(expected.final.tokens, output.top_down.tokens)


def test_every_parameter_gets_a_finite_gradient(tiny_size):
    network = build_network('absvit_tiny_patch16', num_classes=5, **tiny_size)
    output = network(torch.randn(2, 3, 64, 50), reconstruction=True)
    loss = network.logits(output.final).square().sum() + output.reconstruction.sum()
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_reconstruction_trains_the_chain_alone(tiny_size):
    network = build_network('absvit_tiny_patch16', num_classes=5, **tiny_size)
    network(torch.randn(1, 3, 64, 64), reconstruction=True).reconstruction.sum().backward()
    trained = {name for name, p in network.named_parameters() if p.grad is not None}
    assert trained == {f'feedback.decoders.{i}.chain.weight' for i in range(3)}


def test_checkpointing_changes_nothing_but_memory(tiny_size):
    plain = build_network('absvit_tiny_patch16', num_classes=5, **tiny_size)
    twin = build_network('absvit_tiny_patch16', num_classes=5, grad_checkpointing=True, **tiny_size)
    twin.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 64)
    for network in (plain, twin):
        output = network(images, reconstruction=True)
        (network.logits(output.final).sum() + output.reconstruction.sum()).backward()
    for (name, a), b in zip(plain.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_bfloat16_runs_and_agrees_roughly(tiny_size):
    network = build_network('absvit_tiny_patch16', num_classes=5, **tiny_size).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = network.logits(network(images).final)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        actual = network.logits(network(images).final)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, rtol=.1, atol=.05)


def test_deep_copies_are_independent_and_strict_loading_works(tiny_size):
    network = build_network('absvit_tiny_patch16', num_classes=5, **tiny_size).eval()
    twin = copy.deepcopy(network)
    images = torch.randn(1, 3, 64, 64)
    twin.trunk.head.weight.data.zero_()
    assert network.logits(network(images).final).abs().max() > 0
    twin.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(network.logits(network(images).final), twin.logits(twin(images).final))
    assert network.train() is network and network.eval() is network


class TestPrior:

    def test_mask_is_the_clamped_cosine(self):
        tokens, prior = torch.randn(2, 7, 12), torch.randn(2, 12)
        cosine = torch.nn.functional.cosine_similarity(tokens, prior[:, None], dim=-1)
        torch.testing.assert_close(token_mask(tokens, prior), cosine.clamp(0, 1)[..., None])
        assert token_mask(prior[:, None], 3 * prior).allclose(torch.ones(2, 1, 1))
        assert (token_mask(prior[:, None], -prior) == 0).all()

    def test_mask_of_zero_tokens_is_zero_with_finite_gradient(self):
        tokens = torch.zeros(1, 2, 4, requires_grad=True)
        mask = token_mask(tokens, torch.randn(1, 4))
        mask.sum().backward()
        assert (mask == 0).all() and tokens.grad.isfinite().all()

    def test_given_vectors_win_over_the_query(self, tiny_size):
        network = build_network('absvit_tiny_patch16', num_classes=5, **tiny_size).eval()
        images, vectors = torch.randn(2, 3, 64, 64), torch.randn(2, 48)
        both = network(images, prior=vectors)
        for i in range(2):
            one = network(images[i:i + 1], prior=vectors[i])
            torch.testing.assert_close(both.token_mask[i:i + 1], one.token_mask)
            torch.testing.assert_close(both.top_down.tokens[i:i + 1], one.top_down.tokens)
        own = network(images, prior=network.prior.query.detach())
        torch.testing.assert_close(own.top_down.tokens, network(images).top_down.tokens)

    def test_class_prototypes_are_rows_of_the_classifier(self, tiny_size):
        network = build_network('absvit_tiny_patch16', num_classes=5, prior='class_prototype',
                                **tiny_size).eval()
        images, rows = torch.randn(2, 3, 64, 64), network.trunk.head.weight.detach()
        by_id = network(images, prior=torch.tensor([4, 1]))
        torch.testing.assert_close(by_id.token_mask,
                                   network(images, prior=rows[[4, 1]]).token_mask)
        one_for_all = network(images, prior=torch.tensor(2))
        torch.testing.assert_close(one_for_all.token_mask,
                                   network(images, prior=rows[2]).token_mask)

    @pytest.mark.parametrize('prior, message', [
        (torch.randn(47), 'must have shape'), (torch.randn(3, 48), 'must have shape'),
        (torch.tensor(1), 'knows no classes')])
    def test_priors_that_do_not_fit(self, prior, message, tiny_size):
        network = build_network('absvit_tiny_patch16', num_classes=5, **tiny_size)
        with pytest.raises(InputError, match=message):
            network(torch.randn(2, 3, 64, 64), prior=prior)

    def test_missing_priors(self, tiny_size):
        images = torch.randn(1, 3, 64, 64)
        for prior in ('given', 'class_prototype'):
            network = build_network('absvit_tiny_patch16', num_classes=5, prior=prior, **tiny_size)
            with pytest.raises(InputError, match='has no prior of its own'):
                network(images)
        with pytest.raises(InputError, match='names class'):
            network(images, prior=torch.tensor(5))
        with pytest.raises(InputError, match='needs a classifier'):
            build_network('absvit_tiny_patch16', num_classes=0, prior='class_prototype',
                          **tiny_size)
        with pytest.raises(InputError, match='num_classes of the class prototypes must be'):
            ClassPrototype(8, 0)


class TestAlpha:

    def test_scales_the_signals_linearly(self, tiny_size):
        network = build_network('absvit_tiny_patch16', num_classes=5, **tiny_size).eval()
        images = torch.randn(2, 3, 64, 64)
        once, thrice = network(images), network(images, alpha=3.)
        for a, b in zip(once.decoded_signals(), thrice.decoded_signals(), strict=True):
            torch.testing.assert_close(3 * a, b)
        each = network(images, alpha=torch.tensor([1., 3.]))
        torch.testing.assert_close(each.top_down.tokens[0], once.top_down.tokens[0])
        torch.testing.assert_close(each.top_down.tokens[1], thrice.top_down.tokens[1])
        built = build_network('absvit_tiny_patch16', num_classes=5, alpha=3., **tiny_size).eval()
        built.load_state_dict(network.state_dict())
        torch.testing.assert_close(built(images).top_down.tokens, thrice.top_down.tokens)

    def test_wrong_shape(self, tiny_size):
        network = build_network('absvit_tiny_patch16', num_classes=5, **tiny_size)
        with pytest.raises(InputError, match='alpha must be a number'):
            network(torch.randn(2, 3, 64, 64), alpha=torch.ones(3))


class TestPrompts:

    def test_deep_prompts_replace_the_slots(self, tiny_size):
        network = build_network('absvit_tiny_patch16', num_classes=5, num_prompt_tokens=4,
                                **tiny_size).eval()
        images = torch.randn(1, 3, 64, 64)
        output = network(images)
        assert output.final.grid.num_prefix == 5 and output.final.tokens.shape == (1, 21, 48)
        assert network.trunk.deep_prompt_embeddings.shape == (2, 4, 48)
        before = output.final.tokens
        network.trunk.deep_prompt_embeddings.data[1].add_(1)
        assert not torch.allclose(before, network(images).final.tokens)

    def test_shallow_prompts(self, tiny_size):
        network = build_network('vit_tiny_patch16', num_classes=5, num_prompt_tokens=4,
                                deep_prompts=False, **tiny_size)
        assert not hasattr(network.trunk, 'deep_prompt_embeddings')
        assert network(torch.randn(1, 3, 64, 64)).final.tokens.shape == (1, 21, 48)


class TestPositions:

    def test_equal_area_inputs_get_different_positions(self, tiny_size):
        """16 tokens both; the released segmentation models use the 4x4 table for 2x8 as it is."""
        trunk = build_network('vit_tiny_patch16', num_classes=0, **tiny_size).trunk
        images = torch.zeros(1, 3, 64, 64)
        square, _ = trunk.embed(images)
        wide, grid = trunk.embed(images.reshape(1, 3, 32, 128))
        assert square.shape == wide.shape and (grid.height, grid.width) == (2, 8)
        assert (square - wide).abs().max() > .01

    def test_tables_follow_the_grid_through_checkpoints(self, tiny_size):
        square = build_network('vit_tiny_patch16', num_classes=0, **tiny_size)
        wide = build_network('vit_tiny_patch16', num_classes=0, **tiny_size | dict(
            img_size=(32, 128)))
        wide.load_state_dict(square.state_dict(), strict=True)
        assert (wide.trunk.pos_embed - square.trunk.pos_embed).abs().max() > .01
        again = copy.deepcopy(wide)
        again.trunk.pos_embed.data.zero_()
        again.load_state_dict(wide.state_dict(), strict=True)
        assert torch.equal(again.trunk.pos_embed, wide.trunk.pos_embed)
        larger = build_network('vit_tiny_patch16', num_classes=0, **tiny_size | dict(img_size=128))
        larger.load_state_dict(wide.state_dict(), strict=True)
        assert larger.trunk.pos_embed.shape == (1, 65, 48)


class TestMistakes:

    @pytest.mark.parametrize('arguments, message', [
        (dict(name='absvit_huge'), 'must be one of vit_tiny_patch16'),
        (dict(depht=3), 'takes no argument depht'),
        (dict(depth=0), 'depth must be'),
        (dict(global_pool='max'), 'global_pool must be'),
        (dict(drop_path_rate=1.), 'drop_path_rate must be'),
        (dict(num_prompt_tokens=-1), 'num_prompt_tokens must be'),
        (dict(num_heads=5), 'divisible by num_heads'),
        (dict(img_size=8), 'img_size must be'),
        (dict(prior='query'), 'prior must be one of'),
    ])
    def test_construction(self, arguments, message, tiny_size):
        arguments = dict(name='absvit_tiny_patch16') | tiny_size | arguments
        with pytest.raises(InputError, match=message):
            build_network(**arguments)

    def test_feedback_needs_a_value_path(self, tiny_size):
        parts = build_network('absvit_tiny_patch16', num_classes=0, **tiny_size)
        parts.trunk.blocks[1].attn.takes_top_down = False
        with pytest.raises(InputError, match='block 1 mixes tokens with SelfAttention'):
            TopDown(parts.trunk, parts.prior, parts.feedback)

    def test_calls(self, tiny_size):
        plain = build_network('vit_tiny_patch16', num_classes=0, **tiny_size)
        images = torch.randn(1, 3, 64, 64)
        with pytest.raises(InputError, match='need feedback; this network has none'):
            plain(images, alpha=2.)
        with pytest.raises(InputError, match='has no classifier'):
            plain.logits(plain(images).final)
        network = build_network('absvit_tiny_patch16', num_classes=0, **tiny_size)
        with pytest.raises(InputError, match='feedback=False'):
            network(images, reconstruction=True, feedback=False)
