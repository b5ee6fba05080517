"""What a new ``arch`` or ``mixer`` of the backbone means for the rest of a config."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmvars.errors import InputError

if TYPE_CHECKING:
    from mmvars.engine.overrides import Editor

__all__ = ['set_backbone']

_HEADS = ('model.decode_head', 'model.auxiliary_head', 'model.head')
_DECISIVE = ('arch', 'mixer', 'mixer_cfg', 'out_indices')
"""Arguments of a backbone that decide which outputs it has, and whether it can be built."""


def set_backbone(editor: 'Editor', given: Mapping[str, Any], old_mixer: str | None) -> None:
    """Set ``arch`` and ``mixer``, and what follows: ``mixer_cfg``, ``out_type``, the heads.

    Args:
        editor: Of the config, into which all options but the shorthands are merged.
        given: The shorthands among the options.
        old_mixer: The mixer before that.

    Raises:
        InputError: If the backbone is none of ours, takes no mixer, cannot be built with these
            values, or has fewer outputs than a head reads.
    """
    backbone = editor.get('model.backbone', {})
    cause = ', '.join(key for key in ('arch', 'mixer') if key in given) or 'model.backbone'
    for key in ('arch', 'mixer'):
        if key in given or key in backbone:
            _check_takes(backbone, key)
        if key in given:
            editor.set(f'model.backbone.{key}', given[key], key)
    if backbone.get('mixer') != old_mixer:
        # A config's mixer_cfg is written for its mixer; another one starts from its defaults.
        for name in [name for name in backbone.get('mixer_cfg') or {} if name != 'preset']:
            editor.remove(f'model.backbone.mixer_cfg.{name}', 'mixer')
    built = _build_bare(backbone)
    trunk = built.network.trunk
    if backbone.get('out_type', 'featmap') != 'featmap':
        by_token = getattr(trunk, 'global_pool', 'avg') == 'token'
        editor.set('model.backbone.out_type', 'cls_token' if by_token else 'avg_featmap', cause)
    if editor.get('model.neck') is not None:
        editor.notes.append('model.neck stands between backbone and heads: in_channels are as they '
                            'were')
        return
    _set_heads(editor, [trunk.widths[index] for index in built.out_indices], cause)


def _check_takes(backbone: Mapping[str, Any], key: str) -> None:
    """Whether the backbone is one of ours and its class has the argument ``key``."""
    kind = str(backbone.get('type', ''))
    if not kind.startswith('mmvars.'):
        raise InputError(f"{key} applies to backbones of mmvars; this config's is {kind!r}, which "
                         f'has its own arguments for the size')
    takes = [name for base in inspect.getmro(_class_of(backbone)) if '__init__' in vars(base)
             for name in inspect.signature(base.__init__).parameters]
    if key not in takes:
        raise InputError(f'{key} does not apply: {kind} takes no {key}; use a backbone such as '
                         f'mmvars.VARS, whose token mixer can be chosen')


def _class_of(backbone: Mapping[str, Any]) -> type:
    from mmvars.registry import MODELS  # here: this loads torch and the hosts, for these keys alone
    return MODELS.get(backbone['type'])


def _build_bare(backbone: Mapping[str, Any]) -> Any:
    """The backbone with its decisive arguments alone, without memory for its weights."""
    import torch
    with torch.device('meta'):
        return _class_of(backbone)(**{key: backbone[key] for key in _DECISIVE if key in backbone})


def _set_heads(editor: 'Editor', channels: list[int], cause: str) -> None:
    """Give every head the channels of the outputs that it reads."""
    for path, node in editor.dicts():
        old = node.get('in_channels') if path.startswith(_HEADS) else None
        if old is None:
            continue
        reads = node.get('in_index', -1 if isinstance(old, int) else list(range(len(old))))
        try:
            new = ([channels[i] for i in reads] if isinstance(reads, (list, tuple))
                   else channels[reads])
        except IndexError:
            raise InputError(f'{path}.in_index is {reads}, but the backbone has {len(channels)} '
                             f'output(s): give model.backbone.out_indices as many blocks, or the '
                             f'head another in_index') from None
        editor.set(f'{path}.in_channels', new, cause)
