"""Scores of single images, from which all numbers of a table are made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric

from mmvars.errors import InputError

__all__ = ['NUM_DRAWS', 'ImageScores', 'Scores', 'draw_weights']

NUM_DRAWS = 1000


class ImageScores(BaseMetric):
    """Keeps what each image adds to the score, beside the metrics of a config.

    Args:
        num_classes: K, of the model.
        ignore_index: The label that does not count.

    Attributes:
        row: After the evaluation, in the main process: the entries of :class:`Scores`, as plain
            values in the order of the data set.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__(collect_device='cpu', prefix='mmvars')
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.row: dict[str, list] = {}

    def process(self, data_batch: Any, data_samples: Sequence[Mapping]) -> None:
        for sample in data_samples:
            if 'gt_sem_seg' in sample:
                result: dict[str, Any] = self._pixels(sample)
            elif 'gt_label' in sample:
                result = self._label(sample)
            else:
                raise InputError(
                    f'the test data have no labels for {_name(sample)}: robustness is measured '
                    'against labels; take the validation data, or load annotations in the pipeline'
                )
            self.results.append(dict(result, zero_gradient=sample.get('zero_gradient')))

    def compute_metrics(self, results: list) -> dict:
        self.row = {key: [result[key] for result in results] for key in results[0]}
        return {}

    def _pixels(self, sample: Mapping) -> dict[str, list]:
        """Classes that are in the labels or the prediction, with intersection and union."""
        prediction = sample['pred_sem_seg']['data'].flatten().cpu().long()
        label = sample['gt_sem_seg']['data'].flatten().cpu().long()
        counts = label != self.ignore_index
        prediction, label = prediction[counts], label[counts]
        self._check(label, sample)
        areas = [
            torch.bincount(values, minlength=self.num_classes).numpy()
            for values in (prediction[prediction == label], prediction, label)
        ]
        union = areas[1] + areas[2] - areas[0]
        (present,) = union.nonzero()
        return dict(
            classes=present.tolist(),
            intersections=areas[0][present].tolist(),
            unions=union[present].tolist(),
        )

    def _label(self, sample: Mapping) -> dict[str, int]:
        label = torch.as_tensor(sample['gt_label']).flatten()
        if label.numel() != 1:
            raise InputError(
                f'{_name(sample)} has {label.numel()} labels: robustness is measured of '
                'classifiers with one label an image'
            )
        self._check(label, sample)
        score = sample.get('pred_score')
        prediction = sample['pred_label'] if score is None else score.argmax()
        entry = dict(labels=int(label), predictions=int(torch.as_tensor(prediction).flatten()))
        if score is not None:
            entry['ranks'] = int((score > score[label]).sum())
        return entry

    def _check(self, label: torch.Tensor, sample: Mapping) -> None:
        wrong = label[(label < 0) | (label >= self.num_classes)]
        if wrong.numel():
            raise InputError(
                f'the label {int(wrong[0])} of {_name(sample)} is no class of the model, which has '
                f'{self.num_classes} (0 to {self.num_classes - 1}), nor the ignored '
                f'{self.ignore_index}: correct num_classes, reduce_zero_label or the labels'
            )


def _name(sample: Mapping) -> str:
    return repr(sample.get('seg_map_path') or sample.get('img_path') or 'an image')


@dataclass(frozen=True)
class Scores:
    """Quotients of sums over I images, and their mean over the classes.

    With intersections and unions of K classes it is the mIoU; with 0 or 1 for each image over 1,
    it is the accuracy.

    Attributes:
        numerators, denominators: ``(I, K)``, ``K`` = 1 for accuracy.
        labels: ``(I,)`` of a classifier.
    """

    numerators: np.ndarray
    denominators: np.ndarray
    labels: np.ndarray | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any], num_classes: int, top: int = 1) -> 'Scores':
        """From the entries that :class:`ImageScores` made.

        Args:
            row: The entries.
            num_classes: K of a segmentor.
            top: Of a classifier: right is an image whose class is among so many of the best.
        """
        if 'labels' in row:
            labels = np.array(row['labels'])
            right = labels == row['predictions'] if top == 1 else np.less(row['ranks'], top)
            correct = right.astype(float)[:, None]
            return cls(correct, np.ones_like(correct), labels)
        counts = np.zeros((2, len(row['classes']), num_classes))
        for image, classes in enumerate(row['classes']):
            counts[0, image, classes] = row['intersections'][image]
            counts[1, image, classes] = row['unions'][image]
        return cls(*counts)

    @classmethod
    def worst(cls, scores: Sequence['Scores']) -> 'Scores':
        """For each image one of several scores, so that the score over all images is low.

        From the scores that are lowest alone, image after image takes those that lower the whole
        most, until nothing changes: never above any of them (Croce et al., 2024, for mIoU).
        """
        counts = np.stack([[each.numerators, each.denominators] for each in scores])  # (A, 2, I, K)
        num_images = counts.shape[2]
        values = [each.value(np.ones((1, num_images)))[0] for each in scores]
        choice = np.full(num_images, np.argmin(values))
        totals = counts[choice[0]].sum(1)
        before = np.inf
        while min(values) < before:
            before = min(values)
            for image in range(num_images):
                others = totals - counts[choice[image], :, image]
                sums = others + counts[:, :, image]  # (A, 2, K)
                known = sums[:, 1] > 0
                quotients = sums[:, 0] / np.where(known, sums[:, 1], 1)
                means = quotients.sum(1) / np.maximum(known.sum(1), 1)
                if means.min() < means[choice[image]]:
                    choice[image] = means.argmin()
                totals = others + counts[choice[image], :, image]
                values = [means[choice[image]]]
        numerators, denominators = counts[choice, :, np.arange(num_images)].swapaxes(0, 1)
        return cls(numerators, denominators, scores[0].labels)

    def value(self, weights: np.ndarray) -> np.ndarray:
        """The score for each draw ``(R, I)`` of how often an image counts: ``(R,)``.

        A class that no image has does not count; one that a draw lacks keeps its quotient over all
        images, for without it the mean over the others would be another number.
        """
        totals = self.numerators.sum(0), self.denominators.sum(0)
        known = totals[1] > 0
        numerators = _weighted(weights, self.numerators[:, known])
        denominators = _weighted(weights, self.denominators[:, known])
        drawn = denominators > 0
        quotients = numerators / np.where(drawn, denominators, 1)
        return np.where(drawn, quotients, totals[0][known] / totals[1][known]).mean(axis=1)

    def pixel_accuracy(self, weights: np.ndarray) -> np.ndarray:
        """The share of pixels of a segmentor that are right, for each draw, as in :meth:`value`."""
        right = self.numerators.sum(1)  # a wrong pixel is in two unions, a right one in one
        pixels = (self.denominators.sum(1) + right) / 2
        return _weighted(weights, right) / _weighted(weights, pixels)

    @property
    def by_image(self) -> np.ndarray:
        """Accuracy, or mean IoU over the classes that an image has, of each image ``(I,)``."""
        counted = self.denominators > 0
        quotients = self.numerators / np.where(counted, self.denominators, 1)
        return quotients.sum(1) / np.maximum(counted.sum(1), 1)

    def by_class(self, num_classes: int) -> np.ndarray:
        """IoU or accuracy of each class ``(K,)`` over all images; ``nan`` for one without any."""
        if self.labels is None:
            totals = self.numerators.sum(0), self.denominators.sum(0)
        else:
            correct = np.bincount(self.labels, self.numerators[:, 0], minlength=num_classes)
            totals = correct, np.bincount(self.labels, minlength=num_classes)
        return np.divide(*totals, out=np.full(num_classes, np.nan), where=totals[1] > 0)


def draw_weights(num_images: int, seed: int = 0) -> np.ndarray:
    """How often each image counts: once, and in 1000 draws with replacement ``(1001, I)``.

    They are 2 bytes each: 100 MB for the 50,000 images of ImageNet.
    """
    generator, chances = np.random.default_rng(seed), np.full(num_images, 1 / num_images)
    weights = np.ones((1 + NUM_DRAWS, num_images), np.uint16)
    for draw in range(1, 1 + NUM_DRAWS):
        weights[draw] = generator.multinomial(num_images, chances)
    return weights


def _weighted(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums of values of images, weighted by each draw; some draws at a time, to save memory."""
    blocks = np.array_split(weights, -(-len(weights) // 64))
    return np.concatenate([block.astype(float) @ values for block in blocks])
