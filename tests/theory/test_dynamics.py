"""The neural dynamics of Eq. 1.8-1.9 come to rest at the sparse code."""

import pytest
import torch
from dynamics import recurrent_dynamics
from torch import Tensor

from mmvars.layers.sparse_coding import energy, ista, lipschitz

# Under-complete, square and over-complete dictionaries (N, M).
SIZES = [(20, 6), (9, 9), (8, 16)]
SPARSITY = 0.7


def problem(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Four dictionaries ``(N, M)`` with atoms of length one, and signals ``(N, 3)``."""
    atoms = torch.randn(4, *size, dtype=torch.double)
    atoms = atoms / atoms.norm(dim=-2, keepdim=True)
    return atoms, 2 * torch.randn(4, size[0], 3, dtype=torch.double)


def solve(atoms: Tensor, signal: Tensor) -> Tensor:
    gram, target = atoms.mT @ atoms, atoms.mT @ signal
    step = 1 / lipschitz(gram)[:, None, None]
    *_, code = ista(gram, target, target, step, SPARSITY, 6000)
    return code


@pytest.mark.parametrize('size', SIZES)
def test_the_neural_dynamics_come_to_rest_at_the_same_code(size):
    """Eq. 1.8-1.9 with alpha = 1, beta = gamma = 2 end in Eq. 1.10 and 1.11."""
    atoms, signal = problem(size)
    state, gated = recurrent_dynamics(atoms, signal, SPARSITY, time_step=0.1, num_steps=4000)
    code = solve(atoms, signal)
    torch.testing.assert_close(gated, code, atol=1e-7, rtol=0)
    torch.testing.assert_close(state, atoms @ code + signal, atol=1e-7, rtol=0)
    # The constants matter: half the inhibition comes to rest at a code of higher energy.
    other = recurrent_dynamics(atoms, signal, SPARSITY, 0.1, 4000, inhibition=1.0)[1]
    best, worse = (energy(atoms, u, signal, SPARSITY).mean() for u in (code, other))
    assert worse > 1.01 * best


def test_without_inhibition_the_dynamics_are_the_linear_recurrent_layer():
    """Eq. 1.6-1.7 (beta = 1, gamma = 0, no sparsity) rest where Eq. 1.5 does: z = P P'z + x."""
    atoms, signal = problem((9, 5))
    atoms = 0.7 * atoms / torch.linalg.matrix_norm(atoms, 2)[:, None, None]
    state, gated = recurrent_dynamics(atoms, signal, 0.0, 0.1, 2000, code_leak=1.0, inhibition=0.0)
    expected = torch.linalg.solve(torch.eye(9).double() - atoms @ atoms.mT, signal)
    torch.testing.assert_close(state, expected)
    torch.testing.assert_close(gated, atoms.mT @ expected)
