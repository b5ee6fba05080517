"""Whether images reach the model as they did in training: the most frequent mistake of all.

What a checkpoint or the files beside it say of the training is compared with the config of the
test, and the clean score with the one that the training logged.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate

from mmvars.datasets.checks import dataset_entries
from mmvars.engine.shorthands import class_name
from mmvars.errors import InputError, first_of
from mmvars.robustness.scores import Scores, draw_weights
from mmvars.robustness.training import Training, section

__all__ = [
    'check_classes',
    'check_score',
    'check_values',
    'compare',
    'is_same_data',
    'preparation',
    'shown',
]

_LEFT_OUT = ('CheckLabels', 'LoadAnnotations', 'PackInputs', 'PackSegInputs', 'Collect')
_WITHOUT_EFFECT = ('type', '_scope_', 'backend_args', 'file_client_args', 'to_float32', 'allow')
_LEAST_SPREAD = 0.02
"""Of normalized values: those of 0 to 1 have 0.25; divided by 255 once more, 0.001."""
_TOLERANCE = 0.005
"""Of a score on the same images: other devices and precisions decide some pixels otherwise."""
_ERRORS = 4  # standard errors that a score of some images may be off that of all
_NOT_FILES = (
    'pipeline',
    'metainfo',
    'reduce_zero_label',
    'ignore_index',
    'test_mode',
    'lazy_init',
    'backend_args',
    '_scope_',
)


def preparation(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """How a config prepares an image: statistics, channel order, steps of the test pipeline.

    Returns:
        Name -> value; without what the config does not say.
    """
    preprocessor = section(section(cfg, 'model'), 'data_preprocessor')
    preprocessor = preprocessor or section(cfg, 'data_preprocessor')
    values: dict[str, Any] = {}
    if preprocessor:
        for name in ('mean', 'std'):
            values[name] = _plain(preprocessor.get(name))
        flags = ('bgr_to_rgb', 'to_rgb', 'rgb_to_bgr')
        swapped = any(preprocessor.get(flag) is True for flag in flags)
        values['channel order'] = 'RGB' if swapped else 'BGR'
    for name in ('test_dataloader', 'val_dataloader'):
        entries = list(dataset_entries(section(cfg, name).get('dataset'), name))
        if entries and isinstance(entries[0][1].get('pipeline'), (list, tuple)):
            dataset = entries[0][1]
            values['steps of the test pipeline'] = _steps(dataset['pipeline'])
            if 'reduce_zero_label' in dataset:
                values['reduce_zero_label'] = dataset['reduce_zero_label']
            break
    return values


def _steps(pipeline: Sequence[Mapping]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (name, {key: _plain(value) for key, value in step.items() if key not in _WITHOUT_EFFECT})
        for step in pipeline
        if (name := class_name(step['type'])) not in _LEFT_OUT
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else class_name(value)


def compare(tested: Mapping[str, Any], trained: Mapping[str, Any], source: str) -> list[str]:
    """Where two :func:`preparation` differ: a line for each, with both."""
    return [
        f'{name}: {shown(tested[name])} in this config, {shown(trained[name])} in {source}'
        for name in tested
        if name in trained and not _is_same(tested[name], trained[name])
    ]


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-3)
    return one == other


def shown(value: Any) -> str:
    """A value of :func:`preparation` as text."""
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return ', '.join(
            f'{name}({", ".join(f"{key}={each}" for key, each in options.items())})'
            for name, options in value
        )
    return str(value)


def check_classes(
    num_classes: int, names: Sequence[str] | None, trained: Sequence[str] | None
) -> list[str]:
    """What is wrong with the classes of the data for a model: a line for each.

    Args:
        num_classes: Of the head.
        names: Of the data.
        trained: Those that the checkpoint names.
    """
    if not names:
        return []
    if len(names) != num_classes:
        masked = num_classes == 1000 and len(names) == 200
        return [
            f'classes: {len(names)} in the test data ({first_of(list(map(str, names)), 3)}), '
            f'{num_classes} in the head of the model'
            + '; --protocol imagenet-a or imagenet-r, with --data DIR, masks the others'
            * masked
        ]
    if trained is None or len(trained) != len(names):
        return []
    pairs = zip(names, trained, strict=True)
    others = [f'{k} is {a!r}, was {b!r}' for k, (a, b) in enumerate(pairs) if str(a) != str(b)]
    return [f'classes: of the test data other ones than in training: {first_of(others, 3)}'] * bool(
        others
    )


@torch.no_grad()
def check_values(model: Any, dataset: Any, indices: Sequence[int]) -> list[str]:
    """What is wrong with the values that really reach the model: a line for each.

    Args:
        model: A segmentor or classifier; its ``data_preprocessor`` is used.
        dataset: Test data.
        indices: Images to look at; pictures of one color alone say nothing.
    """
    spreads, ranges = [], []
    for index in indices:
        data = model.data_preprocessor(pseudo_collate([dataset[index]]), False)
        values = torch.as_tensor(data['inputs']).float()
        spreads.append(float(values.flatten(2).std(-1).mean()))  # within each channel
        ranges.append((float(values.min()), float(values.max())))
    if not np.isfinite(spreads).all():
        raise InputError(
            'normalized images hold NaN or infinity: correct mean and std of data_preprocessor'
        )
    if max(spreads) >= _LEAST_SPREAD:
        return []
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    return [
        f'values: {len(spreads)} images reach the model as {low:.3g} to {high:.3g}, with a '
        f'standard deviation of {max(spreads):.2g}: as if divided by 255 twice'
    ]


def is_same_data(tested: Mapping[str, Any], trained: Mapping[str, Any]) -> bool:
    """Whether the test data of a config are the validation data of another, by what it says.

    The folders above the data may differ, as on two machines.
    """
    (one, other) = (
        [_files(entry) for _, entry in dataset_entries(section(cfg, name).get('dataset'), name)]
        for cfg, name in ((tested, 'test_dataloader'), (trained, 'val_dataloader'))
    )
    return bool(one) and one == other


def _files(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry says of the files of a data set."""
    root = str(dataset.get('data_root') or '').rstrip('/')
    values = {key: _plain(value) for key, value in dataset.items() if key not in _NOT_FILES}
    if root:
        values = {key: _below(value, root) for key, value in values.items()}
        values['data_root'] = root.rpartition('/')[2]
    return {**values, 'type': class_name(dataset.get('type'))}


def _below(value: Any, root: str) -> Any:
    if isinstance(value, dict):
        return {key: _below(each, root) for key, each in value.items()}
    if isinstance(value, list):
        return [_below(each, root) for each in value]
    return value.removeprefix(root).strip('/') if isinstance(value, str) else value


def check_score(scores: Scores, is_all: bool | None, training: Training) -> tuple[list[str], str]:
    """Whether the clean score is the one that the training logged.

    The mIoU of some images says nothing of that of all, for it depends on which classes they have;
    there the accuracy of pixels is compared.

    Args:
        scores: Of clean images.
        is_all: Whether they are all that the validation had, else evenly spaced ones of them;
            ``None``: others.
        training: Its log.

    Returns:
        What is wrong, a line or none; and a line for the report.
    """
    if scores.labels is not None:
        name, values = 'accuracy/top1', scores.value
    else:
        name, values = ('mIoU', scores.value) if is_all else ('aAcc', scores.pixel_accuracy)
    if is_all is None or name not in training.scores:
        reason = f'{training.log} has no {name} of this checkpoint'
        if is_all is None:
            reason = 'validation data of the training are others, or not known'
        chance = 'no better than one class for all images: are labels, classes, pixels right?'
        return [], f'not compared: {reason}' + f'; {chance}' * _is_chance(scores)
    count, logged = len(scores.numerators), training.scores[name] / 100
    score, *draws = values(draw_weights(count))
    tolerance = _TOLERANCE
    if scores.labels is not None:  # one image on the edge
        tolerance = max(tolerance, 1 / count)
    if not is_all:
        error = float(np.std(draws))
        if scores.labels is not None:  # where all are right, their spread is 0
            error = max(error, math.sqrt(max(logged * (1 - logged), 0) / count))
        tolerance += _ERRORS * error
    line = (
        f'{name} {100 * score:.2f} of {"all" if is_all else count} images, {100 * logged:.2f} in '
        f'{training.log} ({100 * tolerance:.2f} points may lie between)'
    )
    if abs(score - logged) <= tolerance:
        return [], f'as logged: {line}'
    return [f'clean score: {line}'], f'DIFFERS from the log: {line}'


def _is_chance(scores: Scores) -> bool:
    """Whether one class for all images or pixels may do as well."""
    whole = np.ones((1, len(scores.numerators)))
    if scores.labels is None:
        classes = np.count_nonzero(scores.denominators.sum(0))
        return bool(scores.value(whole)[0] <= 1 / classes)
    most = np.unique(scores.labels, return_counts=True)[1].max()
    return bool(scores.value(whole)[0] <= most / len(scores.labels))
