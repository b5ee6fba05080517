"""Sparse coding as pure functions: the mathematics of VARS (Section 1.3), without a module.

A signal ``x (N, D)``, one column a channel, is explained by few atoms of a dictionary ``P (N, M)``:

    minimise over u (M, D):  E(u) = 1/2 ||P u - x||^2 + sparsity ||u||_1            (Eq. 1.10)

Iterative shrinkage solves it: ``u <- S(u - step (P'P u - P'x), step * sparsity)`` with a step of at
most ``1 / L``, L the largest eigenvalue of P'P. LISTA (Eq. 1.12) scales step, threshold and P'P
with learned numbers; those belong to the caller.

All functions take leading batch dimensions and are differentiable.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ['SHRINKAGES', 'STEP_BOUNDS', 'SparseTrace', 'energy', 'gelu_shrink',
           'largest_eigenvalue', 'recurrent_dynamics', 'row_sum_bound', 'shrunk_descent',
           'soft_threshold', 'unrolled_shrinkage']


class SparseTrace(NamedTuple):
    """How a sparse code came about, for pictures and numbers.

    Attributes:
        codes: ``num_steps + 1`` codes. VARS-D, -SD: ``(B, h, M, D)``; VARS-S: ``(B, C, r, H, W)``.
        reconstructions: ``(B, N, C)`` for each code, the dictionary times the code, before any
            residual, norm and projection.
        signal: ``(B, N, C)``, what is reconstructed.
        atoms: ``(B, h, N, M)`` of a dense dictionary, scaled as it is used; ``None`` for VARS-S.
    """

    codes: tuple[Tensor, ...]
    reconstructions: tuple[Tensor, ...]
    signal: Tensor
    atoms: Tensor | None


def soft_threshold(code: Tensor, threshold: float | Tensor) -> Tensor:
    """``sign(u) max(|u| - t, 0)``, the proximal map of ``t ||u||_1`` (S in Eq. 1.12)."""
    return _signed(F.relu(code.abs() - threshold, inplace=not torch.is_grad_enabled()), code)


def gelu_shrink(code: Tensor, threshold: float | Tensor) -> Tensor:
    """``sign(u) GELU(|u| - t)``: the smooth shrinkage of the released VARS-D and -SD.

    Differs from the thesis (the soft threshold): below the threshold it is not zero but small and
    of the opposite sign, so that gradients pass.
    """
    return _signed(F.gelu(code.abs() - threshold), code)


def _signed(size: Tensor, code: Tensor) -> Tensor:
    """``size`` with the sign of ``code``, 0 where that is 0; in place where none is recorded."""
    sign = code.detach().sign()  # its gradient is 0 everywhere, so none is asked for
    return size * sign if torch.is_grad_enabled() else size.mul_(sign)


def _signed(size: Tensor, code: Tensor) -> Tensor:
    """``size`` with the sign of ``code``, 0 where that is 0; in place where no grad is recorded."""
    sign = code.detach().sign()  # has a gradient of 0 everywhere, so none is asked for
    return size * sign if torch.is_grad_enabled() else size.mul_(sign)


SHRINKAGES: dict[str, Callable[[Tensor, float | Tensor], Tensor]] = {
    'soft': soft_threshold,
    'gelu': gelu_shrink,
}
"""Name -> function of (code, threshold)."""


def largest_eigenvalue(gram: Tensor) -> Tensor:
    """Largest eigenvalue of symmetric positive semi-definite ``(..., M, M)``: L of Eq. 1.12.

    Returns:
        ``(...)``, the least upper bound of the curvature.
    """
    return torch.linalg.eigvalsh(gram)[..., -1]


def row_sum_bound(gram: Tensor) -> Tensor:
    """``max_i sum_j |G_ij| + 1`` of ``(..., M, M)``: above the largest eigenvalue, and cheap.

    Differs from the thesis (the largest singular value): this is what the released VARS-D and -SD
    use.

    Returns:
        ``(...)``.
    """
    return torch.linalg.vector_norm(gram, 1, dim=-1).amax(dim=-1) + 1


STEP_BOUNDS: dict[str, Callable[[Tensor], Tensor]] = {
    'spectral': largest_eigenvalue,
    'row_sum': row_sum_bound,
}
"""Name -> function of a Gram matrix; one over its value is a step that cannot overshoot."""


def energy(dictionary: Tensor, code: Tensor, signal: Tensor, sparsity: float | Tensor) -> Tensor:
    """``1/2 ||P u - x||^2 + sparsity ||u||_1`` of each column (Eq. 1.10).

    Args:
        dictionary: P, ``(..., N, M)``.
        code: u, ``(..., M, D)``.
        signal: x, ``(..., N, D)``.
        sparsity: lambda.

    Returns:
        ``(..., D)``.
    """
    error = dictionary @ code - signal
    return error.square().sum(dim=-2) / 2 + sparsity * code.abs().sum(dim=-2)


def unrolled_shrinkage(gram: Callable[[Tensor], Tensor], target: Tensor, start: Tensor,
                       step_size: float | Tensor, threshold: float | Tensor, num_steps: int,
                       shrink: Callable[[Tensor, float | Tensor], Tensor]) -> Iterator[Tensor]:
    """``u <- shrink(u - step_size (G u - b), threshold)``, a fixed number of times (Eq. 1.12).

    With ``step_size = 1 / L``, ``threshold = sparsity / L``, G = P'P and the soft threshold this is
    ISTA. The Gram operator is a function, since a convolutional dictionary applies it without ever
    forming it.

    Args:
        gram: u -> G u.
        target: b = P'x, of the shape of the code.
        start: The first code.
        step_size: Broadcasts with the code.
        threshold: Broadcasts with the code.
        num_steps: Updates; 0 gives back ``start``.
        shrink: One of :data:`SHRINKAGES`.

    Returns:
        An iterator of ``num_steps + 1`` codes, as of :func:`shrunk_descent`.
    """
    return shrunk_descent(lambda code: code - step_size * (gram(code) - target), start, threshold,
                          num_steps, shrink)


def shrunk_descent(descend: Callable[[Tensor], Tensor], start: Tensor, threshold: float | Tensor,
                   num_steps: int,
                   shrink: Callable[[Tensor, float | Tensor], Tensor]) -> Iterator[Tensor]:
    """``u <- shrink(descend(u), threshold)``, a fixed number of times.

    Args:
        descend: A step against the gradient of the squared error, ``u -> u - step (G u - b)``, in
            whichever form costs least.
        start: The first code.
        threshold: Broadcasts with the code.
        num_steps: Updates; 0 gives back ``start``.
        shrink: One of :data:`SHRINKAGES`.

    Yields:
        ``num_steps + 1`` codes, from ``start`` to the last. One at a time, so that inference need
        not hold them all.
    """
    yield start
    code = start
    for _ in range(num_steps):
        code = shrink(descend(code), threshold)
        yield code


def recurrent_dynamics(dictionary: Tensor, signal: Tensor, sparsity: float, time_step: float,
                       num_steps: int, leak: float = 1., code_leak: float = 2.,
                       inhibition: float = 2.) -> tuple[Tensor, Tensor]:
    """The neural dynamics whose equilibrium is the sparse code (Eq. 1.8-1.9), by explicit Euler.

        dz/dt = -leak z + P g(u) + x
        du/dt = -code_leak u - inhibition (P'P - I) g(u) + P'z

    with ``g`` the soft threshold at ``sparsity / 2``. With the default constants (alpha = 1, beta =
    gamma = 2 of the thesis) g(u) comes to rest at the minimum of Eq. 1.10 and z at ``P g(u) + x``
    (Eq. 1.11).

    Args:
        dictionary: P, ``(..., N, M)``.
        signal: x, ``(..., N, D)``.
        sparsity: lambda.
        time_step: Euler's step.
        num_steps: Number of steps.
        leak: alpha.
        code_leak: beta.
        inhibition: gamma.

    Returns:
        z ``(..., N, D)`` and the gated code g(u) ``(..., M, D)`` at the end.
    """
    encode = dictionary.transpose(-2, -1)
    state, potential = signal.clone(), encode @ signal
    gated = soft_threshold(potential, sparsity / 2)
    for _ in range(num_steps):
        decoded = dictionary @ gated
        state_rate = -leak * state + decoded + signal
        potential_rate = (-code_leak * potential - inhibition * (encode @ decoded - gated)
                          + encode @ state)
        state = state + time_step * state_rate
        potential = potential + time_step * potential_rate
        gated = soft_threshold(potential, sparsity / 2)
    return state, gated
