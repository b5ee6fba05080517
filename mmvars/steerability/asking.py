"""A model under all priors that it is asked with, and what is read of its answers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from mmvars.errors import InputError
from mmvars.networks import Trunk
from mmvars.networks.steering import scale_of
from mmvars.predictor import Prediction, Predictor
from mmvars.steerability.measures import average_ranks, counts_above, random_prior
from mmvars.steerability.photos import Photo
from mmvars.visualization.model import is_segmentor, network_of

__all__ = ['ROWS', 'Answers', 'Maps', 'Reading', 'Subject', 'ask_all']

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

    Attributes:
        takes_prior: Whether it takes one. A model that feeds back without a prior answers
            every question alike.
        has_head: Whether its answer is that of a prompt head; else the token weights are.
        askable: Classes that it can be asked for: those with a prior that is not zero.
        own_alpha: Its scale; ``None`` where nothing is scaled by it, or nothing can be asked.
        segments: Whether it is a segmentor, not a classifier.
        plain: The prediction for the last image without a prior.

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
        self.plain = self.predictor.predict(None)
        return self.plain

    def ask(self, prior: Any, alpha: float | None = None) -> Prediction:
        """The prediction under a prior."""
        return self.predictor.predict(prior, alpha) if self.takes_prior else self.plain

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


class Reading:
    """What is measured of one prediction: its maps at the pixels that count, flat.

    A prediction itself holds the logits of all classes at the size of the image: it is not kept.

    Attributes:
        maps: ``answer``: of the prompt head, else the token weights. ``weights``: these, where
            there is a head. ``attention``: the norms of the tokens in the last pass. ``change``:
            what they gained or lost against the first pass, each over its own mean. Without a prior
            there is ``attention`` alone, of the first pass; of a model that takes none there are
            all but ``weights``.
        drawn: For pictures.
    """

    def __init__(self, subject: Subject, prediction: Prediction, valid: np.ndarray) -> None:
        attention, first = prediction.attention, prediction.bottom_up
        if prediction.prior is None and subject.takes_prior:
            self.maps = {'attention': first[valid]}
        else:
            assert prediction.heatmap is not None  # there is a prior or a head
            self.maps = {'attention': attention[valid], 'answer': prediction.heatmap[valid]}
            if subject.has_head and prediction.token_weights is not None:
                self.maps['weights'] = prediction.token_weights[valid]
            change = attention / max(attention.mean(), 1e-12) - first / max(first.mean(), 1e-12)
            self.maps['change'] = change[valid]
        self.drawn = Maps(
            attention,
            first,
            prediction.token_weights,
            prediction.heatmap,
            prediction.labels,
            None if subject.segments else prediction.probabilities,
        )
        self.valid = valid

    @cached_property
    def labels(self) -> np.ndarray:
        """Of a segmentor, at the pixels that count."""
        return np.asarray(self.drawn.labels)[self.valid]

    @property
    def scores(self) -> np.ndarray:
        """Of a classifier: ``(K,)``."""
        assert self.drawn.scores is not None
        return self.drawn.scores

    @cached_property
    def ranks(self) -> dict[str, np.ndarray]:
        """Of each map."""
        return {name: average_ranks(values) for name, values in self.maps.items()}

    @cached_property
    def marked(self) -> dict[str, np.ndarray]:
        """Pixels above each threshold, of each map that can be cut to a mask."""
        masks = [name for name in ('answer', 'weights') if name in self.maps]
        return {name: counts_above(self.maps[name]) for name in masks}


@dataclass
class Answers:
    """Readings of one image, or functions of them, under all priors.

    Attributes:
        named: Of the classes that are asked for.
        absent: Of classes that are not there, two or fewer.
        random: Of two random priors.
        center: Of a point in the middle.
        plain: Without a prior.
    """

    named: list[Any]
    absent: list[Any]
    random: list[Any]
    center: Any
    plain: Any

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


def ask_all(
    subject: Subject,
    photo: Photo,
    valid: np.ndarray,
    named: Sequence[int],
    absent: Sequence[int],
    rng: np.random.Generator,
) -> Answers:
    """Take an image and ask for everything.

    Args:
        subject: Who is asked.
        photo: The image.
        valid: Pixels that count, ``(H, W)``.
        named, absent: Classes.
        rng: Of the random priors.
    """
    height, width = photo.labels.shape
    random = [subject.random(rng) for _ in range(2)]
    priors = Answers([*named], [*absent], random, (width // 2, height // 2), None)
    plain = Reading(subject, subject.set_image(photo), valid)

    def read(prior: Any) -> Reading:
        asks = subject.takes_prior and prior is not None
        return Reading(subject, subject.ask(prior), valid) if asks else plain

    return priors.map(read)
