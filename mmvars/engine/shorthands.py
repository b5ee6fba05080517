"""Shorthands of ``--cfg-options``: one key for all entries of a config that depend on it.

A config file uses one value in several places: ``crop_size`` is the size of the crop, of the
padding and of the backbone. After parsing these ties are gone, so the shorthands restore them.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from mmengine.config import Config

from mmvars.datasets.checks import LOADERS, dataset_entries
from mmvars.errors import InputError, check_number

__all__ = [
    'DATASET_KEYS',
    'SHORTHANDS',
    'SHORT_NAMES',
    'SIZES',
    'check_size',
    'class_entries',
    'class_name',
    'dicts',
    'follow_shorthands',
    'plain',
    'walk',
]

SHORT_NAMES = {
    'arch': 'model.backbone.arch',
    'mixer': 'model.backbone.mixer',
    'max_iters': 'train_cfg.max_iters',
    'max_epochs': 'train_cfg.max_epochs',
}
"""Shorthands of a single entry, from which others follow -> its full name."""

_DATA_PARTS = ('_dataloader', '_pipeline', '_evaluator')  # ends of the keys of parts
SIZES = {'crop_size': ('crop_size', 'size'), 'img_scale': ('scale',)}
"""Variable of the config files -> entries that hold it."""
DATASET_KEYS = ('target', 'split_seed')
"""Shorthands of an argument that several data sets of a config have, such as those of PACS."""
SHORTHANDS = ('data_root', 'num_classes', *DATASET_KEYS, *SIZES, *SHORT_NAMES)
"""Keys that set all entries which depend on them; ``configs/README.md`` says which."""
_MIN_INTERVAL = 500  # iterations between validations of a shortened run, or the whole run


def follow_shorthands(
    cfg: Config, old: Config, named: Mapping[str, Any], checked: Collection[str]
) -> None:
    """Bring what follows from the options into a config, in place.

    Args:
        cfg: The config with the options in it.
        old: The config before.
        named: The options by full names.
        checked: Those that others follow from: without those given as ``+key``.

    Raises:
        InputError: If the value of a shorthand cannot be used or changes nothing in this config.
    """
    if 'data_root' in checked:
        _set_data_root(cfg, named)
    if 'num_classes' in checked:
        _set_num_classes(cfg, named)
    for key in DATASET_KEYS:
        if key in checked:
            _set_of_datasets(cfg, key, named[key])
    for key in SIZES:
        if key in checked:
            _spread(cfg, key, old[key])
    for key, full_name in SHORT_NAMES.items():
        if full_name in checked:
            follow = _follow_backbone if key in ('arch', 'mixer') else _follow_length
            follow(cfg, key, old)
    if any(key.startswith('model.backbone.arch') for key in checked):
        _leave_out_channels(cfg)
        _follow_timm(cfg)


def _set_data_root(cfg: Config, named: Mapping[str, Any]) -> None:
    """Move every data set from the root that they share, and paths below it, to another."""
    new = named['data_root']
    if not isinstance(new, str):
        raise InputError(f'data_root must be one folder, got {new!r}')
    roots = {f'{key}.data_root': dataset.get('data_root') for key, dataset in _datasets(cfg)}
    roots = {key: root for key, root in roots.items() if key not in named}
    folders = {str(root or '').rstrip('/') for root in roots.values()}
    old = folders.pop() if len(folders) == 1 else None
    if not old:
        raise InputError(
            f'data_root={new} needs data sets with one root, but this config has '
            f'{", ".join(f"{key}={root}" for key, root in roots.items()) or "none"}: '
            'name in full those that are to differ, or all'
        )
    for node in dicts({part: cfg[part] for part in cfg if part.endswith(_DATA_PARTS)}):
        for key, value in node.items():
            if isinstance(value, str | PurePath) and f'{value}/'.startswith(f'{old}/'):
                below = str(value)[len(old) :].strip('/')
                node[key] = f'{new.rstrip("/")}/{below}' if below else new


def _set_of_datasets(cfg: Config, key: str, value: Any) -> None:
    """Set an argument of all data sets that have it."""
    datasets = [dataset for _, dataset in _datasets(cfg) if key in dataset]
    if not datasets:
        raise InputError(f'{key}={value} does not apply: no data set of this config has any')
    for dataset in datasets:
        dataset[key] = value


def _datasets(cfg: Config) -> Iterator[tuple[str, dict]]:
    for loader in LOADERS:
        section = cfg.get(loader) or {}
        yield from dataset_entries(section.get('dataset'), f'{loader}.dataset')


def class_entries(cfg: Mapping) -> Iterator[tuple[str, dict]]:
    """Every part of a config with ``num_classes``, that of the data, and its dotted path.

    Not those that may have a number of their own: backbones, which may hold prototypes of other
    classes, the tasks of a multi-task head, and auxiliary heads of another task (STDC's edges).
    """
    for part in cfg:
        if part not in ('model', 'data_preprocessor') and not part.endswith(_DATA_PARTS):
            continue
        for path, node in walk({part: cfg[part]}):
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
    for path, node in walk(cfg._cfg_dict):
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


def check_size(cfg: Config, name: str, value: Any) -> Any:
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
    keys = SIZES[name] + (('scale',) if isinstance(old, int) else ())  # RandomResizedCrop's
    entries = [
        (node, key)
        for part in cfg
        if part.endswith(('_dataloader', '_pipeline')) and cfg[part]
        for node in dicts(cfg[part])
        for key in keys
        if key in node
    ]
    same = [(node, key) for node, key in entries if plain(node[key]) == plain(old)]
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
    if backbone.get('out_type', 'featmap') in ('cls_token', 'avg_featmap'):
        backbone.out_type = 'pooled'  # not every size and mixer has a class token


def _leave_out_channels(cfg: Config) -> None:
    """Drop the heads' ``in_channels``: the models of mmvars take them from the backbone.

    A neck does not; these models refuse one that does not fit.
    """
    if _is_of_mmvars(cfg.model.get('type')) and cfg.model.get('neck') is None:
        heads = [cfg.model.get(name) for name in ('decode_head', 'auxiliary_head', 'head')]
        for head in dicts(heads):
            head.pop('in_channels', None)


def _follow_timm(cfg: Config) -> None:
    """Normalize images as those were that the weights of a network of timm were trained on."""
    backbone: Any = cfg.model.get('backbone') or {}
    arch = backbone.get('arch')
    name = arch.get('trunk') if isinstance(arch, dict) else arch
    preprocessor = cfg.model.get('data_preprocessor') or {}
    is_rgb = preprocessor.get('bgr_to_rgb') or preprocessor.get('to_rgb')
    if not _is_of_mmvars(backbone.get('type')) or not str(name).startswith('timm/') or not is_rgb:
        return
    from timm.models import get_pretrained_cfg  # takes seconds, so not for other networks

    try:
        weights = get_pretrained_cfg(str(name).removeprefix('timm/'))
    except RuntimeError:  # an unknown tag, of which the backbone says more
        weights = None
    if weights is not None:
        for key in ('mean', 'std'):
            preprocessor[key] = [round(255 * value, 3) for value in getattr(weights, key)]


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
        for node in dicts({'param_scheduler': cfg.get('param_scheduler')})
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


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def walk(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Every entry below a dict or list of a config, with its dotted path."""
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        below = f'{path}.{key}' if path else str(key)
        yield below, value
        if isinstance(value, dict | list | tuple):
            yield from walk(value, below)


def dicts(node: Any) -> list[dict]:
    return [value for _, value in walk(node) if isinstance(value, dict)]
