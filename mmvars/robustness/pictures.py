"""The images that a model loses most on: clean, corrupted, what it attends to and says."""

import base64
import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mmvars.robustness.protocols import CLEAN, Setting, corruption_means
from mmvars.robustness.report import Result
from mmvars.robustness.runner import Evaluation, Shown
from mmvars.visualization.draw import ViewOptions
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

_WIDTH, _DPI = 11.5, 100  # of a row in inches: small print can be read on the page


def worst_images(result: Result, count: int) -> list[tuple[Setting, int]]:
    """For the corruptions that cost most, at their highest severity, the image that loses most.

    Returns:
        Settings, the worst first, each with the position of an image; none that loses nothing.
    """
    level = max(result.protocol.levels)
    drops = {}
    for setting in (Setting(name, level) for name in result.protocol.changes):
        best = result.scores(CLEAN).by_image if _has_clean(result, setting) else 1.0
        drops[setting] = best - result.scores(setting).by_image
    means = corruption_means({setting: drop.mean() for setting, drop in drops.items()})
    worst = [Setting(name, level) for name in sorted(means, key=lambda name: -means[name])]
    found = [(setting, int(drops[setting].argmax())) for setting in worst]
    return [(setting, image) for setting, image in found if drops[setting][image] > 0][:count]


def _has_clean(result: Result, setting: Setting) -> bool:
    """Whether the images of a setting were tested clean too."""
    identity = result.rows.identity
    return result.protocol.clean and identity(CLEAN)['images'] == identity(setting)['images']


def worst_pictures(
    evaluation: Evaluation, result: Result, against: Result | None = None, count: int = 4
) -> list[tuple[str, str]]:
    """Pictures of :func:`worst_images`: a line of text, and a PNG as the source of an ``<img>``.

    Of the model ``against``, which is not loaded, the text has the scores of the same image.
    """
    pictures = []
    for setting, image in worst_images(result, count):
        settings = [CLEAN] * _has_clean(result, setting) + [setting]
        shown = [evaluation.show(each, image) for each in settings]
        if len(shown) > 1 and not evaluation.protocol.imagenet_c:  # which frames it otherwise
            maps = [replace(panel, image=shown[0].image) for panel in shown[1].maps]
            shown[1] = replace(shown[1], maps=maps)
        rows = [
            Row(_panels(evaluation, result, each), name.name)
            for name, each in zip(settings, shown, strict=True)
        ]
        ViewOptions().share_limits(panel for row in rows for panel in row.panels)
        file = io.BytesIO()
        figure = draw_figure(rows, shown[0].image.shape[:2], max_row=_WIDTH)
        figure.savefig(file, format='png', dpi=_DPI)
        source = f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'
        name = evaluation.names[setting][image]
        text = f'{setting.name}, {name}: {_scores(result, settings, image)}'
        if against is not None:
            text += f'; {against.about["config"]}: {_scores(against, settings, image)}'
        pictures.append((text, source))
    return pictures


def _scores(result: Result, settings: Sequence[Setting], image: int) -> str:
    """What one image loses."""
    scores = [result.scores(setting).by_image[image] for setting in settings]
    if result.score == 'mIoU':
        return f'mIoU of this image {" → ".join(f"{100 * score:.1f}" for score in scores)}'
    return ' → '.join('right' if right else 'wrong' for right in scores)


def _panels(evaluation: Evaluation, result: Result, shown: Shown) -> Sequence[Panel]:
    image = shown.image
    panels: list[Panel] = [Picture(image), *shown.maps]
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
