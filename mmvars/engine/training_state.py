"""Whether a run can take up a training state, found out before anything of the run is changed.

mmengine and torch write what a file says into optimizer, schedulers and message hub, and find out
later, or in the middle. What fits is what resembles the run's own state.
"""

import inspect
import math
import operator
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Optimizer

from mmvars.checkpoints.io import tensor_fault
from mmvars.checkpoints.unpickle import check_key
from mmvars.errors import InputError

__all__ = ['check_training_state', 'leave_out_unreadable']

_MAX_COUNT = 2**53
_MAX_SEED = 2**32 - 1  # NumPy's
_FIELD = re.compile(r'\{.*?\}')  # of a template for names
_ABSENT = object()
_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device, HistoryBuffer)


def leave_out_unreadable(checkpoint: dict[str, Any], runner: Runner) -> None:
    """Take from a checkpoint, but for its weights, what the reader of checkpoints would refuse.

    States of mmengine's schedulers may hold methods, which a run has anyway. Of anything else, such
    as an object that a hook keeps in the message hub, a warning says that it is not saved.
    """
    absent: list[str] = []
    for entry in checkpoint.keys() - {'state_dict', 'ema_state_dict'}:
        checkpoint[entry] = _plain(entry, checkpoint[entry], absent)
    if others := [name for name in absent if not name.startswith('param_schedulers.')]:
        runner.logger.warning(
            f'Checkpoints hold plain values and tensors alone: {", ".join(others)} '
            f'{"is" if len(others) == 1 else "are"} not saved'
        )


def _plain(entry: str, value: Any, absent: list[str]) -> Any:
    """``value`` without what cannot be read again, whose entries are added to ``absent``."""
    if isinstance(value, Mapping):
        inner = {
            key: _plain(f'{entry}.{key}', each, absent)
            if _is_readable_key(key)
            else _left_out(f'{entry}.{key}', absent)
            for key, each in value.items()
        }
        if type(value) in (dict, OrderedDict, Counter) and all(
            inner[key] is each for key, each in value.items()
        ):
            return value
        return {key: each for key, each in inner.items() if each is not _ABSENT}
    if isinstance(value, (list, tuple)):
        items = [_plain(f'{entry}.{index}', each, absent) for index, each in enumerate(value)]
        if any(each is _ABSENT for each in items):
            return _ABSENT
        if type(value) in (list, tuple, torch.Size) and all(map(operator.is_, items, value)):
            return value
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, Tensor) or type(value) in _PLAIN:
        return value
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in 'fiub':
        return value
    return _left_out(entry, absent)


def _left_out(entry: str, absent: list[str]) -> Any:
    absent.append(entry)
    return _ABSENT


def _is_readable_key(key: Any) -> bool:
    with suppress(InputError):
        check_key(key)
        return True
    return False


def check_training_state(
    checkpoint: Mapping[str, Any], runner: Runner, sharded: bool = False
) -> None:
    """Refuse a state that this run, built and not yet started, cannot take up.

    Optimizer and averages of a run that is ``sharded`` are not compared.

    Raises:
        InputError: Naming the entry, for a sentence that starts with the file.
    """
    meta, hub = checkpoint['meta'], checkpoint.get('message_hub')
    for name in ('iter', 'epoch'):
        _check_count(f'meta.{name}', meta[name], _MAX_COUNT)
    if meta.get('seed') is not None:
        _check_count('meta.seed', meta['seed'], _MAX_SEED)
    _check_message_hub(hub, runner)
    if not sharded:
        _check_ema(checkpoint, runner)
        _check_each('optimizer', checkpoint['optimizer'], runner.optim_wrapper, _check_optimizer)
    if runner.param_schedulers is not None:
        _check_each(
            'param_schedulers',
            checkpoint.get('param_schedulers'),
            runner.param_schedulers,
            _check_schedulers,
        )


def _check_each(entry: str, state: Any, parts: Any, check: Any) -> None:
    """``check`` the one part, or each of several optimizers' by its name."""
    if not isinstance(parts, (dict, OptimWrapperDict)):
        return check(entry, state, parts)
    _require(entry, isinstance(state, dict) and state.keys() == parts.keys(), 'a dict of each part')
    for name, part in parts.items():
        check(f'{entry}.{name}', state[name], part)
    return None


def _check_message_hub(hub: Any, runner: Runner) -> None:
    names = ('log_scalars', 'runtime_info', 'resumed_keys')
    _require(
        'message_hub',
        isinstance(hub, dict) and all(isinstance(hub.get(name), dict) for name in names),
        f'a dict with the dicts {", ".join(names)}',
    )
    runtime_info = runner.message_hub.runtime_info
    hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
    template = '.pth' if hook is None else hook.filename_tmpl.replace('/', '_')
    best = re.compile(r'best_.*\.pth|best_.*' + '.*'.join(map(re.escape, _FIELD.split(template))))
    for name, value in hub['runtime_info'].items():
        entry = f'message_hub.runtime_info.{name}'
        if name.startswith('best_ckpt'):  # mmengine deletes it, be it a folder, after a better one
            is_best = isinstance(value, str) and best.fullmatch(_file_name(value))
            _require(
                entry, value is None or is_best, f'the path of a best_*{_FIELD.sub("*", template)}'
            )
        elif name.startswith('best_score'):
            _require(entry, _is_number(value), 'a finite number')
        elif name == 'keep_ckpt_ids':
            _require(
                entry,
                isinstance(value, list) and all(type(each) is int for each in value),
                'a list of integers',
            )
        elif name in runtime_info:
            _check_alike(entry, value, runtime_info[name], same_keys=False)


def _check_ema(checkpoint: Mapping[str, Any], runner: Runner) -> None:
    """Averages are swapped with the weights, tensor by tensor, by the hook that keeps them."""
    averages, weights = checkpoint.get('ema_state_dict'), checkpoint['state_dict']
    hook = next((hook for hook in runner.hooks if isinstance(hook, EMAHook)), None)
    if averages is None or hook is None:
        return
    _require('ema_state_dict', isinstance(averages, dict), 'a dict of tensors')
    for name, ours in hook.ema_model.state_dict().items():
        value, other = averages.get(name), weights.get(name.removeprefix('module.'), ours)
        for each in (value, other):
            fault = tensor_fault(each, ours)
            if not fault and each.shape != ours.shape:
                fault = f'of shape {tuple(each.shape)}, not {tuple(ours.shape)}'
            _require(f'ema_state_dict.{name}', not fault, 'what the model has', fault)
    unknown = averages.keys() - hook.ema_model.state_dict().keys()
    _require('ema_state_dict', not unknown, 'that of this model', f'with {sorted(unknown)[:3]}')


def _check_optimizer(entry: str, state: Any, wrapper: Any) -> None:
    ours, optimizer = wrapper.state_dict(), wrapper.optimizer
    _require(
        entry,
        isinstance(state, dict)
        and isinstance(state.get('param_groups'), list)
        and isinstance(state.get('state'), dict),
        'a dict with a list param_groups and a dict state',
    )
    groups = state['param_groups']
    _require(
        f'{entry}.param_groups',
        len(groups) == len(ours['param_groups']),
        f'a list of {len(ours["param_groups"])} groups, as this optimizer has',
        f'of {len(groups)}',
    )
    for index, (group, own) in enumerate(zip(groups, ours['param_groups'], strict=True)):
        name = f'{entry}.param_groups.{index}'
        _check_alike(name, group, own, same_keys=False)
        _require(f'{name}.params', 'params' in group, 'given')
        _require(f'{name}.lr', 'lr' in group, 'given')
    for name in ('loss_scaler', 'base_param_settings'):
        if name in state and name in ours:
            # Versions of torch differ in the switches of optimizers.
            _check_alike(f'{entry}.{name}', state[name], ours[name], same_keys=False)
    keys = [key for group in groups for key in group['params']]
    parameters = [each for group in optimizer.param_groups for each in group['params']]
    targets = dict(zip(keys, parameters, strict=True))
    _require(f'{entry}.param_groups', len(targets) == len(keys), 'without a parameter twice')
    options = {id(each): group for group in optimizer.param_groups for each in group['params']}
    for key, values in state['state'].items():
        name = f'{entry}.state.{key}'
        _require(name, key in targets and isinstance(values, dict), 'a dict, of a parameter')
        template = _state_of(targets[key], optimizer, options[id(targets[key])])
        missing = template.keys() - values.keys()
        _require(name, not missing, 'complete', f'without {sorted(missing)}')
        for slot, value in values.items():
            _check_slot(f'{name}.{slot}', value, template.get(slot))


def _check_slot(entry: str, value: Any, example: Any) -> None:
    """What an optimizer remembers of a parameter; ``example`` is what it does after a step."""
    if isinstance(value, (list, tuple)) and not isinstance(example, Tensor):
        for index, each in enumerate(value):
            _check_slot(f'{entry}.{index}', each, None)
        return
    is_scalar = not isinstance(example, Tensor) or example.numel() == 1
    if not isinstance(value, Tensor):
        fits = value is None or isinstance(value, bool) or _is_number(value)
        _require(entry, fits and is_scalar, 'a tensor or a number', _kind(value))
        return
    fault = tensor_fault(value)
    if not fault and isinstance(example, Tensor) and value.shape != example.shape:
        if value.numel() != 1 or example.numel() != 1:
            fault = f'of shape {tuple(value.shape)}, not {tuple(example.shape)}'
    _require(entry, not fault, 'what its parameter needs', fault)


def _state_of(target: Tensor, optimizer: Optimizer, group: dict[str, Any]) -> dict[str, Any]:
    """What an optimizer remembers of a parameter after a step, by shape and options; {} if unknown.

    Those of torch's Adafactor, for example, have other entries for matrices than for vectors.
    """
    parameter = nn.Parameter(torch.zeros(target.shape))
    parameter.grad = torch.zeros(target.shape)
    known = inspect.signature(type(optimizer)).parameters
    options = {name: value for name, value in group.items() if name in known and name != 'params'}
    with suppress(Exception):  # those of other packages may need a device, or a closure
        twin = type(optimizer)([parameter], **options)
        twin.step()
        return dict(twin.state[parameter])
    return {}


def _check_schedulers(entry: str, states: Any, schedulers: Sequence[Any]) -> None:
    count = len(schedulers)
    _require(
        entry,
        isinstance(states, list) and len(states) == count,
        f'a list of {count} states, as this run has schedulers',
        f'of {len(states)}' if isinstance(states, list) else '',
    )
    for index, (state, scheduler) in enumerate(zip(states, schedulers, strict=True)):
        _check_alike(f'{entry}.{index}', state, _plain(entry, scheduler.state_dict(), []))


def _check_alike(entry: str, value: Any, own: Any, same_keys: bool = True) -> None:
    """Refuse a value of another kind than the run's own, in containers too."""
    if isinstance(own, Mapping):
        _require(entry, isinstance(value, dict), 'a dict', '' if value else _kind(value))
        missing = own.keys() - value.keys() if same_keys else set()
        _require(entry, not missing, 'complete', f'without {sorted(map(str, missing))[:5]}')
        unknown = value.keys() - own.keys() if same_keys else set()
        _require(entry, not unknown, 'known', f'with {sorted(map(str, unknown))[:5]}')
        for key in value.keys() & own.keys():
            _check_alike(f'{entry}.{key}', value[key], own[key], same_keys)
    elif isinstance(own, (list, tuple)):
        fits = isinstance(value, (list, tuple)) and len(value) == len(own)
        _require(entry, fits, f'a list of {len(own)}', _kind(value))
        for index, (each, ours) in enumerate(zip(value, own, strict=True)):
            _check_alike(f'{entry}.{index}', each, ours, same_keys)
    elif isinstance(own, str):
        _require(entry, isinstance(value, str), 'a text', _kind(value))
    elif own is None or isinstance(own, bool):  # switches, None where torch decides
        fits = value is None or isinstance(value, bool) or (own is None and _is_number(value))
        _require(entry, fits, 'True, False or None', _kind(value))
    elif isinstance(own, (int, float, np.number)):
        is_scalar = isinstance(value, Tensor) and value.numel() == 1 and not tensor_fault(value)
        _require(entry, is_scalar or _is_number(value), 'a finite number', _kind(value))
        if entry.endswith('.lr'):
            _require(entry, value >= 0, 'not negative', _kind(value))
    elif isinstance(own, Tensor):
        _require(entry, _is_number(value) or not tensor_fault(value, own), 'a tensor', _kind(value))


def _check_count(entry: str, value: Any, most: int) -> None:
    fits = type(value) is int and 0 <= value <= most
    _require(entry, fits, f'an integer from 0 to {most}', _kind(value))


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float, np.number))
        and not isinstance(value, bool)
        and (isinstance(value, int) or math.isfinite(value))
        and abs(value) < 2**1000
    )


def _kind(value: Any) -> str:
    if isinstance(value, (str, int, float, type(None))):
        return repr(value)[:60]
    return f'a {type(value).__name__}'


def _file_name(path: str) -> str:
    return re.split(r'[/\\]', path)[-1]


def _require(entry: str, fits: Any, expected: str, got: str = '') -> None:
    if not fits:
        raise InputError(
            f'entry {entry} must be {expected}{f", but is {got}" if got else ""}; resume from '
            f'another checkpoint, or start from its weights with --cfg-options load_from=...'
        )
