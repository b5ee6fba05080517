"""Images, where people looked or what is in them, and maps of models (Figures 1.4, A.6 and A.7)."""

import argparse
import itertools
import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmvars.datasets.files import open_image
from mmvars.errors import InputError
from mmvars.saliency.data import IGNORED, FixationData, MaskData
from mmvars.saliency.fixations import fixation_density, nss
from mmvars.saliency.measures import at_pixels, baselines, seen_labels, seen_points
from mmvars.saliency.objects import foreground_overlap, mass_accuracy
from mmvars.saliency.subject import BOTTOM_UP, MapName, Maps, Subject, View
from mmvars.visualization.figure import (
    HeatMap,
    LabelMap,
    Panel,
    Picture,
    Row,
    draw_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['Observer', 'attention_figure']

_MOST_OBJECTS = 3  # of an image that are looked for, the largest

_MOST_COLUMNS = 8  # that can be read

_COLORS = [(31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189)]
"""Of objects, the largest first."""

Drawn = dict[MapName, np.ndarray]
"""Maps at the pixels of the file, ``(H, W)``."""


class Observer(NamedTuple):
    """A model in the figure.

    Attributes:
        name: Over its columns.
        subject: The model.
        blocks: Whose maps are drawn.
    """

    name: str
    subject: Subject
    blocks: Sequence[int]


class _Scene(NamedTuple):
    """An image as the models see it.

    Attributes:
        index: In the data.
        image: ``(H, W, 3)``, the part that is seen.
        views: Of each model; all are of the same part.
        own: Maps of each model without a class prior.
    """

    index: int
    image: np.ndarray
    views: Sequence[View]
    own: Sequence[Drawn]


def attention_figure(
    observers: Sequence[Observer],
    data: FixationData | MaskData,
    indices: Sequence[int],
    kinds: Sequence[str],
    args: argparse.Namespace,
) -> 'Figure':
    """A row for each image: itself, fixations or objects, and the maps of each model.

    Under each map stands what it scores in this image. Where models have priors of the classes of
    objects, each model has a row: its maps without a class, and under the priors of the largest.
    Where not told which, it leaves out the last kinds of maps that make it too wide, and says so.

    Args:
        observers: The models.
        data: Images with fixations or masks.
        indices: Of the images.
        kinds: Of the maps.
        args: Of ``mmvars attention``: ``size``, ``crop``, ``maps``, ``steps``, ``alpha``, ``sigma``
            and ``definition``.

    Raises:
        InputError: If what is seen of an image has nothing to compare with.
    """
    rows = []
    for index in indices:
        scene = _scene(observers, data, index, kinds, args)
        if isinstance(data, FixationData):
            each = [_fixation_panels(observers, data, scene, args)]
        else:
            each = _object_panels(observers, data, scene, kinds, args)
        rows += [Row(panels, data.names[index], scene.image.shape[:2]) for panels in each]
    left_out = [] if args.maps else _narrow(rows, kinds)
    most = max(len(row.panels) for row in rows)
    for row in rows:
        row.panels = [*row.panels, *[Panel()] * (most - len(row.panels))]
    seen = f'short side {args.size}' + f', the middle {args.crop}x{args.crop}' * bool(args.crop)
    footer = (
        f'{data.title}, {seen} · blocks are counted from 0 · each map from its smallest value '
        '(black) to its largest · '
    )
    mass = 'mass: share of the map on the object of the prior, and of the bottom-up map'
    center = ' · center: of a Gaussian in the middle'
    if isinstance(data, FixationData):
        footer += f'NSS: of the map at the fixations of this image ({args.definition}){center}'
    elif data.has_background:
        footer += (
            'IoU, FP, FN: of the map cut at 0.3 of its range, against all objects (Table 1.4); '
            f'{mass}{center}'
        )
    else:
        footer += mass
    if left_out:
        footer += f' · left out to be legible: {", ".join(left_out)}; --maps says what is drawn'
    return draw_figure(rows, rows[0].size or (1, 1), footer)


def _narrow(rows: Sequence[Row], kinds: Sequence[str]) -> list[str]:
    """Take the last kinds of maps out of rows that are too wide, all but one; returns these."""

    def has(panel: Panel, kind: str) -> bool:
        return panel.note.endswith(f', {kind}')

    left_out: list[str] = []
    present = [kind for kind in kinds if any(has(p, kind) for row in rows for p in row.panels)]
    while len(present) > 1 and max(len(row.panels) for row in rows) > _MOST_COLUMNS:
        left_out.insert(0, present.pop())
        for row in rows:
            row.panels = [panel for panel in row.panels if not has(panel, left_out[0])]
    return left_out


def _scene(
    observers: Sequence[Observer],
    data: FixationData | MaskData,
    index: int,
    kinds: Collection[str],
    args: argparse.Namespace,
) -> _Scene:
    with open_image(data.paths[index], data.paths[index]) as file:
        views = [each.subject.view(file, args.size, args.crop) for each in observers]
        pixels = np.asarray(file.convert('RGB'))
    view = views[0]
    image = pixels[view.top : view.top + view.height, view.left : view.left + view.width]
    own = []
    for observer, each in zip(observers, views, strict=True):
        maps = observer.subject.own_maps(each.pixels, observer.blocks, args.steps, args.alpha)
        own.append(_drawn(maps, kinds, view))
    return _Scene(index, image, views, own)


def _drawn(maps: Maps, kinds: Collection[str], view: View) -> Drawn:
    return {name: at_pixels(each, view) for name, each in maps.items() if name.kind in kinds}


def _fixation_panels(
    observers: Sequence[Observer], data: FixationData, scene: _Scene, args: argparse.Namespace
) -> list[Panel]:
    view = scene.views[0]
    points, _ = seen_points(data, scene.index, view)
    if not len(points):
        raise InputError(
            f'--figure: no fixation is in what is seen of {data.names[scene.index]}: leave --crop '
            'out, or name another image'
        )
    sigma = data.sigma(scene.index) if args.sigma is None else args.sigma
    density = fixation_density(points, scene.image.shape[:2], sigma)

    def score(values: np.ndarray) -> str:
        return f'NSS {nss(values, points, args.definition):.2f}'

    center = f'center: {score(_center(view))}'
    return [
        Picture(scene.image, points=points, title='Image', caption=f'{len(points)} fixations'),
        HeatMap(
            density, scene.image, title='People', note=f'blurred by {sigma:.0f} px', caption=center
        ),
        *itertools.chain(*_own_panels(observers, scene, score)),
    ]


def _object_panels(
    observers: Sequence[Observer],
    data: MaskData,
    scene: _Scene,
    kinds: Collection[str],
    args: argparse.Namespace,
) -> list[list[Panel]]:
    view, image = scene.views[0], scene.image
    labels = seen_labels(data, scene.index, view)
    counted = labels != IGNORED
    foreground = counted & (labels > 0)
    if not foreground.any():
        raise InputError(
            f'--figure: no object is in what is seen of {data.names[scene.index]}: leave --crop '
            'out, or name another image'
        )
    numbers, sizes = np.unique(labels[foreground], return_counts=True)
    largest = numbers[np.argsort(-sizes, kind='stable')].tolist()
    names = {label: data.class_name(label) or f'label {label}' for label in largest}

    def score(values: np.ndarray) -> str:
        if not data.has_background:
            return ''
        overlap = foreground_overlap(values, foreground, counted)
        return (
            f'IoU {overlap.iou:.2f}, FP {overlap.false_positive_share:.2f}, '
            f'FN {overlap.false_negative_share:.2f}'
        )

    def mass(values: np.ndarray, label: int) -> str:
        share = mass_accuracy(values, labels == label, counted)
        return f'{share:.1%}' if share >= 0.01 else f'{share:.2%}'

    center = f'center: {score(_center(view))}' if data.has_background else ''
    first: list[Panel] = [
        Picture(image, title='Image', caption=center),
        _mask_panel(labels, image, largest, [*map(_spoken, names.values())]),
    ]
    own = _own_panels(observers, scene, score)
    if not any(name in each.subject.priors for each in observers for name in names.values()):
        return [[*first, *itertools.chain(*own)]]
    rows = []
    for number, (observer, panels) in enumerate(zip(observers, own, strict=True)):
        asked = [label for label in largest if names[label] in observer.subject.priors]
        for label in asked[:_MOST_OBJECTS]:
            prior = observer.subject.priors[names[label]]
            maps = observer.subject.asked_maps(
                scene.views[number].pixels, observer.blocks, args.steps, prior, args.alpha
            )
            for name, values in _drawn(maps, kinds, view).items():
                caption = f'mass {mass(values, label)}'
                before = scene.own[number].get(name._replace(stage=BOTTOM_UP))
                if before is not None:
                    caption += f', bottom-up {mass(before, label)}'
                title = f'prior: {_spoken(names[label])}'
                panels.append(_heat_map(values, image, title, name, caption))
        rows.append([*(first if not number else [Panel(), Panel()]), *panels])
    return rows


def _own_panels(
    observers: Sequence[Observer], scene: _Scene, score: Callable[[np.ndarray], str]
) -> list[list[Panel]]:
    """Of each model the maps without a class."""
    return [
        [
            _heat_map(values, scene.image, observer.name, name, score(values))
            for name, values in maps.items()
        ]
        for observer, maps in zip(observers, scene.own, strict=True)
    ]


def _heat_map(
    values: np.ndarray, image: np.ndarray, title: str, name: MapName, caption: str
) -> HeatMap:
    step = '' if name.step is None else f', step {name.step}'
    note = str(name._replace(step=None))
    return HeatMap(values, image, title=title + step, note=note, caption=caption)


def _mask_panel(
    labels: np.ndarray, image: np.ndarray, present: Sequence[int], names: Sequence[str]
) -> LabelMap:
    """The objects in colors, what has no label and the background as they are."""
    colored = np.full(labels.shape, len(present))
    for number, label in enumerate(present):
        colored[labels == label] = number
    caption = ', '.join(names)
    return LabelMap(
        colored,
        image,
        tuple(names),
        [_COLORS[k % len(_COLORS)] for k in range(len(names))],
        title='Objects',
        caption=caption if len(caption) <= 40 else f'{caption[:39]}…',
    )


def _center(view: View) -> np.ndarray:
    return at_pixels(baselines(view, (1, 1), 0)['center'], view)


def _spoken(name: str) -> str:
    """A class as it is said: of WordNet's ``golden_retriever.n.01``, golden retriever."""
    return re.sub(r'\.n\.\d+$', '', name).replace('_', ' ')
