"""What is measured of the maps of one image: plain numbers, which are kept as JSON."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmvars.datasets.files import open_image
from mmvars.errors import InputError
from mmvars.saliency.data import FixationData, MaskData
from mmvars.saliency.fixations import (
    auc_judd,
    auc_shuffled,
    cc,
    checked_map,
    fixation_density,
    kl_divergence,
    nss,
    shuffled_points,
    sim,
)
from mmvars.saliency.objects import (
    best_jaccard,
    foreground_overlap,
    mass_accuracy,
    mass_masks,
    pointing_game,
    rank_accuracy,
)
from mmvars.saliency.subject import View

__all__ = [
    'FIXATION_SCORES',
    'OBJECT_SCORES',
    'at_pixels',
    'baselines',
    'fixation_scores',
    'foreground_counts',
    'object_scores',
    'seen_labels',
    'seen_points',
]

FIXATION_SCORES = ('NSS', 'AUC-Judd', 'sAUC', 'CC', 'KL', 'SIM')
OBJECT_SCORES = ('pointing', 'mass', 'rank', 'Jaccard')


def baselines(view: View, grid: tuple[int, int], seed: int) -> dict[str, Tensor]:
    """Maps ``(1, h, w)`` that know nothing of the image.

    Args:
        view: What a model sees of it.
        grid: Patches ``(h, w)``.
        seed: Of the image.

    Returns:
        ``'center'``: a Gaussian around the middle, its standard deviation a quarter of each side,
        at each pixel. ``'random'``: a uniform number for each patch.
    """
    y, x = (((torch.arange(n) + 0.5) / n - 0.5) / 0.25 for n in (view.height, view.width))
    center = torch.exp(-0.5 * (y[:, None].square() + x.square()))
    generator = torch.Generator().manual_seed(seed)
    return {'center': center[None], 'random': torch.rand((1, *grid), generator=generator)}


def at_pixels(maps: Tensor, view: View) -> np.ndarray:
    """The mean of the heads ``(K, h, w)`` at the pixels of the file, at most 1: ``(H, W)``."""
    mean = maps.double().mean(dim=0)[None, None]
    size = view.height, view.width
    pixels = F.interpolate(mean, size=size, mode='bilinear', align_corners=False)[0, 0].numpy()
    pixels /= pixels.max() or 1
    return pixels


def seen_points(data: FixationData, index: int, view: View) -> tuple[np.ndarray, np.ndarray]:
    """The fixations of an image, and those of all others at its size, within what is seen of it."""

    def seen(points: np.ndarray) -> np.ndarray:
        points = points - (view.left, view.top)
        return points[((points >= 0) & (points < (view.width, view.height))).all(axis=1)]

    return seen(data.points[index]), seen(shuffled_points(data.points, data.sizes, index))


def fixation_scores(
    maps: Mapping[str, Tensor],
    view: View,
    points: np.ndarray,
    other_points: np.ndarray,
    sigma: float,
    definition: str,
) -> dict[str, list[float]]:
    """:data:`FIXATION_SCORES` of each map."""
    size = view.height, view.width
    density = checked_map('density', fixation_density(points, size, sigma))
    scores = {}
    for name, each in maps.items():
        saliency = checked_map('saliency', at_pixels(each, view))
        values, low, high, _ = saliency
        own = [
            nss(saliency, points, definition),
            auc_shuffled(saliency, points, other_points),
            cc(saliency, density),
            kl_divergence(saliency, density),
            sim(saliency, density, definition),
        ]
        values -= low  # the jitter of this AUC is for maps from 0 to 1
        values /= high - low or 1
        own.insert(1, auc_judd(values, points, definition))
        scores[name] = own
    return scores


def seen_labels(data: MaskData, index: int, view: View) -> np.ndarray:
    """Labels ``(H, W)`` of what is seen of an image.

    Raises:
        InputError: If the mask is not of the size of the image.
    """
    labels, path = data.labels(index), data.paths[index]
    with open_image(path, path) as image:
        width, height = image.size
    if labels.shape != (height, width):
        raise InputError(
            f'the mask of {path} has {labels.shape[1]}x{labels.shape[0]} pixels, and the image '
            f'{width}x{height}: they must be of one size'
        )
    return labels[view.top :, view.left :][: view.height, : view.width]


def foreground_counts(
    maps: Mapping[str, Tensor], view: View, foreground: np.ndarray, counted: np.ndarray
) -> dict[str, list[int]]:
    """Pixels marked rightly, falsely and not, and all, of each map: see ``Overlap``."""
    return {
        name: [*foreground_overlap(at_pixels(each, view), foreground, counted)]
        for name, each in maps.items()
    }


def object_scores(
    maps: Mapping[str, Tensor], view: View, target: np.ndarray, counted: np.ndarray
) -> dict[str, list[float]]:
    """:data:`OBJECT_SCORES` of each map for one object."""
    scores = {}
    for name, each in maps.items():
        values = at_pixels(each, view)
        masks = _nearest(mass_masks(each.numpy()), view)
        scores[name] = [
            pointing_game(values, target, counted),
            mass_accuracy(values, target, counted),
            rank_accuracy(values, target, counted),
            best_jaccard(masks, target, counted),
        ]
    return scores


def _nearest(masks: np.ndarray, view: View) -> np.ndarray:
    """Masks of patches ``(K, h, w)`` at the pixels of the file."""
    rows, columns = (
        np.arange(size) * patches // size
        for size, patches in zip((view.height, view.width), masks.shape[1:], strict=True)
    )
    return masks[:, rows[:, None], columns]
