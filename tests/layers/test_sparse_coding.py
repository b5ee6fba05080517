"""Laws of sparse coding (Section 1.3): what holds for any dictionary, not for one output."""

import math

import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor

from mmvars.layers.performer import positive_features
from mmvars.layers.sparse_coding import (
    energy,
    gelu_threshold,
    ista,
    lipschitz,
    lipschitz_bound,
    soft_threshold,
)

BOUNDS = [lipschitz, lipschitz_bound]

# Under-complete, square and over-complete dictionaries (N, M).
SIZES = [(20, 6), (9, 9), (8, 16)]
# Here every draw of `problem` is well enough conditioned to converge within some thousand steps.
SPARSITY = 0.7


def problem(size: tuple[int, int], channels: int = 3, batch: int = 4) -> tuple[Tensor, Tensor]:
    """Dictionaries ``(batch, N, M)`` with atoms of length one, and signals ``(batch, N, D)``."""
    atoms = torch.randn(batch, *size, dtype=torch.double)
    atoms = atoms / atoms.norm(dim=-2, keepdim=True)
    return atoms, 2 * torch.randn(batch, size[0], channels, dtype=torch.double)


def solve(
    atoms: Tensor,
    signal: Tensor,
    sparsity: float,
    num_steps: int,
    bound=lipschitz,
    start: Tensor | None = None,
    stretch: float = 1.0,
) -> list[Tensor]:
    """All codes of :func:`ista`."""
    gram, target = atoms.mT @ atoms, atoms.mT @ signal
    step = stretch / bound(gram)[:, None, None]
    start = target if start is None else start
    return list(ista(gram, target, start, step, sparsity, num_steps))


# Shrinkage


def test_soft_threshold_by_hand():
    code = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])
    assert soft_threshold(code, 1.0).tolist() == [-2, 0, 0, 0, 0, 0, 2]
    assert soft_threshold(code, 0.0).equal(code)


def test_soft_threshold_is_the_proximal_map_of_the_l1_norm():
    candidates = torch.linspace(-4, 4, 8001, dtype=torch.double)
    for value in (-2.7, -0.3, 0.0, 0.6, 0.7, 3.1):
        costs = (candidates - value).square() / 2 + 0.65 * candidates.abs()
        best = soft_threshold(torch.tensor(value, dtype=torch.double), 0.65)
        torch.testing.assert_close(candidates[costs.argmin()], best, atol=1e-3, rtol=0)


def test_gelu_shrinkage_is_its_formula():
    threshold = 0.7
    for value in (-5.0, -1.0, -0.7, -0.2, 0.0, 0.2, 0.7, 1.0, 5.0):
        excess = abs(value) - threshold
        sign = (value > 0) - (value < 0)
        expected = sign * excess * (1 + math.erf(excess / 2**0.5)) / 2
        found = gelu_threshold(torch.tensor(value, dtype=torch.double), threshold)
        assert found.item() == pytest.approx(expected, abs=1e-15)


def test_gelu_shrinkage_is_small_and_opposite_below_the_threshold():
    code, threshold = torch.linspace(-4, 4, 801).double(), 1.5
    out = gelu_threshold(code, threshold)
    below = (code.abs() < threshold - 1e-9) & (code.abs() > 1e-9)
    assert below.sum() > 200
    assert (out[below] * code[below] < 0).all()
    # max_x x (1 - cdf(x)) of the normal distribution is 0.16997: GELU is no further from ReLU.
    assert 0.16 < (out - soft_threshold(code, threshold)).abs().max() < 0.17


@pytest.mark.parametrize('shrink', [soft_threshold, gelu_threshold])
def test_every_shrinkage_is_odd_and_maps_zero_to_zero(shrink):
    code, thresholds = torch.randn(5, 7), torch.rand(5, 1)
    assert shrink(-code, thresholds).equal(-shrink(code, thresholds))
    assert shrink(torch.zeros(3), 0.4).tolist() == [0, 0, 0]
    torch.testing.assert_close(shrink(code, thresholds)[2], shrink(code[2], thresholds[2].item()))


# Lipschitz constants


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('bound', BOUNDS)
def test_lipschitz_constants_are_at_least_the_curvature(bound, size):
    atoms = problem(size, batch=20)[0].unflatten(0, (4, 5))
    curvature = torch.linalg.svdvals(atoms)[..., 0].square()
    bounds = bound(atoms.mT @ atoms)
    assert bounds.shape == (4, 5)
    if bound is lipschitz:
        torch.testing.assert_close(bounds, curvature)
    else:
        assert (bounds >= curvature + 1).all()


def test_the_bound_counts_negative_correlations():
    """Two opposite atoms: the largest eigenvalue is 2, the plain row sums are 0."""
    opposite = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert lipschitz_bound(opposite) == 3
    assert lipschitz(opposite) == pytest.approx(2)


# Energy (Eq. 1.10)


def test_energy_by_loops():
    atoms, signal = problem((5, 3), channels=2, batch=2)
    code = torch.randn(2, 3, 2, dtype=torch.double)
    found = energy(atoms, code, signal, 0.3)
    assert found.shape == (2, 2)
    for b in range(2):
        for d in range(2):
            error = atoms[b] @ code[b, :, d] - signal[b, :, d]
            expected = 0.5 * sum(e**2 for e in error) + 0.3 * sum(abs(u) for u in code[b, :, d])
            torch.testing.assert_close(found[b, d], expected)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('bound', BOUNDS)
@pytest.mark.parametrize('sparsity', [0.0, 0.3, 2.0])
def test_the_energy_never_rises(sparsity, bound, size):
    atoms, signal = problem(size, batch=30)
    far = 9 * torch.randn(30, size[1], 3, dtype=torch.double)
    for start in (None, far, 0 * far):
        codes = solve(atoms, signal, sparsity, 40, bound, start)
        energies = torch.stack([energy(atoms, code, signal, sparsity) for code in codes])
        assert energies.diff(dim=0).max() <= 1e-12 * energies[0].max()
        assert energies[-1].mean() < 0.99 * energies[0].mean()


def test_the_energy_rises_if_steps_are_too_long():
    """The law above has teeth: beyond 2 / L the same iteration climbs."""
    atoms, signal = problem((8, 24))
    codes = solve(atoms, signal, 0.3, 10, stretch=2.5)
    energies = torch.stack([energy(atoms, code, signal, 0.3) for code in codes])
    assert energies.diff(dim=0).max() > 1


# The minimum: optimality conditions, scikit-learn


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('bound', BOUNDS)
def test_optimality_at_convergence(bound, size):
    """KKT: atoms in use correlate with the error by exactly +-sparsity, the others by no more."""
    atoms, signal = problem(size)
    code = solve(atoms, signal, SPARSITY, 6000, bound)[-1]
    correlation = atoms.mT @ (signal - atoms @ code)
    used = code != 0
    assert 0 < used.sum() < used.numel()
    torch.testing.assert_close(correlation[used], SPARSITY * code[used].sign(), atol=1e-9, rtol=0)
    assert correlation[~used].abs().max() <= SPARSITY + 1e-9


@pytest.mark.parametrize('size', SIZES)
def test_agrees_with_the_lasso_of_scikit_learn(size):
    atoms, signal = problem(size, channels=2, batch=3)
    code = solve(atoms, signal, SPARSITY, 6000)[-1]
    solver = Lasso(alpha=SPARSITY / size[0], fit_intercept=False, tol=1e-14, max_iter=100_000)
    for b in range(3):
        for d in range(2):
            solver.fit(atoms[b].numpy(), signal[b, :, d].numpy())
            torch.testing.assert_close(
                code[b, :, d], torch.from_numpy(solver.coef_), atol=1e-6, rtol=0
            )


def test_a_sparsity_beyond_every_correlation_leaves_nothing():
    atoms, signal = problem((8, 24))
    sparsity = (atoms.mT @ signal).abs().max().item()
    assert (solve(atoms, signal, 1.001 * sparsity, 3000)[-1] == 0).all()
    assert (solve(atoms, signal, 0.98 * sparsity, 3000)[-1] != 0).any()


def test_ista_counts_its_steps_and_begins_at_the_start():
    atoms, signal = problem((8, 24))
    start = torch.randn(4, 24, 3, dtype=torch.double)
    assert len(solve(atoms, signal, 0.3, 5)) == 6
    (only,) = solve(atoms, signal, 0.3, 0, start=start)
    assert only.equal(start)
    one = solve(atoms, signal, 0.3, 1, lipschitz_bound, start=start)[1]
    step = 1 / lipschitz_bound(atoms.mT @ atoms)[:, None, None]
    expected = soft_threshold(start - step * atoms.mT @ (atoms @ start - signal), 0.3 * step)
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
    q, k = (0.5 * torch.randn(1, 1, 10, width, dtype=torch.double) for _ in range(2))
    weights = torch.randn(1, width, num_features, dtype=torch.double)
    features = [positive_features(t, weights, unit_length) for t in (q, k)]
    assert features[0].shape == (1, 1, 10, num_features) and all((f > 0).all() for f in features)
    found = (features[0] @ features[1].mT)[0, 0]

    q, k = (
        (t / t.norm(dim=-1, keepdim=True) if unit_length else t / width**0.25)[0, 0] for t in (q, k)
    )
    dots = q @ k.T
    squares = q.square().sum(-1)[:, None] + k.square().sum(-1)
    error = ((squares + 4 * dots).exp() - (2 * dots).exp()).div(num_features).sqrt()
    scores = (found - dots.exp()) / error
    assert scores.abs().max() < 5
    assert 0.2 < scores.square().mean() < 3
    assert error.max() < 0.1 * dots.exp().max()  # a bound that says something
