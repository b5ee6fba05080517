"""What the page shows of a prediction: pictures as PNG, classes with their shares."""

import base64
import io
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from mmvars.steer.images import jpeg

__all__ = ['class_rows', 'data_url', 'picture_url', 'views']

TINY = 1e-9


def views(prediction: Any, palette: Any) -> dict[str, dict]:
    """The maps of a prediction as pictures of the image's size, those that the model has.

    Returns:
        ``{'attention': {'url': data URL, 'low': value of the darkest color, 'high': ...}, ...}``.
        Norms of both passes share one range, token weights begin at 0, and the heatmap and the
        difference are drawn from 0 to 1: but a difference of less than 0.1 everywhere to 0.1.
    """
    norms = [m for m in (prediction.bottom_up, prediction.attention) if m is not None]
    low = min((float(norm.min()) for norm in norms), default=0.0)
    high = max((float(norm.max()) for norm in norms), default=0.0)
    maps = {}
    if prediction.bottom_up is not None:
        maps['bottom_up'] = (prediction.bottom_up, low, high)
    weights, heatmap = prediction.token_weights, prediction.heatmap
    if weights is not None and weights.any():
        maps['token_weights'] = (weights, 0.0, float(weights.max()))
    if heatmap is not None and not np.array_equal(heatmap, weights):  # of a prompt head
        maps['heatmap'] = (heatmap, 0.0, 1.0)
    if prediction.attention is not None:
        maps['attention'] = (prediction.attention, low, high)
    pictures = {name: _heat(*map_and_range) for name, map_and_range in maps.items()}
    if np.ndim(prediction.labels) == 2:
        pictures['labels'] = {'url': _label_url(prediction.labels, palette)}
        if prediction.prior is not None:
            pixels = prediction.shift.pixels
            pictures['shift'] = _heat(pixels, 0.0, 1.0 if pixels.max() > 0.1 else 0.1)
    return pictures


def class_rows(prediction: Any) -> list[dict]:
    """For each class its number, its share of the pixels (of a classifier the probability), mean
    probability, and what the prior added to that; classes that are nowhere have a share of 0."""
    probabilities = prediction.probabilities
    means = probabilities.reshape(len(probabilities), -1).mean(axis=1)
    shares = means
    if np.ndim(prediction.labels) == 2:
        shares = (
            np.bincount(prediction.labels.ravel(), minlength=len(means)) / prediction.labels.size
        )
    shift = np.zeros(len(means)) if prediction.prior is None else prediction.shift.classes
    return [
        dict(number=i, share=float(share), probability=float(mean), shift=float(change))
        for i, (share, mean, change) in enumerate(zip(shares, means, shift, strict=True))
    ]


def picture_url(picture: np.ndarray) -> str:
    """An image ``(H, W, 3)`` as a data URL."""
    return data_url(jpeg(Image.fromarray(picture)), 'jpeg')


def data_url(content: bytes, kind: str) -> str:
    return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'


def _heat(values: np.ndarray, low: float, high: float) -> dict:
    levels = np.clip((values - low) / max(high - low, TINY), 0, 1) * 255
    colors = matplotlib.colormaps['inferno'](np.arange(256), bytes=True)[:, :3]
    return dict(url=_palette_url(levels.round().astype(np.uint8), colors), low=low, high=high)


def _label_url(labels: np.ndarray, palette: Any) -> str:
    colors = np.asarray(palette, dtype=np.uint8)
    if len(colors) > 256:  # more than a palette holds
        return _png_url(Image.fromarray(colors[labels]))
    return _palette_url(labels.astype(np.uint8), colors)


def _palette_url(levels: np.ndarray, colors: np.ndarray) -> str:
    image = Image.fromarray(levels)
    image.putpalette(colors.tobytes())
    return _png_url(image)


def _png_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, 'PNG', compress_level=3)
    return data_url(file.getvalue(), 'png')
