"""What the pictures need of a host model, the same for segmentors and classifiers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mmvars.analysis import default_palette
from mmvars.errors import InputError
from mmvars.networks import TopDown

__all__ = ['ClassTable', 'Sample', 'is_segmentor', 'network_of', 'num_classes_of', 'predict',
           'unwrap']


@dataclass
class Sample:
    """One image as the data pipeline packs it.

    Attributes:
        inputs: ``(3, H, W)`` pixels, 0 to 255, before normalisation and padding.
        data_sample: The packed data sample, for the data preprocessor.
        seam: Where the image is two photos side by side: column where the right one begins.
    """

    inputs: Tensor
    data_sample: object
    seam: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """``(H, W)`` in pixels."""
        return self.inputs.shape[-2], self.inputs.shape[-1]

    def prepared(self, model: nn.Module) -> Tensor:
        """Normalised and padded for ``model``: ``(1, 3, H', W')`` with ``H' >= H``, ``W' >= W``."""
        # A sample of its own: preprocessing and prediction write into it.
        blank = type(self.data_sample)(metainfo=dict(self.data_sample.metainfo))
        data = {'inputs': [self.inputs], 'data_samples': [blank]}
        return model.data_preprocessor(data, False)['inputs']

    def picture(self, model: nn.Module) -> np.ndarray:
        """The pixels as ``(H, W, 3)`` uint8, RGB."""
        preprocessor = model.data_preprocessor
        swap = getattr(preprocessor, 'to_rgb', False) or getattr(preprocessor,
                                                                 '_channel_conversion', False)
        pixels = self.inputs.flip(0) if swap else self.inputs
        pixels = pixels.float().clamp(0, 255).round().byte()
        return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


@dataclass
class ClassTable:
    """Names and colours of K classes; numbers and made-up colours where none are known."""

    names: tuple[str, ...]
    palette: list
    named: bool = True

    @classmethod
    def of(cls, num_classes: int, *sources: Mapping | None) -> 'ClassTable':
        """From the first of ``sources`` (data set ``metainfo``) whose classes are K in number."""
        for source in sources:
            names = (source or {}).get('classes')
            if isinstance(names, Sequence) and len(names) == num_classes:
                palette = source.get('palette')
                if not isinstance(palette, Sequence) or len(palette) != num_classes:
                    palette = default_palette(num_classes)
                return cls(tuple(map(str, names)), list(palette))
        return cls(tuple(f'class {i}' for i in range(num_classes)), default_palette(num_classes),
                   named=False)


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, without a DDP wrapper around it."""
    return model.module if is_model_wrapper(model) else model


def network_of(model: nn.Module) -> TopDown:
    """The two-pass network inside a host model.

    Raises:
        InputError: If the model's backbone is none of mmvars.
    """
    backbone = getattr(model, 'backbone', None)
    network = getattr(backbone, 'network', None)
    if not isinstance(network, TopDown):
        raise InputError(f'the backbone {type(backbone).__name__} is none of mmvars: pictures of '
                         'attention and exported files need mmvars.AbSViT, ViT, VARS, RVT, FAN or '
                         'GFNet as model.backbone.type')
    return network


def is_segmentor(model: nn.Module) -> bool:
    return hasattr(model, 'decode_head')


def num_classes_of(model: nn.Module) -> int:
    """Number K of classes the model tells apart.

    Raises:
        InputError: If it predicts nothing.
    """
    head = model.decode_head if is_segmentor(model) else getattr(model, 'head', None)
    num_classes = getattr(head, 'num_classes', None)
    if num_classes is None:
        raise InputError(f'{type(model).__name__} has neither a decode_head nor a head with '
                         'num_classes, so it predicts nothing that could be drawn')
    return num_classes


def predict(model: nn.Module, images: Tensor) -> np.ndarray:
    """One forward of the whole model, whole images even where tests use sliding windows.

    Args:
        images: ``(1, 3, H, W)``, normalised and padded.

    Returns:
        Labels ``(H, W)`` of a segmentor, probabilities ``(K,)`` of a classifier.
    """
    if not is_segmentor(model):
        return model.predict(images)[0].pred_score.float().cpu().numpy()
    size = torch.Size(images.shape[2:])
    meta = dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0, 0, 0, 0])
    logits = model.encode_decode(images, [meta])
    return model.postprocess_result(logits, None)[0].pred_sem_seg.data[0].cpu().numpy()
