"""Attention from analysis by synthesis: a top-down signal shifts the choice of atoms (Eq. 2.11)."""

from collections import deque
from collections.abc import Iterable
from itertools import pairwise

import torch
from synthesis import GenerativeLayer, joint_dynamics, modulated_dynamics, stable_time_step
from torch import Tensor

from mmvars.layers import TokenGrid, build_mixer

SPARSITY = 0.7


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.double)


def last(steps: Iterable):
    return deque(steps, maxlen=1).pop()


def one_layer(decodes: bool) -> tuple[GenerativeLayer, Tensor]:
    """Four layers at once, of six atoms of length one, and bottom-up signals."""
    dictionary = torch.nn.functional.normalize(randn(4, 20, 6), dim=-2)
    return GenerativeLayer(dictionary, 0.3 * randn(4, 11, 20) if decodes else None), 2 * randn(
        4, 20, 3
    )


def test_without_r_a_signal_along_an_atom_raises_its_code_and_drops_no_rival():
    """u_j never falls with alpha; once in use it grows as alpha does and nothing else moves."""
    grown = 0
    for _ in range(3):
        layer, bottom_up = one_layer(decodes=False)
        atom = layer.dictionary[..., :1]
        alphas = torch.linspace(0, 3, 13, dtype=torch.double)[:, None, None, None]
        codes = last(
            modulated_dynamics(
                layer, bottom_up, alphas * atom, SPARSITY, stable_time_step([layer]), 400
            )
        )
        assert codes.shape == (13, 4, 6, 3)
        changes = codes.diff(dim=0)
        assert changes[:, :, 0].min() > -1e-9
        above = codes[:-1, :, 0] > 1e-9
        rise = changes[:, :, 0][above]
        torch.testing.assert_close(rise, torch.full_like(rise, 0.25), atol=1e-8, rtol=0)
        assert changes[:, :, 1:].transpose(1, 2)[:, 0][above].abs().max() < 1e-8
        grown += above.sum().item()
    assert grown > 100


def test_with_r_the_latent_moves_towards_the_signal():
    """p_j'z never falls with alpha, whatever is decoded below."""
    layer, bottom_up = one_layer(decodes=True)
    atom = layer.dictionary[..., :1]
    alphas = torch.linspace(0, 3, 13, dtype=torch.double)[:, None, None, None]
    step = stable_time_step([layer])
    codes = last(modulated_dynamics(layer, bottom_up, alphas * atom, SPARSITY, step, 600))
    towards = (atom.mT @ (layer.dictionary @ codes)).squeeze(-2)
    assert towards.diff(dim=0).min() > -1e-9
    assert (towards[-1] - towards[0]).min() > 0.1


def used(code: Tensor) -> list[int]:
    return (code[:, 0].abs() > 1e-9).nonzero().flatten().tolist()


def overlapping_objects(pairs: int, overlap: float = 0.9) -> Tensor:
    """Images ``(4 pairs, 2 pairs)``: object k and k + pairs share pixels, correlated by overlap."""
    images = torch.zeros(4 * pairs, 2 * pairs, dtype=torch.double)
    for k in range(pairs):
        images[4 * k, [k, k + pairs]] = overlap**0.5
        images[4 * k + 1, k] = images[4 * k + 2, k + pairs] = (1 - overlap) ** 0.5
    return images


def test_the_prior_selects_the_asked_object_of_two():
    """Two objects of about equal strength over one another; atoms 1 and 3 are not in the scene."""
    images = overlapping_objects(2)
    dictionary = torch.linalg.qr(randn(6, 4))[0]
    layer = GenerativeLayer(dictionary, images @ dictionary.T)
    scene = images[:, :1] + 1.02 * images[:, 2:3]
    bottom_up = layer.decoder.T @ scene
    step = stable_time_step([layer])

    def chosen(top_down: Tensor | None) -> list[int]:
        return used(last(modulated_dynamics(layer, bottom_up, top_down, 1.4, step, 500)))

    assert chosen(None) == [0, 2]
    assert chosen(0.9 * dictionary[:, :1]) == [0]
    assert chosen(0.9 * dictionary[:, 2:3]) == [2]
    assert chosen(0.9 * dictionary[:, 1:2]) == [0, 2]  # asking for what is not there
    # Selection is the work of r: without it, the rival stays as it is.
    blind = GenerativeLayer(dictionary)
    rival = [
        last(modulated_dynamics(blind, bottom_up, signal, 1.4, 1.0, 500))[2]
        for signal in (None, 0.9 * dictionary[:, :1])
    ]
    torch.testing.assert_close(*rival)
    assert rival[0] > 0.1


def test_without_r_the_prior_selects_among_objects_too_faint_to_be_seen():
    dictionary = torch.linalg.qr(randn(6, 4))[0]
    layer, scene = GenerativeLayer(dictionary), dictionary[:, :1] + 1.02 * dictionary[:, 2:3]
    for sought, expected in ((None, []), (0, [0]), (2, [2]), (1, [])):
        top_down = None if sought is None else 0.5 * dictionary[:, [sought]]
        code = last(modulated_dynamics(layer, scene, top_down, 1.2, 1.0, 200))
        assert used(code) == expected


def test_a_prior_on_objects_selects_their_parts_in_the_layer_below():
    """Objects of two parts each; in the image each part lies over one of the other object."""
    parts = torch.linalg.qr(randn(6, 4))[0]
    objects = torch.linalg.qr(randn(5, 2))[0]
    belongs = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]], dtype=torch.double) / 2**0.5
    images = overlapping_objects(2)
    layers = [
        GenerativeLayer(parts, images @ parts.T),
        GenerativeLayer(objects, parts @ belongs @ objects.T),
    ]
    scene = images.sum(1, keepdim=True)
    step = stable_time_step(layers)

    def codes(alpha: float, sought: int) -> tuple[Tensor, ...]:
        prior = alpha * objects[:, [sought]]
        return last(joint_dynamics(layers, scene, prior, SPARSITY, step, 600))

    neutral = codes(0.0, 0)
    assert used(neutral[0]) == [0, 1, 2, 3]
    first, second = codes(3.0, 0), codes(3.0, 1)
    assert (used(first[0]), used(first[1])) == ([0, 1], [0])
    assert (used(second[0]), used(second[1])) == ([2, 3], [1])
    # The scene is symmetric: the mirrored prior gives the mirrored codes.
    torch.testing.assert_close(first[0], second[0].roll(2, 0))
    torch.testing.assert_close(first[1], second[1].flip(0))
    # A part grows with the prior's strength, its rival shrinks.
    for weak, strong in pairwise(codes(alpha, 0)[0] for alpha in (0.5, 1.0, 1.5, 2.0)):
        assert (strong[:2] > weak[:2] + 0.05).all() and (strong[2:] < weak[2:] - 0.05).all()


# The networks


def test_vars_d_with_a_top_down_signal_solves_the_objective_without_r(lasso, assert_optimal):
    """Its codes end at the lasso of x + t (Eq. 2.10, r = 0); its dictionary never sees t.

    The tokens are six groups, and each random feature prefers one: an atom is a mask of a group.
    (With random ones the atoms can be so alike that 20,000 steps are not enough.)
    """
    sparsity, grid = 2.0, TokenGrid(6, 4)
    mixer = build_mixer(
        'vars_d',
        12,
        2,
        (6, 4),
        preset='thesis',
        feature_ratio=1.0,
        num_steps=500,
        sparsity=sparsity,
    ).double()
    groups = torch.eye(6, dtype=torch.double).repeat(4, 2)
    with torch.no_grad():
        mixer.qv.weight.copy_(torch.eye(12))
        mixer.random_features.copy_(2 * torch.eye(6).expand(2, 6, 6))
    x, top_down = (3 * groups + 0.3 * randn(24, 12))[None], 0.3 * randn(1, 24, 12)
    with torch.no_grad():
        alone, trace = mixer.trace(x, grid), mixer.trace(x, grid, top_down)
    assert trace.atoms.equal(alone.atoms)
    heads = [signal[0].unflatten(1, (2, 6)).unbind(1) for signal in (x, top_down)]
    for head, (bottom_up, signal) in enumerate(zip(*heads, strict=True)):
        atoms, code = trace.atoms[0, head], trace.codes[-1][0, head]
        assert_optimal(atoms, bottom_up + signal, code, sparsity)
        expected = lasso(atoms, bottom_up + signal, sparsity)
        torch.testing.assert_close(code, expected, atol=1e-5, rtol=0)
        layer = GenerativeLayer(atoms)
        step = stable_time_step([layer])
        same = last(modulated_dynamics(layer, bottom_up, signal, sparsity, step, 3000))
        torch.testing.assert_close(same, code, atol=1e-7, rtol=0)
        assert (code - alone.codes[-1][0, head]).abs().max() > 0.01
