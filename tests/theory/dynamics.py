"""The recurrent network whose equilibrium is a sparse code (Section 1.3), as a pure function."""

from torch import Tensor

from mmvars.layers.sparse_coding import soft_threshold

__all__ = ['recurrent_dynamics']


def recurrent_dynamics(
    dictionary: Tensor,
    signal: Tensor,
    sparsity: float,
    time_step: float,
    num_steps: int,
    leak: float = 1.0,
    code_leak: float = 2.0,
    inhibition: float = 2.0,
) -> tuple[Tensor, Tensor]:
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
        potential_rate = (
            -code_leak * potential - inhibition * (encode @ decoded - gated) + encode @ state
        )
        state = state + time_step * state_rate
        potential = potential + time_step * potential_rate
        gated = soft_threshold(potential, sparsity / 2)
    return state, gated
