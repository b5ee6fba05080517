"""Reliability of pixels as a metric of MMSegmentation."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from mmvars.errors import InputError, check_choice
from mmvars.registry import METRICS
from mmvars.robustness.reliability import PixelCounts, count_pixels, reliability

__all__ = ['ReliabilityMetric']

NAMES = dict(
    ece='ECE',
    auroc='AUROC',
    fpr95='FPR95',
    aupr_error='AUPR_error',
    aupr_success='AUPR_success',
    confidence='mean_confidence',
)


@METRICS.register_module()
class ReliabilityMetric(BaseMetric):
    """Calibration of pixels, and how well their confidence tells the wrong ones, in percent.

    See :mod:`mmvars.robustness.reliability` for the definitions. Works beside ``IoUMetric``:
    ``val_evaluator = [dict(type='IoUMetric', iou_metrics=['mIoU']),
    dict(type='mmvars.ReliabilityMetric')]``. About 9 KB are kept an image.

    Args:
        ignore_index: Label of the pixels that do not count.
        scores: What the model leaves in ``seg_logits``: ``'logits'``, or ``'probabilities'``,
            which are divided by their sum: test-time augmentation and mask classification
            (Mask2Former). None: logits, refused where none is below zero.
        calibration_bins: Number of bins of the ECE.
        collect_device: Where results of several processes are collected, ``'cpu'`` or ``'gpu'``.
        prefix: Put before the names of the measures.

    Raises:
        InputError: If an argument is none of these; when applied, if the model keeps no
            ``seg_logits``, or they do not look like logits and ``scores`` does not say so.
    """

    default_prefix = 'reliability'

    def __init__(
        self,
        ignore_index: int = 255,
        scores: str | None = None,
        calibration_bins: int = 15,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if scores is not None:
            check_choice('scores', scores, ('logits', 'probabilities'))
        self.ignore_index = ignore_index
        self.scores = scores
        self.calibration_bins = calibration_bins

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            if 'seg_logits' not in sample:
                raise InputError(
                    'ReliabilityMetric needs seg_logits, which the model did not keep; set '
                    'model.test_cfg.keep_logits=True'
                )
            scores = sample['seg_logits']['data']
            prediction = sample['pred_sem_seg']['data'].squeeze(0)
            labels = sample['gt_sem_seg']['data'].squeeze(0)
            if self.scores is None and scores.numel() and scores.min() >= 0:
                raise InputError(
                    'no value of seg_logits is below zero, as if they were probabilities; set '
                    "scores='probabilities' in ReliabilityMetric if they are, else 'logits'"
                )
            counts = count_pixels(
                scores,
                prediction.to(scores.device),
                labels.to(scores.device),
                self.ignore_index,
                self.scores == 'probabilities',
                self.calibration_bins,
            )
            self.results.append((counts.histogram.int().cpu(), counts.calibration.cpu()))

    def compute_metrics(self, results: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        histograms, calibrations = map(torch.stack, zip(*results, strict=True))
        measures = reliability(PixelCounts(histograms.sum(0), calibrations.sum(0)))
        return {shown: round(100 * measures[name], 2) for name, shown in NAMES.items()}
