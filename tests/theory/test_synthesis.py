"""The theory of analysis by synthesis (Section 2.4) on layers small enough to solve exactly."""

from collections.abc import Iterable

import pytest
import torch
from synthesis import (
    GenerativeLayer,
    joint_dynamics,
    joint_energy,
    modulated_dynamics,
    modulated_energy,
    stable_time_step,
)
from torch import Tensor

from mmvars.errors import InputError
from mmvars.layers.sparse_coding import ista, lipschitz, soft_threshold

# Under-complete, square and over-complete dictionaries (N, M).
SIZES = [(20, 6), (9, 9), (8, 12)]
SPARSITY = 0.7


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.double)


def one_layer(size: tuple[int, int], decodes: bool) -> tuple[GenerativeLayer, Tensor, Tensor]:
    """Four layers at once, with atoms of length one, and bottom-up and top-down signals."""
    rows, atoms = size
    dictionary = randn(4, rows, atoms)
    decoder = 0.3 * randn(4, 11, rows) if decodes else None
    layer = GenerativeLayer(dictionary / dictionary.norm(dim=-2, keepdim=True), decoder)
    return layer, 2 * randn(4, rows, 3), randn(4, rows, 3)


def hierarchy(channels: int = 2) -> tuple[list[GenerativeLayer], Tensor, Tensor]:
    """Three layers (the middle one over-complete) over an image of 12 pixels, and a prior."""
    layers = [
        GenerativeLayer(0.5 * randn(9, 7), 0.5 * randn(12, 9)),
        GenerativeLayer(0.5 * randn(5, 8), 0.5 * randn(9, 5)),
        GenerativeLayer(0.5 * randn(6, 4), 0.5 * randn(5, 6)),
    ]
    return layers, 2 * randn(12, channels), randn(6, channels)


def last(steps: Iterable):
    for step in steps:  # noqa: B007 the last one
        pass
    return step


def stacked(layer: GenerativeLayer, signal: Tensor) -> tuple[Tensor, Tensor]:
    """The modulated objective as a plain lasso: P over g P must make the signal over zeros."""
    dictionary, decoder = layer
    if decoder is None:
        return dictionary, signal
    below = decoder @ dictionary
    zeros = signal.new_zeros(*below.shape[:-1], signal.shape[-1])
    return torch.cat([dictionary, below], dim=-2), torch.cat([signal, zeros], dim=-2)


def as_one_lasso(
    layers: list[GenerativeLayer], image: Tensor, prior: Tensor
) -> tuple[Tensor, Tensor]:
    """The joint problem as one plain lasso of all codes, written from Eq. 2.6-2.8.

    A row of blocks for every step of the generation: what layer l + 1 predicts of layer l, less
    layer l itself, must be 0; at the bottom it must be the image, at the top the latent the prior.
    """
    predicts = [decoder @ dictionary for dictionary, decoder in layers]
    blocks = [
        [image.new_zeros(rows, layer.dictionary.shape[1]) for layer in layers]
        for rows in (len(image), *(len(layer.dictionary) for layer in layers))
    ]
    for position, layer in enumerate(layers):
        blocks[position][position] = predicts[position]
        blocks[position + 1][position] = -layer.dictionary
    matrix = torch.cat([torch.cat(row, dim=1) for row in blocks])
    target = matrix.new_zeros(len(matrix), image.shape[1])
    target[: len(image)], target[-len(prior) :] = image, -prior
    return matrix, target


# The energies: Eq. 2.10 follows from Eq. 2.6-2.9, with half the printed r


def test_the_joint_energy_is_the_negative_log_posterior():
    layers, image, prior = hierarchy()
    codes = [randn(layer.dictionary.shape[1], 2) for layer in layers]
    matrix, target = as_one_lasso(layers, image, prior)
    every = torch.cat(codes)
    expected = (matrix @ every - target).square().sum(0) / 2 + SPARSITY * every.abs().sum(0)
    torch.testing.assert_close(joint_energy(layers, codes, image, prior, SPARSITY), expected)


@pytest.mark.parametrize('position', [0, 1, 2])
def test_a_layer_sees_the_joint_energy_as_its_modulated_energy(position):
    """Eq. 2.10: as functions of one layer's code they differ by a constant. With the printed r,
    which is twice ours, they do not."""
    layers, image, prior = hierarchy()
    codes = [randn(layer.dictionary.shape[1], 2) for layer in layers]
    latents = [image, *(layer.dictionary @ code for layer, code in zip(layers, codes, strict=True))]
    layer = layers[position]
    bottom_up = layer.decoder.T @ latents[position]
    top_down = prior if position == 2 else layers[position + 1].decoder @ latents[position + 2]
    gaps, printed = [], []
    for _ in range(5):
        codes[position] = randn(*codes[position].shape)
        whole = joint_energy(layers, codes, image, prior, SPARSITY)
        gaps.append(whole - modulated_energy(layer, codes[position], bottom_up, top_down, SPARSITY))
        r = (layer.decoder @ layer.dictionary @ codes[position]).square().sum(0) / 2
        printed.append(gaps[-1] - r)
    torch.testing.assert_close(torch.stack(gaps), gaps[0].expand(5, 2))
    assert torch.stack(printed).std(dim=0).min() > 0.1


def test_with_a_decoder_that_is_not_linear_eq_2_10_holds_for_gradients():
    """g(z) = tanh(W z): the gradients agree if the Jacobian in x_bu is held fixed, else not."""
    layer, _, top_down = one_layer((9, 5), decodes=True)
    below = randn(4, 11, 3)

    def predicted(code: Tensor) -> Tensor:
        return (layer.decoder @ (layer.dictionary @ code)).tanh()

    def bottom_up(code: Tensor) -> Tensor:
        slope = 1 - predicted(code).square()
        return layer.decoder.mT @ (slope * below)

    def eq_2_10(code: Tensor, signal: Tensor) -> Tensor:
        r = predicted(code).square().sum() / 2
        return (layer.dictionary @ code - signal - top_down).square().sum() / 2 + r

    def posterior(code: Tensor) -> Tensor:
        return (
            (below - predicted(code)).square().sum()
            + (layer.dictionary @ code - top_down).square().sum()
        ) / 2

    code = randn(4, 5, 3).requires_grad_()
    (expected,) = torch.autograd.grad(posterior(code), code)
    (fixed,) = torch.autograd.grad(eq_2_10(code, bottom_up(code).detach()), code)
    torch.testing.assert_close(fixed, expected)
    (moving,) = torch.autograd.grad(eq_2_10(code, bottom_up(code)), code)
    assert (moving - expected).abs().max() > 0.1


# One layer: Eq. 2.11 comes to rest at the minimum of Eq. 2.10


@pytest.mark.parametrize('decodes', [False, True])
@pytest.mark.parametrize('size', SIZES)
def test_the_dynamics_come_to_rest_at_the_optimum(size, decodes, lasso, assert_optimal):
    """Optimality conditions, scikit-learn's lasso and proximal gradient steps agree."""
    layer, bottom_up, top_down = one_layer(size, decodes)
    step = stable_time_step([layer])
    code = last(modulated_dynamics(layer, bottom_up, top_down, SPARSITY, step, 3000))
    matrix, target = stacked(layer, bottom_up + top_down)
    assert_optimal(matrix, target, code, SPARSITY)
    expected = lasso(matrix[0], target[0], SPARSITY)
    torch.testing.assert_close(code[0], expected, atol=1e-5, rtol=0)

    gram, encoded = matrix.mT @ matrix, matrix.mT @ target
    step = 1 / lipschitz(gram)[:, None, None]
    expected = last(ista(gram, encoded, encoded, step, SPARSITY, 3000))
    torch.testing.assert_close(code, expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize('decodes', [False, True])
@pytest.mark.parametrize('size', SIZES)
def test_the_modulated_energy_never_rises(size, decodes):
    layer, bottom_up, top_down = one_layer(size, decodes)
    stable = stable_time_step([layer])
    far = 5 * randn(4, size[1], 3)
    for step in (0.1 * stable, stable, min(1.0, 1.99 * stable)):
        for start in (None, far):
            codes = list(modulated_dynamics(layer, bottom_up, top_down, SPARSITY, step, 60, start))
            energies = torch.stack(
                [modulated_energy(layer, code, bottom_up, top_down, SPARSITY) for code in codes]
            )
            assert energies.shape == (61, 4, 3)
            assert energies.diff(dim=0).max() <= 1e-12 * energies.max()
            assert energies[-1].mean() < energies[0].mean() - 1


def test_the_modulated_energy_rises_if_steps_are_too_long():
    """The law above has teeth; without sparsity every atom takes part, and 2 / L is sharp."""
    layer, bottom_up, top_down = one_layer((8, 12), decodes=True)
    rises = []
    for stretch in (1.99, 2.01):
        step = stretch * stable_time_step([layer])
        codes = modulated_dynamics(layer, bottom_up, top_down, 0.0, step, 500)
        energies = torch.stack(
            [modulated_energy(layer, code, bottom_up, top_down, 0.0) for code in codes]
        )
        rises.append(energies.diff(dim=0).max().item())
    assert rises[0] < 1e-9 and rises[1] > 1


def test_a_step_by_hand_from_where_it_is_told():
    layer, bottom_up, top_down = one_layer((9, 5), decodes=True)
    dictionary, decoder = layer
    start = 2 * randn(4, 5, 3)
    given = start.clone()
    before, after = modulated_dynamics(layer, bottom_up, top_down, SPARSITY, 0.1, 1, start)
    assert start.equal(given)
    assert before.equal(soft_threshold(start, SPARSITY))
    inhibition = dictionary.mT @ dictionary - torch.eye(5).double()
    below = decoder @ dictionary
    rate = (
        -start
        - inhibition @ before
        + dictionary.mT @ bottom_up
        + dictionary.mT @ top_down
        - below.mT @ below @ before
    )
    torch.testing.assert_close(after, soft_threshold(start + 0.1 * rate, SPARSITY))


@pytest.mark.parametrize('decodes', [False, True])
def test_without_a_top_down_signal_it_is_the_bottom_up_solution(decodes, lasso):
    layer, bottom_up, top_down = one_layer((20, 6), decodes)
    alone, zero, modulated = (
        last(modulated_dynamics(layer, bottom_up, signal, SPARSITY, 0.2, 600))
        for signal in (None, torch.zeros_like(top_down), top_down)
    )
    assert alone.equal(zero)
    matrix, target = stacked(layer, bottom_up)
    torch.testing.assert_close(alone[0], lasso(matrix[0], target[0], SPARSITY), atol=1e-5, rtol=0)
    assert (modulated - alone).abs().max() > 0.1


# The hierarchy: Eq. 2.9


def test_the_joint_energy_never_rises_and_all_layers_reach_the_optimum(lasso, assert_optimal):
    """From rest and from afar, the same codes: the MAP estimate of Eq. 2.8."""
    layers, image, prior = hierarchy()
    far = [3 * randn(layer.dictionary.shape[1], 2) for layer in layers]
    start = [torch.stack([torch.zeros_like(potential), potential]) for potential in far]
    energies = []
    step = stable_time_step(layers)
    for codes in joint_dynamics(layers, image, prior, 0.3, step, 4000, start):
        if len(energies) < 200:
            energies.append(joint_energy(layers, codes, image, prior, 0.3))
    energies = torch.stack(energies)
    assert energies.shape == (200, 2, 2)
    assert energies.diff(dim=0).max() <= 1e-12 * energies.max()
    assert (energies[-1] < energies[0] - 1).all()

    from_rest, from_afar = torch.cat(codes, dim=-2)
    torch.testing.assert_close(from_rest, from_afar, atol=1e-7, rtol=0)
    matrix, target = as_one_lasso(layers, image, prior)
    assert_optimal(matrix, target, from_rest, 0.3)
    torch.testing.assert_close(from_rest, lasso(matrix, target, 0.3), atol=1e-5, rtol=0)


def test_the_joint_energy_rises_if_steps_are_too_long():
    layers, image, prior = hierarchy()
    matrix, _ = as_one_lasso(layers, image, prior)
    sharp = 1 / lipschitz(matrix.T @ matrix).item()
    assert 0.5 * sharp < stable_time_step(layers) <= sharp
    rises = []
    for stretch in (1.99, 2.01):
        steps = joint_dynamics(layers, image, prior, 0.0, stretch * sharp, 500)
        energies = torch.stack([joint_energy(layers, codes, image, prior, 0.0) for codes in steps])
        rises.append(energies.diff(dim=0).max().item())
    assert rises[0] < 1e-9 and rises[1] > 1


def test_batches_are_solved_apart():
    layers, image, prior = hierarchy()
    images, priors = torch.stack([image, 2 * image]), torch.stack([prior, -prior])
    together = last(joint_dynamics(layers, images, priors, 0.3, 0.1, 50))
    for b in range(2):
        alone = last(joint_dynamics(layers, images[b], priors[b], 0.3, 0.1, 50))
        for codes, code in zip(together, alone, strict=True):
            torch.testing.assert_close(codes[b], code)
    first = next(joint_dynamics(layers, images, priors, 0.3, 0.1, 0))
    assert [tuple(code.shape) for code in first] == [(2, 7, 2), (2, 8, 2), (2, 4, 2)]


# Bad input


def test_what_does_not_fit_is_refused():
    layers, image, prior = hierarchy()
    with pytest.raises(InputError, match='at least one GenerativeLayer'):
        joint_dynamics([], image, prior, 0.3, 0.1, 5)
    with pytest.raises(InputError, match='at least one GenerativeLayer'):
        stable_time_step([])
    with pytest.raises(InputError, match=r'decoder of layer 2 must be \(9, 5\).*got None'):
        joint_dynamics(
            [layers[0], GenerativeLayer(layers[1].dictionary), layers[2]], image, prior, 0.3, 0.1, 5
        )
    with pytest.raises(InputError, match=r'decoder of layer 1 must be \(3, 9\).*got \(12, 9\)'):
        joint_energy(layers, [], image[:3], prior, 0.3)
    with pytest.raises(InputError, match='prior must have 6 rows.*got 5'):
        joint_dynamics(layers, image, prior[:5], 0.3, 0.1, 5)
    for name, numbers in (
        ('sparsity', (-0.1, 0.1, 5)),
        ('time_step', (0.3, -0.1, 5)),
        ('num_steps', (0.3, 0.1, 2.5)),
    ):
        with pytest.raises(InputError, match=name):
            joint_dynamics(layers, image, prior, *numbers)
        with pytest.raises(InputError, match=name):
            modulated_dynamics(layers[0], prior[:1], None, *numbers)
