"""Metrics of answers and of retrieval, and the loops that score every image with every caption."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import is_model_wrapper
from mmengine.runner import TestLoop, ValLoop
from mmengine.runner.amp import autocast

from mmvars.errors import InputError
from mmvars.registry import LOOPS, METRICS
from mmvars.write import write_text

__all__ = ['RetrievalMetric', 'RetrievalTestLoop', 'RetrievalValLoop', 'VQAMetric', 'recall_at']

_FULL_SCORE = 1 / 3
"""Share of people that mmpretrain's accuracy wants for the whole score. It is ``min(1, w / share)``
with w the share of the ten people who gave the answer, n / 10. The official accuracy is the mean of
``min(1, m / 3)`` over all choices of nine of them, m of whom gave it, and that is 0, 0.3, 0.6, 0.9
and 1 for n from 0 to 4: ``min(1, 0.3 n)``. mmpretrain's default of 0.3 is ``min(1, n / 3)``."""


@METRICS.register_module()
class VQAMetric(BaseMetric):
    """Accuracy of VQAv2 in percent, where answers are known, and a file of the given ones.

    By mmpretrain's ``VQAAcc``, which normalizes answers as the official evaluation, with the
    constant that makes its number the official one: its own default gives more. ``acc`` counts all
    questions; ``acc_yes/no`` and so on those of one ``answer_type``, as EvalAI shows them.

    Args:
        out_file: JSON file to write, as EvalAI takes it: ``[{"question_id": 1, "answer": "yes"}]``.
            ``mmvars test --out FILE.json`` sets it.
        collect_device: Where results of several processes are collected, ``'cpu'`` or ``'gpu'``.
        prefix: Put before the names of the numbers.

    Raises:
        InputError: When applied, if the answers are not known and there is no ``out_file``, or the
            model has more or fewer answers than the vocabulary.
    """

    default_prefix = 'VQA'

    def __init__(
        self, out_file: str | None = None, collect_device: str = 'cpu', prefix: str | None = None
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.out_file = out_file

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Take the answers of a batch: ``pred_label`` counts ``classes`` of the data set."""
        answers = self.dataset_meta['classes']
        for sample in data_samples:
            if 'gt_answer' not in sample and self.out_file is None:
                raise InputError(
                    'the answers to these questions are not known: give --out FILE.json to '
                    '`mmvars test`, which writes those of the model'
                )
            if len(sample['pred_score']) != len(answers):
                raise InputError(
                    f'the model tells {len(sample["pred_score"])} answers apart, and answer_file '
                    f'of the data set has {len(answers)}: give the file that it was trained with'
                )
            _check_finite(sample['pred_score'].cpu().numpy())
            known = {key: sample[key] for key in ('gt_answer', 'gt_answer_weight') if key in sample}
            self.results.append(
                dict(
                    known,
                    question_id=sample['question_id'],
                    answer_type=sample.get('answer_type'),
                    pred_answer=answers[int(sample['pred_label'])],
                )
            )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Write the file, and count."""
        if self.out_file is not None:
            given = [
                dict(question_id=result['question_id'], answer=result['pred_answer'])
                for result in results
            ]
            write_text(self.out_file, json.dumps(given), overwrite=True)
        groups = defaultdict(list)
        for result in results:
            if 'gt_answer' in result:
                groups['acc'].append(result)
                if result['answer_type'] is not None:
                    groups[f'acc_{result["answer_type"]}'].append(result)
        if not groups:
            return {}
        from mmpretrain.evaluation import VQAAcc

        accuracy = VQAAcc(full_score_weight=_FULL_SCORE)
        return {name: accuracy.compute_metrics(group)['acc'] for name, group in groups.items()}


@METRICS.register_module()
class RetrievalMetric(BaseMetric):
    """How often an image's caption, and a caption's image, is among the best k, in percent.

    ``TR@k``: images of which one caption at least is among the k best of all captions. ``IR@k``:
    captions whose image is among the k best of all images. See :func:`recall_at`.

    Args:
        topk: The k.
        collect_device: Where results of several processes are collected, ``'cpu'`` or ``'gpu'``.
        prefix: Put before the names of the numbers.
    """

    default_prefix = 'retrieval'

    def __init__(
        self,
        topk: Sequence[int] = (1, 5, 10),
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.topk = tuple(topk)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Take the rows of a batch of images: ``pred_score``, one for each caption."""
        for sample in data_samples:
            self.results.append((sample['pred_score'].cpu().numpy(), sample['gt_text_id']))

    def compute_metrics(self, results: list[tuple]) -> dict[str, float]:
        """Rank by all rows together."""
        scores = np.stack([row for row, _ in results])
        owners = np.full(scores.shape[1], -1)
        for image, (_, texts) in enumerate(results):
            owners[texts] = image
        return recall_at(scores, owners, self.topk)


def recall_at(scores: np.ndarray, owners: np.ndarray, topk: Sequence[int]) -> dict[str, float]:
    """Recall in percent both ways.

    The best of an image's own captions counts. A tie counts as lost, so that a model which scores
    all alike finds nothing.

    Args:
        scores: Of each image with each caption, ``(num_images, num_captions)``.
        owners: The image of each caption, ``(num_captions,)``.
        topk: The k.

    Returns:
        ``TR@k`` and ``IR@k`` for each k.

    Raises:
        InputError: If a score is NaN or infinite.
    """
    _check_finite(scores)
    own = owners == np.arange(len(scores))[:, None]
    best = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
    better_texts = ((scores >= best) & ~own).sum(axis=1)
    better_images = ((scores >= scores[owners, np.arange(len(owners))]) & ~own).sum(axis=0)
    ranks = dict(TR=better_texts, IR=better_images)
    return {
        f'{name}@{k}': 100 * float((better < k).mean())
        for name, better in ranks.items()
        for k in topk
    }


def _check_finite(scores: np.ndarray) -> None:
    """Refuse what cannot be compared: no score is better than NaN, which would be the best of all.

    Raises:
        InputError: If a score is NaN or infinite.
    """
    if count := np.count_nonzero(~np.isfinite(scores)):
        raise InputError(
            f'{count} of {scores.size} scores of the model are NaN or infinite: its training '
            'diverged, or half precision overflowed (fp16 of val_cfg and test_cfg; leave it out)'
        )


class _ScoresAllCaptions:
    """``run_iter`` that gives each image's sample ``pred_score``, one for each caption."""

    _mode: str
    _texts: Any = None

    def run(self) -> dict[str, float]:
        self._texts = None  # of the weights as they are now
        return super().run()  # type: ignore[misc]

    @torch.no_grad()
    def run_iter(self: Any, idx: int, data_batch: dict) -> None:
        runner, mode = self.runner, self._mode
        runner.call_hook(f'before_{mode}_iter', batch_idx=idx, data_batch=data_batch)
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        with autocast(enabled=self.fp16):
            if self._texts is None:
                self._texts = model.text_backbone(self.dataloader.dataset.captions)
            data = model.data_preprocessor(data_batch, False)
            outputs = data['data_samples']
            for sample, row in zip(outputs, model.score(data['images'], self._texts), strict=True):
                sample.set_field(row, 'pred_score')
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        runner.call_hook(
            f'after_{mode}_iter', batch_idx=idx, data_batch=data_batch, outputs=outputs
        )


@LOOPS.register_module()
class RetrievalValLoop(_ScoresAllCaptions, ValLoop):
    """Validation with the score of every image of a data set with every caption of it.

    The captions are encoded once (in each process, which has a part of the images), and an image's
    first pass is computed once for all of them. For :class:`mmvars.METER` and
    :class:`mmvars.Flickr30K` with ``test_mode``.
    """

    _mode = 'val'


@LOOPS.register_module()
class RetrievalTestLoop(_ScoresAllCaptions, TestLoop):
    """As :class:`RetrievalValLoop`, for tests."""

    _mode = 'test'
