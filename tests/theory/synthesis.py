"""Analysis by synthesis as pure functions (Section 2.4): sparse coding with a top-down signal.

An image h is thought to be made from the top: ``z_L -> ... -> z_1 -> z_0 = h``, each latent of few
atoms, ``z_l = P_l u_l``, and each a sharper version of what the layer above predicts, ``g_l
(z_l+1)``. With linear predictions, g_l a matrix, the codes sought minimize (Eq. 2.6-2.8)

    E = 1/2 ||h - g_0 z_1||^2 + sum over l of 1/2 ||z_l - x_td_l||^2 + sparsity ||u_l||_1

with ``x_td_l = g_l z_l+1`` and, at the top, ``x_td_L`` the prior, the mean of a normal density. (As
in the thesis, the factor that makes Eq. 2.6 a density is left out, though it depends on z_l+1.) E
is convex. As a function of one layer's code it is, but for a constant, the modulated objective

    1/2 ||P u - (x_bu + x_td)||^2 + sparsity ||u||_1 + r(u),    x_bu = g' z_below    (Eq. 2.10)

with ``r(u) = 1/2 ||g P u||^2``, g the decoder to the layer below.

Differs from the thesis as printed: below Eq. 2.10 r lacks the factor 1/2, which its own derivation
(appendix A.3) has; and Eq. 2.11 is the rate of the potential, as Eq. 2.2 is, not of the code. Where
g is not linear, Eq. 2.10 holds for gradients alone, with the Jacobian in x_bu held fixed.

What a signal ``x_td = alpha p_j`` along atom j does: ``p_j'z`` never falls with alpha. Without r,
nor does u_j, and once it is not 0, it grows as alpha does and every other code stays as it is: no
rival of a chosen atom is ever dropped. Dropping rivals is the work of r: what atom j explains in
the layer below is not left to the others. (With r, u_j itself need not grow.)

A layer is small and dense here: this is the theory that AbSViT approximates, to be looked at and
tested, not a part of the networks. Leading batch dimensions are taken; a column is a problem.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmvars.errors import InputError, check_number
from mmvars.layers.sparse_coding import energy, lipschitz, soft_threshold

__all__ = [
    'GenerativeLayer',
    'joint_dynamics',
    'joint_energy',
    'modulated_dynamics',
    'modulated_energy',
    'stable_time_step',
]


class GenerativeLayer(NamedTuple):
    """One step of the generation: code -> latent -> prediction of the latent below.

    Attributes:
        dictionary: P, ``(..., N, M)``.
        decoder: g, ``(..., N below, N)``; ``None``: nothing below is predicted, r = 0.
    """

    dictionary: Tensor
    decoder: Tensor | None = None


def stable_time_step(layers: Sequence[GenerativeLayer]) -> float:
    """A step of Euler's method with which these layers together descend and come to rest.

    That is ``min(1, 1 / L)`` with L at least the curvature of the squared errors: for one layer the
    largest eigenvalue of ``P'P + P'g'g P``; for several twice the greatest of these. No step below
    ``min(1, 2 / L)`` raises the energy.

    Raises:
        InputError: If there is no layer.
    """
    _check_layers(layers)
    curvature = max(lipschitz(made.mT @ made).max().item() for made in map(_all_made, layers))
    # ||a - b||^2 <= 2 ||a||^2 + 2 ||b||^2 parts the layers; a dictionary of zeros takes any step.
    return 1 / max(1.0, curvature * min(len(layers), 2))


def modulated_energy(
    layer: GenerativeLayer,
    code: Tensor,
    bottom_up: Tensor,
    top_down: Tensor | None,
    sparsity: float,
) -> Tensor:
    """``1/2 ||P u - (x_bu + x_td)||^2 + sparsity ||u||_1 + 1/2 ||g P u||^2`` (Eq. 2.10).

    Args:
        layer: P, and g for r.
        code: u, ``(..., M, D)``.
        bottom_up: x_bu, ``(..., N, D)``: ``g' z_below``.
        top_down: x_td, ``(..., N, D)``, or ``None`` for 0.
        sparsity: lambda.

    Returns:
        ``(..., D)``.
    """
    found = energy(layer.dictionary, code, _total(bottom_up, top_down), sparsity)
    if layer.decoder is None:
        return found
    return found + _half_square(layer.decoder @ (layer.dictionary @ code))


def modulated_dynamics(
    layer: GenerativeLayer,
    bottom_up: Tensor,
    top_down: Tensor | None,
    sparsity: float,
    time_step: float,
    num_steps: int,
    start: Tensor | None = None,
) -> Iterator[Tensor]:
    """The dynamics whose equilibrium minimizes :func:`modulated_energy` (Eq. 2.11), by Euler steps.

        dv/dt = -v - (P'P - I) u + P'(x_bu + x_td) - P'g'g P u

    with v the potential and ``u = S(v, sparsity)`` the code, S the soft threshold.

    Args:
        layer: P, and g for r.
        bottom_up: x_bu, ``(..., N, D)``.
        top_down: x_td, ``(..., N, D)``, or ``None`` for 0.
        sparsity: lambda.
        time_step: Euler's step; :func:`stable_time_step` is one that works.
        num_steps: Number of steps.
        start: First potential ``(..., M, D)``; ``None``: 0.

    Returns:
        An iterator of ``num_steps + 1`` codes ``(..., M, D)``.

    Raises:
        InputError: On a sparsity, time step or number of steps below 0.
    """
    signal = _total(bottom_up, top_down)
    start = _at_rest([layer], signal) if start is None else [start]

    def rates(potentials: Sequence[Tensor], codes: Sequence[Tensor]) -> list[Tensor]:
        return [_rate(layer, potentials[0], codes[0], signal)]

    steps = _euler(rates, start, sparsity, time_step, num_steps)
    return (codes[0] for codes in steps)


def joint_energy(
    layers: Sequence[GenerativeLayer],
    codes: Sequence[Tensor],
    image: Tensor,
    prior: Tensor,
    sparsity: float,
) -> Tensor:
    """E of all layers: the negative logarithm of Eq. 2.8, the factors of its densities left out.

    Args:
        layers: 1 to L; each has a decoder, the first one that of the image.
        codes: ``u_l (..., M_l, D)`` of each layer.
        image: h, ``(..., N_0, D)``.
        prior: Mean of the prior on z_L, ``(..., N_L, D)``.
        sparsity: lambda, of every layer.

    Returns:
        ``(..., D)``.

    Raises:
        InputError: If there is no layer, one has no decoder, or their sizes do not fit.
    """
    _check_hierarchy(layers, image, prior)
    _, top_down = _signals(layers, codes, image, prior)
    first = layers[0]
    found = _half_square(image - first.decoder @ (first.dictionary @ codes[0]))
    for layer, code, signal in zip(layers, codes, top_down, strict=True):
        found = found + energy(layer.dictionary, code, signal, sparsity)
    return found


def joint_dynamics(
    layers: Sequence[GenerativeLayer],
    image: Tensor,
    prior: Tensor,
    sparsity: float,
    time_step: float,
    num_steps: int,
    start: Sequence[Tensor] | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """Every layer follows Eq. 2.11 at the same time, steered by the latents above and below it.

    This descends :func:`joint_energy` (Eq. 2.9) and comes to rest at its minimum.

    Args:
        layers: 1 to L; each has a decoder, the first one that of the image.
        image: h, ``(..., N_0, D)``.
        prior: Mean of the prior on z_L, ``(..., N_L, D)``.
        sparsity: lambda, of every layer.
        time_step: Euler's step; :func:`stable_time_step` is one that works.
        num_steps: Number of steps.
        start: First potential of each layer ``(..., M_l, D)``; ``None``: 0.

    Returns:
        An iterator of ``num_steps + 1`` tuples, the code of each layer.

    Raises:
        InputError: As :func:`joint_energy`, and on a sparsity, time step or number of steps below
            0.
    """
    _check_hierarchy(layers, image, prior)
    start = _at_rest(layers, image, prior) if start is None else start

    def rates(potentials: Sequence[Tensor], codes: Sequence[Tensor]) -> list[Tensor]:
        signals = zip(*_signals(layers, codes, image, prior), strict=True)
        return [
            _rate(layer, potential, code, bottom_up + top_down)
            for layer, potential, code, (bottom_up, top_down) in zip(
                layers, potentials, codes, signals, strict=True
            )
        ]

    return _euler(rates, start, sparsity, time_step, num_steps)


def _total(bottom_up: Tensor, top_down: Tensor | None) -> Tensor:
    return bottom_up if top_down is None else bottom_up + top_down


def _half_square(error: Tensor) -> Tensor:
    return error.square().sum(dim=-2) / 2


def _all_made(layer: GenerativeLayer) -> Tensor:
    """P over g P: everything that a code of the layer makes."""
    made, decoder = layer
    return made if decoder is None else torch.cat([made, decoder @ made], dim=-2)


def _signals(
    layers: Sequence[GenerativeLayer], codes: Sequence[Tensor], image: Tensor, prior: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Bottom-up and top-down signal of each layer."""
    latents = [image, *(layer.dictionary @ code for layer, code in zip(layers, codes, strict=True))]
    below, above = latents[:-1], latents[2:]
    bottom_up = [layer.decoder.mT @ z for layer, z in zip(layers, below, strict=True)]
    top_down = [layer.decoder @ z for layer, z in zip(layers[1:], above, strict=True)]
    return bottom_up, [*top_down, prior]


def _rate(layer: GenerativeLayer, potential: Tensor, code: Tensor, signal: Tensor) -> Tensor:
    """``dv/dt = -v - (P'P - I) u + P'x - grad r(u)`` of one layer (Eq. 2.11)."""
    made = layer.dictionary @ code
    error = signal - made
    if layer.decoder is not None:
        error = error - layer.decoder.mT @ (layer.decoder @ made)
    return code - potential + layer.dictionary.mT @ error


def _at_rest(layers: Sequence[GenerativeLayer], *signals: Tensor) -> list[Tensor]:
    tensors = [tensor for layer in layers for tensor in layer if tensor is not None]
    batch = torch.broadcast_shapes(*(tensor.shape[:-2] for tensor in [*tensors, *signals]))
    return [
        signals[0].new_zeros(*batch, layer.dictionary.shape[-1], signals[0].shape[-1])
        for layer in layers
    ]


def _euler(
    rates: Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]],
    potentials: Sequence[Tensor],
    sparsity: float,
    time_step: float,
    num_steps: int,
) -> Iterator[tuple[Tensor, ...]]:
    check_number('sparsity', sparsity, 0)
    check_number('time_step', time_step, 0)
    check_number('num_steps', num_steps, 0, whole=True)

    def steps() -> Iterator[tuple[Tensor, ...]]:
        now = list(potentials)
        codes = tuple(soft_threshold(v, sparsity) for v in now)
        yield codes
        for _ in range(num_steps):
            now = [v + time_step * rate for v, rate in zip(now, rates(now, codes), strict=True)]
            codes = tuple(soft_threshold(v, sparsity) for v in now)
            yield codes

    return steps()  # the checks above run now, not at the first step


def _check_layers(layers: Sequence[GenerativeLayer]) -> None:
    if not layers:
        raise InputError('layers must hold at least one GenerativeLayer, got none')


def _check_hierarchy(layers: Sequence[GenerativeLayer], image: Tensor, prior: Tensor) -> None:
    _check_layers(layers)
    rows = image.shape[-2]
    for number, (dictionary, decoder) in enumerate(layers, start=1):
        wanted = rows, dictionary.shape[-2]
        found = None if decoder is None else tuple(decoder.shape[-2:])
        if found != wanted:
            raise InputError(
                f'the decoder of layer {number} must be {wanted}, from its latent to '
                f'the one below (below layer 1: the image); got {found}'
            )
        rows = dictionary.shape[-2]
    if prior.shape[-2] != rows:
        raise InputError(
            f'prior must have {rows} rows as the last latent has, got {prior.shape[-2]}'
        )
