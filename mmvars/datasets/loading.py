"""Image loading that refuses what a network would misread without an error."""

import io
import os
from collections.abc import Sequence

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from PIL import Image, ImageOps, UnidentifiedImageError

from mmvars.datasets.files import open_image, refuse_special_file
from mmvars.errors import InputError
from mmvars.registry import TRANSFORMS

__all__ = ['LoadImageFromFile']

# Kind that is converted to RGB on request -> what the file holds, what allowing it does, PIL modes
CONVERTIBLE: dict[str, tuple[str, str, tuple[str, ...]]] = {
    'gray': ('a gray image (1 channel)', 'repeats the channel three times', ('1', 'L')),
    'palette': ('a palette image', 'looks the colors up', ('P',)),
    'cmyk': ('a CMYK image (4 channels)', 'converts the colors', ('CMYK',)),
    'alpha': (
        'an image with an alpha channel',
        'drops the alpha channel',
        ('LA', 'La', 'PA', 'RGBA', 'RGBa', 'RGBX'),
    ),
}


# The two other names are what mmseg's inference functions rename the first transform of a config
# to; with `dict(type='LoadImageFromFile', _scope_='mmvars')` they then find this class as well.
@TRANSFORMS.register_module(name=['LoadImageFromFile', 'InferencerLoader', 'LoadImageFromNDArray'])
class LoadImageFromFile(BaseTransform):
    """Load an 8-bit RGB image; anything else is an error that names the file and the remedy.

    Stands in for the transform of the same name in mmcv, mmseg and mmpretrain, whose decoder fills
    the missing part of a truncated file with gray, drops alpha, and cuts 16 bits to 8, all without
    a word. The orientation stored in EXIF is applied, as there.

    Required keys: ``img_path`` (or ``img`` alone, if somebody has loaded it before; a bare path or
    array is taken as well, for the inferencers).
    Added keys: ``img`` (H, W, 3) in BGR order, uint8 or float32; ``img_shape`` and ``ori_shape``
    (H, W) in pixels.

    Args:
        to_float32: Whether ``img`` is float32 (values 0 to 255) instead of uint8.
        allow: Kinds that are converted to RGB instead of refused: any of ``'gray'``,
            ``'palette'``, ``'cmyk'``, ``'alpha'``. ImageNet-1k holds gray and CMYK photographs.
        backend_args: Arguments of mmengine's file backend; None picks it from the path.

    Raises:
        InputError: If ``allow`` holds an unknown kind; when loading, if the file is missing, is
            not an image, is truncated, has 16 bits a channel, is of a kind not allowed, or claims
            more than 178,956,970 pixels (``MMVARS_MAX_PIXELS=NUMBER`` in the environment sets
            another bound).
    """

    def __init__(
        self,
        to_float32: bool = False,
        allow: Sequence[str] = (),
        *,
        backend_args: dict | None = None,
    ) -> None:
        allow = (allow,) if isinstance(allow, str) else tuple(allow)
        allow = tuple('gray' if kind == 'grey' else kind for kind in allow)  # old configs
        if unknown := [kind for kind in allow if kind not in CONVERTIBLE]:
            raise InputError(f'allow holds {unknown}; choose from {list(CONVERTIBLE)}')
        self.to_float32 = to_float32
        self.allow = allow
        self.backend_args = backend_args

    def transform(self, results: dict | str | np.ndarray) -> dict:
        if isinstance(results, str):
            results = dict(img_path=results)
        elif isinstance(results, np.ndarray):
            results = dict(img=results)
        image = self._load(results['img_path']) if 'img_path' in results else results['img']
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(
                f'img must be a uint8 array (H, W, 3) in BGR order, got '
                f'{image.dtype} of shape {image.shape}; convert it first'
            )
        results['img'] = image.astype(np.float32) if self.to_float32 else image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        results.setdefault('img_path', None)
        return results

    def _load(self, path: str) -> np.ndarray:
        refuse_special_file(path)
        try:
            data = fileio.get(path, backend_args=self.backend_args)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            what = 'is a folder' if os.path.isdir(path) else 'does not exist'
            raise InputError(
                f'image {path!r} {what}; check data_root and data_prefix of the data set'
            ) from error
        except (OSError, ValueError) as error:  # not permitted, a link to itself, no file name
            raise InputError(f'image {path!r} cannot be read: {error}') from error
        try:
            with open_image(io.BytesIO(data), path) as image:
                self._check(image, path)
                ImageOps.exif_transpose(image, in_place=True)
                rgb = np.asarray(image if image.mode == 'RGB' else image.convert('RGB'))  # decodes
        except (InputError, MemoryError):
            raise
        except UnidentifiedImageError as error:
            raise InputError(
                f'{path!r} ({len(data)} bytes) is not an image that can be read; replace it, or '
                'remove it from the data set'
            ) from error
        except Exception as error:  # PIL raises nearly anything where content is damaged
            raise InputError(
                f'image {path!r} is truncated or damaged ({error}); fetch it again, '
                'or remove it from the data set'
            ) from error
        return mmcv.rgb2bgr(rgb)

    def _check(self, image: Image.Image, path: str) -> None:
        """Judge by the header, before anything is decoded."""
        kind = (
            'alpha'
            if 'transparency' in image.info
            else next(
                (kind for kind, (_, _, modes) in CONVERTIBLE.items() if image.mode in modes), None
            )
        )
        # PIL opens RGB files of 16 bits a channel as mode RGB; only the raw mode tells.
        if (kind is None and image.mode not in ('RGB', 'YCbCr', 'LAB', 'HSV')) or any(
            ';16' in str(tile[3]) for tile in getattr(image, 'tile', ())
        ):
            raise InputError(
                f'image {path!r} holds more than 8 bits a channel ({image.format}, mode '
                f'{image.mode}); save it as 8-bit RGB, scaling the values as suits your data'
            )
        if kind is not None and kind not in self.allow:
            holds, effect, _ = CONVERTIBLE[kind]
            raise InputError(
                f'image {path!r} holds {holds}, but 8-bit RGB is needed; save it as RGB, or set '
                f"allow=('{kind}', ) in LoadImageFromFile, which {effect}"
            )

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(to_float32={self.to_float32}, allow={self.allow}, '
            f'backend_args={self.backend_args})'
        )
