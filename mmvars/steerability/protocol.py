"""What a model is asked, and what becomes of the answers; see the help of ``mmvars steerability``.

All that is drawn depends on the seed and the image alone, so that all models get the same questions
(as far as they know the same classes).
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mmvars.errors import InputError
from mmvars.networks import Trunk
from mmvars.predictor import Prediction, Predictor
from mmvars.steerability.estimates import Tally, ThresholdTally
from mmvars.steerability.measures import (
    average_ranks,
    class_counts,
    counts_above,
    follows,
    random_prior,
    roc_auc,
    scores_follow,
    share_inside,
)
from mmvars.steerability.photos import Photo, Photos, collage
from mmvars.visualization.model import is_segmentor, network_of
from mmvars.visualization.priors import scale_of

__all__ = ['ROWS', 'Example', 'Plan', 'Results', 'Section', 'Subject', 'measure']

PRIOR, SHUFFLED, ABSENT, RANDOM, CENTER, PLAIN, CHANCE = ROWS = (
    'its prior',
    'shuffled priors',
    'absent class',
    'random prior',
    'center',
    'no prior',
    'whole image',
)
MOST_ASKED = 8
"""Classes of one image that are asked for; where there are more, some are drawn."""

DRAWS = 300
"""Of the tiles of a collage, until each is named by a class of its own."""

REMNANT = 0.1
"""Of ``min_share``: what a class that names a tile may have of the other tiles."""

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
    """The tallies of one kind of images, by (table, row, column).

    Attributes:
        num_units: Number of its images.
    """

    num_units: int
    tallies: dict[tuple[str, str, str], Tally] = field(default_factory=lambda: defaultdict(Tally))
    curves: dict[tuple[str, str], ThresholdTally] = field(
        default_factory=lambda: defaultdict(ThresholdTally)
    )


@dataclass(frozen=True)
class Example:
    """An image with the answers to two priors, for a picture."""

    photo: Photo
    classes: tuple[int, int]
    plain: Prediction
    answers: tuple[Prediction, Prediction]


@dataclass
class Results:
    """All that was measured of one model: sections ``images``, ``pairs`` and ``squares``."""

    sections: dict[str, Section]
    alphas: tuple[float, ...]
    left_out: tuple[int, ...] = ()  # classes without a prior
    examples: list[Example] = field(default_factory=list)


class Subject:
    """A model that is asked.

    Args:
        predictor: Of the model.

    Attributes:
        takes_prior: Whether it takes one. A model that feeds back without a prior answers
            every question alike.
        has_head: Whether its answer is that of a prompt head; else the token weights are.
        askable: Classes that it can be asked for: those with a prior that is not zero.
        own_alpha: Its scale; ``None`` where nothing is scaled by it, or nothing can be asked.
        segments: Whether it is a segmentor, not a classifier.

    Raises:
        InputError: If it is a plain backbone, or has neither prior nor prompt head.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.network: Any = network_of(predictor.model)
        kind = type(predictor.model.backbone).__name__
        if isinstance(self.network, Trunk):
            raise InputError(
                f'the backbone mmvars.{kind} has no top-down attention, so there is nothing to '
                'steer: give a config with mmvars.AbSViT as its backbone'
            )
        self.takes_prior = self.network.prior is not None
        self.has_head = getattr(predictor.model, 'prompt_head', None) is not None
        if not self.takes_prior and not self.has_head:
            raise InputError(
                "this model feeds back without a prior (design='feedback') and has no prompt head, "
                "so it cannot be asked for anything: take design='absvit', or train it with "
                "model.prompt_head=dict(type='mmvars.PromptHead')"
            )
        self.own_alpha = scale_of(self.network, None) if self.takes_prior else None
        self.segments = is_segmentor(predictor.model)
        self.num_classes = len(predictor.classes)
        self.askable = np.arange(self.num_classes)
        if self.takes_prior:
            self.priors = self._class_priors()
            self.askable = np.array(sorted(self.priors))

    def _class_priors(self) -> dict[int, np.ndarray]:
        priors, refused = {}, None
        for k in range(self.num_classes):
            try:
                priors[k] = self.predictor.prior_vector(k).cpu().numpy()
            except InputError as error:  # a class without prototype; or a model without any
                refused = error
        if refused is not None and not priors:
            raise refused
        return priors

    def set_image(self, photo: Photo) -> Prediction:
        """Take an image; returns the prediction without a prior."""
        self.predictor.set_image(photo.image)
        self._plain = self.predictor.predict(None)
        return self._plain

    def ask(self, priors: list[Any], alpha: float | None = None) -> list[Prediction]:
        """The predictions under several priors."""
        if not self.takes_prior:
            return [self._plain] * len(priors)
        return self.predictor.predict_batch(priors, alpha)

    def random(self, rng: np.random.Generator) -> np.ndarray | None:
        """A prior that means nothing, as long as those of the classes are on average."""
        if not self.takes_prior:
            return None
        vectors = np.stack([*self.priors.values()])
        norm = float(np.linalg.norm(vectors, axis=1).mean())
        return random_prior(norm, vectors.shape[1], rng)


class Reading:
    """The maps of one prediction at the pixels that count, flat.

    ``answer``: of the prompt head, else the token weights. ``weights``: these, where there is a
    head. ``attention``: the norms of the tokens in the last pass. ``change``: what they gained or
    lost against the first pass, each over its own mean. Without a prior there is ``attention``
    alone; of a model that takes none there are all but ``weights``.
    """

    def __init__(self, subject: Subject, prediction: Prediction, valid: np.ndarray) -> None:
        attention, first = prediction.attention, prediction.bottom_up
        self.maps = {'attention': attention[valid]}
        if prediction.prior is None and subject.takes_prior:
            self.maps['attention'] = first[valid]
        else:
            self.maps['answer'] = prediction.heatmap[valid]
            if subject.has_head and subject.takes_prior:
                self.maps['weights'] = prediction.token_weights[valid]
            self.maps['change'] = (
                attention / max(attention.mean(), 1e-12) - first / max(first.mean(), 1e-12)
            )[valid]
        self.labels = prediction.labels[valid] if np.ndim(prediction.labels) else None

    @cached_property
    def ranks(self) -> dict[str, np.ndarray]:
        return {name: average_ranks(values) for name, values in self.maps.items()}

    @cached_property
    def marked(self) -> dict[str, np.ndarray]:
        return {name: counts_above(self.maps[name]) for name in self.maps if name in MASKS}


MASKS = ('answer', 'weights')
"""Maps that are between 0 and 1 and can be cut to masks."""


@dataclass
class Answers:
    """Predictions, or readings, for one image under all priors."""

    named: list[Any]
    absent: list[Any]
    random: list[Any]
    center: Any
    plain: Any

    @classmethod
    def of(
        cls,
        subject: Subject,
        photo: Photo,
        named: Sequence[int],
        absent: Sequence[int],
        rng: np.random.Generator,
    ) -> 'Answers':
        """Ask for all of it."""
        height, width = photo.labels.shape
        plain = subject.set_image(photo)
        priors = [*map(int, named), *map(int, absent), subject.random(rng), subject.random(rng)]
        found = subject.ask([*priors, (width // 2, height // 2)])
        cuts = len(named), len(named) + len(absent)
        return cls(
            found[: cuts[0]], found[cuts[0] : cuts[1]], found[cuts[1] : -1], found[-1], plain
        )

    def map(self, function: Callable[[Any], Any]) -> 'Answers':
        """The same of something else."""
        return Answers(
            [function(each) for each in self.named],
            [function(each) for each in self.absent],
            [function(each) for each in self.random],
            function(self.center),
            function(self.plain),
        )

    def pairs(self, a: int, b: int) -> Iterable[tuple[str, Any, Any]]:
        """Each row with its answers in place of those to the priors of ``a`` and ``b``."""
        yield PRIOR, self.named[a], self.named[b]
        yield SHUFFLED, self.named[b], self.named[a]
        if len(self.absent) == 2:
            yield ABSENT, *self.absent
        yield RANDOM, *self.random
        yield CENTER, self.center, self.center
        yield PLAIN, self.plain, self.plain

    def singles(self, a: int) -> Iterable[tuple[str, Any]]:
        """Each row with its answer in place of that to the prior of ``a``."""
        yield PRIOR, self.named[a]
        if len(self.named) > 1:
            yield SHUFFLED, self.named[(a + 1) % len(self.named)]
        if self.absent:
            yield ABSENT, self.absent[a % len(self.absent)]
        yield RANDOM, self.random[a % 2]
        yield CENTER, self.center
        yield PLAIN, self.plain


def measure(
    subject: Subject, photos: Photos, plan: Plan, progress: Callable[[], None] = lambda: None
) -> Results:
    """Measure a model; ``progress`` is called after each image, see :func:`num_steps`."""
    num_pairs, num_squares = _num_collages(len(plan.indices), subject.segments)
    sections = dict(pairs=Section(num_pairs), squares=Section(num_squares))
    if subject.segments:
        sections = dict(images=Section(len(plan.indices)), **sections)
    own = subject.own_alpha
    alphas = () if own is None else plan.alphas or tuple(own * factor for factor in FACTORS)
    left_out = sorted(set(range(subject.num_classes)) - set(subject.askable.tolist()))
    results = Results(sections, alphas, tuple(left_out))
    counts = []
    for unit, index in enumerate(plan.indices):
        if subject.segments:
            photo = photos[index]
            _measure_image(subject, photo, unit, index, plan, results)
            counts.append(_class_counts(photo.labels, subject))
            progress()
        else:
            counts.append(np.eye(subject.num_classes, dtype=int)[photos.label(index)])
    drawer = _Drawer(subject, photos, plan, np.stack(counts))
    for name, tiles in (('pairs', 2), ('squares', 4)):
        for unit in range(sections[name].num_units):
            rng = np.random.default_rng((plan.seed, tiles, unit))
            _measure_collage(subject, drawer.draw(tiles, rng), unit, rng, plan, results, name)
            progress()
    return results


def num_steps(num_images: int, segments: bool) -> int:
    """How often :func:`measure` reports progress."""
    return sum(_num_collages(num_images, segments)) + num_images * segments


def _num_collages(num_images: int, segments: bool) -> tuple[int, int]:
    """Pairs and squares of four: a classifier's images are pairs."""
    few = max(num_images // 4, 1)
    return (few, few) if segments else (num_images, few)


def _measure_image(
    subject: Subject, photo: Photo, unit: int, index: int, plan: Plan, results: Results
) -> None:
    """A segmentor on one image: flips, regions, IoU, and the sweep."""
    rng, section = np.random.default_rng((plan.seed, index)), results.sections['images']
    valid = photo.labels >= 0
    truth = photo.labels[valid]
    counts = _class_counts(photo.labels, subject)
    present = (counts >= plan.min_share * photo.labels.size) & (0 < counts) & (counts < truth.size)
    named = [int(k) for k in rng.permutation(subject.askable) if present[k]][:MOST_ASKED]
    absent = [int(k) for k in rng.permutation(subject.askable) if not counts[k]][:2]
    if not truth.size:
        return
    predictions = Answers.of(subject, photo, named, absent, rng)
    readings = predictions.map(lambda each: Reading(subject, each, valid))
    regions = [truth == k for k in named]
    _add_regions(section, unit, readings, regions, named)
    if subject.num_classes > 1:
        _add_masks(section, unit, predictions, readings, regions, named, valid)
    for row, group in ((ABSENT, readings.absent[:1]), (PRIOR, readings.named)):
        for reading in group:
            for name, marked in reading.marked.items():
                section.curves[f'marked {name}', row].add(
                    unit, marked, np.full(marked.shape, truth.size)
                )
    for k in named:
        section.tallies['marked', 'true', 'share'].add(unit, counts[k], truth.size)
    both, either = class_counts(readings.plain.labels, truth, subject.num_classes)
    for k in np.flatnonzero(either):
        section.tallies['sweep', PLAIN, 'miou'].add(unit, both[k], either[k], int(k))
    if named:
        _sweep_image(subject, section, unit, named[0], truth, valid, readings, results.alphas)
    if len(named) > 1 and len(results.examples) < plan.num_examples:
        results.examples.append(
            Example(photo, tuple(named[:2]), predictions.plain, tuple(predictions.named[:2]))
        )


def _add_regions(
    section: Section,
    unit: int,
    readings: Answers,
    regions: Sequence[np.ndarray],
    named: Sequence[int],
) -> None:
    """Flip accuracy of all pairs of regions, share and AUC of all maps in each."""
    for a, b in itertools.combinations(range(len(named)), 2):
        for row, first, second in readings.pairs(a, b):
            for name in first.maps:
                hit = follows(first.maps[name], second.maps[name], regions[a], regions[b])
                section.tallies['flip', row, name].add(unit, hit)
    for a, region in enumerate(regions):
        for row, reading in readings.singles(a):
            for name, ranks in reading.ranks.items():
                section.tallies['auc', row, name].add(unit, roc_auc(ranks, region))
                share = None if name == 'change' else share_inside(reading.maps[name], region)
                if share is not None:
                    section.tallies['share', row, name].add(unit, share)
        for name in readings.named[a].maps.keys() - {'change'}:
            section.tallies['share', CHANCE, name].add(unit, region.mean())


def _add_masks(
    section: Section,
    unit: int,
    predictions: Answers,
    readings: Answers,
    regions: Sequence[np.ndarray],
    named: Sequence[int],
    valid: np.ndarray,
) -> None:
    """IoU of answers and labels with the regions of the named classes, and the model's own
    segmentation as a rival."""
    plain, chances = readings.plain, predictions.plain.probabilities
    for a, (k, region) in enumerate(zip(named, regions, strict=True)):
        size = int(region.sum())
        for row, reading in readings.singles(a):
            for name, marked in reading.marked.items():
                both = counts_above(reading.maps[name][region])
                section.curves[f'iou {name}', row].add(unit, both, size + marked - both, k)
        section.tallies['iou', CHANCE, 'labels'].add(unit, size, region.size, k)
        for row, labels in ((PLAIN, plain.labels), (PRIOR, readings.named[a].labels)):
            both = int((labels[region] == k).sum())
            either = size + int((labels == k).sum()) - both
            section.tallies['iou', row, 'labels'].add(unit, both, either, k)
        if len(chances) > k:
            auc = roc_auc(average_ranks(chances[k][valid]), region)
            section.tallies['auc', PLAIN, 'class probability'].add(unit, auc)
    for a, b in itertools.combinations(range(len(named)), 2):
        if len(chances) > max(named[a], named[b]):
            first, second = (chances[named[i]][valid] for i in (a, b))
            hit = follows(first, second, regions[a], regions[b])
            section.tallies['flip', PLAIN, 'class probability'].add(unit, hit)


def _sweep_image(
    subject: Subject,
    section: Section,
    unit: int,
    named: int,
    truth: np.ndarray,
    valid: np.ndarray,
    readings: Answers,
    alphas: Sequence[float],
) -> None:
    """One class of the image under each alpha."""
    region = truth == named
    answers = [(PLAIN, readings.plain)]
    for alpha in alphas:
        reading = readings.named[0]
        if alpha != subject.own_alpha:
            reading = Reading(subject, *subject.ask([named], alpha), valid)
        answers.append((f'{alpha:g}', reading))
    for row, reading in answers:
        both, either = class_counts(reading.labels, truth, subject.num_classes)
        section.tallies['sweep', row, 'named'].add(unit, both[named], either[named], named)
        if row == PLAIN:
            continue
        for k in np.flatnonzero(either):
            section.tallies['sweep', row, 'miou'].add(unit, both[k], either[k], int(k))
        inside = counts_above(reading.maps['answer'][region])
        marked = reading.marked['answer']
        section.curves['sweep', row].add(unit, inside, region.sum() + marked - inside, named)


@dataclass(frozen=True)
class _Collage:
    """Images side by side.

    Attributes:
        photo: All of it.
        regions: Flat, of the tiles that a class names.
        named: These classes.
        absent: Two classes, or fewer, that are in no tile.
    """

    photo: Photo
    regions: list[np.ndarray]
    named: list[int]
    absent: list[int]


class _Drawer:
    """Draws collages of images.

    Args:
        subject: Who is asked.
        photos: The data.
        plan: Its images are the tiles.
        counts: Pixels of each class in each of them, ``(I, K)``; a classifier's images have one.
    """

    def __init__(self, subject: Subject, photos: Photos, plan: Plan, counts: np.ndarray) -> None:
        self.subject, self.photos, self.plan, self.counts = subject, photos, plan, counts

    def draw(self, tiles: int, rng: np.random.Generator) -> _Collage:
        """The first of many draws in which each tile has a class of its own; else the one with most
        of such tiles."""
        best, most = None, -1
        for _ in range(DRAWS):
            few = len(self.counts) < tiles
            drawn = rng.choice(len(self.counts), tiles, replace=few)
            count = sum(map(bool, self._names(self.counts[drawn], rng)))
            if count > most:
                best, most = drawn, count
            if most == tiles:
                break
        assert best is not None
        picked = [self.photos[self.plan.indices[i]] for i in best]
        photo, regions = collage(picked, self.plan.layout)
        counts = np.stack([_class_counts(photo.labels[region], self.subject) for region in regions])
        names = self._names(counts, rng)
        absent = [
            k for k in rng.permutation(self.subject.askable).tolist() if not counts[:, k].any()
        ]
        return _Collage(
            photo,
            [region.ravel() for region, name in zip(regions, names, strict=True) if name],
            [name[0] for name in names if name],
            absent[:2],
        )

    def _names(self, counts: np.ndarray, rng: np.random.Generator) -> list[list[int]]:
        """Of each tile a class that is large in it and in no other, if there is one."""
        least = np.maximum(self.plan.min_share * counts.sum(axis=1, keepdims=True), 1)
        alone = (counts > least * REMNANT).sum(axis=0) == 1
        order = rng.permutation(self.subject.askable)
        fits = ((counts >= least) & alone)[:, order]
        return [order[row][:1].tolist() for row in fits]


def _class_counts(labels: np.ndarray, subject: Subject) -> np.ndarray:
    """Pixels of each class: ``(K,)``."""
    return np.bincount(labels[labels >= 0].ravel(), minlength=subject.num_classes)


def _measure_collage(
    subject: Subject,
    drawn: _Collage,
    unit: int,
    rng: np.random.Generator,
    plan: Plan,
    results: Results,
    name: str,
) -> None:
    """A model on images side by side: does it attend to the named one?"""
    photo, named, absent = drawn.photo, drawn.named, drawn.absent
    section = results.sections[name]
    if not named:
        return
    predictions = Answers.of(subject, photo, named, absent, rng)
    valid = np.ones(photo.labels.shape, bool)
    readings = predictions.map(lambda each: Reading(subject, each, valid))
    _add_regions(section, unit, readings, drawn.regions, named)
    if subject.segments:
        return
    _add_scores(section, unit, predictions, named)
    if name == 'pairs':
        if len(results.examples) < plan.num_examples:
            results.examples.append(
                Example(photo, tuple(named), predictions.plain, tuple(predictions.named))
            )
        _sweep_pair(subject, section, unit, photo, named, absent, predictions, results.alphas)


def _add_scores(section: Section, unit: int, predictions: Answers, named: Sequence[int]) -> None:
    """Flip accuracy of a classifier's scores, and probabilities of the named classes."""
    scores = predictions.map(lambda each: each.probabilities)
    for a, b in itertools.combinations(range(len(named)), 2):
        for row, first, second in scores.pairs(a, b):
            beats, wins = scores_follow(first, second, named[a], named[b])
            section.tallies['flip', row, 'score'].add(unit, beats)
            section.tallies['flip', row, 'top class'].add(unit, wins)
    for a, k in enumerate(named):
        for row, each in scores.singles(a):
            section.tallies['probability', row, 'named class'].add(unit, each[k])


def _sweep_pair(
    subject: Subject,
    section: Section,
    unit: int,
    photo: Photo,
    named: Sequence[int],
    absent: Sequence[int],
    predictions: Answers,
    alphas: Sequence[float],
) -> None:
    """Flips under each alpha; and what a wrong prior costs on the first image alone."""
    answers = {}
    for alpha in alphas:
        asked = predictions.named if alpha == subject.own_alpha else subject.ask(list(named), alpha)
        answers[alpha] = [each.probabilities for each in asked]
    half = photo.labels == named[0]
    rows, columns = np.flatnonzero(half.any(axis=1)), np.flatnonzero(half.any(axis=0))
    alone = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    plain = subject.set_image(Photo(photo.name, photo.image[alone], photo.labels[alone]))
    section.tallies['sweep', PLAIN, 'top-1'].add(unit, int(plain.labels) == named[0])
    for alpha in alphas:
        row = f'{alpha:g}'
        beats, _ = scores_follow(*answers[alpha], *named)
        section.tallies['sweep', row, 'flip'].add(unit, beats)
        if absent:
            (misled,) = subject.ask([absent[0]], alpha)
            section.tallies['sweep', row, 'top-1'].add(unit, int(misled.labels) == named[0])
