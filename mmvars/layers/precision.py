"""Parts of the arithmetic that need float32."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ['full_precision', 'upcast_to_float32']


def full_precision(like: Tensor) -> AbstractContextManager:
    """Context without autocast on the device of ``like``.

    Gram matrices, exponentials, step sizes and Fourier transforms overflow or lose their meaning in
    float16 and bfloat16 (and torch has no half-precision FFT for most sizes). They run in this
    context, on the result of :func:`upcast_to_float32`.
    """
    if like.is_meta:  # the meta device, where shapes and multiply-adds are counted, has no autocast
        return nullcontext()
    return torch.autocast(device_type=like.device.type, enabled=False)


def upcast_to_float32(tensor: Tensor) -> Tensor:
    """``tensor`` in float32 if it is float16 or bfloat16, else the argument itself."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
