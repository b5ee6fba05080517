"""Image files: those of a folder, and those that a loader would hang on, refused by name."""

import hashlib
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from mmvars.errors import InputError

__all__ = [
    'SUFFIXES',
    'contents_digest',
    'evenly_spaced',
    'image_name',
    'images_in',
    'max_pixels',
    'open_image',
    'refuse_special_file',
]

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')

_FILES_READ = 8  # whose bytes tell data of the same names apart
_BYTES_PER_PIXEL = 16  # four channels of 32 bits
_REMEDY = 'Replace it, or allow as many pixels by MMVARS_MAX_PIXELS=NUMBER in the environment'


def image_name(path: str) -> str:
    """The folder and the file: what names an image on every machine, wherever its data are."""
    return '/'.join(Path(path).parts[-2:])


def images_in(folder: str, left_out: str | None = None) -> list[str]:
    """The image files of a folder and of all below it, but for those in ``left_out``, sorted.

    Raises:
        InputError: If there are none.
    """
    paths = []
    for root, folders, files in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if left_out is None
            or os.path.realpath(os.path.join(root, name)) != os.path.realpath(left_out)
        ]
        paths += [os.path.join(root, name) for name in files if name.lower().endswith(SUFFIXES)]
    if not paths:
        raise InputError(f'the folder {folder!r} holds no image ({" ".join(SUFFIXES)})')
    return sorted(paths)


def evenly_spaced(total: int, count: int | None) -> list[int]:
    """Indices of ``count`` of ``total`` images, of the first and the last too; of all for None."""
    return np.linspace(0, total - 1, min(count or total, total)).round().astype(int).tolist()


def contents_digest(paths: Sequence[str]) -> str:
    """Of the sizes of all files and what is in some: tells others of the same names apart.

    Sizes alone would not do, for those of uncompressed images are equal. What is no file, read by a
    backend of its own, is passed over.
    """
    digest = hashlib.sha256()
    read = set(evenly_spaced(len(paths), _FILES_READ))
    for position, path in enumerate(paths):
        if os.path.isfile(path):
            digest.update(f'{os.path.getsize(path)};'.encode())
            if position in read:
                digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:16]


def max_pixels() -> float:
    """How many pixels an image may have: what PIL does not take for a bomb, 178,956,970.

    The environment variable ``MMVARS_MAX_PIXELS`` sets another number, of PIL too.

    Raises:
        InputError: If the variable is no positive number.
    """
    if (value := os.environ.get('MMVARS_MAX_PIXELS')) is not None:
        try:
            Image.MAX_IMAGE_PIXELS = math.ceil(float(value) / 2)  # it refuses twice as many
        except (ValueError, OverflowError):
            Image.MAX_IMAGE_PIXELS = 0
        if Image.MAX_IMAGE_PIXELS < 1:
            raise InputError(
                f'the environment variable MMVARS_MAX_PIXELS must be a positive number, '
                f'got {value!r}'
            )
    return math.inf if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


def refuse_special_file(path: str) -> None:
    """Refuse what can be read without end; what is missing or a folder fails by itself.

    Raises:
        InputError: If ``path`` is a FIFO, a socket or a device, or too large to be an image.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise InputError(
            f'{path!r} is a FIFO, a socket or a device, not a file; replace it, or remove it from '
            'the data set'
        )
    if status.st_size > _BYTES_PER_PIXEL * (limit := max_pixels()):
        raise InputError(
            f'{path!r} has {status.st_size:,} bytes, more than an image of {limit:,} pixels needs. '
            f'{_REMEDY}'
        )


def open_image(source: str | BinaryIO, path: str) -> Image.Image:
    """Open an image and judge by its header; nothing is decoded.

    Args:
        source: A local path, or the file itself.
        path: For the message.

    Raises:
        InputError: If it claims more than :func:`max_pixels`, or is PostScript: a program, for
            which PIL starts Ghostscript.
        PIL.UnidentifiedImageError: If it is no image that PIL knows.
    """
    max_pixels()
    try:
        image = Image.open(source)
    except Image.DecompressionBombError as error:
        raise InputError(f'{path!r} is too large: {error} {_REMEDY}') from error
    if image.format == 'EPS':
        image.close()
        raise InputError(f'{path!r} is PostScript, not an image of pixels; save it as PNG')
    return image
