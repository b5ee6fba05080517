"""Which parts of the arithmetic are too delicate for half precision."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ['full_precision', 'widened']


def full_precision(like: Tensor) -> AbstractContextManager:
    """Context without autocast on the device of ``like``.

    Gram matrices, exponentials, step sizes and Fourier transforms overflow or lose their meaning in
    float16 and bfloat16 (and torch has no half-precision FFT for most sizes): they run in here, on
    :func:`widened` tensors.
    """
    if like.is_meta:  # no autocast there, but shapes and multiply-adds are counted there
        return nullcontext()
    return torch.autocast(device_type=like.device.type, enabled=False)


def widened(tensor: Tensor) -> Tensor:
    """``tensor`` in float32 if it is narrower than that, else itself."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
