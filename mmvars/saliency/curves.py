"""From what is counted of single images to curves of deletion and insertion, and their areas."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmvars.robustness.scores import Scores, draw_weights
from mmvars.saliency.report import Table
from mmvars.steerability.estimates import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    'CLASS_MEASURES',
    'MEASURES',
    'RANDOM',
    'SHIFTED',
    'Curves',
    'Measure',
    'count_class',
    'count_pixels',
    'draw_curves',
]

RANDOM = 'random'
SHIFTED = ', shifted'
MOST_SHOWN = 8
DPI = 150
OWN, INVERSE = 'C0', 'C3'
COLUMNS = ('deletion', 'insertion', 'gain', 'over shifted')

State = Mapping[str, Any]
"""What is counted of one prediction: see :func:`count_pixels` and :func:`count_class`."""


def count_pixels(
    prediction: np.ndarray, whole: np.ndarray, labels: np.ndarray, kept: np.ndarray
) -> dict[str, list]:
    """What a prediction ``(H, W)`` for an image without some patches adds to the scores.

    Args:
        prediction: Classes.
        whole: The prediction for the whole image.
        labels: -1 where there is none.
        kept: Which pixels are not removed.

    Returns:
        ``'classes'``: those in any of the three; for each of them pixels in ``'all'``
        (intersection, union) and ``'kept'`` (these, then these of ``whole``); ``'agreement'``:
        pixels that agree with ``whole``, and pixels; of all, and of the kept ones.
    """
    classes = np.unique(np.concatenate([prediction, whole, labels[labels >= 0]], axis=None))
    counts: dict[str, list] = dict(classes=classes.tolist(), all=[], kept=[])
    seen = labels >= 0
    for each in classes:
        truth, found, before = (a == each for a in (labels, prediction, whole))
        pairs = [(truth & answer, (truth | answer) & seen) for answer in (found, before)]
        counts['all'].append([int(area.sum()) for area in pairs[0]])
        counts['kept'].append([int((area & kept).sum()) for pair in pairs for area in pair])
    agrees = prediction == whole
    areas = agrees, np.ones_like(agrees), agrees & kept, kept
    return counts | dict(agreement=[int(area.sum()) for area in areas])


def count_class(scores: np.ndarray, whole: int, label: int) -> dict[str, list]:
    """The same of the probabilities ``(K,)`` of a classifier.

    Returns:
        ``'probability'`` of the class ``whole`` that the whole image has; ``'right'``, 0 or 1.
    """
    return dict(probability=[float(scores[whole])], right=[int(scores.argmax() == label)])


@dataclass(frozen=True)
class Measure:
    """A score of many images.

    Attributes:
        title: For the report.
        axis: For the figure.
        score: From one state an image, their labels ``(I, K)`` bool, and how often an image counts
            ``(R, I)``, to the score in each draw ``(R,)``.
        needs_kept: Whether it is of the pixels that are kept.
        by_class: Whether it is of the classes that maps were made for, each on its own map.
    """

    title: str
    axis: str
    score: Callable[[Sequence[State], np.ndarray, np.ndarray], np.ndarray]
    needs_kept: bool = False
    by_class: bool = False


def _areas(states: Sequence[State], name: str, labeled: np.ndarray) -> np.ndarray:
    """Counts of the classes ``(I, K, n)``."""
    width = max((len(each[name][0]) for each in states if each[name]), default=2)
    areas = np.zeros((*labeled.shape, width))
    for image, state in enumerate(states):
        for number, counts in zip(state['classes'], state[name], strict=True):
            areas[image, number] = counts
    return areas


def _miou(states: Sequence[State], labeled: np.ndarray, weights: np.ndarray) -> np.ndarray:
    areas = _areas(states, 'all', labeled)[:, labeled.any(axis=0)]
    return Scores(areas[..., 0], areas[..., 1]).value(weights)


def _kept_miou(states: Sequence[State], labeled: np.ndarray, weights: np.ndarray) -> np.ndarray:
    areas = _areas(states, 'kept', labeled)
    known = labeled.any(axis=0) & (areas[..., 3].sum(axis=0) > 0)  # the same classes in both
    found, before = (
        Scores(areas[:, known, k], areas[:, known, k + 1]).value(weights) for k in (0, 2)
    )
    return found / np.where(before > 0, before, np.nan)


def _share(name: str, place: int) -> Callable[..., np.ndarray]:
    def score(states: Sequence[State], labeled: np.ndarray, weights: np.ndarray) -> np.ndarray:
        counts = np.array([[*each[name], 1][place : place + 2] for each in states], dtype=float)
        return Scores(counts[:, :1], counts[:, 1:]).value(weights)

    return score


MEASURES = {
    True: (
        Measure('mIoU, kept pixels', 'share of mIoU at kept pixels', _kept_miou, True),
        Measure('mIoU, all pixels', 'mIoU of all pixels', _miou),
        Measure('agreement, kept pixels', 'agreement at kept pixels', _share('agreement', 2), True),
        Measure('agreement, all pixels', 'agreement at all pixels', _share('agreement', 0)),
    ),
    False: (
        Measure('probability', 'probability of the first answer', _share('probability', 0)),
        Measure('top-1', 'top-1 accuracy', _share('right', 0)),
    ),
}
"""Of a segmentor (True), the primary one first, and of a classifier."""

CLASS_MEASURES = (
    Measure('IoU under class priors, kept pixels', 'share of IoU', _kept_miou, True, True),
    Measure('IoU under class priors, all pixels', 'IoU', _miou, False, True),
)
"""Of each class on the images that have it, in the order of a map that was made for it."""


class Curves:
    """Curves of all orders of the patches, over all images.

    Args:
        images: Of each image ``'labels'``, the classes of its labels; ``'states'``; ``'orders'``:
            name -> numbers of the states of deletion and of insertion, one a fraction; and where
            maps were made for classes, ``'classes'``: name -> class -> the same.
        fractions: From 0 to 1.
        num_classes: K.
        seed: Of the bootstrap.
    """

    def __init__(
        self,
        images: Sequence[Mapping[str, Any]],
        fractions: Sequence[float],
        num_classes: int,
        seed: int,
    ) -> None:
        self.images = images
        self.fractions = np.array(fractions)
        self.num_classes = num_classes
        self.weights = draw_weights(len(images), seed)

    @property
    def names(self) -> list[str]:
        """Of the orders."""
        return [*self.images[0]['orders']]

    @property
    def class_names(self) -> list[str]:
        """Of the orders that were made for classes."""
        return [*dict.fromkeys(name for image in self.images for name in image['classes'])]

    def of(self, measure: Measure, name: str, inserts: bool) -> np.ndarray:
        """A score at each fraction, in each draw ``(R, F)``; ``nan`` where it is of no pixel."""
        columns = []
        pick = measure.by_class
        for place in range(len(self.fractions)):
            states = [self._state(image, name, inserts, place, pick) for image in self.images]
            if measure.needs_kept and not any(each['agreement'][3] for each in states):
                columns.append(np.full(len(self.weights), np.nan))
                continue
            columns.append(measure.score(states, self._labeled(pick), self.weights))
        return np.stack(columns, axis=1)

    def areas(self, measure: Measure, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean of the curve of deletion, and of that of insertion, in each draw ``(R,)``."""
        return tuple(_mean(self.fractions, self.of(measure, name, i)) for i in (False, True))

    def gain(self, measure: Measure, name: str) -> np.ndarray:
        """Insertion less deletion, in each draw ``(R,)``."""
        deletion, insertion = self.areas(measure, name)
        return insertion - deletion

    def table(self, measure: Measure) -> Table:
        """The areas of all orders but the shifted ones."""
        rows = {}
        for name in [*self.names, *(self.class_names if measure.by_class else ())]:
            if name.endswith(SHIFTED):
                continue
            deletion, insertion = self.areas(measure, name)
            gain = insertion - deletion
            over = np.full_like(gain, np.nan)
            if name + SHIFTED in (*self.names, *self.class_names):
                over = gain - self.gain(measure, name + SHIFTED)
            rows[name] = [self._estimate(each) for each in (deletion, insertion, gain, over)]
        return Table(measure.title, COLUMNS, rows)

    def csv(self, measures: Sequence[Measure]) -> str:
        """All curves: a line for each point, with its interval."""
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator='\n')
        writer.writerow(['score', 'map', 'curve', 'fraction', 'value', 'low', 'high'])
        for measure in measures:
            for name in [*self.names, *(self.class_names if measure.by_class else ())]:
                for inserts, curve in enumerate(('deletion', 'insertion')):
                    draws = self.of(measure, name, bool(inserts))
                    for fraction, each in zip(self.fractions, draws.T, strict=True):
                        if np.isfinite(each[0]):
                            point = self._estimate(each)
                            numbers = point.value, point.low, point.high
                            writer.writerow(
                                [measure.title, name, curve, f'{fraction:g}']
                                + [f'{number:.6g}' for number in numbers]
                            )
        return lines.getvalue()

    def _estimate(self, draws: np.ndarray) -> Estimate:
        finite = draws[1:][np.isfinite(draws[1:])]
        low, high = np.quantile(finite, [0.025, 0.975]) if finite.size else (np.nan, np.nan)
        return Estimate(float(draws[0]), float(low), float(high), len(self.images))

    def _labeled(self, by_class: bool) -> np.ndarray:
        labeled = np.zeros((len(self.images), self.num_classes), dtype=bool)
        for image, each in enumerate(self.images):
            labeled[image, self._asked(each) if by_class else each['labels']] = True
        return labeled

    def _asked(self, image: Mapping[str, Any]) -> list[int]:
        """The classes that maps of an image were made for."""
        return [int(number) for each in [*image['classes'].values()][:1] for number in each]

    def _state(
        self, image: Mapping[str, Any], name: str, inserts: bool, place: int, by_class: bool
    ) -> State:
        states = image['states']
        if not by_class:
            return states[image['orders'][name][inserts][place]]
        merged: dict[str, list] = dict(classes=self._asked(image), all=[], kept=[])
        merged['agreement'] = [0, 0, 0, 0]
        for number in merged['classes']:
            order = image['orders'].get(name) or image['classes'][name][str(number)]
            state = states[order[inserts][place]]
            merged['agreement'] = state['agreement']
            for key in ('all', 'kept'):
                merged[key].append(state[key][state['classes'].index(number)])
        return merged


def _mean(x: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """By the trapezoid rule, over the points that are numbers."""
    known = np.isfinite(curve[0])
    widths, curve = np.diff(x[known]), curve[:, known]
    return (curve[:, 1:] + curve[:, :-1]) / 2 @ widths / widths.sum()


def draw_curves(curves: Curves, measures: Sequence[Measure]) -> 'Figure':
    """A column for each map, a row for each score: deletion by the map and by its inverse.

    The area between the two is the gain. Insertion is the latter, read from the right. Of many maps
    those with the largest gain are drawn.
    """
    from matplotlib.figure import Figure

    first = measures[0]
    names = [name for name in curves.names if name + SHIFTED in curves.names]
    shown = sorted(names, key=lambda name: -curves.gain(first, name)[0])[:MOST_SHOWN]
    names = [name for name in names if name in shown]
    size = 2.3 * len(names) + 0.6, 2.4 * len(measures) + 0.7
    figure = Figure(figsize=size, dpi=DPI, facecolor='white', layout='constrained')
    grid = figure.subplots(len(measures), len(names), sharex=True, sharey='row', squeeze=False)
    x = 100 * curves.fractions
    for measure, row in zip(measures, grid, strict=True):
        random = [curves.of(measure, n, False)[0] for n in curves.names if n.startswith(RANDOM)]
        center = curves.of(measure, 'center', False)[0]
        for name, axes in zip(names, row, strict=True):
            own = curves.of(measure, name, False)
            inverse = curves.of(measure, name, True)[0, ::-1]
            moved = curves.of(measure, name + SHIFTED, False)[0]
            axes.fill_between(
                x, np.min(random, axis=0), np.max(random, axis=0), color='0.8', label='random'
            )
            axes.plot(x, center, color='0.5', linestyle='-.', linewidth=1, label='center')
            axes.plot(x, moved, color=OWN, linestyle='--', linewidth=1, label='map, shifted')
            axes.plot(x, inverse, color=INVERSE, linewidth=1.5, label='inverse of the map')
            axes.fill_between(
                x, *np.quantile(own[1:], [0.025, 0.975], axis=0), color=OWN, alpha=0.2, linewidth=0
            )
            axes.plot(x, own[0], 'o-', color=OWN, markersize=3, label='map, 95 % interval')
            axes.tick_params(labelsize=7)
            axes.spines[['top', 'right']].set_visible(False)
        row[0].set_ylabel(measure.axis, fontsize=8)
    for name, top, bottom in zip(names, grid[0], grid[-1], strict=True):
        block, stage, kind = name.split(', ', 2)
        top.set_title(f'{block}, {stage}\n{kind}', fontsize=8)
        bottom.set_xlabel('patches removed, %', fontsize=8)
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(),
        loc='outside lower center',
        ncols=5,
        fontsize=8,
        frameon=False,
    )
    return figure
