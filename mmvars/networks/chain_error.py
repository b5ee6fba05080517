"""The reconstruction error of a decoder, with its gradient formed in the forward pass."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmvars.layers.tracing import is_transformed

__all__ = ['chain_error']


def chain_error(weight: Tensor, output: Tensor, target: Tensor) -> Tensor:
    """``mean((output weight' - target)^2)``, differentiable in ``weight`` alone.

    Nothing of the size of the tokens is kept for the backward pass: with the other two constant,
    the gradient, as large as the weight, can be formed at once, for the same products.

    Args:
        weight: ``(C, C)``.
        output: ``(B, N, C)``, without gradient.
        target: ``(B, N, C)``, without gradient.
    """
    needs_gradient = torch.is_grad_enabled() and weight.requires_grad
    # In fp16 the gradient would underflow here: a loss scaler acts on the backward pass only.
    # What torch.func differentiates, it wants to differentiate by itself.
    plain = is_transformed() or _precision(weight) == torch.float16
    if needs_gradient and not plain:
        return _ChainError.apply(weight, output, target)
    return F.mse_loss(F.linear(output, weight), target)


def _precision(weight: Tensor) -> torch.dtype:
    device = weight.device.type
    if not weight.is_meta and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


class _ChainError(torch.autograd.Function):

    @staticmethod
    def forward(ctx, weight: Tensor, output: Tensor, target: Tensor) -> Tensor:
        residual = F.linear(output, weight) - target
        gradient = residual.flatten(0, -2).t() @ output.flatten(0, -2)
        ctx.save_for_backward(gradient.to(weight.dtype).mul_(2 / residual.numel()))
        return residual.square_().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        gradient, = ctx.saved_tensors
        return grad * gradient, None, None
