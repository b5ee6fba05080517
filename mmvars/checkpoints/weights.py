"""The weights among the entries of a file, and their keys without the prefixes of wrappers."""

import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from mmvars.checkpoints.io import tensors_in
from mmvars.checkpoints.report import ConversionReport, Status
from mmvars.errors import InputError, check_choice

__all__ = ['WEIGHTS', 'drop', 'matches', 'select_weights', 'with_prefix']

WEIGHTS: dict[str, tuple[str, ...]] = {
    'model': ('model', 'state_dict'),
    'ema': ('model_ema', 'state_dict_ema'),
    'teacher': ('teacher',),
    'student': ('student',),
}
"""Kinds of weights -> entries of a file that hold them: as trained, their moving averages, and the
two networks of a self-distillation."""

_SWAPPED = 'ema_state_dict'  # mmengine's EMA hook puts the averages into `state_dict`

_OTHER_ENTRIES = {
    **dict.fromkeys(
        (
            'optimizer',
            'optimizer_states',
            'lr_scheduler',
            'lr_schedulers',
            'scheduler',
            'param_schedulers',
            'scaler',
            'amp_scaler',
            'optim_wrapper',
        ),
        'state of training',
    ),
    'message_hub': 'log of training',
    'args': 'options of the training script',
    'meta': 'description of the training run',
}

_COUNTERS = ('steps', 'n_averaged')  # of averaging wrappers, beside the model's tensors

_CHUNKED = re.compile(r'(\bblocks\.)\d+\.(?=\d+\.)')  # the second number counts all blocks
_WRAPPERS = {
    'module.': 'a parallel or averaging wrapper',
    '_orig_mod.': 'torch.compile',
    'model.': "Lightning's module",
}


def select_weights(
    content: Any, weights: str, report: ConversionReport, ignore: Sequence[str] = ()
) -> dict[str, Any]:
    """The state dict among the entries of a file, without the prefixes of wrappers.

    ``weights`` is a key of :data:`WEIGHTS`, or ``'auto'`` for the first entry of any. Patterns in
    ``ignore`` leave out entries that may hold tensors.

    Raises:
        InputError: If the file holds no such weights.
    """
    check_choice('weights', weights, ('auto', *WEIGHTS))
    if not isinstance(content, Mapping) or not content:
        raise InputError(
            f'{report.title}: the file holds a {type(content).__name__}, not a dict '
            f'of tensors; save the state dict of the model'
        )
    every = sum(WEIGHTS.values(), ())
    if not set(content) & set(every) and all(isinstance(v, Tensor) for v in content.values()):
        if weights not in ('auto', 'model'):
            raise InputError(
                f'{report.title}: the file is one flat state dict and has no weights '
                f'{weights!r}; leave --weights out'
            )
        return _unwrapped(content, report)
    choices = [entry for entry in WEIGHTS.get(weights, every) if entry in content]
    if _SWAPPED in content and 'state_dict' in content and weights in ('auto', 'model', 'ema'):
        choices = [_SWAPPED if weights == 'model' else 'state_dict']
    if not choices:
        raise InputError(
            f'{report.title}: the file has no entry for --weights {weights} (one of '
            f'{", ".join(WEIGHTS.get(weights, every))}); its entries are '
            f'{", ".join(map(repr, list(content)[:20]))}'
        )
    entry = choices[0]
    averaged = entry in WEIGHTS['ema'] or (entry == 'state_dict' and _SWAPPED in content)
    report.remark(
        f'weights: entry {entry!r}{" (moving averages)" if averaged else ""}, '
        f'{"the default" if weights == "auto" else "as requested"}'
    )
    notes = _OTHER_ENTRIES | dict.fromkeys((*every, _SWAPPED), 'other weights than those chosen')
    for name in [name for name in content if name != entry]:
        note = 'as requested' if matches(str(name), ignore) else notes.get(name, '')
        if not note and not any(tensor.ndim for _, tensor in tensors_in(content[name])):
            note = 'holds no tensors'
        report.add(
            Status.IGNORED if note else Status.UNEXPECTED,
            f'[{name}]',
            note=note or 'an unknown entry with tensors; --ignore leaves it out',
        )
    if not isinstance(content[entry], Mapping):
        raise InputError(
            f'{report.title}: entry {entry!r} is a {type(content[entry]).__name__}, '
            f'not a state dict'
        )
    return _unwrapped(content[entry], report)


def with_prefix(
    state_dict: Mapping[str, Any], prefix: str, report: ConversionReport
) -> dict[str, Any]:
    """The entries whose keys start with ``prefix``, without it; the others are ignored."""
    start = prefix if not prefix or prefix.endswith('.') else f'{prefix}.'
    others = [key for key in state_dict if not key.startswith(start)]
    if len(others) == len(state_dict):
        raise InputError(
            f'{report.title}: no key starts with prefix {prefix!r}; the keys begin '
            f'with {", ".join(others[:5])}'
        )
    inside = drop(state_dict, report, f'does not start with {start!r}', others)
    return {key.removeprefix(start): value for key, value in inside.items()}


def drop(
    tensors: Mapping[str, Any], report: ConversionReport, reason: str, names: Collection[str]
) -> dict[str, Any]:
    """``tensors`` (values or :class:`Source`) without ``names``, reported as ignored."""
    names = dict.fromkeys(names)
    for name in names:
        report.add(
            Status.IGNORED,
            getattr(tensors[name], 'key', name),
            shape=getattr(tensors[name], 'shape', None),
            note=reason,
        )
    return {name: tensors[name] for name in tensors if name not in names}


def matches(key: str, ignore: Sequence[str]) -> bool:
    """Whether one of the shell-style patterns in ``ignore`` takes ``key``."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in ignore)


def _unwrapped(state_dict: Mapping[Any, Any], report: ConversionReport) -> dict[str, Any]:
    """A state dict without the counters of averaging wrappers, and the prefixes of wrappers."""
    tensors = {str(key): value for key, value in state_dict.items()}
    tensors = drop(
        tensors,
        report,
        'counter of an averaging wrapper',
        [
            name
            for name in _COUNTERS
            if isinstance(tensors.get(name), Tensor) and tensors[name].numel() == 1
        ],
    )
    while prefix := next(
        (
            prefix
            for prefix in _WRAPPERS
            if tensors and all(key.startswith(prefix) for key in tensors)
        ),
        None,
    ):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
        report.remark(f'prefix {prefix!r} of {_WRAPPERS[prefix]} removed from every key')
    if any(map(_CHUNKED.search, tensors)):
        tensors = {_CHUNKED.sub(r'\1', key): value for key, value in tensors.items()}
        report.remark('chunks of blocks, as DINOv2 is trained, opened: blocks.CHUNK.BLOCK')
    return tensors
