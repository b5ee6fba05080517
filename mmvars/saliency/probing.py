"""Generative probing (Fig. 2.9): how much of an image is in the tokens of the first block."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.layers import TokenGrid
from mmvars.networks import Trunk
from mmvars.networks.regression import TokenSums, fit_ridge

__all__ = ['SCORES', 'Decoder', 'DecoderFit', 'embedded_patches', 'probe_scores']

SCORES = ('R2 in', 'R2 out', 'r in', 'r out', 'r in - out')


class Decoder(NamedTuple):
    """One linear map from a token to the pixels of its patch, with a bias.

    Attributes:
        weight: ``(C + 1, 3 P^2)``, the bias last.
        mean: ``(3, P, P)``, the mean patch of the images that it was fitted to.
        ridge: The best of those tried.
        r2: Of bottom-up tokens, on the images that chose the ridge.
    """

    weight: Tensor
    mean: Tensor
    ridge: float
    r2: float

    def __call__(self, tokens: Tensor, grid: TokenGrid) -> np.ndarray:
        """The image ``(h P, w P, 3)`` that patch tokens ``(h w, C)`` decode to, RGB from 0 to 1."""
        patches = _with_one(tokens.cpu().double()) @ self.weight
        maps = patches.T.unflatten(1, (grid.height, grid.width))
        return F.pixel_shuffle(maps, self.mean.shape[-1]).permute(1, 2, 0).numpy()

    def mean_image(self, grid: TokenGrid) -> np.ndarray:
        """The mean patch everywhere, ``(h P, w P, 3)``: what R2 is 0 of."""
        return self.mean.repeat(1, grid.height, grid.width).permute(1, 2, 0).numpy()


class DecoderFit:
    """Sums over the bottom-up tokens of many images, and the decoder that follows from them.

    Args:
        trunk: Whose tokens.
    """

    def __init__(self, trunk: Trunk) -> None:
        self.patch = trunk.strides[0]
        widths = trunk.widths[0] + 1, 3 * self.patch**2
        self.fitted, self.held_out = TokenSums(*widths), TokenSums(*widths)

    def add(self, tokens: Tensor, pixels: np.ndarray, held_out: bool) -> None:
        """Add the patch tokens ``(h w, C)`` of an image ``(h P, w P, 3)`` uint8, RGB.

        Args:
            tokens: Of :func:`embedded_patches`.
            pixels: The image.
            held_out: Whether it chooses the ridge; else it is fitted.
        """
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).double() / 255
        patches = F.pixel_unshuffle(image, self.patch).flatten(1).T
        sums = self.held_out if held_out else self.fitted
        sums.add(_with_one(tokens.cpu()), patches)

    def solve(self) -> Decoder:
        """Ridge regression in closed form.

        Raises:
            InputError: If a token is not finite.
        """
        if not self.fitted.outputs_outputs.isfinite().all():
            raise InputError('the tokens are not all finite numbers: check the weights')
        fit = fit_ridge(self.fitted, self.held_out)
        mean = self.fitted.inputs / int(self.fitted.count)
        return Decoder(fit.solution, mean.view(3, self.patch, self.patch), fit.ridge, 1 - fit.error)


def embedded_patches(embedded: Tensor, grid: TokenGrid) -> Tensor:
    """The bottom-up input of the first block: patches ``(h w, C)`` of one image.

    They are patch embedding and position, before the block's norm.
    """
    return grid.patch_tokens(embedded)[0]


def _with_one(tokens: Tensor) -> Tensor:
    return torch.cat([tokens, tokens.new_ones(len(tokens), 1)], dim=1)


def probe_scores(
    decoded: Mapping[str, np.ndarray],
    image: np.ndarray,
    mean: np.ndarray,
    inside: np.ndarray,
    counted: np.ndarray,
) -> dict[str, list[float]]:
    """How well decoded images are the image, inside an object and outside.

    Args:
        decoded: Name -> ``(H, W, 3)``.
        image: ``(H, W, 3)``, from 0 to 1.
        mean: ``(H, W, 3)``, what R2 is 0 of.
        inside: ``(H, W)`` bool, the object.
        counted: ``(H, W)`` bool, the pixels with a label.

    Returns:
        For the inside, then the outside: sums of squares of the error and of the image about the
        mean, and the correlation of the values, each channel less its mean there (0 of a
        constant), to which size and color of what is added do not matter.
    """
    scores = {}
    for name, each in decoded.items():
        scores[name] = [
            number
            for region in (inside & counted, ~inside & counted)
            for number in (
                float(np.square(each[region] - image[region]).sum()),
                float(np.square(mean[region] - image[region]).sum()),
                _correlation(each[region], image[region]),
            )
        ]
    return scores


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = ((each - each.mean(axis=0)).ravel() for each in (a, b))
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 1e-9 else 0.0
