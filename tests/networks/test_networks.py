"""Laws of the networks; the numbers themselves are held by tests/parity."""

import copy

import pytest
import torch

from mmvars.errors import InputError
from mmvars.networks import MODELS, ClassPrototype, TopDown, create_model, token_weights

PARAMETERS = {  # variants of Table 2.2 with a 1000-class head, counted from the released models
    'absvit_tiny': 6_602_344,
    'absvit_small': 25_589_992,
    'absvit_base': 100_724_200,
    'absvit_tiny_patch8_gap': 6_604_648,
}


@pytest.mark.parametrize('name', PARAMETERS)
def test_number_of_parameters(name):
    with torch.device('meta'):
        network = create_model(name)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize('name', [name for name in MODELS if 'vit_' in name])
@pytest.mark.parametrize('size', [(64, 64), (48, 100), (17, 130)])
def test_any_image_size(name, size, tiny_size):
    if 'patch8' in name:
        tiny_size |= dict(patch_size=8)
    network = create_model(name, num_classes=5, **tiny_size).eval()
    output = network(torch.randn(1, 3, *size), out_indices=(0, 2))
    trunk, output = (network.trunk, output.second) if 'absvit' in name else (network, output)
    grid = output.grid
    patch = trunk.patch_embed.patch_size
    assert (grid.height, grid.width) == (-(-size[0] // patch), -(-size[1] // patch))
    assert network.forward_head(output).shape == (1, 5)
    assert [tuple(t.shape) for t in output.intermediates] == 2 * [(1, 1 + grid.num_patches, 48)]


def test_the_first_pass_is_the_plain_network_to_the_last_bit(tiny_size):
    plain = create_model('vit_tiny', num_classes=5, **tiny_size).eval()
    network = create_model('absvit_tiny', num_classes=5, **tiny_size).eval()
    network.trunk.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 80)
    expected, output = plain(images), network(images)
    assert torch.equal(expected.tokens, network.trunk(images).tokens)
    assert torch.equal(expected.tokens, output.first.tokens)
    assert not torch.allclose(expected.tokens, output.second.tokens)


def test_every_parameter_gets_a_finite_gradient(tiny_size):
    network = create_model('absvit_tiny', num_classes=5, **tiny_size)
    output = network(torch.randn(2, 3, 64, 50), reconstruction=True)
    loss = network.forward_head(output.second).square().sum() + output.reconstruction.sum()
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_reconstruction_trains_the_maps_to_below_alone(tiny_size):
    network = create_model('absvit_tiny', num_classes=5, **tiny_size)
    network(torch.randn(1, 3, 64, 64), reconstruction=True).reconstruction.sum().backward()
    trained = {name for name, p in network.named_parameters() if p.grad is not None}
    assert trained == {f'feedback.decoders.{i}.to_below.weight' for i in range(3)}


def test_checkpointing_changes_nothing_but_memory(tiny_size):
    plain = create_model('absvit_tiny', num_classes=5, **tiny_size)
    twin = create_model('absvit_tiny', num_classes=5, grad_checkpointing=True, **tiny_size)
    twin.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 64)
    for network in (plain, twin):
        output = network(images, reconstruction=True)
        (network.forward_head(output.second).sum() + output.reconstruction.sum()).backward()
    for (name, a), b in zip(plain.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_bfloat16_runs_and_agrees_roughly(tiny_size):
    network = create_model('absvit_tiny', num_classes=5, **tiny_size).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = network.forward_head(network(images).second)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        actual = network.forward_head(network(images).second)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, rtol=0.1, atol=0.05)


def test_deep_copies_are_independent_and_strict_loading_works(tiny_size):
    network = create_model('absvit_tiny', num_classes=5, **tiny_size).eval()
    twin = copy.deepcopy(network)
    images = torch.randn(1, 3, 64, 64)
    twin.trunk.head.weight.data.zero_()
    assert network.forward_head(network(images).second).abs().max() > 0
    twin.load_state_dict(network.state_dict(), strict=True)
    expected, scores = (n.forward_head(n(images).second) for n in (network, twin))
    assert torch.equal(scores, expected)
    assert network.train() is network and network.eval() is network


class TestPrior:
    def test_weights_are_the_clamped_cosine(self):
        tokens, prior = torch.randn(2, 7, 12), torch.randn(2, 12)
        cosine = torch.nn.functional.cosine_similarity(tokens, prior[:, None], dim=-1)
        torch.testing.assert_close(token_weights(tokens, prior), cosine.clamp(0, 1)[..., None])
        assert token_weights(prior[:, None], 3 * prior).allclose(torch.ones(2, 1, 1))
        assert (token_weights(prior[:, None], -prior) == 0).all()

    def test_weights_of_zero_tokens_are_zero_with_finite_gradient(self):
        tokens = torch.zeros(1, 2, 4, requires_grad=True)
        weights = token_weights(tokens, torch.randn(1, 4))
        weights.sum().backward()
        assert (weights == 0).all() and tokens.grad.isfinite().all()

    def test_vectors_of_a_call_replace_the_query(self, tiny_size):
        network = create_model('absvit_tiny', num_classes=5, **tiny_size).eval()
        images, vectors = torch.randn(2, 3, 64, 64), torch.randn(2, 48)
        both = network(images, prior=vectors)
        for i in range(2):
            one = network(images[i : i + 1], prior=vectors[i])
            torch.testing.assert_close(both.token_weights[i : i + 1], one.token_weights)
            torch.testing.assert_close(both.second.tokens[i : i + 1], one.second.tokens)
        same = network(images, prior=network.prior.query.detach())
        torch.testing.assert_close(same.second.tokens, network(images).second.tokens)

    def test_class_prototypes_are_rows_of_the_classifier(self, tiny_size):
        network = create_model(
            'absvit_tiny', num_classes=5, prior='class_prototype', **tiny_size
        ).eval()
        images, rows = torch.randn(2, 3, 64, 64), network.trunk.head.weight.detach()
        by_id = network(images, prior=torch.tensor([4, 1]))
        torch.testing.assert_close(
            by_id.token_weights, network(images, prior=rows[[4, 1]]).token_weights
        )
        one_for_all = network(images, prior=torch.tensor(2))
        torch.testing.assert_close(
            one_for_all.token_weights, network(images, prior=rows[2]).token_weights
        )

    @pytest.mark.parametrize(
        'prior, message',
        [
            (torch.randn(47), 'must have shape'),
            (torch.randn(3, 48), 'must have shape'),
            (torch.tensor(1), 'knows no classes'),
        ],
    )
    def test_priors_that_do_not_fit(self, prior, message, tiny_size):
        network = create_model('absvit_tiny', num_classes=5, **tiny_size)
        with pytest.raises(InputError, match=message):
            network(torch.randn(2, 3, 64, 64), prior=prior)

    def test_missing_priors(self, tiny_size):
        images = torch.randn(1, 3, 64, 64)
        network = create_model('absvit_tiny', num_classes=5, prior='given', **tiny_size)
        with pytest.raises(InputError, match='has no prior of its own'):
            network(images)
        network = create_model('absvit_tiny', num_classes=5, prior='class_prototype', **tiny_size)
        assert not network(images).token_weights.any()
        with pytest.raises(InputError, match='names class'):
            network(images, prior=torch.tensor(5))
        with pytest.raises(InputError, match='copies the rows of a classifier'):
            create_model('absvit_tiny', num_classes=0, prior='class_prototype', **tiny_size)
        with pytest.raises(InputError, match='num_classes of the class prototypes must be'):
            ClassPrototype(8, 0)


class TestAlpha:
    def test_scales_the_top_down_inputs_linearly(self, tiny_size):
        network = create_model('absvit_tiny', num_classes=5, **tiny_size).eval()
        images = torch.randn(2, 3, 64, 64)
        once, thrice = network(images), network(images, alpha=3.0)
        for a, b in zip(once.top_down, thrice.top_down, strict=True):
            torch.testing.assert_close(3 * a, b)
        each = network(images, alpha=torch.tensor([1.0, 3.0]))
        torch.testing.assert_close(each.second.tokens[0], once.second.tokens[0])
        torch.testing.assert_close(each.second.tokens[1], thrice.second.tokens[1])
        built = create_model('absvit_tiny', num_classes=5, alpha=3.0, **tiny_size).eval()
        built.load_state_dict(network.state_dict())
        torch.testing.assert_close(built(images).second.tokens, thrice.second.tokens)

    def test_wrong_shape(self, tiny_size):
        network = create_model('absvit_tiny', num_classes=5, **tiny_size)
        with pytest.raises(InputError, match='alpha must be a number'):
            network(torch.randn(2, 3, 64, 64), alpha=torch.ones(3))


class TestPrompts:
    def test_deep_prompts_replace_the_slots(self, tiny_size):
        network = create_model(
            'absvit_tiny', num_classes=5, num_prompt_tokens=4, **tiny_size
        ).eval()
        images = torch.randn(1, 3, 64, 64)
        output = network(images)
        assert output.second.grid.num_prefix == 5 and output.second.tokens.shape == (1, 21, 48)
        assert network.trunk.deep_prompt_embeddings.shape == (2, 4, 48)
        before = output.second.tokens
        network.trunk.deep_prompt_embeddings.data[1].add_(1)
        assert not torch.allclose(before, network(images).second.tokens)

    def test_shallow_prompts(self, tiny_size):
        network = create_model(
            'vit_tiny', num_classes=5, num_prompt_tokens=4, deep_prompts=False, **tiny_size
        )
        assert not hasattr(network, 'deep_prompt_embeddings')
        assert network(torch.randn(1, 3, 64, 64)).tokens.shape == (1, 21, 48)


class TestPositions:
    def test_equal_area_inputs_get_different_positions(self, tiny_size):
        """16 tokens both; the released segmentation models use the 4x4 table for 2x8 as it is."""
        trunk = create_model('vit_tiny', num_classes=0, **tiny_size)
        images = torch.zeros(1, 3, 64, 64)
        square, _ = trunk.forward_embed(images)
        wide, grid = trunk.forward_embed(images.reshape(1, 3, 32, 128))
        assert square.shape == wide.shape and (grid.height, grid.width) == (2, 8)
        assert (square - wide).abs().max() > 0.01

    def test_tables_follow_the_grid_through_checkpoints(self, tiny_size):
        square = create_model('vit_tiny', num_classes=0, **tiny_size)
        wide = create_model('vit_tiny', num_classes=0, **tiny_size | dict(img_size=(32, 128)))
        wide.load_state_dict(square.state_dict(), strict=True)
        assert (wide.pos_embed - square.pos_embed).abs().max() > 0.01
        again = copy.deepcopy(wide)
        again.pos_embed.data.zero_()
        again.load_state_dict(wide.state_dict(), strict=True)
        assert torch.equal(again.pos_embed, wide.pos_embed)
        larger = create_model('vit_tiny', num_classes=0, **tiny_size | dict(img_size=128))
        larger.load_state_dict(wide.state_dict(), strict=True)
        assert larger.pos_embed.shape == (1, 65, 48)


class TestMistakes:
    @pytest.mark.parametrize(
        'arguments, message',
        [
            (dict(name='absvit_huge'), 'must be one of vit_tiny'),
            (dict(depht=3), 'takes no argument depht'),
            (dict(depth=0), 'depth must be'),
            (dict(global_pool='max'), 'global_pool must be'),
            (dict(drop_path_rate=1.0), 'drop_path_rate must be'),
            (dict(num_prompt_tokens=-1), 'num_prompt_tokens must be'),
            (dict(num_heads=5), 'divisible by num_heads'),
            (dict(img_size=8), 'img_size must be'),
            (dict(prior='query'), 'prior must be one of'),
        ],
    )
    def test_construction(self, arguments, message, tiny_size):
        arguments = dict(name='absvit_tiny') | tiny_size | arguments
        with pytest.raises(InputError, match=message):
            create_model(**arguments)

    def test_feedback_needs_a_value_path(self, tiny_size):
        parts = create_model('absvit_tiny', num_classes=0, **tiny_size)
        parts.trunk.blocks[1].attn.takes_top_down = False
        with pytest.raises(InputError, match='block 1 mixes tokens with SelfAttention'):
            TopDown(parts.trunk, parts.prior, parts.feedback)

    def test_calls(self, tiny_size):
        plain = create_model('vit_tiny', num_classes=0, **tiny_size)
        images = torch.randn(1, 3, 64, 64)
        with pytest.raises(TypeError, match='alpha'):
            plain(images, alpha=2.0)
        with pytest.raises(InputError, match='has no classifier'):
            plain.forward_head(plain(images))
        network = create_model('vit_tiny', 'perceiver_io', num_classes=0, **tiny_size)
        with pytest.raises(InputError, match='needs feedback through decoders'):
            network(images, reconstruction=True)
