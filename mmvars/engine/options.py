"""``--cfg-options``: refuse options that name nothing, merge the rest, and what follows from them.

A config file uses one value in several places: ``crop_size`` is the size of the crop, of the
padding and of the backbone. After parsing these ties are gone, so the shorthands restore them.
Options are merged twice: before what follows from them, which is computed from the result, and
afterwards, so that an entry that is named in full wins.
"""

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from mmvars.datasets.checks import LOADERS, dataset_entries
from mmvars.errors import InputError, check_number

__all__ = [
    'SHORTHANDS',
    'apply_options',
    'check_options',
    'class_entries',
    'class_name',
    'parse_cfg_options',
]

_SHORT_NAMES = {
    'arch': 'model.backbone.arch',
    'mixer': 'model.backbone.mixer',
    'max_iters': 'train_cfg.max_iters',
    'max_epochs': 'train_cfg.max_epochs',
}
_DATA_PARTS = ('_dataloader', '_pipeline', '_evaluator')  # ends of the keys of parts
_SIZES = {'crop_size': ('crop_size', 'size'), 'img_scale': ('scale',)}
"""Variable of the config files -> entries that hold it."""
SHORTHANDS = ('data_root', 'num_classes', *_SIZES, *_SHORT_NAMES)
"""Keys that set all entries which depend on them; ``configs/README.md`` says which."""

_TOP_LEVEL = {
    *inspect.signature(Runner).parameters,
    'allow_constants',
    'runner_type',
    'tta_model',
    'tta_pipeline',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'sync_bn',
}
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
_SEVERAL_TYPES = ('arch', 'data_prefix', 'loss_scale', 'prior')  # take text and other types
_MIN_INTERVAL = 500  # iterations between validations of a shortened run, or the whole run


def parse_cfg_options(words: Sequence[str] | None) -> dict[str, Any]:
    """The words of ``--cfg-options`` as a dict: dotted key -> value, read as mmengine does.

    Raises:
        InputError: If the brackets of a list do not match.
    """
    options = {}
    for word in words or ():
        key, _, value = word.partition('=')
        try:
            options[key] = DictAction._parse_iterable(value)
        except AssertionError as error:
            raise InputError(f'--cfg-options {word}: {error}') from None
    return options


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
        full_name = _SHORT_NAMES.get(key, key.removeprefix('+'))
        if full_name in named:
            raise InputError(
                f'--cfg-options gives {full_name} twice, in full and as shorthand: leave one out'
            )
        named[full_name] = _check_size(cfg, key, value) if key in _SIZES else value
    checked = named.keys() - {key.removeprefix('+') for key in options if key.startswith('+')}
    old = deepcopy(cfg)
    if 'model.backbone.arch' in checked and 'backbone' in cfg.model:
        cfg.model.backbone.pop('arch', None)  # a name cannot be merged with a dict
    cfg.merge_from_dict(deepcopy(named))
    if 'data_root' in checked:
        _set_data_root(cfg, named)
    if 'num_classes' in checked:
        _set_num_classes(cfg, named)
    for key in _SIZES:
        if key in checked:
            _spread(cfg, key, old[key])
    for key, full_name in _SHORT_NAMES.items():
        if full_name in checked:
            follow = _follow_backbone if key in ('arch', 'mixer') else _follow_length
            follow(cfg, key, old)
    if any(key.startswith('model.backbone.arch') for key in checked):
        _leave_out_channels(cfg, named)
    cfg.merge_from_dict(named)
    for key in {'data_root', 'num_classes'} & checked - old.keys():
        cfg.pop(key)  # no variable of this config
    for node in _dicts(cfg._cfg_dict):
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
    problems = [
        _find_problem(cfg, key, value)
        for key, value in options.items()
        if key not in SHORTHANDS and not key.startswith('+')
    ]
    if any(problems):
        raise InputError('--cfg-options: ' + '\n  '.join(filter(None, problems)))


def _find_problem(cfg: Config, option: str, value: Any) -> str | None:
    if option.startswith('data_preprocessor') and cfg.model.get('data_preprocessor'):
        return f'{option!r}: the model has its own: set model.{option}'
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
        elif key not in (node if path else _TOP_LEVEL):
            return _check_new_key(option, key, path, node)
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


def _check_new_key(option: str, key: str, path: str, parent: Mapping) -> str | None:
    """What is wrong with a key that ``parent``, which stands at ``path``, does not have."""
    if f'{path}.{key}' in _OPTIONAL_KEYS or path.endswith(_FREE_KEYS):
        return None
    known = {
        *parent,
        *(() if path else (*_TOP_LEVEL, *SHORTHANDS)),
        *(name.rpartition('.')[2] for name in _OPTIONAL_KEYS if name.startswith(f'{path}.')),
    }
    similar = difflib.get_close_matches(key, known - {'type'}, cutoff=0.85 if path else 0.6)
    below = []
    if 'type' not in parent:  # else arguments of a class, which refuses unknown ones itself
        similar = similar or sorted(name for name in known if name.startswith(key))
        end = f'.{key}' if path else f'.{option.rpartition(".")[2]}'
        entries = [entry for entry, _ in _walk(parent, path) if entry.endswith(end)]
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


def _set_data_root(cfg: Config, named: Mapping[str, Any]) -> None:
    """Move every data set from the root that they share, and paths below it, to another."""
    new = named['data_root']
    if not isinstance(new, str):
        raise InputError(f'data_root must be one folder, got {new!r}')
    roots = {
        f'{key}.data_root': dataset.get('data_root')
        for loader in LOADERS
        for key, dataset in dataset_entries(
            (cfg.get(loader) or {}).get('dataset'), f'{loader}.dataset'
        )
    }
    roots = {key: root for key, root in roots.items() if key not in named}
    old = next(iter(roots.values()), None)
    if not old or any(root != old for root in roots.values()):
        raise InputError(
            f'data_root={new} needs data sets with one root, but this config has '
            f'{", ".join(f"{key}={root}" for key, root in roots.items()) or "none"}: '
            'name in full those that are to differ, or all'
        )
    old = old.rstrip('/')
    for node in _dicts({part: cfg[part] for part in cfg if part.endswith(_DATA_PARTS)}):
        for key, value in node.items():
            if isinstance(value, str) and f'{value}/'.startswith(f'{old}/'):
                node[key] = new if value.rstrip('/') == old else new.rstrip('/') + value[len(old) :]


def class_entries(cfg: Mapping) -> Iterator[tuple[str, dict]]:
    """Every part of a config with ``num_classes``, that of the data, and its dotted path.

    Not those that may have a number of their own: backbones, which may hold prototypes of other
    classes, the tasks of a multi-task head, and auxiliary heads of another task (STDC's edges).
    """
    for part in cfg:
        if part not in ('model', 'data_preprocessor') and not part.endswith(_DATA_PARTS):
            continue
        for path, node in _walk({part: cfg[part]}):
            if (
                isinstance(node, dict)
                and isinstance(node.get('num_classes'), int)
                and not {'backbone', 'task_heads'} & {*path.split('.')}
                and not ('auxiliary' in path and class_name(node.get('type')) == 'STDCHead')
            ):
                yield path, node


def _set_num_classes(cfg: Config, named: Mapping[str, Any]) -> None:
    """Another number of classes for heads, losses, preprocessor, label checks and metrics."""
    new = named['num_classes']
    check_number('num_classes', new, 1, whole=True)
    entries = dict(class_entries(cfg))
    old = {node['num_classes'] for path, node in entries.items() if path.startswith('model')}
    if not old:
        raise InputError('num_classes does not apply: no part of the model has any')
    prior = cfg.model.get('backbone', {}).get('prior')
    if isinstance(prior, dict) and prior.get('num_classes') in old:
        prior['num_classes'] = new
    for node in entries.values():
        if node.get('out_channels') == node['num_classes']:
            node['out_channels'] = new
        node['num_classes'] = new
    for path, node in _walk(cfg._cfg_dict):
        weights = node.get('class_weight') if isinstance(node, dict) else None
        if isinstance(weights, list | tuple) and f'{path}.class_weight' not in named:
            extra = len(weights) - 1 in old  # of "no object", as in Mask2Former
            if len(weights) != new + extra:
                raise InputError(
                    f'num_classes={new}: {path}.class_weight has {len(weights)} numbers; set '
                    f'{path}.class_weight too, to {new + extra} numbers or None'
                )
        ranks = node.get('topk') if isinstance(node, dict) else None
        if isinstance(ranks, list | tuple):  # no class has a rank below the last
            node['topk'] = [k for k in ranks if k <= new] or [1]


def _check_size(cfg: Config, name: str, value: Any) -> Any:
    """The value of a shorthand for a size, in the form in which the config holds it."""
    if name not in cfg:
        raise InputError(
            f'{name} does not apply: the config states none at its top; name the entries in full'
        )
    pair = (value, value) if isinstance(value, int) else value
    if (
        not isinstance(pair, list | tuple)
        or len(pair) != 2
        or not all(type(side) is int and side > 0 for side in pair)
    ):
        order = 'HEIGHT,WIDTH' if name == 'crop_size' else 'WIDTH,HEIGHT'
        raise InputError(
            f'{name} must be {order} in whole pixels above 0, or one number for both, got {value!r}'
        )
    if not isinstance(cfg[name], int):
        return tuple(pair)
    if pair[0] != pair[1]:
        raise InputError(f'{name} must be one side for this config, got {value!r}')
    return pair[0]


def _spread(cfg: Config, name: str, old: Any) -> None:
    """Set a variable's new value where its old one stands, and what is computed from it."""
    value = cfg[name]
    keys = _SIZES[name] + (('scale',) if isinstance(old, int) else ())  # RandomResizedCrop's
    entries = [
        (node, key)
        for part in cfg
        if part.endswith(('_dataloader', '_pipeline')) and cfg[part]
        for node in _dicts(cfg[part])
        for key in keys
        if key in node
    ]
    same = [(node, key) for node, key in entries if _plain(node[key]) == _plain(old)]
    if not same:
        raise InputError(
            f'{name}={value} would change nothing: no entry of this config has the '
            f'{name} {old!r} that stands at its top; name the entries in full'
        )
    if name == 'crop_size':
        parts = {'backbone': 'img_size', 'data_preprocessor': 'size'}
        same += [
            (cfg.model[part], key)
            for part, key in parts.items()
            if key in (cfg.model.get(part) or {})
        ]
        for node, key in entries:
            if str(node.get('type')).endswith('ResizeEdge') and (node, key) not in same:
                node[key] = round(node[key] * value / old)
    for node, key in same:
        node[key] = value


def _follow_backbone(cfg: Config, key: str, old: Config) -> None:
    """What follows from another ``arch`` or ``mixer``, which has its own default options."""
    backbone = cfg.model.backbone
    if not _is_of_mmvars(backbone.get('type')):
        raise InputError(
            f"{key} applies to backbones of mmvars; this config's is "
            f'{backbone.get("type")!r}, which has its own arguments for the size'
        )
    if 'mixer_cfg' in backbone and backbone.get('mixer') != old.model.backbone.get('mixer'):
        backbone.mixer_cfg = {
            name: option for name, option in backbone.mixer_cfg.items() if name == 'preset'
        }
    if backbone.get('out_type', 'featmap') != 'featmap':
        backbone.out_type = 'pooled'  # not every size and mixer has a class token


def _leave_out_channels(cfg: Config, named: Mapping[str, Any]) -> None:
    """Drop the heads' ``in_channels``: the models of mmvars take them from the backbone.

    A neck does not, so its own are to be stated anew.
    """
    neck = cfg.model.get('neck')
    for path, node in _walk({'model.neck': neck}):
        key = f'{path}.in_channels'
        if (
            isinstance(node, dict)
            and 'in_channels' in node
            and not {key, path, 'model.neck'} & named.keys()
        ):
            raise InputError(
                f'another arch may have other channels than the {node["in_channels"]} that the '
                f'neck {class_name(node.get("type"))} takes: set {key} too, or model.neck=None'
            )
    if _is_of_mmvars(cfg.model.get('type')) and neck is None:
        heads = [cfg.model.get(name) for name in ('decode_head', 'auxiliary_head', 'head')]
        for head in _dicts(heads):
            head.pop('in_channels', None)


def _follow_length(cfg: Config, key: str, old: Config) -> None:
    """Scale schedules and intervals to the length of the run.

    A warm-up keeps its own length, up to a tenth of the run.
    """
    by_epoch, new = key == 'max_epochs', cfg.train_cfg[key]
    length = (old.get('train_cfg') or {}).get(key)
    if length is None:
        other = 'iterations: give max_iters' if by_epoch else 'epochs: give max_epochs'
        raise InputError(f'{key} does not apply: this config trains by {other}')
    check_number(key, new, 1, whole=True)
    if new == length:
        return

    def scaled(point: int, least: int = 1) -> int:
        return min(max(round(point * new / length), least), new)

    schedules: list[Any] = [
        node
        for node in _dicts({'param_scheduler': cfg.get('param_scheduler')})
        if node.get('by_epoch', True) == by_epoch
    ]
    ends = [node.get('end', length) for node in schedules if not node.get('begin')]
    warmup = max((end for end in ends if end < length), default=0)
    moved = {warmup: min(warmup, max(1, new // 10))}
    for node in schedules:
        if 'end' in node:
            node.end = moved.get(node.end, scaled(node.end))
        if node.get('begin'):
            begin = moved.get(node.begin, scaled(node.begin))
            node.begin = min(begin, node.get('end', new) - 1)
    hooks: Any = cfg.get('default_hooks') or {}
    checkpoint: Any = hooks.get('checkpoint') or {}
    logger: Any = hooks.get('logger') or {}
    same_unit = checkpoint.get('by_epoch', True) == by_epoch
    for node, name in ((cfg.train_cfg, 'val_interval'), (checkpoint, 'interval'))[: 1 + same_unit]:
        if name in node:
            node[name] = scaled(node[name], min(1 if by_epoch else _MIN_INTERVAL, node[name]))
    if 'interval' in logger and not by_epoch:
        logger.interval = min(logger.interval, max(new // 20, 10), new)


def class_name(kind: Any) -> str:
    """Name of a class, which a config gives as text with its scope or as the class itself."""
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


def _is_of_mmvars(kind: Any) -> bool:
    """Whether a ``type`` is of this package; pure Python configs hold the class itself."""
    return str(getattr(kind, '__module__', kind)).startswith('mmvars.')


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _walk(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Every entry below a dict or list of a config, with its dotted path."""
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        below = f'{path}.{key}' if path else str(key)
        yield below, value
        if isinstance(value, dict | list | tuple):
            yield from _walk(value, below)


def _dicts(node: Any) -> list[dict]:
    return [value for _, value in _walk(node) if isinstance(value, dict)]


def _is_section(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list | tuple)
        and any(isinstance(item, dict | list | tuple) for item in value)
    )


def _leaves(cfg: Config) -> dict[str, str]:
    """Path -> text of every entry that is no section."""
    return {
        path: str(_plain(value)) for path, value in _walk(cfg._cfg_dict) if not _is_section(value)
    }
