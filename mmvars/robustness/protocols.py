"""Protocols by name, as plain data, and the numbers that sum up a table of scores.

A score is a share of 1: mIoU of a segmentor, top-1 accuracy of a classifier. All functions take
scores as numbers or as arrays, one entry a draw of the bootstrap.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mmvars.errors import InputError
from mmvars.robustness.attacks import ATTACKS, SEGMENTATION_LOSSES
from mmvars.robustness.corruptions import STANDARD

__all__ = [
    'ALEXNET_ERRORS',
    'CLEAN',
    'OVERWHELMING',
    'PROTOCOLS',
    'Protocol',
    'WORST_CASE',
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
    """What is done to images, and how much, or nothing.

    A corruption at a severity of 1 to 5, or an attack at an epsilon in 1/255 of pixels. Images of
    another source, as of night, are a change without a level.
    """

    change: str | None = None
    level: float = 0

    @property
    def name(self) -> str:
        if self.change is None:
            return 'clean'
        return f'{self.change}-{self.level:g}' if self.level else self.change


CLEAN = Setting()
WORST_CASE = 'worst case'
"""The change of a table that is, for each image, one of the attacks, so that least is left."""
OVERWHELMING = 64
"""Epsilon at which nothing can be left, in 1/255."""


@dataclass(frozen=True)
class Protocol:
    """What is measured.

    Attributes:
        name: On the command line.
        version: Raised whenever its numbers change.
        purpose: One line, for the help and the report.
        numbers: Which numbers of :func:`summarize` the report has.
        changes: Names of corruptions, of attacks, or of other images.
        levels: Of each: severities, or epsilons in 1/255 of pixels; (0,) where there are none.
        images: How many, evenly spaced in the test data; ``None``: all.
        imagenet_c: Whether images are prepared as those of ImageNet-C, see
            :func:`mmvars.robustness.runner.imagenet_c_pipeline`, not as the config says.
        seed: Of the random numbers.
        clean: Whether the test images of the config are among the settings.
    """

    name: str
    version: int
    purpose: str
    numbers: tuple[str, ...]
    changes: tuple[str, ...] = STANDARD
    levels: tuple[float, ...] = (1, 2, 3, 4, 5)
    images: int | None = None
    imagenet_c: bool = False
    seed: int = 0
    clean: bool = True

    @property
    def stored(self) -> bool:
        """Whether its images are photographs of another source, and cannot be made here."""
        return self.levels == (0,)

    @property
    def settings(self) -> list[Setting]:
        """Clean images first, then each change at each level, and what an attack is checked by."""
        return list(dict.fromkeys([*[CLEAN] * self.clean, *self.grid, *self.checks]))

    @property
    def grid(self) -> list[Setting]:
        """Each change at each level."""
        return [Setting(name, level) for name in self.changes for level in self.levels]

    @property
    def is_attack(self) -> bool:
        return self.changes[0] in ATTACKS

    @property
    def worst(self) -> list[Setting]:
        """Of attacks: the worst case at each level, which follows from the rows of the grid."""
        return [Setting(WORST_CASE, level) for level in self.levels] if self.is_attack else []

    @property
    def checks(self) -> list[Setting]:
        """Of attacks: noise, few steps, many, and the last attack where nothing can be left."""
        top = max(self.levels)
        weak = [Setting(name, top) for name in ('noise', 'pgd', 'pgd20')]
        last = self.changes[-1]
        if self.is_attack and ATTACKS[last].steps < 2:  # one step overshoots where epsilon is large
            last = 'pgd20'
        return [*weak, Setting(last, OVERWHELMING)] if self.is_attack else []


_MEANS = ('clean', 'corrupted', 'relative drop')
_SHIFTED = ('clean', 'shifted', 'relative drop')
_SHIFTED_TOP5 = (*_SHIFTED, 'top-5')

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
            'ImageNet-C, stored or made on the fly (short side 256, center crop 224, corrupted, '
            "JPEG of quality 85), without resize: mCE by AlexNet's errors, and not normalized",
            ('clean', 'corrupted', 'mean error', 'mCE'),
            imagenet_c=True,
        ),
        Protocol(
            'attacks',
            1,
            'FGSM, and PGD of 5 steps, at 1/255 of pixels, as in Table 1.2 of the thesis',
            (),
            ('fgsm', 'pgd'),
            (1,),
        ),
        Protocol(
            'segmentation-attacks',
            1,
            'PGD, SegPGD, CosPGD and the losses of SEA, 20 steps each, at 1/255 and 4/255: worst '
            'case of each image over them',
            (),
            ('fgsm', 'pgd20', *SEGMENTATION_LOSSES),
            (1, 4),
            100,
        ),
        Protocol(
            'imagenet-a',
            1,
            'natural photographs that models got wrong: 200 classes, others cannot be answered',
            _SHIFTED_TOP5,
            ('imagenet-a',),
            (0,),
        ),
        Protocol(
            'imagenet-r',
            1,
            'renditions (art, toys, sketches): 200 classes, others cannot be answered',
            _SHIFTED_TOP5,
            ('imagenet-r',),
            (0,),
        ),
        Protocol(
            'imagenet-sketch',
            1,
            'sketches of the 1000 classes',
            _SHIFTED_TOP5,
            ('imagenet-sketch',),
            (0,),
        ),
        Protocol(
            'imagenet-v2',
            1,
            'new photographs of the 1000 classes, collected as ImageNet was',
            _SHIFTED_TOP5,
            ('imagenet-v2',),
            (0,),
        ),
        Protocol(
            'acdc',
            1,
            "streets in fog, at night, in rain and in snow, with Cityscapes' classes: mean of four",
            _SHIFTED,
            ('fog', 'night', 'rain', 'snow'),
            (0,),
        ),
        Protocol(
            'dark-zurich',
            1,
            "streets at night, with Cityscapes' classes",
            _SHIFTED,
            ('night',),
            (0,),
        ),
        Protocol(
            'bdd100k',
            1,
            "streets of another country, at all hours, with Cityscapes' classes",
            _SHIFTED,
            ('bdd100k',),
            (0,),
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
        corrupted, shifted, mPC: Mean over the changes of the means over their levels.
        mean error: ``1 - corrupted``, the mean of the CE that is not normalized.
        mCE: Mean of the errors over AlexNet's; only of the 15 at 5 severities.
        clean, P: The score on clean images, where they were tested, as what follows.
        rPC: ``mPC / P`` (Michaelis et al., 2019).
        relative drop: ``1 - rPC``.
    """
    means = corruption_means(scores)
    changed = np.mean(list(means.values()), axis=0)
    numbers = dict.fromkeys(('corrupted', 'shifted', 'mPC'), changed)
    numbers['mean error'] = 1 - changed
    if means.keys() == ALEXNET_ERRORS.keys() and len(scores.keys() - {CLEAN}) == 5 * len(means):
        numbers['mCE'] = np.mean(list(corruption_errors(means).values()), axis=0)
    if CLEAN in scores:
        clean = scores[CLEAN]
        ratio = np.divide(
            changed, clean, out=np.full(np.shape(clean), np.nan), where=np.greater(clean, 0)
        )
        numbers |= {'clean': clean, 'P': clean, 'rPC': ratio, 'relative drop': 1 - ratio}
    return numbers
