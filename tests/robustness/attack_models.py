"""A small classifier whose weights are written down, for the attacks and their oracle."""

import numpy as np
import torch
from torch import Tensor, nn

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def small_network() -> nn.Sequential:
    """Of images ``(B, 3, 16, 16)`` to five logits, with a kink in every layer."""
    rng = np.random.default_rng(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2), nn.GELU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 5),
    )  # fmt: skip
    for parameter in network.parameters():
        values = 2 * rng.standard_normal(parameter.shape) / parameter[0].numel() ** 0.5
        parameter.data = torch.as_tensor(values, dtype=torch.float32)
    return network.eval()


def small_images() -> tuple[Tensor, Tensor]:
    """Pixels ``(6, 3, 16, 16)`` uint8, black and white among them, and labels."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (6, 3, 16, 16))
    pixels[0, :, :8], pixels[1, :, 8:] = 0, 255
    return torch.as_tensor(pixels, dtype=torch.uint8), torch.arange(6) % 5
