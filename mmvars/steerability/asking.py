"""A model under all priors that it is asked with, and what is read of its answers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mmvars.errors import InputError
from mmvars.networks import Trunk
from mmvars.networks.steering import scale_of
from mmvars.predictor import Prediction, Predictor
from mmvars.steerability.measures import MapStats, class_counts, map_stats, random_prior
from mmvars.steerability.photos import Photo
from mmvars.steering import BATCH_PIXELS
from mmvars.visualization.model import is_segmentor, network_of

__all__ = [
    'ABSENT',
    'CENTER',
    'CHANCE',
    'PLAIN',
    'PRIOR',
    'RANDOM',
    'ROWS',
    'SHUFFLED',
    'Answers',
    'Maps',
    'Reading',
    'Subject',
    'View',
    'ask_all',
]

PRIOR, SHUFFLED, ABSENT, RANDOM, CENTER, PLAIN, CHANCE = ROWS = (
    'its prior',
    'shuffled priors',
    'absent class',
    'random prior',
    'center',
    'no prior',
    'whole image',
)
"""Whose prior an answer is to, in the place of that of the named class."""


class Subject:
    """A model that is asked.

    Args:
        predictor: Of the model.
        texts: Class -> text that it is asked for by, ``None`` for its own prior; no others are then
            asked for. Default: all, each by its own prior.

    Attributes:
        takes_prior: Whether it takes one. A model that feeds back without a prior answers
            every question alike.
        has_head: Whether its answer is that of a prompt head; else the token weights are.
        askable: Classes that it is asked for: those with a prior that is not zero.
        left_out: Classes that it would be asked for but for their prior, which is zero.
        own_alpha: Its scale; ``None`` where nothing is scaled by it, or nothing can be asked.
        segments: Whether it is a segmentor, not a classifier.
        plain: The prediction for the last image without a prior.

    Raises:
        InputError: If it is a plain backbone, or has neither prior nor prompt head.
    """

    def __init__(self, predictor: Predictor, texts: Mapping[int, str | None] | None = None) -> None:
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
        texts = dict.fromkeys(range(self.num_classes)) if texts is None else texts
        wanted = sorted(texts)
        self.askable = np.array(wanted)
        if self.takes_prior:
            self.priors = self._class_priors(texts)
            self.askable = np.array(sorted(self.priors))
        self.left_out = tuple(k for k in wanted if k not in self.askable)

    def _class_priors(self, texts: Mapping[int, str | None]) -> dict[int, np.ndarray]:
        priors, refused = {}, None
        for k, text in texts.items():
            try:
                prior = self.predictor.prior_vector(k if text is None else text)
                priors[k] = prior.cpu().numpy()
            except InputError as error:  # a class without prototype; or a model without any
                refused = error
        if refused is not None and not priors:
            raise refused
        return priors

    def set_image(self, photo: Photo) -> Prediction:
        """Take an image; returns the prediction without a prior."""
        self.predictor.set_image(photo.image)
        self.plain = self.predictor.predict(None)
        return self.plain

    def ask(self, priors: Sequence[Any], alpha: float | None = None) -> Iterator[Prediction]:
        """The predictions under priors, few at a time: each holds the logits of all classes.

        A whole number is a class.
        """
        priors = [self.priors[each] if isinstance(each, int) else each for each in priors]
        step = max(BATCH_PIXELS // self.predictor.image[..., 0].size, 1)
        for start in range(0, len(priors), step):
            yield from self.predictor.predict_batch([*priors[start : start + step]], alpha)

    def random(self, rng: np.random.Generator) -> np.ndarray | None:
        """A prior that means nothing, as long as those of the classes are on average."""
        if not self.takes_prior:
            return None
        vectors = np.stack([*self.priors.values()])
        norm = float(np.linalg.norm(vectors, axis=1).mean())
        return random_prior(norm, vectors.shape[1], rng)


class Maps(NamedTuple):
    """What is drawn of a prediction: maps ``(H, W)`` and labels, or a classifier's scores."""

    attention: np.ndarray
    bottom_up: np.ndarray
    weights: np.ndarray | None
    answer: np.ndarray | None
    labels: np.ndarray | int
    scores: np.ndarray | None


class View(NamedTuple):
    """What counts of an image.

    Attributes:
        valid: Pixels with a label, ``(H, W)``.
        truth: Their classes, ``(n,)``; ``None``: labels are not compared.
        regions: Their regions, ``(n,)``: those of the classes that are asked for, in this order,
            and one more for the rest.
    """

    valid: np.ndarray
    truth: np.ndarray | None
    regions: np.ndarray


class Reading:
    """What is measured of one prediction.

    A prediction itself holds the logits of all classes at the size of the image: it is not kept.

    Attributes:
        maps: ``answer``: of the prompt head, else the token weights. ``weights``: these, where
            there is a head. ``attention``: the norms of the tokens in the last pass. ``change``:
            what they gained or lost against the first pass, each over its own mean. Without a prior
            there is ``attention`` alone, of the first pass; of a model that takes none there are
            all but ``weights``.
        counts: ``(2, K)``, pixels of each class in labels and truth, and in either.
        scores: Of a classifier, ``(K,)``.
        drawn: For pictures.
    """

    def __init__(
        self, subject: Subject, prediction: Prediction, view: View, num_regions: int
    ) -> None:
        maps: dict[str, Any]
        attention: Any = prediction.attention
        first: Any = prediction.bottom_up
        if prediction.prior is None and subject.takes_prior:
            maps = {'attention': first}
        else:
            maps = {'attention': attention, 'answer': prediction.heatmap}
            if subject.has_head and prediction.token_weights is not None:
                maps['weights'] = prediction.token_weights
            maps['change'] = _over_mean(attention) - _over_mean(first)
        self.maps = maps
        self._view, self._num_regions = view, num_regions
        self._stats: dict[str, MapStats] = {}
        self.counts: Any = None
        if view.truth is not None:
            labels = prediction.labels[view.valid]
            self.counts = class_counts(labels, view.truth, subject.num_classes)
        self.scores: Any = None if subject.segments else prediction.probabilities
        self.drawn = Maps(
            attention,
            first,
            prediction.token_weights,
            prediction.heatmap,
            prediction.labels,
            self.scores,
        )

    def stats(self, name: str) -> MapStats:
        """Of one of the maps."""
        if name not in self._stats:
            values, regions = self.maps[name][self._view.valid], self._view.regions
            self._stats[name] = map_stats(values, regions, self._num_regions)
        return self._stats[name]

    @property
    def masks(self) -> list[str]:
        """The maps that can be cut to a mask."""
        return [name for name in ('answer', 'weights') if name in self.maps]


@dataclass
class Answers:
    """Readings of one image under all priors.

    Attributes:
        named: Of the classes that are asked for.
        absent: Of classes that are not there, two or fewer.
        random: Of two random priors.
        center: Of a point in the middle.
        plain: Without a prior.
        sweep: At each alpha those to the first of ``named``, and to as many of ``random``.
    """

    named: list[Reading]
    absent: list[Reading]
    random: list[Reading]
    center: Reading
    plain: Reading
    sweep: dict[float, tuple[list[Reading], list[Reading]]]

    def pairs(self, a: int, b: int) -> Iterable[tuple[str, Reading, Reading]]:
        """Each row with its answers in place of those to the priors of ``a`` and ``b``."""
        yield PRIOR, self.named[a], self.named[b]
        yield SHUFFLED, self.named[b], self.named[a]
        if len(self.absent) == 2:
            yield ABSENT, self.absent[0], self.absent[1]
        yield RANDOM, self.random[0], self.random[1]
        yield CENTER, self.center, self.center
        yield PLAIN, self.plain, self.plain

    def singles(self, a: int) -> Iterable[tuple[str, Reading]]:
        """Each row with its answer in place of that to the prior of ``a``."""
        yield PRIOR, self.named[a]
        if len(self.named) > 1:
            yield SHUFFLED, self.named[(a + 1) % len(self.named)]
        if self.absent:
            yield ABSENT, self.absent[a % len(self.absent)]
        yield RANDOM, self.random[a % 2]
        yield CENTER, self.center
        yield PLAIN, self.plain


def ask_all(
    subject: Subject,
    photo: Photo,
    view: View,
    named: Sequence[int],
    absent: Sequence[int],
    rng: np.random.Generator,
    alphas: Sequence[float] = (),
    num_swept: int = 1,
) -> Answers:
    """Take an image and ask for everything.

    Args:
        subject: Who is asked.
        photo: The image.
        view: What counts of it.
        named, absent: Classes.
        rng: Of the random priors.
        alphas: Of the sweep.
        num_swept: How many of the named classes, and of the random priors, are asked for in it.
    """
    height, width = photo.labels.shape
    random = [subject.random(rng) for _ in range(2)]
    plain = Reading(subject, subject.set_image(photo), view, len(named))

    def read(priors: Sequence[Any], alpha: float | None = None) -> list[Reading]:
        if not subject.takes_prior:
            return [plain] * len(priors)
        return [Reading(subject, each, view, len(named)) for each in subject.ask(priors, alpha)]

    *readings, center = read([*named, *absent, *random, (width // 2, height // 2)])
    answers = Answers(
        readings[: len(named)], readings[len(named) : -2], readings[-2:], center, plain, {}
    )
    count = min(num_swept, len(named))
    for alpha in alphas:
        swept = [*answers.named[:count], *answers.random[:count]]
        if alpha != subject.own_alpha:
            swept = read([*named[:count], *random[:count]], alpha)
        answers.sweep[alpha] = swept[:count], swept[count:]
    return answers


def _over_mean(values: np.ndarray) -> np.ndarray:
    return values / max(values.mean(), 1e-12)
