"""Pre-tuning is least squares: the laws of it, on tiny networks."""

import numpy as np
import pytest
import torch

from mmvars.errors import InputError
from mmvars.networks import (
    DecoderRegression,
    Feedback,
    TopDown,
    build_prior,
    create_model,
    pretune,
)
from mmvars.networks.regression import HELD_OUT

SIZE = dict(embed_dim=12, depth=2, num_heads=2, img_size=32, num_classes=0)
RVT = dict(embed_dim=(8, 16), depth=(2, 1), num_heads=(1, 2), img_size=32, num_classes=0)


def _network(name='absvit_tiny', **options):
    torch.manual_seed(0)
    network = create_model(name, **SIZE | options).double()
    with torch.no_grad():
        for parameter in getattr(network, 'trunk', network).parameters():
            parameter += 0.3 * torch.randn_like(parameter)  # tokens that differ
    return network


def _gated():
    """A network with the feedback that trunks of timm have."""
    plain = _network(double_value_bias=False)
    widths, strides = plain.trunk.widths, plain.trunk.strides
    prior = build_prior('learned_query', plain.trunk.embed_dim, has_center=True)
    return TopDown(plain.trunk, prior, Feedback(widths, strides, gated=True)).double()


def _images(count=23, side=32):
    return torch.randn(count, 3, side, side + 16, dtype=torch.float64)


def _tokens(network, images):
    """Input and output of each block over all tokens of the images."""
    trunk = network.eval().trunk
    with torch.no_grad():
        output = trunk.forward_blocks(*trunk.forward_embed(images), keep_block_io=True)
    return [tuple(each.flatten(0, 1).numpy() for each in pair) for pair in output.block_io]


def _held_out(images):
    chosen = torch.arange(len(images)) % HELD_OUT == 0
    return images[~chosen], images[chosen]


@pytest.fixture(params=['absvit_tiny', 'rvt_tiny', 'gated'])
def network(request):
    if request.param == 'rvt_tiny':
        return _network('rvt_tiny', top_down='absvit', **RVT)
    return _gated() if request.param == 'gated' else _network()


def test_without_ridge_it_is_numpys_least_squares(network):
    images = _images()
    fits = pretune(network, images.split(5), ridges=())
    fitted = _held_out(images)[0]
    for decoder, fit, (y, z) in zip(
        network.feedback.decoders, fits, _tokens(network, fitted), strict=True
    ):
        expected = np.linalg.lstsq(z, y, rcond=None)[0].T
        np.testing.assert_allclose(decoder.to_below.weight.detach(), expected, atol=1e-9)
        assert fit.ridge == 0 and fit.error == fit.error_without_ridge


def test_it_is_the_minimum_of_the_loss_that_gradients_minimize(network):
    images = _images()
    pretune(network, images.split(5), ridges=())
    fitted = _held_out(images)[0]
    weights = [decoder.to_below.weight for decoder in network.feedback.decoders]

    def loss_and_gradients():
        loss = 0
        block_io = [tuple(map(torch.from_numpy, pair)) for pair in _tokens(network, fitted)]
        loss = network.feedback.reconstruction_errors(block_io).sum()
        return loss.item(), torch.autograd.grad(loss, weights)

    least, at_minimum = loss_and_gradients()
    with torch.no_grad():
        for weight in weights:
            weight += 1e-3 * torch.randn_like(weight)
    greater, beside = loss_and_gradients()
    assert greater > least
    for gradient, other in zip(at_minimum, beside, strict=True):
        assert gradient.norm() < 1e-9 * other.norm()


def test_errors_are_those_on_held_out_images():
    network, images = _network(), _images()
    fits = pretune(network, [images[:7], images[7:]])
    for fit, (y, z) in zip(fits, _tokens(network, _held_out(images)[1]), strict=True):
        variance = ((y - y.mean(0)) ** 2).sum()
        assert fit.error == pytest.approx(((z @ fit.weight.numpy().T - y) ** 2).sum() / variance)
        assert fit.error_of_identity == pytest.approx(((z - y) ** 2).sum() / variance)


def test_the_ridge_of_least_error_is_taken():
    network, images = _network(), _images(6, side=16)
    tried = {ridge: pretune(network, [images], (ridge,)) for ridge in (1e-4, 1e-2, 1.0)}
    best = pretune(network, [images], tuple(tried))
    for block, fit in enumerate(best):
        errors = [fits[block].error for fits in tried.values()]
        assert fit.error == min([*errors, fit.error_without_ridge])
    assert any(fit.ridge > 0 and fit.error < fit.error_without_ridge for fit in best)


def test_a_pass_that_goes_on_is_the_whole_pass_to_the_bit():
    network, batches = _network(), _images().split(4)
    chosen = torch.arange(4) == 1
    whole, first, second = (DecoderRegression(network.eval()) for _ in range(3))
    for images in batches:
        whole.add(images, chosen[: len(images)])
    for images in batches[:2]:
        first.add(images, chosen[: len(images)])
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for images in batches[2:]:
        second.add(images, chosen[: len(images)])
    for one, other in zip(whole.solve(), second.solve(), strict=True):
        assert torch.equal(one.weight, other.weight) and one[1:] == other[1:]


def test_sums_of_two_processes_are_those_of_one():
    network, batches = _network(), _images().split(4)
    chosen = torch.arange(4) == 1
    whole, *parts = (DecoderRegression(network.eval()) for _ in range(3))
    for number, images in enumerate(batches):
        whole.add(images, chosen[: len(images)])
        parts[number % 2].add(images, chosen[: len(images)])
    for value, other in zip(parts[0].buffers(), parts[1].buffers(), strict=True):
        value += other  # as all_reduce does
    for one, other in zip(whole.solve(), parts[0].solve(), strict=True):
        torch.testing.assert_close(one.weight, other.weight, rtol=1e-9, atol=1e-9)
        assert one.error == pytest.approx(other.error)
    torch.testing.assert_close(whole.output, parts[0].output)


def test_single_precision_is_summed_in_double():
    network, images = _network(), _images()
    fits = pretune(network, [images])
    for fit, other in zip(fits, pretune(network.float(), [images.float()]), strict=True):
        assert other.weight.dtype == torch.float64
        assert other.error == pytest.approx(fit.error, rel=1e-4)


def test_the_trunk_and_the_mode_stay_as_they_are():
    network = _network(drop_path_rate=0.5).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pretune(network, [_images()])
    changed = {
        name for name, value in network.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {f'feedback.decoders.{index}.to_below.weight' for index in range(2)}
    assert network.training


def test_what_is_pretuned_of_stages_is_the_decoders_alone():
    regression = DecoderRegression(_network('rvt_tiny', top_down='absvit', **RVT).eval())
    regression.add(_images(), torch.arange(23) == 3)
    part = regression.apply_to_network(regression.solve())
    assert set(part) == {f'feedback.decoders.{index}.to_below.weight' for index in range(3)}


def test_with_gates_readouts_are_the_identity_gates_closed_and_the_center_the_mean_token():
    network, images = _gated(), _images()
    with torch.no_grad():
        for decoder in network.feedback.decoders:
            decoder.gate += 1
            decoder.to_value.weight += 1
    regression = DecoderRegression(network.eval())
    regression.add(images, torch.arange(23) == 3)
    part = regression.apply_to_network(regression.solve())
    assert set(part) == {
        'prior.center',
        *(name for name in network.state_dict() if name.startswith('feedback.')),
    }
    assert len(part) == 7
    for decoder in network.feedback.decoders:
        assert decoder.gate == 0 and torch.equal(decoder.to_value.weight, torch.eye(12).double())
    with torch.no_grad():
        output = network(images)
    patches = output.first.tokens[:, 1:]
    torch.testing.assert_close(network.prior.center, patches.mean(dim=(0, 1)))
    assert torch.equal(output.second.tokens, output.first.tokens)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(name='vit_tiny'), "fits decoders, and this network has none.*top_down='absvit'"),
        (dict(top_down='mask_attention'), 'fits decoders, and this network has none'),
        (dict(num_prompt_tokens=2), "prompts.*not trained yet.*transfer='top-down'"),
    ],
)
def test_networks_without_decoders_or_with_prompts_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        DecoderRegression(_network(**options))


def test_too_few_images_are_refused():
    network = _network()
    for images in (_images(1), torch.randn(2, 3, 16, 16, dtype=torch.float64)):
        with pytest.raises(InputError, match=r'block 0 and \d+ held out are too few for its 12'):
            pretune(network, [images])


def test_tokens_that_are_not_finite_are_refused():
    network = _network()
    torch.nn.init.constant_(network.trunk.blocks[1].mlp.fc2.bias, torch.inf)
    with pytest.raises(InputError, match='tokens of block 1 are not all finite'):
        pretune(network, [_images()])
