"""Protocols by name, as plain data, and the numbers that sum up a table of scores.

A score is a share of 1: mIoU of a segmentor, top-1 accuracy of a classifier. All functions take
scores as numbers or as arrays, one entry a draw of the bootstrap.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mmvars.errors import InputError
from mmvars.robustness.corruptions import STANDARD

__all__ = [
    'ALEXNET_ERRORS',
    'CLEAN',
    'PROTOCOLS',
    'Protocol',
    'Setting',
    'corruption_errors',
    'corruption_means',
    'summarize',
]

ALEXNET_ERRORS = dict(
    gaussian_noise=0.886428,
    shot_noise=0.894468,
    impulse_noise=0.922640,
    defocus_blur=0.819880,
    glass_blur=0.826268,
    motion_blur=0.785948,
    zoom_blur=0.798360,
    snow=0.866816,
    frost=0.826572,
    fog=0.819324,
    brightness=0.564592,
    contrast=0.853204,
    elastic_transform=0.646056,
    pixelate=0.717840,
    jpeg_compression=0.606500,
)
"""Top-1 error of AlexNet, the mean over five severities (Hendrycks and Dietterich, 2019)."""


class Setting(NamedTuple):
    """What is done to images, and how much: a corruption at a severity of 1 to 5, or nothing."""

    change: str | None = None
    level: int = 0

    @property
    def name(self) -> str:
        return 'clean' if self.change is None else f'{self.change}-{self.level}'


CLEAN = Setting()


@dataclass(frozen=True)
class Protocol:
    """What is measured.

    Attributes:
        name: On the command line.
        version: Raised whenever its numbers change.
        purpose: One line, for the help and the report.
        numbers: Which numbers of :func:`summarize` the report has.
        changes: Names.
        levels: Of each.
        images: How many, evenly spaced in the test data; ``None``: all.
        imagenet_c: Whether images are prepared as those of ImageNet-C, see
            :func:`mmvars.robustness.runner.imagenet_c_pipeline`, not as the config says.
        seed: Of the corruptions.
    """

    name: str
    version: int
    purpose: str
    numbers: tuple[str, ...]
    changes: tuple[str, ...] = STANDARD
    levels: tuple[int, ...] = (1, 2, 3, 4, 5)
    images: int | None = None
    imagenet_c: bool = False
    seed: int = 0

    @property
    def settings(self) -> list[Setting]:
        """Clean images first, then each change at each level."""
        return [CLEAN] + [Setting(name, level) for name in self.changes for level in self.levels]


_MEANS = ('clean', 'corrupted', 'relative drop')

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            'quick',
            1,
            'five corruptions at severity 3, 100 images: a first look, on a CPU',
            _MEANS,
            ('gaussian_noise', 'motion_blur', 'fog', 'contrast', 'jpeg_compression'),
            (3,),
            100,
        ),
        Protocol(
            'segmentation',
            1,
            'the 15 corruptions at 5 severities on the image as loaded: mean, drop, by class',
            _MEANS,
        ),
        Protocol(
            'mmdet',
            1,
            "as MMDetection's test_robustness.py: P (clean), mPC (mean under corruption), rPC",
            ('P', 'mPC', 'rPC'),
        ),
        Protocol(
            'hendrycks',
            1,
            'ImageNet-C made on the fly (short side 256, center crop 224, corrupted, JPEG of '
            "quality 85; no resize after it): mCE by AlexNet's errors, and not normalized",
            ('clean', 'corrupted', 'mean error', 'mCE'),
            imagenet_c=True,
        ),
    )
}


def corruption_means(scores: Mapping[Setting, Any]) -> dict[str, Any]:
    """Corruption -> mean of its scores over the severities."""
    names = dict.fromkeys(s.change for s in scores if s.change is not None)
    return {
        name: np.mean([scores[s] for s in scores if s.change == name], axis=0) for name in names
    }


def corruption_errors(means: Mapping[str, Any]) -> dict[str, Any]:
    """Corruption -> its error over AlexNet's, 1 where both are equal (CE).

    Raises:
        InputError: If AlexNet's error is not known for one.
    """
    if unknown := means.keys() - ALEXNET_ERRORS.keys():
        raise InputError(
            f'mCE is defined for the 15 corruptions of ImageNet-C, not for {", ".join(unknown)}; '
            'leave --corruptions out'
        )
    return {name: (1 - mean) / ALEXNET_ERRORS[name] for name, mean in means.items()}


def summarize(scores: Mapping[Setting, Any]) -> dict[str, Any]:
    """The numbers that sum up a complete table of scores.

    Returns:
        clean, P: The score on clean images.
        corrupted, mPC: Mean over the corruptions of the means over their severities.
        rPC: ``mPC / P`` (Michaelis et al., 2019).
        relative drop: ``1 - rPC``.
        mean error: ``1 - corrupted``, the mean of the CE that is not normalized.
        mCE: Mean of the errors over AlexNet's; only of the 15 at 5 severities.
    """
    clean, means = scores[CLEAN], corruption_means(scores)
    corrupted = np.mean(list(means.values()), axis=0)
    ratio = np.divide(
        corrupted, clean, out=np.full(np.shape(clean), np.nan), where=np.greater(clean, 0)
    )
    numbers = {
        'clean': clean,
        'P': clean,
        'corrupted': corrupted,
        'mPC': corrupted,
        'rPC': ratio,
        'relative drop': 1 - ratio,
        'mean error': 1 - corrupted,
    }
    if means.keys() == ALEXNET_ERRORS.keys() and len(scores) == 1 + 5 * len(means):
        numbers['mCE'] = np.mean(list(corruption_errors(means).values()), axis=0)
    return numbers
