"""Test-time augmentation of a segmentor that adds up as it goes."""

from collections.abc import Iterator

import torch
from mmengine.structures import PixelData
from mmseg.models import SegTTAModel as _SegTTAModel
from torch import Tensor

from mmvars.errors import InputError
from mmvars.models.inference_options import InferenceOptions
from mmvars.registry import MODELS

__all__ = ['SegTTAModel']


@MODELS.register_module()
class SegTTAModel(_SegTTAModel):
    """mmseg's ``SegTTAModel``, and bit for bit its predictions, with bounded memory.

    mmseg keeps the logits of all augmented versions of an image until the last: twelve times those
    of one image for six scales and a flip. Here only their sum is kept.

    Raises:
        InputError: If the segmentor makes no logits (``keep_logits=False``) to average.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not InferenceOptions.of(getattr(self.module, 'test_cfg', None)).keep_logits:
            raise InputError('test-time augmentation averages logits, and test_cfg.keep_logits is '
                             'False: leave it out; test_cfg.logits_dtype="float16" and '
                             'logits_device="cpu" save memory too')

    def test_step(self, data: dict | list | tuple) -> list:
        """Predictions for a batch of images, averaged over their augmented versions.

        Args:
            data: As the data loader makes it: each entry is a list over the versions.

        Returns:
            One data sample an image, with ``pred_sem_seg``: that of its last version.
        """
        totals, firsts, samples = [], [], []
        versions = list(_versions(data))
        for version in versions:
            for sample in samples:  # make room; ``data`` holds the sample too
                del sample.seg_logits
            samples = self.module.test_step(version)
            firsts = firsts or [(sample.img_path, sample.get('gt_sem_seg')) for sample in samples]
            totals = totals or [torch.zeros_like(sample.seg_logits.data) for sample in samples]
            for sample, total in zip(samples, totals, strict=True):
                total += self._probabilities(sample.seg_logits.data)
        for sample, (path, truth), total in zip(samples, firsts, totals, strict=True):
            total /= len(versions)
            sample.set_data({'pred_sem_seg': PixelData(data=self._labels(total))})
            if truth is not None:
                sample.set_data({'gt_sem_seg': truth})
            sample.set_metainfo({'img_path': path})
        return samples

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=0) if self.module.out_channels > 1 else logits.sigmoid()

    def _labels(self, probabilities: Tensor) -> Tensor:
        if self.module.out_channels > 1:
            return probabilities.argmax(dim=0)
        threshold = self.module.decode_head.threshold
        return (probabilities > threshold).to(probabilities).squeeze(1)


def _versions(data: dict | list | tuple) -> Iterator[dict | list]:
    """The batches that ``data`` holds, one for each augmentation."""
    if isinstance(data, dict):
        for values in zip(*data.values(), strict=True):
            yield dict(zip(data, values, strict=True))
    else:
        yield from map(list, zip(*data, strict=True))
