"""``--prior``: the words of the command line, and the vectors they stand for."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mmvars.analysis import find_class, short_name
from mmvars.checkpoints.files import read_checkpoint
from mmvars.errors import InputError
from mmvars.networks import ClassPrototype, LearnedQuery
from mmvars.visualization.host import ClassTable, is_segmentor, network_of

__all__ = ['HELP', 'NamedPrior', 'resolve_prior']

HELP = ('what top-down attention looks for: "query" (default) the learned query; "class:NAME" or '
        '"class:NUMBER" a class prototype, the row of the classifier of CHECKPOINT (classification '
        'models only); "file:PATH" a tensor of width C (.pt, .npy), or "file:PATH:ROW" a row of a '
        '(K, C) tensor or of the classifier in a classification checkpoint. Several make a row of '
        'panels each; with --pair the first is that of the left photo, the second that of the '
        'right one')

WRAPPERS = ('state_dict', 'model')
HEAD_KEYS = ('head.fc.weight', 'head.weight', 'trunk.head.weight', 'module.head.weight')


@dataclass(frozen=True)
class NamedPrior:
    """A prior for the pictures.

    Attributes:
        label: What it is called in the figure.
        vector: ``(C,)``; ``None`` is the network's own.
        class_index: The class of this model that it stands for, if any.
    """

    label: str
    vector: Tensor | None = None
    class_index: int | None = None


def resolve_prior(spec: str, model: nn.Module, classes: ClassTable) -> NamedPrior:
    """The prior that a word of the command line means for this model.

    Raises:
        InputError: If the word is not understood, the class or file does not exist, or the vector
            does not fit the network.
    """
    kind, _, rest = spec.partition(':')
    network = network_of(model)
    if kind == 'query' and not rest:
        if not isinstance(network.prior, LearnedQuery):
            raise InputError(f'--prior query: this model has no learned query (its prior is '
                             f'{type(network.prior).__name__}); give class:NAME or file:PATH')
        return NamedPrior('learned query')
    if kind == 'class' and rest:
        return _class_prior(rest, model, classes)
    if kind == 'file' and rest:
        path, row = _split_row(rest)
        vector = _vector_of(path, row)
        label = os.path.basename(path) + ('' if row is None else f' row {row}')
        return NamedPrior(label, _checked(vector, network.trunk.embed_dim, spec))
    raise InputError(f'--prior {spec!r} is not understood: give query, class:NAME, class:NUMBER, '
                     'file:PATH or file:PATH:ROW')


def _class_prior(wanted: str, model: nn.Module, classes: ClassTable) -> NamedPrior:
    network = network_of(model)
    if isinstance(network.prior, ClassPrototype):
        table = network.prior.prototypes
        width = len(table) == len(classes.names)
        index = find_class(wanted, len(table), classes.names if classes.named and width else None)
    elif is_segmentor(model):
        raise InputError(f'--prior class:{wanted}: a segmentation model has no classifier of '
                         'tokens, so its classes have no prototypes. Take the row of a '
                         'classification checkpoint of the same width: --prior file:CHECKPOINT:ROW')
    else:
        table = getattr(getattr(model.head, 'fc', None), 'weight', None)
        if table is None or table.ndim != 2:
            raise InputError(f'--prior class:{wanted}: the head {type(model.head).__name__} has no '
                             'linear classifier head.fc whose rows could be prototypes')
        index = find_class(wanted, len(table), classes.names if classes.named else None)
    vector = _checked(table[index].detach(), network.trunk.embed_dim, f'class:{wanted}')
    return NamedPrior(short_name(classes.names[index]), vector, index)


def _split_row(rest: str) -> tuple[str, int | None]:
    path, colon, row = rest.rpartition(':')
    if colon and row.isdigit() and not os.path.exists(rest):
        return path, int(row)
    return rest, None


def _vector_of(path: str, row: int | None) -> Tensor:
    if path.endswith('.npy'):
        tensor = _read_npy(path)
    else:
        tensor = _vector_or_classifier(read_checkpoint(path), path)
    if row is None and tensor.ndim == 2 and len(tensor) > 1:
        raise InputError(f'--prior file: {path!r} holds {len(tensor)} vectors; say which: '
                         f'file:{path}:ROW, ROW from 0 to {len(tensor) - 1}')
    if row is not None and (tensor.ndim != 2 or row >= len(tensor)):
        raise InputError(f'--prior file: there is no row {row} in the tensor of shape '
                         f'{tuple(tensor.shape)} in {path!r}')
    return tensor.flatten() if row is None else tensor[row]


def _vector_or_classifier(content: object, path: str) -> Tensor:
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if isinstance(content, dict):
        tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
        found = [key for key in HEAD_KEYS if key in tensors] or list(tensors)
        if len(found) != 1:
            raise InputError(f'--prior file: {path!r} holds {len(tensors)} tensors, and not '
                             f'exactly one of them is a classifier ({", ".join(HEAD_KEYS)}); save '
                             'the vector alone')
        content = tensors[found[0]]
    if not isinstance(content, Tensor):
        raise InputError(f'--prior file: {path!r} holds a {type(content).__name__}, no tensor')
    return content


def _read_npy(path: str) -> Tensor:
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f'--prior file: {path!r} cannot be read as a .npy tensor ({error})') \
            from error


def _checked(vector: Tensor, width: int, spec: str) -> Tensor:
    if vector.shape != (width, ):
        raise InputError(f'--prior {spec}: the vector has shape {tuple(vector.shape)}, but the '
                         f'tokens of this model have width {width}')
    if vector.is_complex():
        raise InputError(f'--prior {spec}: the vector holds complex numbers; give real ones')
    vector = vector.float()
    if not torch.isfinite(vector).all() or not vector.any():
        raise InputError(f'--prior {spec}: the vector is zero or not finite, so no token can be '
                         'compared with it')
    return vector
