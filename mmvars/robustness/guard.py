"""Whether images reach the model as they did in training: the most frequent mistake of all.

What a checkpoint or the files beside it say of the training is compared with the config of the
test. A config in a checkpoint is Python text; it is parsed here, never executed.
"""

import ast
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate

from mmvars.checkpoints.io import read_checkpoint, read_meta
from mmvars.datasets.checks import dataset_entries
from mmvars.engine.shorthands import class_name
from mmvars.errors import InputError, first_of

__all__ = [
    'check_classes',
    'check_values',
    'compare',
    'parse_config',
    'preparation',
    'recorded',
    'shown',
]

_LEFT_OUT = ('CheckLabels', 'LoadAnnotations', 'PackInputs', 'PackSegInputs', 'Collect')
_WITHOUT_EFFECT = ('type', '_scope_', 'backend_args', 'file_client_args', 'to_float32', 'allow')
_LEAST_SPREAD = 0.02
"""Of normalized values: those of 0 to 1 have 0.25; divided by 255 once more, 0.001."""


def recorded(checkpoint: str, tested: str) -> tuple[Mapping[str, Any], Sequence[str] | None, str]:
    """What is known of the training that made a checkpoint.

    Args:
        checkpoint: Its path.
        tested: Path of the config that is tested, which says nothing of the training where it lies
            beside the checkpoint.

    Returns:
        The config of the training ({}: not known), the names of its classes (``None``: not known),
        and where both stand.
    """
    meta = read_meta(checkpoint, read_checkpoint(checkpoint))
    names = meta.get('dataset_meta')
    classes = names.get('classes') if isinstance(names, Mapping) else meta.get('CLASSES')
    text = meta.get('cfg') or meta.get('config')
    if isinstance(text, str) and 'model' in (cfg := parse_config(text)):
        return cfg, classes, 'the config in the checkpoint'
    folder, files = Path(checkpoint).parent, []
    if '://' not in checkpoint:
        files = sorted(folder.glob('*/vis_data/config.py'))[-1:] + sorted(folder.glob('*.py'))
    for file in files:
        cfg = parse_config(file.read_text(encoding='utf-8', errors='replace'))
        if 'model' in cfg and not (os.path.exists(tested) and file.samefile(tested)):
            return cfg, classes, str(file)
    return {}, classes, 'the checkpoint'


def parse_config(text: str) -> dict[str, Any]:
    """The variables of a config as mmengine writes it, literals and ``dict(...)``; {} if none."""
    try:
        nodes = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    return {
        node.targets[0].id: _value(node.value)
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        first = [_value(argument) for argument in node.args]
        pairs = {each.arg: _value(each.value) for each in node.keywords if each.arg}
        return {**(first[0] if first and isinstance(first[0], dict) else {}), **pairs}
    if isinstance(node, ast.Dict):
        return {
            _value(key): _value(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant)
        }
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(each) for each in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return ast.unparse(node)  # a name, as of a class


def preparation(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """How a config prepares an image: statistics, channel order, steps of the test pipeline.

    Returns:
        Name -> value; without what the config does not say.
    """
    model = cfg.get('model') or {}
    preprocessor = model.get('data_preprocessor') or cfg.get('data_preprocessor')
    values: dict[str, Any] = {}
    if isinstance(preprocessor, Mapping):
        for name in ('mean', 'std'):
            values[name] = _plain(preprocessor.get(name))
        flags = ('bgr_to_rgb', 'to_rgb', 'rgb_to_bgr')
        swapped = any(preprocessor.get(flag) is True for flag in flags)
        values['channel order'] = 'RGB' if swapped else 'BGR'
    for name in ('test_dataloader', 'val_dataloader'):
        section = cfg.get(name)
        entries = list(dataset_entries((section or {}).get('dataset'), name))
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
        return [
            f'classes: {len(names)} in the test data ({first_of(list(map(str, names)), 3)}), '
            f'{num_classes} in the head of the model'
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
