"""Priors from text vectors, and the modulation of the released vision-language models."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.networks import PHRASINGS, create_model, token_weights
from mmvars.networks.steering import given_priors

torch.manual_seed(0)
SMALL = dict(embed_dim=16, depth=3, num_heads=2, img_size=32, num_classes=0)
TEXT = dict(type='text', text_dim=12)
IMAGES = torch.randn(2, 3, 32, 32)
VECTORS = torch.randn(2, 12)


def make(**options):
    return create_model('vit_tiny', **dict(top_down='absvit', prior=TEXT) | SMALL | options).eval()


def randomize(network):
    """Weights of normal size, so that every term of the formula is seen."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)
    return network


def fitting(network, images):
    """Text vectors whose priors are near the mean token of pass 1, so that tokens do fit."""
    mean = network.trunk(images).tokens.mean(dim=1)
    projection = network.prior.projection
    return (mean - projection.bias) @ torch.linalg.pinv(projection.weight).T


def released(network, images, vectors):
    """Pass 2 of the released vision-language encoder, by its formula.

    xi is a linear map of the text vector, m the clamped cosines, and ``z <- 5 (m z) xi xi'``: each
    token becomes a multiple of xi. Block by block, bottom to top, with plain matrix products.
    """
    trunk = network.trunk
    first = trunk(images).tokens
    xi = F.linear(vectors, network.prior.projection.weight, network.prior.projection.bias)
    mask = F.cosine_similarity(first, xi[:, None], dim=-1).clamp(0, 1)
    assert (mask > 0.2).any(dim=1).all()
    signal = 5 * torch.einsum('bn,bnc,bc,bd->bnd', mask, first, xi, xi)
    inputs = []
    for decoder in reversed(network.feedback.decoders):
        signal = signal @ decoder.to_below.weight.T
        inputs.insert(0, signal @ decoder.to_value.weight.T)
    embedded, grid = trunk.forward_embed(images)
    output = trunk.forward_blocks(embedded, grid, tuple(inputs), keep_block_io=True)
    errors = [
        F.mse_loss(after @ decoder.to_below.weight.T, before)
        for decoder, (before, after) in zip(network.feedback.decoders, output.block_io, strict=True)
    ]
    return output.tokens, sum(errors)


def test_the_visual_encoder_is_the_released_one():
    network = randomize(make(modulation='project', alpha=5.0).double())
    images = IMAGES.double()
    vectors = fitting(network, images)
    output = network(images, vectors, reconstruction=True)
    tokens, errors = released(network, images, vectors)
    assert (output.second.tokens - tokens).norm() < 1e-9 * tokens.norm()
    torch.testing.assert_close(output.reconstruction.sum(), errors)
    weighted = randomize(make(alpha=5.0).double())
    weighted.load_state_dict(network.state_dict())
    other = weighted(images, vectors).second.tokens
    assert (other - tokens).norm() > 1e-2 * tokens.norm()  # the forms are not the same


def test_projected_tokens_are_multiples_of_the_prior():
    network = randomize(make(modulation='project'))
    seen = []
    network.feedback.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network(IMAGES, VECTORS)
    prior = network.prior(VECTORS, 2)[:, None]
    assert F.cosine_similarity(seen[0], prior, dim=-1).abs().min() > 0.999


@pytest.mark.parametrize('design', ['absvit', 'absvit_qkv', 'mask_attention', 'perceiver_io'])
def test_every_design_takes_text_and_its_gradient_reaches_it(design):
    network = randomize(make(top_down=design))
    vectors = fitting(network, IMAGES).detach().requires_grad_()
    network(IMAGES, vectors).second.tokens.square().sum().backward()
    assert (vectors.grad.abs().sum(dim=1) > 0).all()
    assert network.prior.projection.weight.grad.any()


@pytest.mark.parametrize('design', ['absvit', 'mask_attention', 'perceiver_io'])
def test_without_text_nothing_is_asked(design):
    network = randomize(make(top_down=design))
    weights = network(IMAGES).token_weights
    assert torch.equal(weights, torch.full_like(weights, float(design != 'absvit')))


def test_a_text_vector_has_its_own_width():
    network = make()
    with pytest.raises(InputError, match=r'prior must have shape \(12,\) or \(2, 12\), got \(16,'):
        network(IMAGES, torch.randn(16))
    with pytest.raises(InputError, match='LearnedText knows no classes; pass .* of width 12'):
        network(IMAGES, torch.tensor(1))
    expected = network(IMAGES, VECTORS[0]).second.tokens
    actual = network(IMAGES, VECTORS[:1].expand(2, 12).double()).second.tokens
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(prior='text'), r"needs the width of the text vectors: prior=dict\(type='text', text"),
        (dict(prior=dict(type='text', text_dim=0)), 'text_dim of the text prior .* 0'),
        (dict(prior=TEXT | dict(classes=3)), "prior 'text' takes text_dim, num_classes; unknown"),
        (dict(prior=TEXT | dict(num_classes=-1)), 'num_classes of the text prior .* -1'),
        (dict(modulation='projection'), 'modulation must be one of weight, project; got'),
        (dict(top_down='perceiver_io', modulation='project'), "modulation='project' is for feed"),
        (dict(top_down='feedback', prior=None, modulation='project'), 'this network has no prior'),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_the_tokens_of_a_centered_network_are_projected_less_their_center():
    network = randomize(make(modulation='project'))
    tokens = network.forward_first_pass(IMAGES).output.tokens
    center = torch.randn(16)
    network.prior.center = center
    seen = []
    network.feedback.register_forward_pre_hook(lambda module, args: seen.append(args[:2]))
    network(IMAGES, VECTORS)
    prior = network.prior(VECTORS, 2)
    torch.testing.assert_close(seen[0][1], token_weights(tokens - center, prior))
    expected = torch.einsum('bnc,bc,bd->bnd', tokens - center, prior, prior)
    torch.testing.assert_close(seen[0][0], expected)


def test_a_class_is_asked_for_by_the_text_of_its_name():
    network = randomize(make(prior=TEXT | dict(num_classes=3)))
    prior = network.prior
    assert not prior(torch.tensor([-1, 0, 1, 2]), 4).any()  # nobody has filled the table
    prior.texts[:2] = torch.randn(2, len(PHRASINGS), 12)
    asked = prior(torch.tensor([0, -1, 1, 2]), 4)
    torch.testing.assert_close(asked[::2], prior(prior.texts[:2, 0], 2))
    assert not asked[1].any() and not asked[3].any()
    by_text = network(IMAGES, prior.texts[:2, 0]).second.tokens
    torch.testing.assert_close(network(IMAGES, torch.tensor([0, 1])).second.tokens, by_text)
    with pytest.raises(InputError, match=r'prior names class \[3\]; the classes are 0 to 2'):
        network(IMAGES[:1], torch.tensor(3))


def test_in_training_a_phrasing_is_drawn_for_each_class():
    prior = make(prior=TEXT | dict(num_classes=2)).train().prior
    prior.texts[:] = torch.randn(2, len(PHRASINGS), 12)
    expected, seen = prior.projection(prior.texts), set()
    for _ in range(60):
        table = prior.class_priors()
        distances = (table[:, None] - expected).abs().amax(dim=2)
        assert (distances.amin(dim=1) < 1e-6).all()
        seen.add(tuple(distances.argmin(dim=1).tolist()))
    assert len(seen) > len(PHRASINGS)  # not one for all classes


def test_priors_that_are_no_text_can_be_given():
    network = randomize(make())
    priors = network.prior(VECTORS, 2).detach()
    with given_priors(network):
        tokens = network(IMAGES, priors).second.tokens
    torch.testing.assert_close(tokens, network(IMAGES, VECTORS).second.tokens)
    with pytest.raises(InputError, match=r'prior must have shape \(12,\)'):
        network(IMAGES, priors)
