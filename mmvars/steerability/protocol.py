"""What a model is asked, and what is counted of its answers; see `mmvars steerability --help`.

All that is drawn depends on the seed and the image alone, so that all models get the same questions
(as far as they know the same classes).
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mmvars.steerability.asking import (
    ABSENT,
    CENTER,
    CHANCE,
    PLAIN,
    PRIOR,
    RANDOM,
    Answers,
    Maps,
    Reading,
    Subject,
    View,
    ask_all,
)
from mmvars.steerability.estimates import Tally, ThresholdTally
from mmvars.steerability.measures import THRESHOLDS, follows, map_stats, scores_follow
from mmvars.steerability.photos import Photo, Photos
from mmvars.steerability.tiles import Collage, TileDrawer, class_pixels

__all__ = ['Example', 'Plan', 'Results', 'Section', 'can_ask', 'measure', 'num_steps']

MOST_ASKED = 8
"""Classes of one image that are asked for; where there are more, some are drawn."""

FACTORS = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Of the model's own alpha, where no alphas are given."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        indices: Of the test data.
        seed: Of all that is drawn.
        min_share: A class is asked for from this share of the pixels on.
        layout: Of pairs, see :data:`~mmvars.steerability.photos.LAYOUTS`.
        alphas: Of the sweep; ``None``: :data:`FACTORS` times the model's own.
        num_examples: Images that are kept for pictures.
    """

    indices: Sequence[int]
    seed: int = 0
    min_share: float = 0.01
    layout: str = 'square'
    alphas: tuple[float, ...] | None = None
    num_examples: int = 4


@dataclass
class Section:
    """The tallies of one kind of images.

    Attributes:
        num_units: Number of its images.
        tallies: By table, row and column.
        curves: By table and row.
    """

    num_units: int
    tallies: dict[tuple[str, str, str], Tally] = field(default_factory=lambda: defaultdict(Tally))
    curves: dict[tuple[str, str], ThresholdTally] = field(
        default_factory=lambda: defaultdict(ThresholdTally)
    )


@dataclass(frozen=True)
class Example:
    """An image with the answers to two priors, for pictures.

    Attributes:
        photo: The image.
        classes: Those that were asked for.
        answers: The answers to them.
        sweep: Those to the first at each alpha.
        is_pair: Whether it is two images side by side, named by the classes.
    """

    photo: Photo
    classes: tuple[int, int]
    answers: tuple[Maps, Maps]
    sweep: tuple[Maps, ...]
    is_pair: bool


@dataclass
class Results:
    """All that was measured of one model.

    Attributes:
        sections: ``images`` (of a segmentor), ``pairs`` and ``squares``.
        alphas: Of the sweep.
        left_out: Classes without a prior.
        examples: For pictures.
    """

    sections: dict[str, Section]
    alphas: tuple[float, ...]
    left_out: tuple[int, ...]
    examples: list[Example] = field(default_factory=list)


def measure(
    subject: Subject, photos: Photos, plan: Plan, progress: Callable[[], object] = lambda: None
) -> Results:
    """Measure a model; ``progress`` is called after each image, see :func:`num_steps`."""
    num_classes = subject.num_classes
    num_pairs, num_squares = _num_collages(len(plan.indices), subject.segments)
    sections = dict(pairs=Section(num_pairs), squares=Section(num_squares))
    if subject.segments:
        sections = dict(images=Section(len(plan.indices)), **sections)
    own = subject.own_alpha
    alphas = () if own is None else plan.alphas or tuple(own * factor for factor in FACTORS)
    results = Results(sections, alphas, subject.left_out)
    counts = []
    for unit, index in enumerate(plan.indices):
        if subject.segments:
            photo = photos[index]
            counts.append(class_pixels(photo.labels, num_classes))
            rng = np.random.default_rng((plan.seed, index))
            _measure_image(subject, photo, unit, rng, plan, results)
            progress()
        else:
            counts.append(np.eye(num_classes, dtype=int)[photos.label(index)])
    drawer = TileDrawer(
        photos, plan.indices, np.stack(counts), subject.askable, plan.min_share, plan.layout
    )
    for name, tiles in (('pairs', 2), ('squares', 4)):
        for unit in range(sections[name].num_units):
            rng = np.random.default_rng((plan.seed, tiles, unit))
            drawn = drawer.draw(tiles, rng)
            if drawn.named:
                _measure_collage(subject, drawn, unit, rng, plan, results, name)
            progress()
    return results


def can_ask(subject: Subject, photos: Photos, plan: Plan) -> bool:
    """Whether there is any class to ask for; reads images until one has it."""
    if subject.segments:
        return any(
            _large_classes(photos[index].labels, subject.num_classes, plan.min_share)[
                subject.askable
            ].any()
            for index in plan.indices
        )
    labels = {photos.label(index) for index in plan.indices}
    return len(labels) > 1 and not labels.isdisjoint(subject.askable.tolist())


def num_steps(num_images: int, segments: bool) -> int:
    """How often :func:`measure` reports progress."""
    return sum(_num_collages(num_images, segments)) + num_images * segments


def _num_collages(num_images: int, segments: bool) -> tuple[int, int]:
    """Pairs, and squares of four. What a classifier is measured on are pairs."""
    few = max(num_images // 4, 1)
    return (few, few) if segments else (num_images, few)


def _measure_image(
    subject: Subject,
    photo: Photo,
    unit: int,
    rng: np.random.Generator,
    plan: Plan,
    results: Results,
) -> None:
    """A segmentor on one image: flips, regions, IoU, and the sweep."""
    section, valid = results.sections['images'], photo.labels >= 0
    truth = photo.labels[valid]
    if not truth.size:
        return
    counts = class_pixels(truth, subject.num_classes)
    large = _large_classes(photo.labels, subject.num_classes, plan.min_share)
    named = [k for k in rng.permutation(subject.askable).tolist() if large[k]][:MOST_ASKED]
    absent = [k for k in rng.permutation(subject.askable).tolist() if not counts[k]][:2]
    region_of = np.full(subject.num_classes, len(named))
    region_of[named] = np.arange(len(named))
    view = View(valid, truth, region_of[truth])
    alphas = results.alphas if named else ()
    answers = ask_all(subject, photo, view, named, absent, rng, alphas)
    sizes = counts[named]
    _add_regions(section, unit, answers, sizes / truth.size)
    _add_masks(section, unit, answers, named, sizes, truth.size)
    _add_class_scores(section, unit, subject, view, named)
    if named:  # as at each alpha: mIoU of other images is another number
        _add_labels(section, unit, PLAIN, answers.plain)
    for column, ks in (('named', named[:1]), ('shuffled', named[1:2]), ('random', named[:1])):
        _add_iou(section, unit, PLAIN, column, answers.plain, ks)
    for alpha, ((reading,), (random,)) in answers.sweep.items():
        row = f'{alpha:g}'
        _add_labels(section, unit, row, reading)
        _add_iou(section, unit, row, 'named', reading, named[:1])
        # The second class is as random as the first: for it this prior is that of another region.
        _add_iou(section, unit, row, 'shuffled', reading, named[1:2])
        _add_iou(section, unit, row, 'random', random, named[:1])
        answer = reading.stats('answer')
        union = sizes[0] + answer.all_marked - answer.marked[0]
        section.curves['sweep', row].add(unit, answer.marked[0], union, named[0])
    _keep_example(results, plan, photo, named, answers, is_pair=False)


def _large_classes(labels: np.ndarray, num_classes: int, min_share: float) -> np.ndarray:
    """Whether each class has its share of the pixels, and is not all there is: ``(K,)``."""
    counts = class_pixels(labels, num_classes)
    return (counts >= max(min_share * labels.size, 1)) & (counts < counts.sum())


def _keep_example(
    results: Results,
    plan: Plan,
    photo: Photo,
    named: Sequence[int],
    answers: Answers,
    is_pair: bool,
) -> None:
    if len(named) < 2 or len(results.examples) >= plan.num_examples:
        return
    first, second = (each.drawn for each in answers.named[:2])
    sweep = tuple(readings[0].drawn for readings, _ in answers.sweep.values())
    results.examples.append(Example(photo, (named[0], named[1]), (first, second), sweep, is_pair))


def _add_regions(section: Section, unit: int, answers: Answers, shares: np.ndarray) -> None:
    """Flip accuracy of all pairs of regions, share and AUC of all maps in each."""
    for a, b in itertools.combinations(range(len(shares)), 2):
        for row, first, second in answers.pairs(a, b):
            for name in first.maps:
                hit = follows(first.stats(name).means, second.stats(name).means, a, b)
                section.tallies['flip', row, name].add(unit, hit)
    for a, share in enumerate(shares):
        for row, reading in answers.singles(a):
            for name in reading.maps:
                stats = reading.stats(name)
                section.tallies['auc', row, name].add(unit, stats.auc[a])
                if name != 'change' and not np.isnan(stats.shares[a]):
                    section.tallies['share', row, name].add(unit, stats.shares[a])
        for name in answers.named[a].maps:
            if name != 'change':
                section.tallies['share', CHANCE, name].add(unit, share)


def _add_masks(
    section: Section,
    unit: int,
    answers: Answers,
    named: Sequence[int],
    sizes: np.ndarray,
    num_pixels: int,
) -> None:
    """Pixels marked, and IoU of answers and labels with the regions of the named classes."""
    for a, (k, size) in enumerate(zip(named, sizes, strict=True)):
        for row, reading in answers.singles(a):
            for name in reading.masks:
                stats = reading.stats(name)
                union = size + stats.all_marked - stats.marked[a]
                section.curves[f'iou {name}', row].add(unit, stats.marked[a], union, k)
            _add_iou(section, unit, row, 'labels', reading, [k], table='iou')
        section.tallies['iou', CHANCE, 'labels'].add(unit, size, num_pixels, k)
        section.tallies['marked', 'true', 'share'].add(unit, size, num_pixels)
    everything = np.full(len(THRESHOLDS), num_pixels)
    for row, readings in (
        (PRIOR, answers.named),
        (ABSENT, answers.absent[:1]),
        (RANDOM, answers.random[:1]),
        (CENTER, [answers.center]),
    ):
        for reading in readings:
            for name in reading.masks:
                marked = reading.stats(name).all_marked
                section.curves[f'marked {name}', row].add(unit, marked, everything)


def _add_class_scores(
    section: Section, unit: int, subject: Subject, view: View, named: Sequence[int]
) -> None:
    """The probability of the named class without a prior: what a segmentor knows anyway."""
    probabilities = subject.plain.probabilities
    if len(probabilities) != subject.num_classes:  # one logit for two classes
        return
    stats = []
    for a, k in enumerate(named):
        stats.append(map_stats(probabilities[k][view.valid], view.regions, len(named)))
        section.tallies['auc', PLAIN, 'class probability'].add(unit, stats[a].auc[a])
    for a, b in itertools.combinations(range(len(named)), 2):
        hit = follows(stats[a].means, stats[b].means, a, b)
        section.tallies['flip', PLAIN, 'class probability'].add(unit, hit)


def _add_labels(section: Section, unit: int, row: str, reading: Reading) -> None:
    """mIoU of the labels."""
    present = np.flatnonzero(reading.counts[1]).tolist()
    _add_iou(section, unit, row, 'miou', reading, present)


def _add_iou(
    section: Section,
    unit: int,
    row: str,
    column: str,
    reading: Reading,
    classes: Sequence[int],
    table: str = 'sweep',
) -> None:
    """IoU of classes in the labels."""
    for k in classes:
        both, either = reading.counts[:, k]
        section.tallies[table, row, column].add(unit, both, either, k)


def _measure_collage(
    subject: Subject,
    drawn: Collage,
    unit: int,
    rng: np.random.Generator,
    plan: Plan,
    results: Results,
    name: str,
) -> None:
    """A model on images side by side: does it attend to the named one?"""
    section, named, photo = results.sections[name], drawn.named, drawn.photo
    regions = np.full(photo.labels.shape, len(named)).ravel()
    for index, region in enumerate(drawn.regions):
        regions[region] = index
    view = View(np.ones(photo.labels.shape, bool), None, regions)
    is_swept = not subject.segments and name == 'pairs' and len(named) == 2
    alphas = results.alphas if is_swept else ()
    answers = ask_all(subject, photo, view, named, drawn.absent, rng, alphas, num_swept=2)
    _add_regions(section, unit, answers, np.bincount(regions)[: len(named)] / regions.size)
    if subject.segments:
        return
    _add_scores(section, unit, answers, named)
    if not is_swept:
        return
    for alpha, (readings, random) in answers.sweep.items():
        columns = [('flip', readings), ('flip shuffled', readings[::-1]), ('flip random', random)]
        for column, pair in columns:
            beats, _ = scores_follow(pair[0].scores, pair[1].scores, *named)
            section.tallies['sweep', f'{alpha:g}', column].add(unit, beats)
    _keep_example(results, plan, photo, named, answers, is_pair=True)
    _sweep_alone(subject, section, unit, drawn, alphas)


def _add_scores(section: Section, unit: int, answers: Answers, named: Sequence[int]) -> None:
    """Flip accuracy of a classifier's scores, and probabilities of the named classes."""
    for a, b in itertools.combinations(range(len(named)), 2):
        for row, first, second in answers.pairs(a, b):
            beats, wins = scores_follow(first.scores, second.scores, named[a], named[b])
            section.tallies['flip', row, 'score'].add(unit, beats)
            section.tallies['flip', row, 'top class'].add(unit, wins)
    for a, k in enumerate(named):
        for row, reading in answers.singles(a):
            section.tallies['probability', row, 'named class'].add(unit, reading.scores[k])


def _sweep_alone(
    subject: Subject, section: Section, unit: int, drawn: Collage, alphas: Sequence[float]
) -> None:
    """What a wrong prior costs on the first image of a pair alone, if there is a wrong one."""
    if not drawn.absent:
        return
    photo, k = drawn.photo, drawn.named[0]
    region = drawn.regions[0].reshape(photo.labels.shape)
    tile = np.ix_(region.any(axis=1), region.any(axis=0))
    plain = subject.set_image(Photo(photo.name, photo.image[tile], photo.labels[tile]))
    section.tallies['sweep', PLAIN, 'top-1'].add(unit, plain.labels == k)
    for alpha in alphas:
        (misled,) = subject.ask(drawn.absent[:1], alpha)
        section.tallies['sweep', f'{alpha:g}', 'top-1'].add(unit, misled.labels == k)
