"""Corruptions in the pipeline of a data set, of either framework."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms import LoadImageFromFile as StockLoader
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS

from mmvars.datasets.files import image_name
from mmvars.datasets.loading import LoadImageFromFile
from mmvars.errors import InputError, check_choice
from mmvars.registry import TRANSFORMS
from mmvars.robustness.corruptions import check_corruption, corrupt

__all__ = ['Corrupt', 'insert_corrupt']


@TRANSFORMS.register_module()
class Corrupt(BaseTransform):
    """Corrupt the image. Place it right after the transform that loads the image.

    What is corrupted is then the image at its own size, whatever the model is fed with. The random
    numbers follow from the name of the image and of its folder, and from the arguments: the pixels
    are the same for every model, order, number of workers and place of the data. Images of one name
    in two folders of one name share their random numbers. Labels stay as they are, also where
    things move (elastic_transform).

    Required keys: ``img`` (H, W, 3), uint8, or float32 that holds whole numbers of 0 to 255;
    ``img_path``.
    Modified keys: ``img``, of the same shape and type.

    Args:
        name: A key of ``mmvars.robustness.CORRUPTIONS``.
        severity: 1 to 5.
        seed: Another one gives other random numbers.
        channel_order: That of ``img``: ``'bgr'``, as the loaders of mmcv, mmseg, mmpretrain and
            mmvars leave it whatever decodes the file, or ``'rgb'`` after a loader of your own. The
            corruptions are defined on RGB.

    Raises:
        InputError: If an argument is none of these, or frost finds no textures; when applied, if
            the image is of another kind, has a side below 32 pixels, or no path.
    """

    def __init__(self, name: str, severity: int, seed: int = 0, channel_order: str = 'bgr') -> None:
        check_corruption(name, severity, seed)
        check_choice('channel_order', channel_order, ('bgr', 'rgb'))
        self.name = name
        self.severity = severity
        self.seed = seed
        self.channel_order = channel_order

    def transform(self, results: dict) -> dict:
        image, path = results.get('img'), results.get('img_path')
        if image is None or path is None:
            raise InputError(
                f'Corrupt needs an image that was loaded from a file, but there is no '
                f'{"img" if image is None else "img_path"}; place it right after '
                'LoadImageFromFile, and use mmvars.robustness.corrupt for arrays'
            )
        dtype = image.dtype
        if dtype == np.float32 and np.array_equal(image, np.clip(np.rint(image), 0, 255)):
            image = image.astype(np.uint8)
        order = slice(None, None, -1 if self.channel_order == 'bgr' else 1)
        identity = image_name(path)
        try:
            image = corrupt(image[..., order], self.name, self.severity, identity, self.seed)
        except InputError as error:
            raise InputError(f'Corrupt, {path!r}: {error}') from error
        results['img'] = np.ascontiguousarray(image[..., order], dtype)
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(name={self.name!r}, severity={self.severity}, '
            f'seed={self.seed}, channel_order={self.channel_order!r})'
        )


def insert_corrupt(pipeline: Sequence, corrupt: Any) -> list:
    """A copy of a pipeline that corrupts the image right after it is loaded.

    The loader is found by its class: that of mmcv, which mmseg and mmpretrain use, that of mmvars,
    or one derived from either.

    Args:
        pipeline: Transforms, or their configs, whose names are those of the default scope.
        corrupt: The transform to insert, or its config: ``dict(type='mmvars.Corrupt', ...)``.

    Raises:
        InputError: If not exactly one transform loads an image, or if one corrupts it already.
    """
    classes = [_class_of(transform) for transform in pipeline]
    names = [str(t['type']) if isinstance(t, Mapping) else type(t).__name__ for t in pipeline]
    if any(issubclass(cls, Corrupt) for cls in classes):
        raise InputError(
            f'the pipeline ({", ".join(names)}) corrupts its images already; remove Corrupt from it'
        )
    loads = [issubclass(cls, StockLoader | LoadImageFromFile) for cls in classes]
    if sum(loads) != 1:
        what = f'{sum(loads)} transforms' if any(loads) else 'no transform'
        raise InputError(
            f'{what} of the pipeline ({", ".join(names)}) loads an image, derived from '
            'LoadImageFromFile, but Corrupt must follow the one that does; put '
            "dict(type='mmvars.Corrupt', name=..., severity=...) where it belongs by hand"
        )
    after = loads.index(True) + 1
    return [*pipeline[:after], corrupt, *pipeline[after:]]


def _class_of(transform: Any) -> type:
    if not isinstance(transform, Mapping):
        return type(transform)
    cls = transform['type']
    if isinstance(cls, str):
        with ROOT_TRANSFORMS.switch_scope_and_registry(transform.get('_scope_')) as registry:
            cls = registry.get(cls)
    return cls if isinstance(cls, type) else type(cls)
