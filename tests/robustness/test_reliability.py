"""Reliability of pixels: worked by hand, equal to scikit-learn, and as a metric of a runner."""

import math

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from torch import Tensor

from mmvars.errors import InputError
from mmvars.robustness.metric import ReliabilityMetric
from mmvars.robustness.reliability import PixelCounts, count_pixels, reliability


def _image(seed: int, classes: int = 5, size: tuple[int, int] = (60, 70)) -> tuple[Tensor, ...]:
    """Logits, prediction and labels in which confidence tells something; some are ignored."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(classes, *size, generator=rng) * 4
    noise = torch.randn(logits.shape, generator=rng) * 3
    labels = (logits + noise).argmax(0)
    labels[:5] = 255
    return logits, logits.argmax(0), labels


def _two_class(confidence: list[float], is_right: list[int], **kwargs) -> dict[str, float]:
    """Pixels whose prediction is class 0."""
    p = torch.tensor(confidence, dtype=torch.float64)
    labels = 1 - torch.tensor(is_right)
    prediction = torch.zeros_like(labels)
    return reliability(
        count_pixels(torch.stack([p, 1 - p]), prediction, labels, are_probabilities=True, **kwargs)
    )


def test_by_hand() -> None:
    measures = _two_class([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1], calibration_bins=2)
    # one bin in use: accuracy 3/4, mean confidence 3/4
    assert measures['ece'] == pytest.approx(0, abs=1e-6)
    assert measures['accuracy'] == pytest.approx(0.75)
    assert measures['confidence'] == pytest.approx(0.75)
    assert measures['auroc'] == pytest.approx(2 / 3)  # 2 of 3 right ones are above the wrong one
    assert measures['fpr95'] == 1  # to accept all three right ones is to accept the wrong one
    assert measures['aupr_error'] == pytest.approx(1 / 2)  # found second
    assert measures['aupr_success'] == pytest.approx((1 + 1 + 3 / 4) / 3)


def test_calibration_by_hand() -> None:
    # bins of a tenth: |1 - .95| * 1/4 + |1/2 - .75| * 2/4 + |0 - .55| * 1/4
    measures = _two_class([0.95, 0.75, 0.75, 0.55], [1, 1, 0, 0], calibration_bins=10)
    assert measures['ece'] == pytest.approx((0.05 + 0.5 + 0.55) / 4)
    assert measures['fpr95'] == pytest.approx(0.45)  # of the tie nine tenths, of the last none
    assert measures['auroc'] == pytest.approx((2 + 1.5) / 4)


def test_nothing_to_be_found_is_no_number() -> None:
    none = _two_class([], [])
    assert all(math.isnan(value) for value in none.values())
    right = _two_class([0.9, 0.8], [1, 1])
    assert {name for name, value in right.items() if math.isnan(value)} == {
        'auroc',
        'fpr95',
        'aupr_error',
    }


@pytest.mark.slow  # scikit-learn takes seconds to import
def test_equal_to_scikit_learn() -> None:
    sklearn = pytest.importorskip('sklearn.metrics')
    images = [_image(seed) for seed in range(3)]
    counts = [count_pixels(*image) for image in images]
    total = PixelCounts(*(sum(parts) for parts in zip(*counts, strict=True)))
    measures = reliability(total)

    labels = torch.stack([labels for _, _, labels in images])
    kept = labels != 255
    probabilities = torch.stack([logits.double().softmax(0) for logits, _, _ in images])
    confidence, prediction = probabilities.max(1)
    confidence, right = confidence[kept].numpy(), (prediction == labels)[kept].numpy()
    assert 0.1 < right.mean() < 0.9
    false, true, _ = sklearn.roc_curve(right, confidence, drop_intermediate=False)
    bins = np.minimum((confidence * 15).astype(int), 14)
    expected = dict(
        auroc=sklearn.roc_auc_score(right, confidence),
        fpr95=false[np.argmax(true >= 0.95)],
        aupr_error=sklearn.average_precision_score(~right, -confidence),
        aupr_success=sklearn.average_precision_score(right, confidence),
        accuracy=right.mean(),
        confidence=confidence.mean(),
        ece=sum(abs((right * 1.0 - confidence)[bins == b].sum()) for b in range(15)) / right.size,
    )
    assert measures.keys() == expected.keys()
    for name, value in expected.items():  # the bins make ties
        assert measures[name] == pytest.approx(value, abs=2e-3 if name == 'fpr95' else 1e-3), name
    assert measures['ece'] == pytest.approx(expected['ece'], abs=1e-6)


@pytest.mark.parametrize('classes', [2, 5])
def test_probabilities_count_as_logits_do(classes: int) -> None:
    logits, prediction, labels = _image(1, classes)
    counts = count_pixels(logits, prediction, labels)
    others = count_pixels(logits.softmax(0) * 2, prediction, labels, are_probabilities=True)
    assert abs(counts.histogram - others.histogram).sum() <= 8  # rounding at edges of bins
    torch.testing.assert_close(counts.calibration, others.calibration)
    if classes == 2:
        single = count_pixels(logits[1:] - logits[:1], prediction, labels)
        torch.testing.assert_close(counts.calibration, single.calibration)


def test_certainty_counts_and_blocks_do_not() -> None:
    logits, prediction, labels = _image(2, size=(300, 301))  # more than one block
    whole = count_pixels(logits, prediction, labels)
    assert whole.histogram.sum() == (labels != 255).sum() == whole.calibration[0].sum()
    parts = [
        count_pixels(logits[:, rows], prediction[rows], labels[rows])
        for rows in (slice(100), slice(100, None))
    ]
    assert torch.equal(whole.histogram, parts[0].histogram + parts[1].histogram)
    certain = count_pixels(logits * 1000, prediction, labels)
    assert certain.histogram[:, -1].sum() > 0.95 * certain.histogram.sum()
    logits[0] = -math.inf  # a class that is masked out
    count_pixels(logits, logits.argmax(0), labels)


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_scores_that_are_none_are_refused(bad: float) -> None:
    logits, prediction, labels = _image(0)
    logits[1, 3, 4] = bad
    with pytest.raises(InputError, match='finite'):
        count_pixels(logits, prediction, labels)
    with pytest.raises(InputError, match='one size'):
        count_pixels(logits[:, 1:], prediction, labels)
    with pytest.raises(InputError, match='none of the 2'):
        count_pixels(logits[:2], prediction, labels)


def _sample(logits: Tensor, prediction: Tensor, labels: Tensor) -> dict:
    return dict(
        seg_logits=dict(data=logits),
        pred_sem_seg=dict(data=prediction[None]),
        gt_sem_seg=dict(data=labels[None]),
    )


def test_the_metric_sums_images_and_drops_those_that_a_sampler_repeated() -> None:
    evaluator = Evaluator(dict(type='mmvars.ReliabilityMetric'))
    images = [_image(seed) for seed in (0, 1, 0)]
    for image in images:
        evaluator.process([_sample(*image)])
    measures = evaluator.evaluate(size=2)
    counts = [count_pixels(*image) for image in images[:2]]
    expected = reliability(PixelCounts(*(a + b for a, b in zip(*counts, strict=True))))
    assert measures['reliability/AUROC'] == round(100 * expected['auroc'], 2)
    assert measures['reliability/ECE'] == round(100 * expected['ece'], 2)
    assert len(measures) == 6


def test_the_metric_refuses_to_guess() -> None:
    logits, prediction, labels = _image(0)
    sample = _sample(logits.softmax(0), prediction, labels)
    with pytest.raises(InputError, match="scores='probabilities'"):
        ReliabilityMetric().process({}, [sample])
    metric = ReliabilityMetric(scores='probabilities')
    metric.process({}, [sample])
    other = ReliabilityMetric()
    other.process({}, [_sample(logits, prediction, labels)])
    assert metric.evaluate(1) == pytest.approx(other.evaluate(1), abs=0.02)
    del sample['seg_logits']
    with pytest.raises(InputError, match='keep_logits=True'):
        metric.process({}, [sample])
    with pytest.raises(InputError, match='scores must be'):
        ReliabilityMetric(scores='probs')
