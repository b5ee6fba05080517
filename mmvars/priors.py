"""The vectors that prompts mean for a model."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvars.errors import InputError, did_you_mean
from mmvars.networks import LearnedText
from mmvars.networks.steering import check_top_down
from mmvars.prompts import Box, Example, Mask, Points, as_prompt
from mmvars.prototypes import read_prototypes
from mmvars.states import State
from mmvars.text import TextEncoder, TextPriors, embed, load_text_encoder
from mmvars.visualization.figure import short_name
from mmvars.visualization.model import ClassTable, Model, is_segmentor, network_of

__all__ = ['PriorVectors', 'class_vectors', 'find_class']


def class_vectors(model: Model) -> Tensor | None:
    """Vectors ``(K, C)`` of a model's classes: those of its prior, else rows of its classifier."""
    prior = getattr(network_of(model), 'prior', None)
    if getattr(prior, 'num_classes', 0):
        return prior.class_priors()
    if is_segmentor(model):
        return None
    table = getattr(getattr(model.head, 'fc', None), 'weight', None)
    return table if table is not None and table.ndim == 2 else None


def find_class(name: str, names: Sequence[str] | None) -> int:
    """The number of a class, by its name.

    A name matches regardless of case, and any one of the synonyms that a class lists with commas is
    enough.

    Raises:
        InputError: If there is no such class (with the nearest names), or several, or the classes
            have no ``names``.
    """
    if not names:
        raise InputError(
            f'class {name!r} cannot be looked up: the classes have no names here; give its number'
        )
    by_name: dict[str, list[int]] = {}
    for index, each in enumerate(names):
        for synonym in {part.strip().lower() for part in (each, *each.split(','))}:
            by_name.setdefault(synonym, []).append(index)
    matches = by_name.get(name.strip().lower(), [])
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InputError(
            f'class name {name!r} is not unique: classes {matches} have it; give the number'
        )
    start = ', '.join(repr(short_name(each)) for each in names[:3])
    hint = did_you_mean(name.strip(), by_name, limit=5)
    hint = hint or f'; the {len(names)} classes start with {start}'
    raise InputError(f'no class is called {name!r}{hint}')


def check_encoder(encoder: TextEncoder, prior: LearnedText, names: Sequence[str]) -> None:
    """Refuse another text encoder than that which a map was learned for.

    Args:
        encoder: What embeds text.
        prior: The map.
        names: Of its classes.
    """
    vectors = embed(encoder, names)
    remedy = 'give the encoder that its `mmvars prototypes --text FOLDER` had'
    if vectors.shape[1] != prior.requested_dim:
        raise InputError(
            f'the vectors of this text encoder have width {vectors.shape[1]}, and the text prior '
            f'of the network takes {prior.requested_dim}: {remedy}'
        )
    if prior.texts is None or len(names) != prior.num_classes:
        return
    known = prior.texts[:, 0].cpu().double()
    if known.any() and (known * vectors).sum(dim=1).max() < 0.99:
        raise InputError(
            'this text encoder is another than the text prior of the network was trained with, '
            f'and its vectors mean nothing here: {remedy}'
        )


class PriorVectors:
    """The vectors that prompts mean for a model.

    Args:
        model: A segmentor or classifier.
        table: Its classes.
        prototypes: A file of ``mmvars prototypes``: its classes, in place of the network's own.
        text: A folder with a sentence encoder, or a :class:`mmvars.text.TextEncoder`.

    Raises:
        InputError: If one of these is given and cannot be used.
    """

    def __init__(
        self, model: Model, table: ClassTable, prototypes: str | Path | None, text: Any
    ) -> None:
        self.model = model
        self.network: Any = network_of(model)
        self.table = table
        self.prototypes = prototypes
        self.text: Any = None if text is None else load_text_encoder(text)
        if prototypes is not None or text is not None:
            self.check_steerable()
            # What cannot be used is refused now.
            _ = self.classes if text is None else self.text_priors

    def check_steerable(self) -> None:
        """Refuse any prior where the model takes none."""
        check_top_down(self.network, True, False, 'give prior=None')
        if not getattr(self.model, 'hands_priors_on', False):
            raise InputError(
                f'{type(self.model).__name__} of this config hands no prior to its backbone: write '
                "type='mmvars.EncoderDecoder' or 'mmvars.ImageClassifier' in its place"
            )

    @cached_property
    def classes(self) -> tuple[Sequence[str] | None, Tensor]:
        """Names of classes, where known, and their vectors ``(K, C)``."""
        names = self.table.names if self.table.named else ()
        vectors = class_vectors(self.model)
        if self.prototypes is not None:
            names, vectors = read_prototypes(self.prototypes, self.network)
        if vectors is None or vectors.shape[1] != self.model.backbone.embed_dims:
            raise InputError(
                'this model has no vectors of classes that a prior could be: make them with '
                '`mmvars prototypes CONFIG CHECKPOINT -o FILE`, and give prototypes=FILE '
                '(--prototypes FILE)'
            )
        return names if len(names) == len(vectors) else None, vectors.detach().to(self.device)

    @cached_property
    def text_priors(self) -> Callable[[str], Tensor]:
        """From text to vectors: by the map of the network, else by one that is fitted."""
        prior = self.network.prior
        if isinstance(prior, LearnedText):
            check_encoder(self.text, prior, self.table.names)
            return lambda text: prior.from_vectors(embed(self.text, [text]).to(self.device))[
                0
            ].detach()
        names, vectors = self.classes
        if names is None:
            raise InputError(
                'text priors are fitted to the names of classes, and those of this model have '
                'none: give prototypes=FILE (--prototypes FILE), of `mmvars prototypes`'
            )
        return TextPriors(self.text, names, vectors)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def vector(
        self, prior: Any, current: Callable[[], State], start: Callable[[Any], State]
    ) -> Tensor:
        """What a prompt means, ``(C,)``.

        Args:
            prior: As for ``Predictor.predict``, but ``None``.
            current: Gives the image that places are in.
            start: Runs the first pass of an image, for examples.

        Raises:
            InputError: If it cannot be used.
        """
        self.check_steerable()
        prior = as_prompt(prior)
        if isinstance(prior, Example):
            state = start(prior.image)
            everything = Mask(np.ones(state.frame.size, dtype=bool))
            return self._mean_tokens(prior.region or everything, state)
        if isinstance(prior, Points | Box | Mask):
            return self._mean_tokens(prior, current())
        if isinstance(prior, str | int) and not isinstance(prior, bool):
            return self._class_vector(prior)
        width = self.model.backbone.embed_dims
        vector = None
        if isinstance(prior, Tensor | np.ndarray | list):
            try:
                vector = torch.as_tensor(prior).detach().to(self.device)
            except (TypeError, ValueError, RuntimeError):
                pass  # refused below
        if vector is None or not vector.is_floating_point():
            got = f'{vector.dtype} numbers' if vector is not None else f'{prior!r:.80}'
            raise InputError(
                'prior must be None, the name or number of a class, mmvars.Points, Box, Mask or '
                f'Example, or a float vector of width {width}; got {got}'
            )
        if vector.shape != (width,):
            raise InputError(
                f'a prior vector must have shape ({width},), the width of the tokens; got '
                f'{tuple(vector.shape)}'
            )
        vector = vector.float()
        if not vector.isfinite().all():
            raise InputError('the prior vector holds NaN or infinite numbers: give finite ones')
        if not vector.any():
            raise InputError('the prior vector is zero, which asks for nothing: give none for that')
        return vector

    def _mean_tokens(self, region: Points | Box | Mask, state: State) -> Tensor:
        """Mean output token of the first pass at the pixels of a region, ``(C,)``.

        The mean at negative points is subtracted, else the center of the prior, from which the
        network takes all differences. Regions are whitened, where the prior has a whitening: that
        tells them from all else, as prototypes are told. One token is too few for it: a point would
        be told from its own kind, too.
        """
        positive, negative = region.pixels(state.frame.size)
        stride = self.network.trunk.strides[-1]
        mean = state.mean_token(positive, stride)
        prior = self.network.prior
        if len(negative):
            mean = mean - state.mean_token(negative, stride)
        elif prior.center is not None:
            mean = mean - prior.center
        if prior.whitening is None or isinstance(region, Points):
            return mean
        return mean @ prior.whitening

    def _class_vector(self, name: str | int) -> Tensor:
        """The prototype of a class; else, with a text encoder, the prior of a text."""
        names, vectors = self.classes
        if isinstance(name, int):
            index = name
            if not 0 <= index < len(vectors):
                raise InputError(
                    f'class {index} does not exist: classes are numbered from 0 to '
                    f'{len(vectors) - 1}'
                )
        else:
            try:
                index = find_class(name, names)
            except InputError:
                if self.text is None:
                    raise
                return self.text_priors(name).to(self.device)
        if not vectors[index].any():
            raise InputError(
                f'class {names[index] if names else index!r} has no prototype, its vector is zero: '
                'make prototypes of images in which it is labeled, `mmvars prototypes CONFIG '
                'CHECKPOINT -o FILE`, and give prototypes=FILE (--prototypes FILE)'
            )
        return vectors[index].float()
