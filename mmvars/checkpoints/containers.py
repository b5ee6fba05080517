"""What stands around the tensors in a checkpoint file: which entry holds them, wrapper prefixes."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mmvars.checkpoints.account import Account, Status
from mmvars.errors import InputError

__all__ = ['WEIGHTS', 'asked_to_ignore', 'select_weights']

WEIGHTS = ('auto', 'model', 'ema')
"""Which weights of a file: see :func:`select_weights`."""

_RAW_ENTRIES = ('model', 'state_dict')
_EMA_ENTRIES = ('model_ema', 'state_dict_ema')
_SWAPPED = 'ema_state_dict'  # mmengine's EMA hook puts the averages into `state_dict`

_NOT_WEIGHTS = {
    'optimizer': 'state of training', 'lr_scheduler': 'state of training',
    'scheduler': 'state of training', 'param_schedulers': 'state of training',
    'scaler': 'state of training', 'amp_scaler': 'state of training',
    'optim_wrapper': 'state of training', 'message_hub': 'log of training',
    'args': 'options of the training script', 'meta': 'description of the training run',
}
_COUNTERS = ('steps', 'n_averaged')  # of averaging wrappers, beside the model's tensors
_WRAPPERS = {'module.': 'a parallel or averaging wrapper', '_orig_mod.': 'torch.compile'}


def select_weights(content: Any, weights: str, account: Account,
                   ignore: Sequence[str] = ()) -> dict[str, Any]:
    """The state dict among the entries of a file, without the prefixes of wrappers.

    Args:
        content: What :func:`~mmvars.checkpoints.files.read_checkpoint` returned.
        weights: ``'model'``: as trained. ``'ema'``: their moving average. ``'auto'``: the entry
            ``model``, else ``state_dict`` (in a file of an OpenMMLab runner with EMA these are the
            averages, which its tools test), else the only average there is.
        account: Gets a line for every other entry, and a remark on the choice.
        ignore: Patterns of entries that may hold tensors and yet be left out.

    Raises:
        InputError: If the file holds no such weights.
    """
    if weights not in WEIGHTS:
        raise InputError(f'weights must be one of {WEIGHTS}, got {weights!r}')
    if not isinstance(content, Mapping) or not content:
        raise InputError(f'{account.title}: the file holds a {type(content).__name__}, not a dict '
                         f'of tensors; save the state dict of the model')
    if not set(content) & {*_RAW_ENTRIES, *_EMA_ENTRIES} and _is_flat(content):
        if weights == 'ema':
            raise InputError(f'{account.title}: the file is one flat state dict and has no moving '
                             f'average; leave --weights out')
        return _unwrapped(content, account)
    entry = _entry(content, weights, account)
    account.remark(f'weights: entry {entry!r}' + _how_chosen(weights, entry, content))
    for name, value in content.items():
        if name != entry:
            _account_for_entry(str(name), value, account, ignore)
    if not isinstance(content[entry], Mapping):
        raise InputError(f'{account.title}: entry {entry!r} is a {type(content[entry]).__name__}, '
                         f'not a state dict')
    return _unwrapped(content[entry], account)


def asked_to_ignore(key: str, ignore: Sequence[str]) -> bool:
    """Whether one of the shell-style patterns matches ``key``."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in ignore)


def _is_flat(content: Mapping) -> bool:
    return all(isinstance(value, Tensor) for value in content.values())


def _entry(content: Mapping, weights: str, account: Account) -> str:
    raw = [name for name in _RAW_ENTRIES if name in content]
    ema = [name for name in _EMA_ENTRIES if name in content]
    wanted = {'auto': raw + ema, 'model': raw, 'ema': ema}[weights]
    if _SWAPPED in content and 'state_dict' in content:
        wanted = [_SWAPPED] if weights == 'model' else ['state_dict']
    if not wanted:
        raise InputError(f'{account.title}: the file has no {weights} weights; its entries are '
                         f'{", ".join(map(repr, list(content)[:20]))}; weights are looked for in '
                         f'{", ".join(map(repr, _RAW_ENTRIES + _EMA_ENTRIES))}')
    return wanted[0]


def _how_chosen(weights: str, entry: str, content: Mapping) -> str:
    averages = entry in _EMA_ENTRIES or (entry == 'state_dict' and _SWAPPED in content)
    kind = ' (moving averages)' if averages else ''
    return kind + (', the default' if weights == 'auto' else ', as asked')


def _account_for_entry(name: str, value: Any, account: Account, ignore: Sequence[str]) -> None:
    if asked_to_ignore(name, ignore):
        account.add(Status.IGNORED, f'[{name}]', note='as asked')
    elif name in _NOT_WEIGHTS:
        account.add(Status.IGNORED, f'[{name}]', note=_NOT_WEIGHTS[name])
    elif name in (*_RAW_ENTRIES, *_EMA_ENTRIES, _SWAPPED):
        account.add(Status.IGNORED, f'[{name}]', note='other weights than those chosen')
    elif _holds_tensors(value):
        account.add(Status.UNEXPECTED, f'[{name}]',
                    note='an entry with tensors that nothing is known of; --ignore leaves it out')
    else:
        account.add(Status.IGNORED, f'[{name}]', note='holds no tensors')


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_tensors, value))
    return isinstance(value, Tensor) and value.ndim > 0


def _unwrapped(state_dict: Mapping, account: Account) -> dict[str, Any]:
    tensors = {str(key): value for key, value in state_dict.items()}
    for counter in _COUNTERS:
        if counter in tensors and tensors[counter].numel() == 1:
            account.add(Status.IGNORED, counter, shape=tensors.pop(counter).shape,
                        note='counter of an averaging wrapper')
    stripped = True
    while stripped and tensors:
        stripped = False
        for prefix, wrapper in _WRAPPERS.items():
            if all(key.startswith(prefix) for key in tensors):
                tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
                account.remark(f'prefix {prefix!r} of {wrapper} removed from every key')
                stripped = True
    return tensors
