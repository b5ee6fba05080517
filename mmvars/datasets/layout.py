"""The folders that a data set wants and those that are there, for a message."""

import inspect
import os
from collections.abc import Mapping
from typing import Any

__all__ = ['describe_layout']

_MOST_ENTRIES = 6


def describe_layout(cfg: Mapping[str, Any], cls: Any) -> str:
    """Lines that show the layout expected of a data set beside the one found.

    Args:
        cfg: Config of the data set.
        cls: Its class, whose defaults count too; anything else says nothing of its own.
    """
    root = str(cfg.get('data_root') or '.')
    expected = [f'    {line}' for line in _expected(cfg, cls)]
    place = os.path.abspath(root)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    exists = os.path.isdir(root)
    found = [f'    {line}' for line in _found(place, 2 if exists else 1)] or ['    (nothing)']
    where = 'there' if exists else f'in {place}, the nearest folder that exists'
    return '\n'.join(['  expected in data_root:', *expected, f'  found {where}:', *found])


def _expected(cfg: Mapping[str, Any], cls: Any) -> list[str]:
    parameters = inspect.signature(cls).parameters if isinstance(cls, type) else {}

    def option(name: str) -> Any:
        value = cfg.get(name, getattr(parameters.get(name), 'default', ''))
        return value if isinstance(value, (str, os.PathLike, Mapping)) else ''

    prefix = option('data_prefix')
    if not isinstance(prefix, Mapping):
        prefix = dict(img_path=prefix)
    if layout := getattr(cls, 'LAYOUT', None):  # may name arguments in braces
        lines = [line.format(**{name: option(name) for name in parameters}) for line in layout]
        return [line for line in lines if line]
    lines = [str(option('ann_file'))]
    if 'img_suffix' not in parameters and 'img_suffix' not in cfg:  # of mmpretrain, by folders
        folder = next(iter(prefix.values()), '') or option('split')
        return [*filter(None, lines), os.path.join(str(folder), 'CLASS', 'IMAGE')]
    for key, suffix in (('img_path', 'img_suffix'), ('seg_map_path', 'seg_map_suffix')):
        if key in prefix:
            lines.append(os.path.join(str(prefix[key] or ''), f'*{option(suffix)}'))
    return [line for line in lines if line]


def _found(folder: str, depth: int) -> list[str]:
    """The first entries of a folder and of the folders in it; archives that wait are among them."""
    try:
        entries = sorted(os.scandir(folder), key=lambda e: (not os.path.isdir(e.path), e.name))
    except OSError as error:
        return [f'({error.strerror})']
    lines = []
    for entry in entries[:_MOST_ENTRIES]:
        if not os.path.isdir(entry.path):
            lines.append(entry.name)
            continue
        inner = _found(entry.path, depth - 1) if depth > 1 else []
        lines += [f'{entry.name}/', *(f'  {line}' for line in inner)]
    more = len(entries) - _MOST_ENTRIES
    return lines + ([f'... {more} more'] if more > 0 else [])
