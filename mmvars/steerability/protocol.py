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
    CHANCE,
    PLAIN,
    PRIOR,
    Answers,
    Maps,
    Reading,
    Subject,
    ask_all,
)
from mmvars.steerability.estimates import Tally, ThresholdTally
from mmvars.steerability.measures import (
    average_ranks,
    class_counts,
    counts_above,
    follows,
    roc_auc,
    scores_follow,
    share_inside,
)
from mmvars.steerability.photos import Photo, Photos
from mmvars.steerability.tiles import Collage, TileDrawer, class_pixels

__all__ = ['Example', 'Plan', 'Results', 'Section', 'measure', 'num_steps']

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
    left_out = sorted(set(range(num_classes)) - set(subject.askable.tolist()))
    results = Results(sections, alphas, tuple(left_out))
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
    large = (counts >= max(plan.min_share * photo.labels.size, 1)) & (counts < truth.size)
    named = [k for k in rng.permutation(subject.askable).tolist() if large[k]][:MOST_ASKED]
    absent = [k for k in rng.permutation(subject.askable).tolist() if not counts[k]][:2]
    answers = ask_all(subject, photo, valid, named, absent, rng)
    regions = [truth == k for k in named]
    _add_regions(section, unit, answers, regions, named)
    _add_masks(section, unit, answers, regions, named)
    _add_class_scores(section, unit, subject, valid, regions, named)
    for row, group in ((ABSENT, answers.absent[:1]), (PRIOR, answers.named)):
        for reading in group:
            for name, marked in reading.marked.items():
                everything = np.full(marked.shape, truth.size)
                section.curves[f'marked {name}', row].add(unit, marked, everything)
    for k in named:
        section.tallies['marked', 'true', 'share'].add(unit, counts[k], truth.size)
    _add_labels(section, unit, PLAIN, answers.plain, truth, named, subject.num_classes)
    sweep = []
    for alpha in results.alphas if named else ():
        reading, row = answers.named[0], f'{alpha:g}'
        if alpha != subject.own_alpha:
            reading = Reading(subject, subject.ask(named[0], alpha), valid)
        sweep.append(reading.drawn)
        _add_labels(section, unit, row, reading, truth, named, subject.num_classes)
        inside = counts_above(reading.maps['answer'][regions[0]])
        union = counts[named[0]] + reading.marked['answer'] - inside
        section.curves['sweep', row].add(unit, inside, union, named[0])
    if len(named) > 1 and len(results.examples) < plan.num_examples:
        first, second = (each.drawn for each in answers.named[:2])
        results.examples.append(
            Example(photo, (named[0], named[1]), (first, second), tuple(sweep), is_pair=False)
        )


def _add_regions(
    section: Section,
    unit: int,
    answers: Answers,
    regions: Sequence[np.ndarray],
    named: Sequence[int],
) -> None:
    """Flip accuracy of all pairs of regions, share and AUC of all maps in each."""
    for a, b in itertools.combinations(range(len(named)), 2):
        for row, first, second in answers.pairs(a, b):
            for name in first.maps:
                hit = follows(first.maps[name], second.maps[name], regions[a], regions[b])
                section.tallies['flip', row, name].add(unit, hit)
    for a, region in enumerate(regions):
        for row, reading in answers.singles(a):
            for name, ranks in reading.ranks.items():
                section.tallies['auc', row, name].add(unit, roc_auc(ranks, region))
                share = None if name == 'change' else share_inside(reading.maps[name], region)
                if share is not None:
                    section.tallies['share', row, name].add(unit, share)
        for name in answers.named[a].maps:
            if name != 'change':
                section.tallies['share', CHANCE, name].add(unit, region.mean())


def _add_masks(
    section: Section,
    unit: int,
    answers: Answers,
    regions: Sequence[np.ndarray],
    named: Sequence[int],
) -> None:
    """IoU of answers and labels with the regions of the named classes."""
    for a, (k, region) in enumerate(zip(named, regions, strict=True)):
        size = int(region.sum())
        for row, reading in answers.singles(a):
            for name, marked in reading.marked.items():
                inside = counts_above(reading.maps[name][region])
                section.curves[f'iou {name}', row].add(unit, inside, size + marked - inside, k)
        section.tallies['iou', CHANCE, 'labels'].add(unit, size, region.size, k)
        for row, reading in ((PLAIN, answers.plain), (PRIOR, answers.named[a])):
            both = int((reading.labels[region] == k).sum())
            either = size + int((reading.labels == k).sum()) - both
            section.tallies['iou', row, 'labels'].add(unit, both, either, k)


def _add_class_scores(
    section: Section,
    unit: int,
    subject: Subject,
    valid: np.ndarray,
    regions: Sequence[np.ndarray],
    named: Sequence[int],
) -> None:
    """The probability of the named class without a prior: what a segmentor knows anyway."""
    probabilities = subject.plain.probabilities
    if len(probabilities) != subject.num_classes:  # one logit for two classes
        return
    maps = [probabilities[k][valid] for k in named]
    for values, region in zip(maps, regions, strict=True):
        auc = roc_auc(average_ranks(values), region)
        section.tallies['auc', PLAIN, 'class probability'].add(unit, auc)
    for a, b in itertools.combinations(range(len(named)), 2):
        hit = follows(maps[a], maps[b], regions[a], regions[b])
        section.tallies['flip', PLAIN, 'class probability'].add(unit, hit)


def _add_labels(
    section: Section,
    unit: int,
    row: str,
    reading: Reading,
    truth: np.ndarray,
    named: Sequence[int],
    num_classes: int,
) -> None:
    """mIoU of the labels, and IoU of the first of the named classes in them."""
    both, either = class_counts(reading.labels, truth, num_classes)
    for k in np.flatnonzero(either).tolist():
        section.tallies['sweep', row, 'miou'].add(unit, both[k], either[k], k)
    for k in named[:1]:
        section.tallies['sweep', row, 'named'].add(unit, both[k], either[k], k)


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
    section, named = results.sections[name], drawn.named
    valid = np.ones(drawn.photo.labels.shape, bool)
    answers = ask_all(subject, drawn.photo, valid, named, drawn.absent, rng)
    _add_regions(section, unit, answers, drawn.regions, named)
    if subject.segments:
        return
    _add_scores(section, unit, answers, named)
    if name != 'pairs' or len(named) < 2:
        return
    sweep = []
    for alpha in results.alphas:
        readings = answers.named
        if alpha != subject.own_alpha:
            readings = [Reading(subject, subject.ask(k, alpha), valid) for k in named]
        sweep.append(readings[0].drawn)
        beats, _ = scores_follow(readings[0].scores, readings[1].scores, *named)
        section.tallies['sweep', f'{alpha:g}', 'flip'].add(unit, beats)
    if len(results.examples) < plan.num_examples:
        first, second = (each.drawn for each in answers.named)
        results.examples.append(
            Example(drawn.photo, (named[0], named[1]), (first, second), tuple(sweep), is_pair=True)
        )
    _sweep_alone(subject, section, unit, drawn, results.alphas)


def _add_scores(section: Section, unit: int, answers: Answers, named: Sequence[int]) -> None:
    """Flip accuracy of a classifier's scores, and probabilities of the named classes."""
    scores = answers.map(lambda reading: reading.scores)
    for a, b in itertools.combinations(range(len(named)), 2):
        for row, first, second in scores.pairs(a, b):
            beats, wins = scores_follow(first, second, named[a], named[b])
            section.tallies['flip', row, 'score'].add(unit, beats)
            section.tallies['flip', row, 'top class'].add(unit, wins)
    for a, k in enumerate(named):
        for row, each in scores.singles(a):
            section.tallies['probability', row, 'named class'].add(unit, each[k])


def _sweep_alone(
    subject: Subject, section: Section, unit: int, drawn: Collage, alphas: Sequence[float]
) -> None:
    """What a wrong prior costs on the first image of a pair alone."""
    photo, k = drawn.photo, drawn.named[0]
    region = drawn.regions[0].reshape(photo.labels.shape)
    tile = np.ix_(region.any(axis=1), region.any(axis=0))
    plain = subject.set_image(Photo(photo.name, photo.image[tile], photo.labels[tile]))
    section.tallies['sweep', PLAIN, 'top-1'].add(unit, plain.labels == k)
    for alpha in alphas if drawn.absent else ():
        misled = subject.ask(drawn.absent[0], alpha)
        section.tallies['sweep', f'{alpha:g}', 'top-1'].add(unit, misled.labels == k)
