"""Prediction of large images with bounded memory: windows, groups of classes, and their options.

mmseg holds the logits of all classes in the size of the image, before and after the resize to the
original: 150 classes at 2048 x 1024 pixels are 1.2 GiB each time. A resize treats each class by
itself, so logits can stay as small as the head makes them until a few classes are enlarged.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from mmvars.errors import InputError, check_choice, check_flag, check_number, did_you_mean

__all__ = [
    'InferenceOptions',
    'Window',
    'class_groups',
    'running_argmax',
    'sliding_windows',
    'whole_image_metas',
    'window_mean',
]

WORK_BYTES = 64 * 2**20
"""Memory for full-size logits at a time; two classes at least."""

Window = tuple[EllipsisType, slice, slice]
"""Index of a window's rows and columns in images or logits ``(..., H, W)``."""

_TYPO_RATIO = 0.8
"""difflib ratio from which an unknown key counts as a misspelt one."""


@dataclass(frozen=True)
class InferenceOptions:
    """The keys of ``test_cfg`` that :class:`mmvars.models.segmentors.EncoderDecoder` reads.

    Attributes:
        mode: ``'whole'``: one forward an image; ``'slide'``: overlapping windows, averaged.
        crop_size: Height and width of a window in pixels. A smaller image is one window.
        stride: Rows and columns from one window to the next in pixels.
        window_batch: Windows of each image in one forward.
        keep_logits: Whether the data samples get ``seg_logits``. Without them full-size logits
            exist for a few classes at a time only.
        logits_device: Where full-size logits are stored: ``'cpu'``, or ``None``, with the images.
        logits_dtype: Their type; ``None``: as the head makes them. Labels come from the logits
            before the conversion, except where windows must be summed in full size: for heads
            whose last step is not mmseg's resize, or whose logits are no smaller than the image.

    Raises:
        InputError: On a value that cannot be used, or windows without a size.
    """

    mode: str = 'whole'
    crop_size: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    window_batch: int = 1
    keep_logits: bool = True
    logits_device: str | None = None
    logits_dtype: str | None = None

    @classmethod
    def from_cfg(cls, test_cfg: Mapping[str, Any] | None) -> 'InferenceOptions':
        """Read ``test_cfg``; other keys, such as a head's own, are ignored unless misspelt."""
        known, cfg = tuple(cls.__dataclass_fields__), dict(test_cfg or {})
        for key in set(cfg) - set(known):
            if hint := did_you_mean(key, known, cutoff=_TYPO_RATIO):
                raise InputError(f'test_cfg has no {key!r}{hint}')
        return cls(**{key: cfg[key] for key in known if key in cfg})

    def __post_init__(self) -> None:
        check_choice('test_cfg.mode', self.mode, ('slide', 'whole'))
        check_flag('test_cfg.keep_logits', self.keep_logits)
        check_number('test_cfg.window_batch', self.window_batch, 1, whole=True)
        if self.logits_device is not None:
            check_choice('test_cfg.logits_device', self.logits_device, ('cpu',))
        if self.logits_dtype is not None:
            check_choice(
                'test_cfg.logits_dtype', self.logits_dtype, ('float32', 'float16', 'bfloat16')
            )
        for name in ('crop_size', 'stride'):
            pair = getattr(self, name)
            if pair is not None and not (
                isinstance(pair, list | tuple)
                and len(pair) == 2
                and all(
                    isinstance(side, Integral) and not isinstance(side, bool) and int(side) > 0
                    for side in pair
                )
            ):
                raise InputError(
                    f'test_cfg.{name} must be two whole numbers of at least 1, '
                    f'(height, width) in pixels, got {pair!r}'
                )
        if self.mode == 'whole':
            if self.window_batch != 1:
                raise InputError(
                    f'test_cfg.window_batch={self.window_batch} needs '
                    "test_cfg.mode='slide': a whole image has no windows"
                )
        elif self.crop_size is None or self.stride is None:
            missing = [name for name in ('crop_size', 'stride') if getattr(self, name) is None]
            raise InputError(
                "test_cfg.mode='slide' needs test_cfg.crop_size and test_cfg.stride, "
                f'pairs of pixels; missing: {", ".join(missing)}'
            )
        elif any(step > side for step, side in zip(self.stride, self.crop_size, strict=True)):
            raise InputError(
                f'test_cfg.stride {self.stride} must not exceed test_cfg.crop_size '
                f'{self.crop_size}: no window would see the pixels between'
            )

    @property
    def by_class(self) -> bool:
        """Whether full-size logits are made a few classes at a time."""
        return not self.keep_logits or self.storage != dict(device=None, dtype=None)

    @property
    def storage(self) -> dict[str, Any]:
        """``device`` and ``dtype`` of full-size logits, where they are not those of the head."""
        dtype = None if self.logits_dtype is None else getattr(torch, self.logits_dtype)
        return dict(device=self.logits_device, dtype=dtype)

    def windows(self, images: Tensor) -> list[Window]:
        """The windows of ``images (B, 3, H, W)``; in mode ``'whole'`` a single one."""
        size = images.shape[-2], images.shape[-1]
        if self.mode == 'whole' or self.crop_size is None or self.stride is None:
            return sliding_windows(size, size, size)
        return sliding_windows(size, self.crop_size, self.stride)


def sliding_windows(
    size: tuple[int, int], crop: tuple[int, int], stride: tuple[int, int]
) -> list[Window]:
    """Windows that cover an image, row by row, as mmseg lays them.

    All have the same size: ``crop``, or the image's where that is smaller. The last one of a row
    or column is moved back inside.

    Args:
        size, crop: Height and width of the image, and of a window, in pixels.
        stride: From one window to the next, at most ``crop``.
    """
    axes = []
    for length, side, step in zip(size, crop, stride, strict=True):
        count = max(length - side + step - 1, 0) // step + 1
        ends = [min(i * step + side, length) for i in range(count)]
        axes.append([slice(max(end - side, 0), end) for end in ends])
    return [(..., rows, columns) for rows in axes[0] for columns in axes[1]]


def window_mean(parts: Iterable[tuple[Window, Tensor]], total: Tensor) -> Tensor:
    """The mean over the windows that see each pixel, in place of ``total``.

    Args:
        parts: Windows with their logits ``(b, k, h, w)``.
        total: Zeros ``(b, k, H, W)``, on the device and in the type in which to sum.
    """
    counts = total.new_zeros((1, 1, *total.shape[2:]), dtype=torch.float32)
    for window, logits in parts:
        total[window] += logits.to(total.device)
        counts[window] += 1
    return total.div_(counts)


def class_groups(num_classes: int, num_pixels: int) -> list[slice]:
    """Classes whose float32 logits of so many pixels fit into :data:`WORK_BYTES` together.

    Groups are of about equal size, and none has a single class: mmseg would take that for a binary
    segmentation.
    """
    step = max(2, WORK_BYTES // (4 * num_pixels))
    count = min(-(-num_classes // step), max(num_classes // 2, 1))
    bounds = [num_classes * group // count for group in range(count + 1)]
    return [slice(*pair) for pair in zip(bounds[:-1], bounds[1:], strict=True)]


def running_argmax(
    best: tuple[Tensor, Tensor] | None, logits: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """``argmax`` over groups of classes: the first of equals wins, and NaN over all.

    Args:
        best: Largest logits and their classes, both ``(1, H, W)``, in the groups before.
        logits, labels: The same of the next group.
    """
    if best is None:
        return logits, labels
    wins = (logits > best[0]) | (logits.isnan() & ~best[0].isnan())
    return torch.where(wins, logits, best[0]), torch.where(wins, labels, best[1])


def whole_image_metas(images: Tensor) -> list[dict]:
    """What mmseg reads about ``images (B, 3, H, W)`` that are neither resized nor padded."""
    size = tuple(images.shape[2:])
    return [
        dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0, 0, 0, 0])
        for _ in images
    ]
