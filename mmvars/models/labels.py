"""From logits to the labels of the original image, a few classes at a time.

mmseg resizes the logits of all classes to the original image, and keeps them beside the ones before
resizing: 150 classes at 2048 x 1024 pixels are 1.2 GiB each time. Resizing treats each class for
itself and the largest logit can be found as they come, so a few classes at a time suffice.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mmvars.errors import check_choice
from mmvars.models.windows import Logits

__all__ = ['RunningArgmax', 'label_image', 'restore', 'untouched']

WORK_BYTES = 64 * 2**20
"""Logits of full size that are made at a time, if one class is not more."""

_FLIPS = {'horizontal': (3, ), 'vertical': (2, )}


class RunningArgmax:
    """The class of the largest logit of each pixel, as ``argmax`` gives it, class after class.

    The first of equal ones wins, and NaN wins over all.
    """

    def __init__(self) -> None:
        self._largest: Tensor | None = None
        self._labels: Tensor | None = None
        self._seen = 0

    def update(self, logits: Tensor) -> None:
        """Look at the logits ``(k, H, W)`` of the next k classes."""
        for plane in logits:
            if self._largest is None:
                self._largest = plane.clone()
                self._labels = torch.zeros_like(plane, dtype=torch.long)
            else:
                largest = torch.maximum(self._largest, plane)
                # Of NaN, maximum makes NaN, which differs from itself: it wins once, and stays.
                wins = (largest != self._largest) & (self._largest == self._largest)
                self._labels.masked_fill_(wins, self._seen)
                self._largest = largest
            self._seen += 1

    @property
    def labels(self) -> Tensor:
        """``(1, H, W)``, int64."""
        return self._labels[None]


def label_image(logits: Logits, image: int, meta: Mapping[str, Any] | None, align_corners: bool,
                threshold: float | None, keep: bool, device: torch.device | None,
                dtype: torch.dtype | None) -> dict[str, Tensor]:
    """What mmseg's ``postprocess_result`` puts into one data sample, with bounded memory.

    Args:
        logits: Of a batch.
        image: Its number in the batch.
        meta: Meta information of its data sample; ``None``: the size of the input is kept.
        align_corners: As the head resizes.
        threshold: Above which the probability of a head with one channel is label 1.
        keep: Whether to return ``seg_logits``.
        device: Where they are kept; ``None``: with the images.
        dtype: In which type; ``None``: as they come.

    Returns:
        ``pred_sem_seg (1, H, W)``, and ``seg_logits (C, H, W)`` if kept; for a head with one
        channel these are probabilities.

    Raises:
        InputError: If the image was flipped in a direction that mmseg does not know either.
    """
    height, width = logits.size if meta is None else meta['ori_shape'][:2]
    pixels = max(height * width, logits.size[0] * logits.size[1])
    step = max(1, WORK_BYTES // (4 * pixels))
    largest, kept = RunningArgmax(), None
    for start in range(0, logits.channels, step):
        classes = slice(start, min(start + step, logits.channels))
        part = logits.part(image, classes)
        if meta is not None:
            part = restore(part, meta, align_corners)
        part = part.squeeze(0)
        if logits.channels == 1:
            part = part.sigmoid()
            labels = (part > threshold).to(part)
        else:
            largest.update(part)
        if keep:
            if kept is None:
                kept = part.new_empty((logits.channels, *part.shape[1:]), device=device,
                                      dtype=dtype)
            kept[classes] = part.to(kept.device)
    found = {'pred_sem_seg': labels if logits.channels == 1 else largest.labels}
    return found | ({'seg_logits': kept} if keep else {})


def restore(logits: Tensor, meta: Mapping[str, Any], align_corners: bool) -> Tensor:
    """Take logits ``(1, k, H, W)`` of an input back to the original image.

    Padding is cut off, a flip undone, and the rest resized.

    Raises:
        InputError: On an unknown direction of a flip.
    """
    left, right, top, bottom = _padding(meta)
    logits = logits[..., top:logits.shape[2] - bottom, left:logits.shape[3] - right]
    if meta.get('flip'):
        check_choice('flip_direction of the image', meta.get('flip_direction'), _FLIPS)
        logits = logits.flip(dims=_FLIPS[meta['flip_direction']])
    size = tuple(meta['ori_shape'][:2])
    if tuple(logits.shape[2:]) == size:  # resizing would copy it
        return logits
    return interpolate(logits, size, mode='bilinear', align_corners=align_corners)


def untouched(size: tuple[int, int], meta: Mapping[str, Any]) -> bool:
    """Whether an input of this size is the original image: not padded, flipped or resized."""
    return not any(_padding(meta)) and not meta.get('flip') and (
        tuple(meta['ori_shape'][:2]) == tuple(size))


def _padding(meta: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Pixels added on the left, right, top and bottom; what padded the batch says it first."""
    return tuple(meta.get('img_padding_size', meta.get('padding_size', (0, 0, 0, 0))))
