"""``--prior`` and ``--alpha``: from words of the command line to the rows of a figure."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mmvars.checkpoints import read_checkpoint
from mmvars.errors import InputError, did_you_mean
from mmvars.networks import ClassPrototype, LearnedQuery, MaskFeedback, TopDown, Trunk
from mmvars.visualization.figure import Half, short_name
from mmvars.visualization.model import ClassTable, Model, Network, is_segmentor, network_of

__all__ = [
    'PanelConfig',
    'check_top_down',
    'class_vectors',
    'find_class',
    'panel_configs',
    'read_vector',
    'resolve_prior',
    'scale_of',
    'split_row',
]

HEAD_KEYS = ('head.fc.weight', 'head.weight', 'trunk.head.weight', 'module.head.weight')


@dataclass(frozen=True)
class PanelConfig:
    """What top-down attention is given in one row of panels; ``None``: what the network has."""

    name: str | None = None  # of the prior in the figure
    prior: Tensor | None = None  # (C,)
    class_index: int | None = None  # the class of this model that the prior stands for, if any
    alpha: float | None = None
    half: Half | None = None  # of two photos side by side, the one whose class the prior is

    def label(self, network: Network) -> str:
        """What stands beside the row."""
        alpha = scale_of(network, self.alpha)
        half = f' ({self.half})' if self.half else ''
        lines = [
            '' if self.name is None else f'prior: {self.name}{half}',
            '' if alpha is None else f'α = {alpha:g}',
        ]
        return '\n'.join(filter(None, lines))


def scale_of(network: Network, alpha: float | None) -> float | None:
    """The scale in use: ``alpha``, else the network's own; ``None`` where nothing is scaled."""
    if isinstance(network, Trunk) or _sends_mask_alone(network):
        return None
    return network.alpha if alpha is None else alpha


def _sends_mask_alone(network: Network) -> bool:
    return isinstance(network, TopDown) and isinstance(network.feedback, MaskFeedback)


def check_top_down(network: Network, has_prior: bool, has_alpha: bool, remedy: str) -> None:
    """Refuse a prior or a scale that a network has no use for, and name the ``remedy``."""
    if isinstance(network, Trunk) and (has_prior or has_alpha):
        name = 'the prior' if has_prior else 'alpha'
        raise InputError(
            f'{name} steers top-down attention, and this model has no feedback: '
            f'{remedy}, or take an AbSViT'
        )
    if has_prior and network.prior is None:
        raise InputError(
            'the prior has no place in this model: its feedback sends the output '
            "tokens back as they are, with no reweighting (design='feedback'): "
            f'{remedy}'
        )
    if has_alpha and _sends_mask_alone(network):
        raise InputError(
            'alpha changes nothing in this model: it scales the tokens that are sent '
            "back, and design='mask_attention' sends the mask alone: " + remedy
        )


def panel_configs(
    words: Sequence[str] | None,
    alphas: Sequence[float] | None,
    model: Model,
    classes: ClassTable,
    pair: bool = False,
) -> list[PanelConfig]:
    """The rows of a figure: each prior with each scale.

    Args:
        words: Of ``--prior``; of a ``pair`` of photos the left one's first.
        alphas: Of ``--alpha``.

    Raises:
        InputError: If a prior is not understood, or the model has no use for a prior or a scale.
    """
    network = network_of(model)
    flags = (
        '--prior and --alpha' if isinstance(network, Trunk) else '--prior' if words else '--alpha'
    )
    check_top_down(network, bool(words), bool(alphas), f'leave {flags} out')
    if pair and words and len(words) > 2:
        raise InputError(
            f'--pair takes at most two of --prior, the class of the left and of the '
            f'right photo, got {len(words)}: {" ".join(words)}'
        )
    priors = [PanelConfig()]
    if getattr(network, 'prior', None) is not None:
        priors = [resolve_prior(word, model, classes) for word in words or ['query']]
    halves: tuple[Half, ...] = ('left', 'right')
    if pair:
        priors = [
            config if config.prior is None else replace(config, half=half)
            for config, half in zip(priors, halves, strict=False)
        ]
    return [replace(config, alpha=alpha) for config in priors for alpha in alphas or ()] or priors


def resolve_prior(word: str, model: Model, classes: ClassTable) -> PanelConfig:
    """The prior that a word of the command line means for this model.

    Raises:
        InputError: If the word is not understood, the class or file does not exist, or the vector
            does not fit the network.
    """
    kind, _, rest = word.partition(':')
    network, index = network_of(model), None
    if kind == 'query' and not rest:
        if not isinstance(network.prior, LearnedQuery):
            raise InputError(
                f'--prior query: this model has no learned query (its prior is '
                f'{type(network.prior).__name__}); give class:NAME or file:PATH'
            )
        return PanelConfig('learned query')
    if kind == 'class' and rest:
        table = _prototypes(rest, model)
        same_classes = len(table) == len(classes.names)
        index = find_class(
            rest, len(table), classes.names if same_classes and classes.named else None
        )
        prior = table[index].detach()
        name = short_name(classes.names[index]) if same_classes else f'class {index}'
        index = index if same_classes else None
    elif kind == 'file' and rest:
        path, row = split_row(rest)
        prior = read_vector(path, row)
        name = os.path.basename(path) + ('' if row is None else f' row {row}')
    else:
        raise InputError(
            f'--prior {word!r} is not understood: give query, class:NAME, '
            'class:NUMBER, file:PATH or file:PATH:ROW'
        )
    width = model.backbone.trunk.embed_dim
    if prior.shape != (width,):
        raise InputError(
            f'--prior {word}: the vector has shape {tuple(prior.shape)}, but the '
            f'tokens of this model have width {width}'
        )
    if prior.is_complex():
        raise InputError(f'--prior {word}: the vector holds complex numbers; give real ones')
    prior = prior.float()
    if not torch.isfinite(prior).all() or not prior.any():
        raise InputError(
            f'--prior {word}: the vector is zero or not finite, so no token can be compared with it'
        )
    return PanelConfig(name, prior, index)


def find_class(word: str, num_classes: int, names: Sequence[str] | None = None) -> int:
    """The index of a class given by number or, where there are names, by name.

    A name matches regardless of case, and any one of the synonyms that a class lists with commas is
    enough.

    Raises:
        InputError: If there is no such class (with the nearest names), or several.
    """
    if re.fullmatch(r'-?[0-9]+', word.strip()):
        if not 0 <= int(word) < num_classes:
            raise InputError(
                f'class {int(word)} does not exist: classes are numbered from 0 to '
                f'{num_classes - 1}'
            )
        return int(word)
    if not names:
        raise InputError(
            f'class {word!r} cannot be looked up: the classes have no names here; '
            f'give its number, 0 to {num_classes - 1}'
        )
    by_name: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        for synonym in {part.strip().lower() for part in (name, *name.split(','))}:
            by_name.setdefault(synonym, []).append(index)
    matches = by_name.get(word.strip().lower(), [])
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InputError(
            f'class name {word!r} is not unique: classes {matches} have it; give the number'
        )
    start = ', '.join(repr(short_name(name)) for name in names[:3])
    hint = did_you_mean(word.strip(), by_name, limit=5)
    hint = hint or f'; the {num_classes} classes start with {start}'
    raise InputError(
        f'no class is called {word!r}{hint} (a number, 0 to {num_classes - 1}, works too)'
    )


def _prototypes(word: str, model: Model) -> Tensor:
    """Vectors ``(K, C)`` of the classes: of the network's own prior, else of the classifier."""
    table = class_vectors(model)
    if table is not None:
        return table
    if is_segmentor(model):
        raise InputError(
            f'--prior class:{word}: a segmentation model has no classifier of '
            'tokens, so its classes have no prototypes. Take the row of a '
            'classification checkpoint of the same width: --prior file:CHECKPOINT:ROW'
        )
    raise InputError(
        f'--prior class:{word}: the head {type(model.head).__name__} has no '
        'linear classifier head.fc whose rows could be prototypes'
    )


def class_vectors(model: Model) -> Tensor | None:
    """Vectors ``(K, C)`` of a model's classes: those of its prior, else rows of its classifier."""
    prior = getattr(network_of(model), 'prior', None)
    if isinstance(prior, ClassPrototype):
        return prior.prototypes
    if is_segmentor(model):
        return None
    table = getattr(getattr(model.head, 'fc', None), 'weight', None)
    return table if table is not None and table.ndim == 2 else None


def split_row(text: str) -> tuple[str, int | None]:
    """Path and row of ``PATH`` or ``PATH:ROW``."""
    path, colon, row = text.rpartition(':')
    if not (colon and row.isdigit()) or os.path.exists(text):
        return text, None
    return path, int(row)


def read_vector(path: str, row: int | None) -> Tensor:
    """The one tensor, or the classifier, in a file: a row of it, or all of it as a vector.

    Raises:
        InputError: If there is none, or several.
    """
    if path.endswith('.npy'):
        try:
            content = torch.from_numpy(np.load(path, allow_pickle=False))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f'--prior file: {path!r} cannot be read as a .npy tensor ({error})'
            ) from error
    else:
        content = read_checkpoint(path)
    for wrapper in ('state_dict', 'model'):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if isinstance(content, dict):
        tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
        keys = [key for key in HEAD_KEYS if key in tensors] or list(tensors)
        if len(keys) != 1:
            raise InputError(
                f'--prior file: {path!r} holds {len(tensors)} tensors, and not '
                f'exactly one of them is a classifier ({", ".join(HEAD_KEYS)}); save '
                'the vector alone'
            )
        content = tensors[keys[0]]
    if not isinstance(content, Tensor):
        raise InputError(f'--prior file: {path!r} holds a {type(content).__name__}, no tensor')
    if row is None and content.ndim == 2 and len(content) > 1:
        raise InputError(
            f'--prior file: {path!r} holds {len(content)} vectors; choose one: '
            f'file:{path}:ROW, ROW from 0 to {len(content) - 1}'
        )
    if row is not None and (content.ndim != 2 or row >= len(content)):
        raise InputError(
            f'--prior file: there is no row {row} in the tensor of shape '
            f'{tuple(content.shape)} in {path!r}'
        )
    return content.flatten() if row is None else content[row]
