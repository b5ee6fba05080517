"""Images that strangers chose: those of one folder, by name, and uploads; decoded within bounds."""

import os
from typing import BinaryIO

from PIL import Image, ImageOps

from mmvars.datasets.files import images_in, open_image, refuse_special_file
from mmvars.errors import InputError

__all__ = ['ImageFolder', 'decode_image']

FORMATS = ('BMP', 'GIF', 'JPEG', 'MPO', 'PNG', 'TIFF', 'WEBP')  # MPO: JPEGs of many cameras
MAX_PIXELS = 50_000_000
THUMBNAIL = 160  # pixels of the longer side


class ImageFolder:
    """The images of a folder and of all below it.

    A name is looked up in the list that was made at the start, never joined to a path, so that no
    name leads elsewhere. Links that lead out of the folder are left out.

    Args:
        folder: Its path.

    Raises:
        InputError: If there is no such folder, or no image in it.
    """

    def __init__(self, folder: str) -> None:
        if not os.path.isdir(folder):
            what = 'is no folder' if os.path.exists(folder) else 'does not exist'
            raise InputError(f'--images {folder!r} {what}: give a folder of images')
        self.root = os.path.realpath(folder)
        paths = {os.path.relpath(path, self.root): path for path in images_in(self.root)}
        self._paths = {
            name.replace(os.sep, '/'): path for name, path in paths.items() if self._holds(path)
        }
        if not self._paths:
            raise InputError(f'all images in {folder!r} are links that lead out of it')

    @property
    def names(self) -> list[str]:
        return list(self._paths)

    def __contains__(self, name: object) -> bool:
        return name in self._paths

    def open(self, name: str) -> BinaryIO:
        """The file of a name in :attr:`names`.

        Raises:
            InputError: If there is none any more, or a link has taken its place that leads out.
        """
        path = os.path.realpath(self._paths[name])
        if not self._holds(path) or not os.path.isfile(path):
            raise InputError(f'{name!r} is no longer in the folder of images')
        refuse_special_file(path)
        return open(path, 'rb')

    def _holds(self, path: str) -> bool:
        return os.path.realpath(path).startswith(os.path.join(self.root, ''))


def decode_image(file: BinaryIO, name: str, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """An image upright in RGB, scaled down where its longer side has more than ``side`` pixels.

    Returns:
        The image, and width and height of the original.

    Raises:
        InputError: If it is damaged, too large, of another format than :data:`FORMATS`, or has
            more than 8 bits a channel.
    """
    try:
        with open_image(file, name) as image:
            if image.format not in FORMATS:
                raise InputError(f'{name!r} is {image.format}; save it as PNG or JPEG')
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f'{name!r} has {image.width} x {image.height} pixels, more than '
                    f'{MAX_PIXELS:,}: scale it down'
                )
            if image.mode in ('I', 'F') or image.mode.startswith('I;'):
                raise InputError(f'{name!r} has more than 8 bits a channel; save it with 8')
            original = image.size
            image.draft('RGB', (side, side))  # a large JPEG is decoded at a fraction of its size
            upright = ImageOps.exif_transpose(image).convert('RGB')
            if upright.size != image.size:  # it lay on its side
                original = original[::-1]
    except InputError:
        raise
    except Exception as error:  # the decoders of PIL raise whatever their libraries do
        raise InputError(
            f'{name!r} cannot be decoded ({type(error).__name__}): it is damaged, or no image'
        ) from error
    upright.thumbnail((side, side), Image.Resampling.LANCZOS)
    return upright, original
