"""Laws of sparse coding (Section 1.3): what holds for any dictionary, not for one output."""

import math

import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor

from mmvars.layers.performer import positive_features
from mmvars.layers.sparse_coding import (SHRINKAGES, STEP_BOUNDS, energy, gelu_shrink,
                                         recurrent_dynamics, soft_threshold, unrolled_shrinkage)

# Under-complete, square and over-complete dictionaries (N, M).
SIZES = [(20, 6), (9, 9), (8, 16)]
# Here every draw of `problem` is well enough conditioned to converge within some thousand steps.
SPARSITY = .7


def problem(size: tuple[int, int], channels: int = 3, batch: int = 4) -> tuple[Tensor, Tensor]:
    """Dictionaries ``(batch, N, M)`` with atoms of length one, and signals ``(batch, N, D)``."""
    atoms = torch.randn(batch, *size, dtype=torch.double)
    atoms = atoms / atoms.norm(dim=-2, keepdim=True)
    return atoms, 2 * torch.randn(batch, size[0], channels, dtype=torch.double)


def ista(atoms: Tensor, signal: Tensor, sparsity: float, num_steps: int, bound: str = 'spectral',
         start: Tensor | None = None, stretch: float = 1.) -> list[Tensor]:
    gram, target = atoms.mT @ atoms, atoms.mT @ signal
    step = stretch / STEP_BOUNDS[bound](gram)[:, None, None]
    start = target if start is None else start
    return list(unrolled_shrinkage(gram.matmul, target, start, step, sparsity * step, num_steps,
                                   soft_threshold))


# Shrinkage


def test_soft_threshold_by_hand():
    code = torch.tensor([-3., -1., -.5, 0., .5, 1., 3.])
    assert soft_threshold(code, 1.).tolist() == [-2, 0, 0, 0, 0, 0, 2]
    assert soft_threshold(code, 0.).equal(code)


def test_soft_threshold_is_the_proximal_map_of_the_l1_norm():
    candidates = torch.linspace(-4, 4, 8001, dtype=torch.double)
    for value in (-2.7, -.3, 0., .6, .7, 3.1):
        costs = (candidates - value).square() / 2 + .65 * candidates.abs()
        best = soft_threshold(torch.tensor(value, dtype=torch.double), .65)
        torch.testing.assert_close(candidates[costs.argmin()], best, atol=1e-3, rtol=0)


def test_gelu_shrinkage_is_its_formula():
    threshold = .7
    for value in (-5., -1., -.7, -.2, 0., .2, .7, 1., 5.):
        excess = abs(value) - threshold
        sign = (value > 0) - (value < 0)
        expected = sign * excess * (1 + math.erf(excess / 2**.5)) / 2
        found = gelu_shrink(torch.tensor(value, dtype=torch.double), threshold)
        assert found.item() == pytest.approx(expected, abs=1e-15)


def test_gelu_shrinkage_is_small_and_opposite_below_the_threshold():
    code, threshold = torch.linspace(-4, 4, 801).double(), 1.5
    out = gelu_shrink(code, threshold)
    below = (code.abs() < threshold - 1e-9) & (code.abs() > 1e-9)
    assert below.sum() > 200
    assert (out[below] * code[below] < 0).all()
    # max_x x (1 - cdf(x)) of the normal distribution is 0.16997: GELU is no further from ReLU.
    assert .16 < (out - soft_threshold(code, threshold)).abs().max() < .17


@pytest.mark.parametrize('name', ['soft', 'gelu'])
def test_every_shrinkage_is_odd_and_maps_zero_to_zero(name):
    shrink = SHRINKAGES[name]
    assert set(SHRINKAGES) == {'soft', 'gelu'}
    code, thresholds = torch.randn(5, 7), torch.rand(5, 1)
    assert shrink(-code, thresholds).equal(-shrink(code, thresholds))
    assert shrink(torch.zeros(3), .4).tolist() == [0, 0, 0]
    torch.testing.assert_close(shrink(code, thresholds)[2], shrink(code[2], thresholds[2].item()))


# Step bounds


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('bound', ['spectral', 'row_sum'])
def test_step_bounds_are_above_the_curvature(bound, size):
    assert set(STEP_BOUNDS) == {'spectral', 'row_sum'}
    atoms = problem(size, batch=20)[0].unflatten(0, (4, 5))
    curvature = torch.linalg.svdvals(atoms)[..., 0].square()
    bounds = STEP_BOUNDS[bound](atoms.mT @ atoms)
    assert bounds.shape == (4, 5)
    if bound == 'spectral':
        torch.testing.assert_close(bounds, curvature)
    else:
        assert (bounds >= curvature + 1).all()


def test_row_sum_bound_counts_negative_correlations():
    """Two opposite atoms: the largest eigenvalue is 2, the plain row sums are 0."""
    opposite = torch.tensor([[1., -1.], [-1., 1.]])
    assert STEP_BOUNDS['row_sum'](opposite) == 3
    assert STEP_BOUNDS['spectral'](opposite) == pytest.approx(2)


# Energy (Eq. 1.10)


def test_energy_by_loops():
    atoms, signal = problem((5, 3), channels=2, batch=2)
    code = torch.randn(2, 3, 2, dtype=torch.double)
    found = energy(atoms, code, signal, .3)
    assert found.shape == (2, 2)
    for b in range(2):
        for d in range(2):
            error = atoms[b] @ code[b, :, d] - signal[b, :, d]
            expected = .5 * sum(e**2 for e in error) + .3 * sum(abs(u) for u in code[b, :, d])
            torch.testing.assert_close(found[b, d], expected)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('bound', ['spectral', 'row_sum'])
@pytest.mark.parametrize('sparsity', [0., .3, 2.])
def test_the_energy_never_rises(sparsity, bound, size):
    atoms, signal = problem(size, batch=30)
    far = 9 * torch.randn(30, size[1], 3, dtype=torch.double)
    for start in (None, far, 0 * far):
        codes = ista(atoms, signal, sparsity, 40, bound, start)
        energies = torch.stack([energy(atoms, code, signal, sparsity) for code in codes])
        assert energies.diff(dim=0).max() <= 1e-12 * energies[0].max()
        assert energies[-1].mean() < .99 * energies[0].mean()


def test_the_energy_rises_if_steps_are_too_long():
    """The law above has teeth: beyond 2 / L the same iteration climbs."""
    atoms, signal = problem((8, 24))
    codes = ista(atoms, signal, .3, 10, stretch=2.5)
    energies = torch.stack([energy(atoms, code, signal, .3) for code in codes])
    assert energies.diff(dim=0).max() > 1


# The minimum: optimality conditions, scikit-learn, the neural dynamics


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('bound', ['spectral', 'row_sum'])
def test_optimality_at_convergence(bound, size):
    """KKT: atoms in use correlate with the error by exactly +-sparsity, the others by no more."""
    atoms, signal = problem(size)
    code = ista(atoms, signal, SPARSITY, 6000, bound)[-1]
    correlation = atoms.mT @ (signal - atoms @ code)
    used = code != 0
    assert 0 < used.sum() < used.numel()
    torch.testing.assert_close(correlation[used], SPARSITY * code[used].sign(), atol=1e-9, rtol=0)
    assert correlation[~used].abs().max() <= SPARSITY + 1e-9


@pytest.mark.parametrize('size', SIZES)
def test_agrees_with_the_lasso_of_scikit_learn(size):
    atoms, signal = problem(size, channels=2, batch=3)
    code = ista(atoms, signal, SPARSITY, 6000)[-1]
    solver = Lasso(alpha=SPARSITY / size[0], fit_intercept=False, tol=1e-14, max_iter=100_000)
    for b in range(3):
        for d in range(2):
            solver.fit(atoms[b].numpy(), signal[b, :, d].numpy())
            torch.testing.assert_close(code[b, :, d], torch.from_numpy(solver.coef_),
                                       atol=1e-6, rtol=0)


def test_a_sparsity_beyond_every_correlation_leaves_nothing():
    atoms, signal = problem((8, 24))
    sparsity = (atoms.mT @ signal).abs().max().item()
    assert (ista(atoms, signal, 1.001 * sparsity, 3000)[-1] == 0).all()
    assert (ista(atoms, signal, .98 * sparsity, 3000)[-1] != 0).any()


@pytest.mark.parametrize('size', SIZES)
def test_the_neural_dynamics_come_to_rest_at_the_same_code(size):
    """Eq. 1.8-1.9 with alpha = 1, beta = gamma = 2 end in Eq. 1.10 and 1.11."""
    atoms, signal = problem(size)
    state, gated = recurrent_dynamics(atoms, signal, SPARSITY, time_step=.1, num_steps=4000)
    code = ista(atoms, signal, SPARSITY, 6000)[-1]
    torch.testing.assert_close(gated, code, atol=1e-7, rtol=0)
    torch.testing.assert_close(state, atoms @ code + signal, atol=1e-7, rtol=0)
    # The constants matter: half the inhibition comes to rest at a code of higher energy.
    other = recurrent_dynamics(atoms, signal, SPARSITY, .1, 4000, inhibition=1.)[1]
    best, worse = (energy(atoms, u, signal, SPARSITY).mean() for u in (code, other))
    assert worse > 1.01 * best


def test_without_inhibition_the_dynamics_are_the_linear_recurrent_layer():
    """Eq. 1.6-1.7 (beta = 1, gamma = 0, no sparsity) rest where Eq. 1.5 does: z = P P'z + x."""
    atoms, signal = problem((9, 5))
    atoms = .7 * atoms / torch.linalg.matrix_norm(atoms, 2)[:, None, None]
    state, gated = recurrent_dynamics(atoms, signal, 0., .1, 2000, code_leak=1., inhibition=0.)
    expected = torch.linalg.solve(torch.eye(9).double() - atoms @ atoms.mT, signal)
    torch.testing.assert_close(state, expected)
    torch.testing.assert_close(gated, atoms.mT @ expected)


def test_unrolling_counts_its_steps_and_starts_where_it_is_told():
    atoms, signal = problem((8, 24))
    start = torch.randn(4, 24, 3, dtype=torch.double)
    assert len(ista(atoms, signal, .3, 5)) == 6
    (only, ) = ista(atoms, signal, .3, 0, start=start)
    assert only.equal(start)
    one = ista(atoms, signal, .3, 1, 'row_sum', start=start)[1]
    step = 1 / STEP_BOUNDS['row_sum'](atoms.mT @ atoms)[:, None, None]
    expected = soft_threshold(start - step * atoms.mT @ (atoms @ start - signal), .3 * step)
    torch.testing.assert_close(one, expected)


# Self-attention as the special case (Eq. 1.13-1.15)


@pytest.mark.parametrize('unit_length', [True, False])
def test_random_features_estimate_the_exponential_kernel(unit_length):
    """``Phi(q)'Phi(k)`` is an unbiased estimate of ``exp(q'k)`` (after the scaling of its rows).

    One feature's product has the variance ``exp(|q|^2 + |k|^2 + 4 q'k) - exp(2 q'k)`` (moments of
    the log-normal). With m features, all 100 pairs must lie within 5 standard errors and their mean
    square error, in units of the variance, near 1 (fixed seed).
    """
    num_features, width = 40_000, 8
    q, k = (.5 * torch.randn(1, 1, 10, width, dtype=torch.double) for _ in range(2))
    weights = torch.randn(1, width, num_features, dtype=torch.double)
    features = [positive_features(t, weights, unit_length) for t in (q, k)]
    assert features[0].shape == (1, 1, 10, num_features) and all((f > 0).all() for f in features)
    found = (features[0] @ features[1].mT)[0, 0]

    q, k = ((t / t.norm(dim=-1, keepdim=True) if unit_length else t / width**.25)[0, 0]
            for t in (q, k))
    dots = q @ k.T
    squares = q.square().sum(-1)[:, None] + k.square().sum(-1)
    error = ((squares + 4 * dots).exp() - (2 * dots).exp()).div(num_features).sqrt()
    scores = (found - dots.exp()) / error
    assert scores.abs().max() < 5
    assert .2 < scores.square().mean() < 3
    assert error.max() < .1 * dots.exp().max()  # a bound that says something
