"""What models attend to in an image and in its corrupted versions (Figures 1.3 and A.5)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from mmengine.dataset import Compose

from mmvars.datasets.corrupt import Corrupt, insert_corrupt
from mmvars.engine.samples import CheckedPipeline
from mmvars.errors import InputError
from mmvars.visualization.attention import attention_maps
from mmvars.visualization.draw import AVERAGE, CLASS_TOKEN, ViewOptions
from mmvars.visualization.figure import HeatMap, Picture, Row
from mmvars.visualization.model import Model, load_sample

__all__ = ['Subject', 'corruption_rows']

_OTHER_SHAPE = 0.02  # of the ratio of the sides


class Subject(NamedTuple):
    """A model, and the test pipeline of its config."""

    name: str
    model: Model
    pipeline: Compose


def corruption_rows(
    subjects: Sequence[Subject],
    path: str,
    corruptions: Sequence[str],
    severity: int,
    options: ViewOptions,
) -> tuple[list[Row], tuple[int, int]]:
    """The image, and beside it the maps of each model; clean in the first row.

    Corruptions are :class:`mmvars.Corrupt` right after the image is loaded, so that their pixels
    are those of ``mmvars robustness``. The maps of one model have one range of colors over all
    rows and lie on the clean image, so that what changes in them is what the corruption changes.

    Args:
        subjects: Models with a backbone of mmvars.
        path: Of the image, which the first model's pipeline prepares for the first column.
        corruptions: Names.
        severity: Of each, 1 to 5.
        options: Which maps: attention of the class token or of the average token stands in place
            of the token norms.

    Returns:
        The rows, and height and width of the image.

    Raises:
        InputError: If the image cannot be read, or two models see it in different shapes.
    """
    requested = [CLASS_TOKEN] * options.class_attention + [AVERAGE] * options.average_attention
    columns: list[list[list[HeatMap]]] = []  # of each model, its maps in each row
    pictures: list[Picture] = []
    for subject in subjects:
        maps: list[list[HeatMap]] = []
        for name in (None, *corruptions):
            steps = list(subject.pipeline.transforms)
            if name is not None:
                steps = insert_corrupt(steps, Corrupt(name, severity))
            sample = load_sample(
                [path], CheckedPipeline(steps), subject.model.backbone.trunk.strides[0]
            )
            if subject is subjects[0]:
                pictures.append(Picture(sample.picture(subject.model)))
            _check_shape(subjects[0].name, pictures[0], subject.name, sample.size)
            clean = maps[0][0].image if maps else sample.picture(subject.model)
            panels = attention_maps(subject.model, sample, options)
            if requested:
                panels = [panel for panel in panels if panel.kind in requested]
            maps.append([replace(panel, image=clean) for panel in panels])
        options.share_limits(panel for row in maps for panel in row)
        columns.append(maps)
    labels = ['clean', *(f'{name.replace("_", " ")}, severity {severity}' for name in corruptions)]
    rows = [
        Row(
            [
                picture,
                *(
                    replace(panel, title=subject.name)
                    for subject, maps in zip(subjects, columns, strict=True)
                    for panel in maps[index]
                ),
            ],
            label,
        )
        for index, (picture, label) in enumerate(zip(pictures, labels, strict=True))
    ]
    height, width = pictures[0].image.shape[:2]
    return rows, (height, width)


def _check_shape(first: str, picture: Picture, name: str, size: tuple[int, int]) -> None:
    height, width = picture.image.shape[:2]
    if abs(size[0] * width / (size[1] * height) - 1) > _OTHER_SHAPE:
        raise InputError(
            f'{first} sees this image as {height}x{width} pixels (height x width) and {name} as '
            f'{size[0]}x{size[1]}: maps of different shapes do not stand side by side; give both '
            'one test pipeline by --cfg-options, or draw them apart'
        )
