"""What ``--cfg-options`` means for values that a config file computed from one another.

A config file writes ``crop_size = (512, 512)`` once and uses it in several places, and a head's
``in_channels`` follows from the backbone's ``arch``. After parsing, these ties are gone: a new
``crop_size`` would change nothing, and a new ``arch`` would not fit the heads.
:func:`apply_overrides` ties them again, for the few values listed in :data:`SHORTHANDS` and nowhere
else. It says every change, and never changes an entry that the options name themselves.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

from mmvars.engine.backbone_overrides import set_backbone
from mmvars.errors import InputError

__all__ = ['SHORTHANDS', 'Editor', 'apply_overrides', 'walk_entries']

SHORTHANDS: dict[str, str] = {
    'data_root': 'folder of the data set, for training, validation and test',
    'crop_size': 'HEIGHT,WIDTH or one side of the training crop; padding and the img_size of the '
                 'backbone follow (classification: one side; the test resize follows)',
    'img_scale': 'WIDTH,HEIGHT that images are resized to, in training (before the random factor) '
                 'and in tests',
    'arch': "the backbone's size (also as model.backbone.arch); the heads' in_channels follow",
    'mixer': "the backbone's token mixer (also as model.backbone.mixer), with its default options",
    'max_iters': 'training iterations (also as train_cfg.max_iters); schedule, warm-up, intervals '
                 'of validation, checkpoints and log follow',
    'max_epochs': 'the same for training by epochs (also as train_cfg.max_epochs)',
}
"""Top-level keys that stand for several entries, and what they set."""

_WARMUP_SHARE = 10
"""A warm-up that is longer than 1 / this of the run is cut to it."""

_LEAST_INTERVAL = 500
"""Iterations between two validations or checkpoints of a shortened run, or the whole run."""

_FULL_NAMES = {'arch': 'model.backbone.arch', 'mixer': 'model.backbone.mixer',
               'max_iters': 'train_cfg.max_iters', 'max_epochs': 'train_cfg.max_epochs'}
"""Shorthands of a single entry, which work the same under its full name."""

_LOGS_PER_RUN, _LEAST_LOG_INTERVAL = 20, 10
"""A short run is logged this many times, but not more often than every so many iterations."""


class Editor:
    """Writes entries of a config unless the user's options name them, and keeps account."""

    def __init__(self, cfg: Config, options: Mapping[str, Any]) -> None:
        self.cfg = cfg
        self._named = tuple(options)
        self.notes: list[str] = []

    def get(self, path: str, default: Any = None) -> Any:
        node = self.cfg
        for key in path.split('.'):
            try:
                node = node[int(key)] if isinstance(node, (list, tuple)) else node[key]
            except (KeyError, IndexError, TypeError):
                return default
        return node

    def set(self, path: str, value: Any, cause: str) -> None:
        if self._is_named(path):
            return
        parent, _, key = path.rpartition('.')
        node = self.get(parent) if parent else self.cfg
        old = node.get(key)
        if old == value:
            return
        node[key] = value
        self.notes.append(f'{path}: {_shown(old)} -> {_shown(value)} (from {cause})')

    def remove(self, path: str, cause: str) -> None:
        """Take an entry out, back to the default of whatever reads it."""
        if self._is_named(path):
            return
        parent, _, key = path.rpartition('.')
        old = self.get(parent).pop(key)
        self.notes.append(f'{path}: {_shown(old)} -> its default (from {cause})')

    def _is_named(self, path: str) -> bool:
        return any(name == path or name.startswith(f'{path}.') or path.startswith(f'{name}.')
                   for name in self._named if name not in SHORTHANDS)

    def dicts(self) -> Iterator[tuple[str, dict]]:
        """Every dict below the top level once, with its dotted path."""
        seen = set()
        for path, node in walk_entries(self.cfg._cfg_dict):
            if isinstance(node, dict) and id(node) not in seen:
                seen.add(id(node))
                yield path, node


def apply_overrides(cfg: Config, cfg_options: Mapping[str, Any] | None) -> list[str]:
    """Merge ``--cfg-options`` into ``cfg`` in place, and all that follows from the shorthands.

    The keys of :data:`SHORTHANDS` are understood at the top level; those that stand for a single
    entry work the same under its full name. Entries that held the old value of ``data_root``,
    ``crop_size`` or ``img_scale`` get the new one; others, such as a second data set's root, are
    left alone. An entry that the options name explicitly always wins.

    Args:
        cfg: A parsed config.
        cfg_options: As mmengine's ``DictAction`` gives them: dotted key -> value.

    Returns:
        One line for each entry that changed and was not named, for the log.

    Raises:
        InputError: If a shorthand's value cannot be used, or does not apply to this config.
    """
    options = dict(cfg_options or {})
    given = {key: options[key] for key in SHORTHANDS if key in options}
    for key, full in _FULL_NAMES.items():
        if key in given and full in options:
            raise InputError(f'--cfg-options gives {key} and {full}, which are the same thing: '
                             f'leave one out')
    before = {key: cfg.get(key) for key in ('data_root', 'crop_size', 'img_scale')}
    mixer = Editor(cfg, options).get('model.backbone.mixer')  # a model may be anything yet
    cfg.merge_from_dict({key: value for key, value in options.items() if key not in given})
    editor = Editor(cfg, options)
    if 'data_root' in given:
        _set_data_root(editor, before['data_root'], given['data_root'])
    if 'crop_size' in given:
        _set_crop_size(editor, before['crop_size'], given['crop_size'])
    if 'img_scale' in given:
        _set_img_scale(editor, before['img_scale'], given['img_scale'])
    if {'arch', 'mixer'} & set(given) or 'model.backbone.mixer' in options or any(
            key.startswith('model.backbone.arch') for key in options):
        set_backbone(editor, given, mixer)
    for unit in ('iters', 'epochs'):
        if f'max_{unit}' in given or f'train_cfg.max_{unit}' in options:
            _set_duration(editor, unit, given)
    for path, node in editor.dicts():
        if node.get('num_workers') == 0 and node.get('persistent_workers'):
            editor.set(f'{path}.persistent_workers', False, f'{path}.num_workers=0')
    return editor.notes


def _set_data_root(editor: Editor, old: Any, new: Any) -> None:
    if not isinstance(new, str):
        raise InputError(f'data_root must be one folder, got {new!r}')
    editor.set('data_root', new, 'data_root')
    for path, node in editor.dicts():
        if 'data_root' in node and _replaces(node['data_root'], old):
            editor.set(f'{path}.data_root', new, 'data_root')


def _set_crop_size(editor: Editor, old: Any, new: Any) -> None:
    one_side = isinstance(old, int)
    size = _pair('crop_size', new, 'HEIGHT,WIDTH')
    if one_side and size[0] != size[1]:
        raise InputError(f'crop_size must be one side for this config, got {new!r}')
    value = size[0] if one_side else size
    editor.set('crop_size', value, 'crop_size')
    for path, node in editor.dicts():
        kind = str(node.get('type', '')).rpartition('.')[2]
        if kind in ('RandomCrop', 'CenterCrop') and _replaces(node.get('crop_size'), old):
            editor.set(f'{path}.crop_size', value, 'crop_size')
        elif kind == 'RandomResizedCrop' and _replaces(node.get('scale'), old):
            editor.set(f'{path}.scale', value, 'crop_size')
        elif kind == 'ResizeEdge' and one_side:
            editor.set(f'{path}.scale', round(node['scale'] * value / old), 'crop_size')
        elif path.rpartition('.')[2] == 'data_preprocessor' and 'size' in node:
            editor.set(f'{path}.size', value, 'crop_size')
    if 'img_size' in editor.get('model.backbone', {}):
        editor.set('model.backbone.img_size', value, 'crop_size')


def _set_img_scale(editor: Editor, old: Any, new: Any) -> None:
    scale = _pair('img_scale', new, 'WIDTH,HEIGHT')
    editor.set('img_scale', scale, 'img_scale')
    for path, node in editor.dicts():
        kind = str(node.get('type', '')).rpartition('.')[2]
        if kind in ('Resize', 'RandomResize') and _replaces(node.get('scale'), old):
            editor.set(f'{path}.scale', scale, 'img_scale')


def _set_duration(editor: Editor, unit: str, given: Mapping[str, Any]) -> None:
    """Length of the run, in iterations or epochs, and what is measured against it."""
    key, by_epoch = f'max_{unit}', unit == 'epochs'
    if key not in editor.get('train_cfg', {}):
        other = 'iterations: give max_iters' if by_epoch else 'epochs: give max_epochs'
        raise InputError(f'{key} does not apply: this config trains by {other}')
    schedules = [(path, node) for path, node in editor.dicts()
                 if path.startswith('param_scheduler') and 'end' in node
                 and node.get('by_epoch', True) == by_epoch]
    if key in given:
        old = editor.get(f'train_cfg.{key}')
        editor.set(f'train_cfg.{key}', given[key], key)
    else:
        old = max((s['end'] for _, s in schedules), default=None)
    new = editor.get(f'train_cfg.{key}')
    if isinstance(new, bool) or not isinstance(new, int) or new < 1:
        raise InputError(f'{key} must be a whole number above 0, got {new!r}')
    if not old or old == new:
        return
    _set_schedules(editor, schedules, old, new, key)
    intervals = ['train_cfg.val_interval']
    if editor.get('default_hooks.checkpoint.by_epoch', True) == by_epoch:
        intervals.append('default_hooks.checkpoint.interval')
    least = 1 if by_epoch else _LEAST_INTERVAL
    for path in intervals:
        if (interval := editor.get(path)) is not None:
            scaled = max(round(interval * new / old), min(least, interval))
            editor.set(path, min(scaled, new), key)
    log = editor.get('default_hooks.logger.interval')
    if log is not None and not by_epoch:
        often = max(new // _LOGS_PER_RUN, _LEAST_LOG_INTERVAL)
        editor.set('default_hooks.logger.interval', min(log, often, new), key)


def _set_schedules(editor: Editor, schedules: list, old: int, new: int, key: str) -> None:
    """Warm-ups keep their length up to a share of the run; the rest is stretched to the end."""
    def moved(point: int) -> int:
        return warmed if 0 < point == warmup else max(1, round(point * new / old))

    first = [s['end'] for _, s in schedules if s.get('begin', 0) == 0 and s['end'] < old]
    warmup = max(first, default=0)
    warmed = min(warmup, max(1, new // _WARMUP_SHARE))
    for path, schedule in schedules:
        end = moved(schedule['end'])
        if schedule.get('begin', 0) > 0:
            editor.set(f'{path}.begin', min(moved(schedule['begin']), end - 1), key)
        editor.set(f'{path}.end', end, key)


def _replaces(value: Any, old: Any) -> bool:
    """Whether an entry came from the old top-level value; without one, every entry did."""
    if value is None:
        return False
    return old is None or _plain(value) == _plain(old)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _shown(value: Any) -> str:
    return 'unset' if value is None else str(_plain(value)) if value != '' else "''"


def _pair(name: str, value: Any, order: str) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if (not isinstance(pair, (list, tuple)) or len(pair) != 2
            or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in pair)):
        raise InputError(f'{name} must be {order} in whole pixels above 0, or one number for both, '
                         f'got {value!r}')
    return tuple(pair)


def walk_entries(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Every entry below a dict or list of a config, with its dotted path; parents first.

    Entries may be replaced while walking.
    """
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        below = f'{path}.{key}' if path else str(key)
        yield below, value
        if isinstance(value, (dict, list, tuple)):
            yield from walk_entries(value, below)
