"""Pictures of maps and labels, and their files."""

import io
from typing import Any

import numpy as np
from PIL import Image

__all__ = ['COLOR_MAP', 'encoded', 'heat_colors', 'with_palette']

COLOR_MAP = 'inferno'
"""Of all heat maps: black where there is nothing."""


def heat_colors(values: np.ndarray) -> np.ndarray:
    """Colors ``(..., 3)``, uint8, of values in [0, 1]."""
    from matplotlib import colormaps

    return colormaps[COLOR_MAP](values, bytes=True)[..., :3]


def with_palette(levels: np.ndarray, colors: Any) -> Image.Image:
    """Numbers ``(H, W)`` from 0 to 255 as an image that holds them, and the color of each."""
    image = Image.fromarray(levels.astype(np.uint8))
    image.putpalette(np.asarray(colors, np.uint8).tobytes())
    return image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image as a file; ``kind`` and ``options`` are PIL's."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
