"""The images that a model loses most on: clean, corrupted, and what it says of both."""

import base64
import io
from collections.abc import Sequence

import numpy as np

from mmvars.robustness.protocols import CLEAN, Setting, corruption_means
from mmvars.robustness.report import Result
from mmvars.robustness.runner import Evaluation, Shown
from mmvars.robustness.scores import Scores
from mmvars.visualization.figure import (
    LabelMap,
    Panel,
    Picture,
    Row,
    TopClasses,
    default_palette,
    draw_figure,
)

__all__ = ['worst_images', 'worst_pictures']


def worst_images(result: Result, count: int) -> list[tuple[Setting, int]]:
    """For the corruptions that cost most, at their highest severity, the image that loses most.

    Returns:
        Settings, the worst first, each with the position of an image; none that loses nothing.
    """
    clean = _by_image(result.scores(CLEAN))
    level = max(result.protocol.levels)
    drops = {
        Setting(name, level): clean - _by_image(result.scores(Setting(name, level)))
        for name in result.protocol.changes
    }
    means = corruption_means({setting: drop.mean() for setting, drop in drops.items()})
    worst = [Setting(name, level) for name in sorted(means, key=lambda name: -means[name])]
    found = [(setting, int(drops[setting].argmax())) for setting in worst]
    return [(setting, image) for setting, image in found if drops[setting][image] > 0][:count]


def _by_image(scores: Scores) -> np.ndarray:
    """Accuracy, or mean IoU over the classes that an image has, of each image ``(I,)``."""
    counted = scores.denominators > 0
    quotients = scores.numerators / np.where(counted, scores.denominators, 1)
    return quotients.sum(1) / np.maximum(counted.sum(1), 1)


def worst_pictures(evaluation: Evaluation, result: Result, count: int = 4) -> list[tuple[str, str]]:
    """Pictures of :func:`worst_images`: a line of text, and a PNG as the source of an ``<img>``."""
    pictures = []
    for setting, image in worst_images(result, count):
        clean, corrupted = (evaluation.show(each, image) for each in (CLEAN, setting))
        rows = [
            Row(_panels(evaluation, result, shown), name)
            for name, shown in (('clean', clean), (setting.name, corrupted))
        ]
        file = io.BytesIO()
        draw_figure(rows, clean.image.shape[:2]).savefig(file, format='png')
        source = f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'
        pictures.append((f'{setting.name}: {evaluation.images[image]}', source))
    return pictures


def _panels(evaluation: Evaluation, result: Result, shown: Shown) -> Sequence[Panel]:
    image = shown.image
    panels: list[Panel] = [Picture(image)]
    if not evaluation.segmentation:
        return [*panels, TopClasses(shown.output, result.classes, truth=(int(shown.truth),))]
    palette = evaluation.palette or default_palette(len(result.classes))
    for labels, title in ((shown.truth, 'Ground truth'), (shown.output, 'Segmentation')):
        labels = _nearest(np.where(labels < 0, len(result.classes), labels), image.shape)
        panels.append(LabelMap(labels, image, result.classes, palette, title=title))
    return panels


def _nearest(labels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Labels at the size of the image as the model takes it."""
    rows, columns = (
        np.arange(target) * source // target
        for target, source in zip(shape, labels.shape, strict=False)
    )
    return labels[rows[:, None], columns]
