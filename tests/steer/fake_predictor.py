"""A predictor without a network, with the interface of ``mmvars.Predictor``.

Its answers tell whose image they are about: the mean color of the image is in the prior.
"""

import copy
from types import SimpleNamespace

import numpy as np

from mmvars.errors import InputError, check_number
from mmvars.prompts import Box, Points


class FakePredictor:
    classes = ('sky', 'dog', 'car')
    palette = [[90, 160, 220], [200, 120, 40], [120, 40, 160]]
    own_alpha = 2.0
    prior_classes = dict(enumerate(classes))

    def __init__(self, is_steerable: bool = True, scales_without_prior: bool = True) -> None:
        self.is_steerable = is_steerable
        self.scales_without_prior = scales_without_prior
        self.image = None

    def clone(self) -> 'FakePredictor':
        other = copy.copy(self)
        other.image = None
        return other

    def set_image(self, image) -> None:
        if image.width < 8:
            raise InputError('the image is smaller than a patch')
        self.image = np.array(image)

    def predict(self, prior=None, alpha=None) -> SimpleNamespace:
        if alpha is not None:
            check_number('alpha', alpha, 0)
            if prior is None and not self.scales_without_prior:
                raise InputError('alpha scales nothing without a prior')
        scale = self.own_alpha if alpha is None else alpha
        height, width, _ = self.image.shape
        gray = self.image.mean(axis=2) / 255
        y, x = np.mgrid[:height, :width]
        if prior is None:
            weights, vector, named = np.zeros_like(gray), None, None
        else:
            place = self._place(prior, (height, width))
            weights = np.exp(-np.hypot(x - place[0], y - place[1]) / (0.25 * width))
            vector, named = self.image.mean(axis=(0, 1)), prior if isinstance(prior, int) else 1
        logits = np.stack([2 * gray, 1 - gray, np.zeros_like(gray)])
        plain = np.exp(logits) / np.exp(logits).sum(axis=0)
        if named is not None:
            logits[named] += 2 * scale * weights
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=0)
        change = probabilities - plain
        return SimpleNamespace(
            labels=probabilities.argmax(axis=0),
            probabilities=probabilities,
            heatmap=weights**2 if self.is_steerable else None,
            token_weights=weights if self.is_steerable else None,
            # An exported file shows nothing of its inside.
            attention=gray + scale * weights if self.is_steerable else None,
            bottom_up=gray if self.is_steerable else None,
            shift=SimpleNamespace(
                pixels=np.abs(change).sum(axis=0) / 2, classes=change.mean(axis=(1, 2))
            ),
            prior=vector,
            alpha=float(scale),
        )

    def _place(self, prior, size) -> tuple[float, float]:
        if isinstance(prior, Points | Box):
            return tuple(prior.pixels(size).positive.mean(axis=0))
        if isinstance(prior, int) and not 0 <= prior < len(self.classes):
            raise InputError(f'there is no class {prior}')
        if isinstance(prior, np.ndarray) and prior.shape != (3,):
            raise InputError(f'a vector of this model has 3 numbers, got {prior.shape}')
        return size[1] / 2, size[0] / 2
