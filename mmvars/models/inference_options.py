"""What ``test_cfg`` of a segmentor may hold, checked where the model is built."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch

from mmvars.errors import InputError, check_choice, check_flag, check_number

__all__ = ['InferenceOptions']

MODES = ('slide', 'whole')
DTYPES = {name: getattr(torch, name) for name in ('float32', 'float16', 'bfloat16')}
_ALMOST = 0.8
"""difflib ratio from which an unknown key is a typing error."""


@dataclass(frozen=True)
class InferenceOptions:
    """The keys of ``test_cfg`` that :class:`mmvars.models.segmentors.EncoderDecoder` reads.

    Attributes:
        mode: ``'whole'``: one forward an image; ``'slide'``: overlapping windows, averaged.
        crop_size: Height and width of a window, in pixels. An image that is smaller is one window.
        stride: Rows and columns from one window to the next, in pixels.
        window_batch: Windows of each image in one forward.
        keep_logits: Whether the data samples get ``seg_logits``. Without them logits of full size
            are never made for more than a few classes at a time.
        logits_device: Where logits of full size are kept: ``'cpu'``, or ``None``, with the images.
        logits_dtype: In which type they are kept; ``None``: as the head makes them. Labels come
            from the logits before that, but where windows must be summed in full size: for heads
            whose last step is not mmseg's resize, or whose logits are no smaller than the image.
    """

    mode: str = 'whole'
    crop_size: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    window_batch: int = 1
    keep_logits: bool = True
    logits_device: torch.device | None = None
    logits_dtype: torch.dtype | None = None

    @classmethod
    def of(cls, test_cfg: Mapping[str, Any] | None) -> 'InferenceOptions':
        """Read ``test_cfg``; keys of others, such as a head's own, are left alone.

        Raises:
            InputError: On a value that cannot be used, a key that is nearly one of ours, and
                windows without a size.
        """
        cfg = dict(test_cfg or {})
        for key in set(cfg) - set(cls.__dataclass_fields__):
            near = difflib.get_close_matches(str(key), cls.__dataclass_fields__, 1, _ALMOST)
            if near:
                raise InputError(f'test_cfg has no {key!r}: did you mean {near[0]!r}?')
        options = {key: cfg[key] for key in cls.__dataclass_fields__ if key in cfg}
        check_choice('test_cfg.mode', options.get('mode', 'whole'), MODES)
        check_flag('test_cfg.keep_logits', options.get('keep_logits', True))
        check_number('test_cfg.window_batch', options.get('window_batch', 1), 1, whole=True)
        for key in ('crop_size', 'stride'):
            if options.get(key) is not None:
                options[key] = _pair(f'test_cfg.{key}', options[key])
        if options.get('logits_device') is not None:
            check_choice('test_cfg.logits_device', options['logits_device'], ('cpu', ))
            options['logits_device'] = torch.device('cpu')
        if options.get('logits_dtype') is not None:
            check_choice('test_cfg.logits_dtype', options['logits_dtype'], DTYPES)
            options['logits_dtype'] = DTYPES[options['logits_dtype']]
        return cls(**options)._consistent()

    @property
    def by_class(self) -> bool:
        """Whether logits of full size are made a few classes at a time."""
        return not (self.keep_logits and self.logits_device is None and self.logits_dtype is None)

    def _consistent(self) -> 'InferenceOptions':
        if self.mode == 'whole':
            if self.window_batch != 1:
                raise InputError(f'test_cfg.window_batch={self.window_batch} needs '
                                 "test_cfg.mode='slide': a whole image has no windows")
            return self
        missing = [key for key in ('crop_size', 'stride') if getattr(self, key) is None]
        if missing:
            raise InputError("test_cfg.mode='slide' needs test_cfg.crop_size and test_cfg.stride, "
                             f'pairs of pixels; missing: {", ".join(missing)}')
        if any(step > side for step, side in zip(self.stride, self.crop_size, strict=True)):
            raise InputError(f'test_cfg.stride {self.stride} must not exceed test_cfg.crop_size '
                             f'{self.crop_size}: no window would see the pixels between')
        return self


def _pair(name: str, value: Any) -> tuple[int, int]:
    whole = isinstance(value, (list, tuple)) and len(value) == 2 and all(
        isinstance(side, Integral) and not isinstance(side, bool) and side > 0 for side in value)
    if not whole:
        raise InputError(f'{name} must be two whole numbers of at least 1, (height, width) in '
                         f'pixels, got {value!r}')
    return tuple(map(int, value))
