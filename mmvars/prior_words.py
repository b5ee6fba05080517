"""``--prior``: what its words mean, in all commands that take one."""

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvars.checkpoints import read_checkpoint
from mmvars.datasets.files import open_image
from mmvars.errors import InputError
from mmvars.networks import LearnedQuery
from mmvars.predictor import Predictor
from mmvars.priors import find_class
from mmvars.prompts import Box, Example, Mask, Points
from mmvars.visualization.model import network_of

__all__ = ['GRAMMAR', 'Place', 'class_number', 'parse_prior']

GRAMMAR = (
    'class:NAME, point:X,Y, box:X0,Y0,X1,Y1, mask:FILE, example:IMAGE, file:PATH, text:WORDS, '
    'query or none'
)
HEAD_KEYS = ('head.fc.weight', 'head.weight', 'trunk.head.weight', 'module.head.weight')
Place = Points | Box | Mask


def parse_prior(word: str, predictor: Predictor) -> Any:
    """What a word means for ``Predictor.predict``: ``None``, a place, or a vector.

    Raises:
        InputError: If it is not understood, or a file or class does not exist.
    """
    kind, _, rest = word.partition(':')
    if word == 'none':
        return None
    if word == 'query':
        prior = getattr(network_of(predictor.model), 'prior', None)
        if not isinstance(prior, LearnedQuery):
            raise InputError(
                f'--prior query: this model has no learned query (its prior is '
                f'{type(prior).__name__}); give another: {GRAMMAR}'
            )
        return None
    if not rest or kind not in _PARSERS:
        raise InputError(f'--prior {word!r} is not understood: give {GRAMMAR}')
    try:
        prompt = _PARSERS[kind](rest, predictor)
        return prompt if isinstance(prompt, Place) else predictor.prior_vector(prompt)
    except InputError as error:
        raise InputError(f'--prior {word}: {error}') from None


def class_number(name: str, predictor: Predictor) -> int:
    """The number of a class, of its name or of digits, among those that a prior may be."""
    if re.fullmatch(r'-?[0-9]+', name.strip()):
        return int(name)
    return find_class(name, predictor.class_priors[0])


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(',')]
    except ValueError:
        raise InputError(f'numbers with commas between them are needed, got {text!r}') from None


def _points(text: str) -> Points:
    numbers = _numbers(text)
    if len(numbers) % 2:
        raise InputError(f'a point is X,Y, and two are X,Y,X,Y; got {len(numbers)} numbers')
    return Points(list(zip(numbers[::2], numbers[1::2], strict=True)))


def _box(text: str) -> Box:
    numbers = _numbers(text)
    if len(numbers) != 4:
        raise InputError(f'a box is X0,Y0,X1,Y1; got {len(numbers)} numbers')
    return Box(*numbers)


def _mask(path: str) -> Mask:
    try:
        with open_image(path, path) as image:
            pixels = np.asarray(image)
    except FileNotFoundError as error:
        raise InputError('the file does not exist') from error
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError('the file is no image that can be read; save it as PNG') from error
    return Mask(pixels)


def _example(text: str) -> Example:
    path, at, box = text.rpartition('@')
    if os.path.exists(text) or not at:
        return Example(text)
    return Example(path, _box(box))


def _vector(text: str) -> Tensor:
    path, colon, row = text.rpartition(':')
    if not (colon and row.isdigit()) or os.path.exists(text):
        return read_vector(text, None)
    return read_vector(path, int(row))


def read_vector(path: str, row: int | None) -> Tensor:
    """The one tensor, or the classifier, in a file: a row of it, or all of it as a vector.

    Raises:
        InputError: If there is none, or several.
    """
    if path.endswith('.npy'):
        try:
            content = torch.from_numpy(np.load(path, allow_pickle=False))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f'the file cannot be read as a .npy tensor ({error})') from error
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
                f'the file holds {len(tensors)} tensors, and not exactly one of them is a '
                f'classifier ({", ".join(HEAD_KEYS)}); save the vector alone'
            )
        content = tensors[keys[0]]
    if not isinstance(content, Tensor):
        raise InputError(f'the file holds a {type(content).__name__}, no tensor')
    if row is None and content.ndim == 2 and len(content) > 1:
        raise InputError(
            f'the file holds {len(content)} vectors; choose one: file:{path}:ROW, ROW from 0 to '
            f'{len(content) - 1}'
        )
    if row is not None and (content.ndim != 2 or row >= len(content)):
        raise InputError(
            f'there is no row {row} in the tensor of shape {tuple(content.shape)} in the file'
        )
    return content.flatten() if row is None else content[row]


_PARSERS: dict[str, Callable[[str, Predictor], Any]] = {
    'class': class_number,
    'point': lambda text, predictor: _points(text),
    'box': lambda text, predictor: _box(text),
    'mask': lambda path, predictor: _mask(path),
    'example': lambda text, predictor: _example(text),
    'file': lambda text, predictor: _vector(text),
    'text': lambda words, predictor: words,
}
