"""What torchattacks 3.5.1 makes of small images: how attacks.npz was recorded.

python tests/robustness/record_attacks.py, where ``pip install --no-deps torchattacks==3.5.1`` and
torch are. It perturbs images of 0 to 1 in front of a network that normalizes them.
"""

from pathlib import Path

import numpy as np
import torch
import torchattacks
from attack_models import MEAN, STD, small_images, small_network
from torch import nn


class Normalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = small_network()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(values)[:, None, None] / 255 for values in (MEAN, STD))
        return self.network((images - mean) / std)


def main() -> None:
    pixels, labels = small_images()
    images, model = pixels / 255, Normalized().eval()
    attacks = {
        'fgsm-1': torchattacks.FGSM(model, eps=1 / 255),
        'fgsm-8': torchattacks.FGSM(model, eps=8 / 255),
        'pgd-1': torchattacks.PGD(model, 1 / 255, 0.5 / 255, 5, random_start=False),
        'pgd-8': torchattacks.PGD(model, 8 / 255, 4 / 255, 5, random_start=False),
        'pgd20-4': torchattacks.PGD(model, 4 / 255, 1 / 255, 20, random_start=False),
    }
    found = {name: 255 * attack(images, labels).numpy() for name, attack in attacks.items()}
    np.savez_compressed(Path(__file__).with_name('attacks.npz'), **found)


if __name__ == '__main__':
    main()
