"""What the page shows of a prediction: pictures as PNG, classes with their shares."""

import base64
from typing import Any

import numpy as np
from PIL import Image

from mmvars.pictures import encoded, heat_colors, with_palette

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
    return data_url(encoded(Image.fromarray(picture), 'JPEG', quality=90), 'jpeg')


def data_url(content: bytes, kind: str) -> str:
    return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'


def _heat(values: np.ndarray, low: float, high: float) -> dict:
    levels = np.clip((values - low) / max(high - low, TINY), 0, 1) * 255
    image = with_palette(levels.round(), heat_colors(np.arange(256)))
    return dict(url=_png_url(image), low=low, high=high)


def _label_url(labels: np.ndarray, palette: Any) -> str:
    if len(palette) > 256:  # more than a palette holds
        return _png_url(Image.fromarray(np.asarray(palette, dtype=np.uint8)[labels]))
    return _png_url(with_palette(labels, palette))


def _png_url(image: Image.Image) -> str:
    return data_url(encoded(image, 'PNG', compress_level=3), 'png')
