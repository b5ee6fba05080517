"""Does a segmentor know where it is wrong? Calibration, and errors found by confidence.

A pixel's confidence is the probability of the class that is predicted for it. Of all labeled
pixels together:

* ECE: expected calibration error, the mean over pixels of ``|accuracy - mean confidence|`` of the
  pixel's bin, with bins of equal width (Guo et al., ICML 2017);
* AUROC: probability that a right pixel is more confident than a wrong one, ties counting half;
* FPR@95: share of the wrong pixels that are accepted where 95 % of the right ones are;
* AUPR of errors (successes): average precision of finding the wrong (right) pixels by low (high)
  confidence (Hendrycks and Gimpel, ICLR 2017).

Pixels are counted in a histogram of confidence, so memory does not grow with them. Its bins are of
equal width in log odds, from -8 to 17 (float32 knows no greater confidence), so that those near
certainty, where most pixels are, are told apart. Pixels of one bin count as ties, but for FPR@95
as evenly spread over it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mmvars.errors import InputError, check_number

__all__ = ['BINS', 'PixelCounts', 'count_pixels', 'reliability']

BINS = 1024
LOWEST, HIGHEST = -8.0, 17.0  # log odds
_BLOCK = 1 << 15  # pixels at a time, for the cache


class PixelCounts(NamedTuple):
    """What is kept of the pixels of an image. Counts of several images add up.

    Attributes:
        histogram: Number of wrong and of right pixels by log odds of their confidence
            ``(2, BINS)``, int64.
        calibration: Number of pixels, of right pixels, and sum of confidences, by confidence
            ``(3, calibration_bins)``, float64.
    """

    histogram: Tensor
    calibration: Tensor


def count_pixels(
    scores: Tensor,
    prediction: Tensor,
    labels: Tensor,
    ignore_index: int = 255,
    are_probabilities: bool = False,
    calibration_bins: int = 15,
) -> PixelCounts:
    """Count the pixels of an image by confidence.

    Args:
        scores: Class scores ``(C, ...)``: logits, or probabilities. One channel is the score of
            class 1 against 0.
        prediction: Predicted classes ``(...)``.
        labels: True classes ``(...)``.
        ignore_index: Label of the pixels that do not count.
        are_probabilities: Whether ``scores`` are not logits, but probabilities; they are divided by
            their sum.
        calibration_bins: Number of bins of the ECE.

    Raises:
        InputError: If the shapes differ, a pixel's scores are no logits or probabilities, or a
            predicted class has none.
    """
    check_number('calibration_bins', calibration_bins, 1, whole=True)
    if not scores.shape[1:] == prediction.shape == labels.shape:
        raise InputError(
            f'scores {tuple(scores.shape)}, prediction {tuple(prediction.shape)} and labels '
            f'{tuple(labels.shape)} must be of one size, with the classes first in scores'
        )
    scores, prediction, labels = scores.flatten(1), prediction.flatten().long(), labels.flatten()
    if len(scores) == 1:
        scores = torch.cat([1 - scores if are_probabilities else torch.zeros_like(scores), scores])
    if prediction.numel() and not 0 <= prediction.min() <= prediction.max() < len(scores):
        raise InputError(f'prediction holds classes that are none of the {len(scores)} of scores')
    blocks = zip(scores.split(_BLOCK, dim=1), prediction.split(_BLOCK), strict=True)
    log_odds = torch.cat([_log_odds(*block, are_probabilities) for block in blocks])
    if log_odds.isnan().any():
        raise InputError(
            'scores must be finite; some pixels have NaN or infinite ones, or all zero'
        )
    is_counted = labels != ignore_index
    log_odds, is_right = log_odds[is_counted], (prediction == labels)[is_counted].long()

    position = (log_odds - LOWEST) * (BINS / (HIGHEST - LOWEST))
    index = position.clamp(0, BINS - 1).long() + BINS * is_right
    histogram = torch.bincount(index, minlength=2 * BINS).view(2, BINS)

    confidence = log_odds.sigmoid()
    index = (confidence * calibration_bins).long().clamp_(max=calibration_bins - 1)
    weights = torch.ones_like(confidence), is_right.float(), confidence
    sums = [torch.bincount(index, w.double(), calibration_bins) for w in weights]
    return PixelCounts(histogram, torch.stack(sums))


def _log_odds(scores: Tensor, prediction: Tensor, are_probabilities: bool) -> Tensor:
    """Log odds of the predicted class against all others ``(N,)``, from scores ``(C, N)``."""
    scores, prediction = scores.float(), prediction[None]
    odds = scores.clone() if are_probabilities else (scores - scores.amax(0)).exp_()
    chosen = odds.gather(0, prediction)[0]
    others = odds.scatter_(0, prediction, 0).sum(0)  # one less would lose what is near certainty
    return chosen.log() - others.log()


def reliability(counts: PixelCounts) -> dict[str, float]:
    """The measures of :mod:`mmvars.robustness.reliability`, as shares.

    Returns:
        ``ece``, ``auroc``, ``fpr95``, ``aupr_error``, ``aupr_success``, and ``accuracy`` and
        ``confidence``, the means over pixels. Where no pixel, or no wrong or right one, is there
        to be found, a measure is NaN.
    """
    total, right, confidence = counts.calibration
    number = total.sum()
    wrong_counts, right_counts = counts.histogram.double()
    # From the most confident bin to the least: what is accepted if all up to there are.
    accepted_wrong, accepted_right = wrong_counts.flip(0).cumsum(0), right_counts.flip(0).cumsum(0)
    wrongs, rights = accepted_wrong[-1], accepted_right[-1]
    below = wrong_counts.cumsum(0) - wrong_counts / 2
    last = (accepted_right >= 0.95 * rights).int().argmax()  # the bin in which 95 % are reached
    left_out = (accepted_right[last] - 0.95 * rights) / right_counts.flip(0)[last]
    accepted = accepted_wrong[last] - left_out * wrong_counts.flip(0)[last]
    measures = dict(
        ece=(right - confidence).abs().sum() / number,
        auroc=(right_counts * below).sum() / (wrongs * rights),
        fpr95=accepted / wrongs,
        aupr_error=_average_precision(wrong_counts, right_counts),
        aupr_success=_average_precision(right_counts.flip(0), wrong_counts.flip(0)),
        accuracy=right.sum() / number,
        confidence=confidence.sum() / number,
    )
    return {name: float(value) for name, value in measures.items()}


def _average_precision(found: Tensor, others: Tensor) -> Tensor:
    """Mean precision over what is to be found; both counts by score, the first bin first."""
    precision = found.cumsum(0) / (found + others).cumsum(0).clamp_min(1)
    return (found * precision).sum() / found.sum()
