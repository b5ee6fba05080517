"""A check of segmentation labels, before the loss turns them into nan or an assert on a device."""

import numpy as np
from mmcv.transforms import BaseTransform

from mmvars.errors import InputError
from mmvars.registry import TRANSFORMS

__all__ = ['CheckLabels']


@TRANSFORMS.register_module()
class CheckLabels(BaseTransform):
    """Refuse labels that are no class and not the ignored value. Place it after LoadAnnotations.

    Required keys: ``gt_seg_map`` (H, W), integers, as LoadAnnotations leaves it (``label_map`` and
    ``reduce_zero_label`` applied). Samples without labels (inference) pass.

    Args:
        num_classes: Number of classes; labels are 0 to ``num_classes - 1``.
        ignore_index: The label that the loss and the metric leave out.

    Raises:
        InputError: If ``num_classes`` is not positive; when called, if the labels are not loaded
            yet, are not one value a pixel, differ in size from the image, or hold other values.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if num_classes < 1:
            raise InputError(f'num_classes must be positive, got {num_classes}')
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def transform(self, results: dict) -> dict:
        """Return ``results`` unchanged, or raise."""
        if 'gt_seg_map' not in results:
            if 'seg_map_path' in results:
                raise InputError('CheckLabels found no labels loaded; place it after '
                                 'LoadAnnotations in the pipeline')
            return results
        labels, path = results['gt_seg_map'], results.get('seg_map_path', 'gt_seg_map')
        if labels.ndim != 2:
            raise InputError(
                f'labels {path!r} hold {labels.shape[-1]} channels (shape {labels.shape}); save '
                'them as a grey or palette PNG, with one class id a pixel')
        # The test pipelines resize the image before the labels are loaded, never the labels.
        sizes = [tuple(results[key]) for key in ('ori_shape', 'img_shape') if key in results]
        if sizes and labels.shape not in sizes:
            raise InputError(
                f'labels {path!r} have {labels.shape} pixels (height, width), but their image '
                f'{results.get("img_path")!r} has {sizes[0]}; they must be of one size')
        wrong = (labels < 0) | (labels >= self.num_classes)
        wrong &= labels != self.ignore_index
        if wrong.any():
            self._refuse(np.unique(labels[wrong]), int(wrong.sum()), labels.size, path, results)
        return results

    def _refuse(self, values: np.ndarray, count: int, size: int, path: str, results: dict) -> None:
        shown = ', '.join(map(str, values[:8])) + (', ...' if len(values) > 8 else '')
        if results.get('reduce_zero_label'):
            remedy = 'reduce_zero_label is on: 0 became ignored and every other id one less'
        elif values.tolist() == [self.num_classes]:
            remedy = ('if the ids count from 1 and 0 means "other", set reduce_zero_label=True in '
                      'the data set')
        else:
            remedy = 'these look like other ids than those of the classes (raw or colour ids?)'
        raise InputError(
            f'labels {path!r} hold the values {shown} in {count} of {size} pixels, but '
            f'num_classes={self.num_classes} allows 0 to {self.num_classes - 1} and the ignored '
            f'{self.ignore_index}. {remedy}; else correct num_classes, or write '
            f'{self.ignore_index} where nothing is to be learnt')

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(num_classes={self.num_classes}, '
                f'ignore_index={self.ignore_index})')
