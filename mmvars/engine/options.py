"""``--cfg-options``: refuse options that name nothing, merge the rest, and what follows from them.

Options are merged twice: before what follows from them, which is computed from the result, and
afterwards, so that an entry that is named in full wins.
"""

import ast
import difflib
import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.runner import FlexibleRunner, Runner

from mmvars.engine.shorthands import (
    DATASET_KEYS,
    SHORT_NAMES,
    SHORTHANDS,
    SIZES,
    check_size,
    dicts,
    follow_shorthands,
    plain,
    walk,
)
from mmvars.errors import InputError

__all__ = ['apply_options', 'check_options', 'parse_cfg_options']

_RUNNER_KEYS = {
    *inspect.signature(Runner).parameters.keys(),
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'sync_bn',
} - {'cfg'}
_FLEXIBLE_KEYS = {
    *inspect.signature(FlexibleRunner).parameters.keys(),
    'init_weights_for_test_or_val',
} - {'cfg', 'compile'}  # its from_cfg passes no `compile` on
_OWN_KEYS = {'allow_constants', 'runner_type', 'save_trained_only', 'tta_model', 'tta_pipeline'}
_SEGMENTOR_KEYS = [
    f'model.test_cfg.{key}'
    for key in ('keep_logits', 'logits_device', 'logits_dtype', 'window_batch')
]
_OPTIONAL_KEYS = [
    *_SEGMENTOR_KEYS,
    'model.test_cfg.mode',
    'model.test_cfg.crop_size',
    'model.test_cfg.stride',
    'optim_wrapper.paramwise_cfg.layer_decay_rate',
]
_FREE_KEYS = ('custom_keys', 'metainfo')  # dicts with keys of the user's choice
# Take text and other types.
_SEVERAL_TYPES = ('arch', 'data_prefix', 'loss_scale', 'pretrained', 'prior')


def parse_cfg_options(words: Sequence[str] | None) -> dict[str, Any]:
    """The words of ``--cfg-options`` as a dict: dotted key -> value, read as mmengine does.

    Dicts, and lists of them, are read as JSON or Python writes them.

    Raises:
        InputError: If the brackets of a list do not match, or braces hold no dict.
    """
    options = {}
    for word in words or ():
        key, _, value = word.partition('=')
        try:
            read = _parse_dicts(value)
            options[key] = DictAction._parse_iterable(value) if read is None else read
        except (AssertionError, ValueError) as error:
            raise InputError(f'--cfg-options {word}: {error}') from None
        except RecursionError:  # mmengine's, on brackets with a comma inside a word
            raise InputError(
                f'--cfg-options {word}: brackets inside a word are not read; give entries one by '
                f'one, as in {key}.0=VALUE'
            ) from None
    return options


def _parse_dicts(value: str) -> dict | list | tuple | None:
    """A dict, or a list that has some; ``None`` for other values."""
    text = value.strip()
    if '{' in text and (text[0], text[-1]) in (('{', '}'), ('[', ']'), ('(', ')')):
        for read in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                return read(text)
    if text.startswith('{') and text.endswith('}'):
        raise ValueError(
            'no dict of JSON or Python; write it in single quotes, which the shell leaves alone, '
            """as in 'KEY={"type": "LN", "eps": 1e-6}'"""
        )
    return None


def apply_options(cfg: Config, options: Mapping[str, Any] | None) -> list[str]:
    """Check ``--cfg-options`` and bring them and what follows from them into ``cfg``, in place.

    Args:
        cfg: A parsed config.
        options: As mmengine's ``DictAction`` gives them: dotted key -> value.

    Returns:
        One line for each entry that changed and was not named, for the log.

    Raises:
        InputError: If an option names nothing, or if the value of a shorthand cannot be used or
            changes nothing in this config.
    """
    options = options or {}
    check_options(cfg, options)
    named: dict[str, Any] = {}
    for key, value in options.items():
        full_name = SHORT_NAMES.get(key, key.removeprefix('+'))
        if full_name in named:
            raise InputError(
                f'--cfg-options gives {full_name} twice, in full and as shorthand: leave one out'
            )
        named[full_name] = check_size(cfg, key, value) if key in SIZES else value
    checked = named.keys() - {key.removeprefix('+') for key in options if key.startswith('+')}
    old = deepcopy(cfg)
    if 'model.backbone.arch' in checked and 'backbone' in cfg.model:
        cfg.model.backbone.pop('arch', None)  # a name cannot be merged with a dict
    cfg.merge_from_dict(deepcopy(named))
    follow_shorthands(cfg, old, named, checked)
    cfg.merge_from_dict(named)
    for key in {'data_root', 'num_classes', *DATASET_KEYS} & checked - old.keys():
        cfg.pop(key)  # no variable of this config
    for node in dicts(cfg._cfg_dict):
        if node.get('num_workers') == 0 and node.get('persistent_workers'):
            node['persistent_workers'] = False
    before, after = _leaves(old), _leaves(cfg)
    return [
        f'{path}: {before.get(path, "unset")} -> {after.get(path, "left out")}'
        for path in {**before, **after}
        if before.get(path) != after.get(path)
        and not any(f'{path}.'.startswith(f'{name}.') for name in named)
    ]


def check_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Refuse options that name nothing in ``cfg``, where mmengine adds them without a word.

    A new key is accepted at the top level if the Runner or this package reads it, and in a dict
    if it is not nearly one of those present. ``+key`` is always accepted.

    Raises:
        InputError: With all wrong keys and values at once, and what was probably meant.
    """
    runner_type = options.get('runner_type', cfg.get('runner_type', 'Runner'))
    problems = [
        _find_problem(cfg, key, value, runner_type)
        for key, value in options.items()
        if key not in SHORTHANDS and not key.startswith('+')
    ]
    if any(problems):
        raise InputError('--cfg-options: ' + '\n  '.join(filter(None, problems)))


def _find_problem(cfg: Config, option: str, value: Any, runner_type: str) -> str | None:
    if option == 'launcher':
        return "'launcher': the flag --launcher sets it"
    if option.startswith('data_preprocessor') and 'data_preprocessor' in (cfg.get('model') or {}):
        return f'{option!r}: the model has its own: set model.{option}'
    top_level = _OWN_KEYS | _top_level_keys(runner_type)
    node: Any = cfg._cfg_dict
    path = ''
    for key in option.split('.'):
        if node is None:
            return None  # an optional part that is switched on
        if isinstance(node, list | tuple):
            if not key.isdigit() or int(key) >= len(node):
                return (
                    f'{option!r}: {path} is a list of {len(node)}: give an index from 0 to '
                    f'{len(node) - 1}'
                )
            node = node[int(key)]
        elif not isinstance(node, dict):
            return f'{option!r}: {path} is {node!r}, which has no entries'
        elif f'{path}.{key}' in _SEGMENTOR_KEYS and str(cfg.model.get('type')) in (
            'EncoderDecoder',
            'mmseg.EncoderDecoder',
        ):
            return (
                f'{option!r}: {cfg.model.type} would not read it; it is for '
                "type='mmvars.EncoderDecoder'"
            )
        elif key not in (node if path else top_level):
            if not path and key in _RUNNER_KEYS | _FLEXIBLE_KEYS:
                return f'{option!r}: with runner_type={runner_type!r} nothing reads {key!r}'
            return _check_new_key(option, key, path, node, top_level)
        else:
            node = node.get(key)
        path = f'{path}.{key}'.lstrip('.')
    expected = None
    if _is_section(node) and isinstance(value, int | float | str):
        index = '' if isinstance(node, dict) else '.0'
        expected, node = f'its entries, as in {option}{index}.KEY=VALUE', 'a section'
    elif isinstance(node, int | float) and isinstance(value, str):
        expected = 'True or False' if isinstance(node, bool) else 'a number'
    if expected is None or key in _SEVERAL_TYPES:
        return None
    return f'{option!r}: the config has {node} there; give {expected}, not {value!r}'


def _top_level_keys(runner_type: str) -> set[str]:
    """What a Runner of mmengine reads; of a class of the user's own, what either of them does."""
    keys = dict(Runner=_RUNNER_KEYS, FlexibleRunner=_FLEXIBLE_KEYS)
    return keys.get(runner_type, _RUNNER_KEYS | _FLEXIBLE_KEYS)


def _check_new_key(
    option: str, key: str, path: str, parent: Mapping, top_level: set[str]
) -> str | None:
    """What is wrong with a key that ``parent``, which stands at ``path``, does not have."""
    if f'{path}.{key}' in _OPTIONAL_KEYS or path.endswith(_FREE_KEYS):
        return None
    known = {
        *parent,
        *(() if path else (*top_level, *SHORTHANDS)),
        *(name.rpartition('.')[2] for name in _OPTIONAL_KEYS if name.startswith(f'{path}.')),
    }
    similar = difflib.get_close_matches(key, known - {'type'}, cutoff=0.85 if path else 0.6)
    below = []
    if 'type' not in parent:  # else arguments of a class, which refuses unknown ones itself
        similar = similar or sorted(name for name in known if name.startswith(key))
        end = f'.{key}' if path else f'.{option.rpartition(".")[2]}'
        entries = [entry for entry, _ in walk(parent, path) if entry.endswith(end)]
        below = ([entry for entry in entries if entry.endswith(f'.{option}')] or entries)[:3]
    if path and not similar and not below:
        return None
    if key in parent:  # a variable of the config file, which is parsed already
        places = ', '.join(below) or 'the entries that were computed from it'
        return (
            f'{option!r}: nothing but the config file itself reads {key!r}: set {places} '
            f'(+{option}=... sets it all the same)'
        )
    hints = [f'did you mean {" or ".join(similar)}?'] if similar else []
    hints += [f'such a key stands at {", ".join(below)}'] if below else []
    hints = hints or [f'known there: {", ".join(sorted(known)[:12])}']
    return (
        f'{option!r}: {path or "the config"} has no {key!r}; {"; ".join(hints)} '
        f'(+{option}=... adds it unchecked)'
    )


def _is_section(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list | tuple)
        and any(isinstance(item, dict | list | tuple) for item in value)
    )


def _leaves(cfg: Config) -> dict[str, str]:
    """Path -> text of every entry that is no section; lists of plain values are one."""
    leaves: dict[str, str] = {}
    for path, value in walk(cfg._cfg_dict):
        if not _is_section(value) and path.rpartition('.')[0] not in leaves:
            leaves[path] = str(plain(value))
    return leaves
