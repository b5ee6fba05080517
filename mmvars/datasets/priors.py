"""Priors of training samples, out of their labels."""

import numpy as np
from mmcv.transforms import BaseTransform

from mmvars.errors import InputError, check_number
from mmvars.registry import TRANSFORMS

__all__ = ['AskForClass']


@TRANSFORMS.register_module()
class AskForClass(BaseTransform):
    """Make a class of the image its prior, and label all else background.

    A network trained so segments what the prior asks for; where it asks for the background, all.
    The backbone needs ``prior=dict(type='class_prototype', ...)`` with zeros as the prototype of
    the background: no token is like it, so nothing is fed back.

    Required keys: ``gt_seg_map``, where ``prob`` is above 0. Adds ``prior``, a class id, which
    ``PackSegInputs`` must keep: ``meta_keys=(..., 'prior')``. Place it after crops.

    Args:
        prob: Share of the images that are asked for a class, drawn from those in the labels.
        background: Id of the background.
        ignore_index: Label that stays as it is.

    Raises:
        InputError: If a number cannot be used, or labels are not loaded yet.
    """

    def __init__(self, prob: float, background: int = 0, ignore_index: int = 255) -> None:
        check_number('prob', prob, 0, 1)
        self.prob = prob
        self.background = background
        self.ignore_index = ignore_index

    def transform(self, results: dict) -> dict:
        results['prior'] = self.background
        if np.random.rand() >= self.prob:
            return results
        if 'gt_seg_map' not in results:
            raise InputError(
                'AskForClass found no labels loaded: place it after LoadAnnotations in the pipeline'
            )
        labels = results['gt_seg_map']
        present = np.setdiff1d(labels, [self.background, self.ignore_index])
        if present.size:
            results['prior'] = int(np.random.choice(present))
            others = (labels != results['prior']) & (labels != self.ignore_index)
            results['gt_seg_map'] = np.where(others, self.background, labels).astype(labels.dtype)
        return results
