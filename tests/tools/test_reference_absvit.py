"""The reference AbSViT against recorded outputs of the release, and the package against it."""

import pytest
import torch
from reference_absvit import AbSViT, rename_weights
from torch import Tensor
from torch.nn import functional as F

from mmvars.networks import create_model

TINY = dict(depth=3, num_heads=3, num_classes=7)


def assert_close(output: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert output.shape == expected.shape
    assert (output - expected).abs().max() <= tolerance * expected.abs().max()


def recorded_model(record: dict) -> AbSViT:
    """The reference with recorded weights; every released key is loaded."""
    size = record['meta']['hyper']
    model = AbSViT(
        size['img_size'],
        size['patch_size'],
        size['embed_dim'],
        size['depth'],
        size['num_heads'],
        max(size['num_classes'], 0),
        size.get('global_pool', 'token'),
    ).eval()
    model.load_state_dict(rename_weights(record['state_dict']))
    return model


@pytest.fixture(params=['absvit_cls', 'absvit_gap'])
def classifier(request, golden):
    """The reference with the weights of a recorded classifier, its inputs and its outputs."""
    record = golden(request.param)
    return recorded_model(record), record['inputs'], record['outputs']


def test_recorded_outputs_of_the_release(classifier):
    model, inputs, expected = classifier
    with torch.no_grad():
        out = model(inputs['image'])
        assert_close(model.classify(out.first_tokens), expected['logits_pass1'], 2e-5)
        assert_close(model.classify(out.tokens), expected['logits_pass2'], 2e-5)
        assert_close(out.first_tokens, expected['tokens_pass1'], 2e-5)
        assert_close(out.token_weights, expected['mask'], 2e-5)
        for i, top_down in enumerate(out.top_down):
            assert_close(top_down, expected[f'td.{i}'], 2e-5)
            assert_close(out.hidden_states[i], expected[f'z_in.{i}'], 2e-5)
            assert_close(out.hidden_states[i + 1], expected[f'z_out.{i}'], 2e-5)
        strong = model(inputs['image'], alpha=10.0)
        assert_close(model.classify(strong.tokens), expected['logits_pass2_alpha10'], 2e-5)
        cued = model(inputs['image'], prior=model.head.weight[1])
        assert_close(cued.token_weights, expected['mask_classprior1'], 2e-5)
        assert_close(model.classify(cued.tokens), expected['logits_pass2_classprior1'], 2e-5)


def test_recorded_losses_and_gradients_of_the_release(classifier):
    model, inputs, expected = classifier
    soft = model.loss(inputs['image'], inputs['soft_targets'])
    assert_close(soft, expected['total_loss_soft'], 2e-5)
    loss = model.loss(inputs['image'], inputs['labels'])
    assert_close(loss, expected['total_loss_hard'], 2e-5)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    names = [name for name in expected if name.startswith('grad.')]
    assert len(names) == 9
    for name in names:
        [renamed] = rename_weights({name.removeprefix('grad.'): expected[name]})
        assert_close(gradients[renamed], expected[name], 1e-4)


@pytest.mark.parametrize('size', [(64, 64), (96, 64), (90, 50)])
def test_recorded_feature_maps_of_other_image_sizes(size, golden):
    record = golden('absvit_seg')
    model, key = recorded_model(record), f'{size[0]}x{size[1]}'
    with torch.no_grad():
        out = model(record['inputs'][f'image_{key}'])
    assert_close(out.token_weights, record['outputs'][f'mask_{key}'], 2e-5)
    for i, tokens in enumerate((*out.hidden_states[1:3], out.tokens)):
        expected = record['outputs'][f'feat_{key}.{i}']
        maps = tokens[:, 1:].transpose(1, 2).unflatten(2, expected.shape[-2:])
        assert_close(maps, expected, 2e-5)


def pair(name: str, patch_size: int, pool: str):
    """The package's network and the reference, with the same weights of ordinary size."""
    network = create_model(name, embed_dim=48, img_size=8 * patch_size, **TINY).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:  # biases and norms: fresh ones are zeros and ones
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif parameter.shape[-2:] == (48, 48):  # decoders: keep the length of what passes
                parameter.normal_(std=48**-0.5)
    reference = AbSViT(8 * patch_size, patch_size, 48, **TINY, global_pool=pool).eval()
    reference.load_state_dict(rename_weights(network.state_dict()))
    return network, reference


FORMS = [('absvit_tiny_patch16', 16, 'token'), ('absvit_tiny_patch8_gap', 8, 'avg')]
SIZES = [(2, 8, 8), (1, 5, 12), (3, 9, 2)]


@pytest.mark.parametrize('form', FORMS, ids=lambda form: form[2])
@pytest.mark.parametrize('batch, height, width', SIZES)
def test_outputs_of_the_package(form, batch, height, width):
    network, reference = pair(*form)
    images = torch.randn(batch, 3, height * form[1] - 3, width * form[1])
    prior = torch.randn(batch, 48)
    with torch.no_grad():
        for options in (
            dict(),
            dict(alpha=10.0),
            dict(prior=prior),
            dict(prior=prior[0], alpha=0.5),
        ):
            out, expected = (
                network(images, out_indices=range(3), **options),
                reference(images, **options),
            )
            assert 0 < expected.token_weights.mean() < 1
            assert_close(out.first.tokens, expected.first_tokens)
            assert_close(out.second.tokens, expected.tokens)
            assert_close(out.token_weights, expected.token_weights)
            assert_close(torch.stack(out.top_down), torch.stack(expected.top_down))
            for tokens, state in zip(
                out.second.intermediates, expected.hidden_states[1:], strict=True
            ):
                assert_close(tokens, state)
            assert_close(network.forward_head(out.second), reference.classify(expected.tokens))
        network.fuse()
        assert_close(network(images).second.tokens, reference(images).tokens)


@pytest.mark.parametrize('form', FORMS, ids=lambda form: form[2])
@pytest.mark.parametrize('batch, height, width', SIZES)
def test_gradients_of_the_package(form, batch, height, width):
    network, reference = pair(*form)
    images = torch.randn(batch, 3, height * form[1], width * form[1])
    targets = torch.randint(7, (batch,))
    out = network(images, reconstruction=True)
    first, second = (
        F.cross_entropy(network.forward_head(part), targets) for part in (out.first, out.second)
    )
    loss = (first + second) / 2 + 0.1 * out.reconstruction.sum()
    expected_loss = reference.loss(images, targets)
    assert_close(loss, expected_loss)
    loss.backward()
    expected_loss.backward()
    gradients = rename_weights(
        {name: parameter.grad for name, parameter in network.named_parameters()}
    )
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name])


def test_positions_of_a_grid_that_is_not_square():
    network = create_model('absvit_tiny_patch16', embed_dim=48, img_size=(64, 96), **TINY).eval()
    reference = AbSViT((64, 96), 16, 48, **TINY).eval()
    reference.load_state_dict(rename_weights(network.state_dict()))
    for size in ((64, 96), (96, 64)):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            assert_close(network(images).second.tokens, reference(images).tokens)


def test_training_uses_stochastic_depth():
    model = AbSViT(32, 16, 48, **TINY, drop_path=0.5)
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(images).tokens, model(images).tokens)
    model.eval()
    assert torch.equal(model(images).tokens, model(images).tokens)
