"""Sparse coding as pure functions: the mathematics of VARS (Section 1.3).

A signal ``x (N, D)``, one column a channel, is reconstructed from few atoms of a dictionary
``P (N, M)``. Its code u minimizes

    E(u) = 1/2 ||P u - x||^2 + sparsity ||u||_1,    u (M, D)                      (Eq. 1.10)

:func:`ista` finds it. All functions take leading batch dimensions and are differentiable.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    'SparseTrace',
    'energy',
    'gelu_threshold',
    'ista',
    'linearized_attention',
    'lipschitz',
    'lipschitz_bound',
    'soft_threshold',
]


class SparseTrace(NamedTuple):
    """The steps that led to a sparse code, for figures, statistics and losses.

    Attributes:
        codes: ``num_steps + 1`` codes. VARS-D, -SD: ``(B, h, M, D)``; VARS-S: ``(B, C, r, H, W)``.
        reconstructions: ``(B, N, C)`` for each code: the dictionary times the code, before
            residual, norm and projection.
        signal: ``(B, N, C)``, what is reconstructed.
        atoms: ``(B, h, N, M)`` of a dense dictionary, scaled as it is used; ``None`` for VARS-S.
    """

    codes: tuple[Tensor, ...]
    reconstructions: tuple[Tensor, ...]
    signal: Tensor
    atoms: Tensor | None


def soft_threshold(code: Tensor, threshold: Tensor) -> Tensor:
    """``sign(u) max(|u| - t, 0)``, the proximal map of ``t ||u||_1`` (S in Eq. 1.12)."""
    return code.detach().sign() * F.relu(code.abs() - threshold)


def gelu_threshold(code: Tensor, threshold: Tensor) -> Tensor:
    """``sign(u) GELU(|u| - t)``: the smooth threshold of the released VARS-D and -SD.

    Differs from the soft threshold of the thesis: below t the result is not zero but small and of
    the opposite sign, so that gradients pass.
    """
    return code.detach().sign() * F.gelu(code.abs() - threshold)


def ista(
    gram: Tensor | Callable[[Tensor], Tensor],
    target: Tensor | None,
    start: Tensor,
    step_size: Tensor,
    sparsity: float | Tensor,
    num_steps: int,
    shrink: Callable[[Tensor, Tensor], Tensor] = soft_threshold,
) -> Iterator[Tensor]:
    """Iterative shrinkage: ``u <- shrink(u - step_size * (P'P u - P'x), step_size * sparsity)``.

    With a step of at most one over :func:`lipschitz` and the soft threshold no update raises the
    energy. Learned ISTA (Eq. 1.12) scales step, sparsity and P'P.

    Args:
        gram: P'P ``(..., M, M)``, or a function that applies it to a code.
        target: P'x, of the shape of the code; ``None`` where the function ``gram`` subtracts it.
        start: The first code.
        step_size: Broadcasts with the code.
        sparsity: Weight of the L1 norm; broadcasts with the code.
        num_steps: Number of updates.
        shrink: Function of code and threshold.

    Yields:
        ``num_steps + 1`` codes, from ``start`` to the last. One at a time, so that inference does
        not hold them all.
    """
    code, threshold = start, step_size * sparsity
    yield code
    for _ in range(num_steps):
        gradient = gram @ code if isinstance(gram, Tensor) else gram(code)
        if target is not None:
            gradient = gradient - target
        code = shrink(torch.addcmul(code, step_size, gradient, value=-1), threshold)
        yield code


def linearized_attention(mix: Callable[[Tensor], Iterable[Tensor]], value: Tensor) -> Tensor:
    """What the average token takes of each token: the attention of any mixer.

    ``M_m = mean over channels d of |d (mean_n out_nd) / d v_md|``: v the values, out what the mixer
    makes of them before its output projection, without what it adds to them by a skip. Queries,
    keys and dictionaries are held fixed. Of softmax attention and the Performer, whose out is
    ``A v``, this is the mean over the queries n of ``A_nm``, which their ``mean_attention``
    computes in closed form; of VARS, whose code is no linear function of v, it is the attention of
    small changes.

    Args:
        mix: From values to what is made of them, at each step, of the shape of ``value``, tokens
            in dimension -2.
        value: ``(B, h, N, D)``; the channels D of a head are averaged.

    Returns:
        ``(steps, B, h, N)``.
    """
    with torch.enable_grad():
        value = value.detach().clone().requires_grad_()
        gradients = [
            torch.autograd.grad(out.mean(dim=-2).sum(), value, retain_graph=True)[0]
            for out in mix(value)
        ]
    return torch.stack(gradients).abs().mean(dim=-1)


def lipschitz(gram: Tensor) -> Tensor:
    """Lipschitz constant of the gradient: the largest eigenvalue of P'P, L of Eq. 1.12.

    Args:
        gram: P'P, ``(..., M, M)``.

    Returns:
        ``(...)``.
    """
    return torch.linalg.eigvalsh(gram)[..., -1]


def lipschitz_bound(gram: Tensor) -> Tensor:
    """``max_i sum_j |G_ij| + 1``: an upper bound of :func:`lipschitz` that costs little.

    Differs from the thesis, which has the largest singular value: the released VARS-D and -SD use
    this bound.

    Args:
        gram: P'P, ``(..., M, M)``.

    Returns:
        ``(...)``.
    """
    return torch.linalg.vector_norm(gram, 1, dim=-1).amax(dim=-1) + 1


def energy(dictionary: Tensor, code: Tensor, signal: Tensor, sparsity: float | Tensor) -> Tensor:
    """``1/2 ||P u - x||^2 + sparsity ||u||_1`` of each column (Eq. 1.10).

    Args:
        dictionary: P, ``(..., N, M)``.
        code: u, ``(..., M, D)``.
        signal: x, ``(..., N, D)``.
        sparsity: Weight of the L1 norm.

    Returns:
        ``(..., D)``.
    """
    error = dictionary @ code - signal
    return error.square().sum(dim=-2) / 2 + sparsity * code.abs().sum(dim=-2)
