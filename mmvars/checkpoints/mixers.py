"""Token mixers and those of their options that the tensors of a file show."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from mmvars.checkpoints.constants import stated
from mmvars.checkpoints.source import Source
from mmvars.errors import InputError
from mmvars.networks import TopDown, Trunk

__all__ = ['SHOWN_OPTIONS', 'check_mixer', 'check_shown', 'mixers_seen', 'shown_options']

_OF_BLOCK = re.compile(r'(.*\bblocks\.\d+)\.attn\.(.+)')

_SIGNS: tuple[tuple[str, frozenset[str]], ...] = (
    ('vars_sd', frozenset({'static_atoms'})),
    ('vars_sd', frozenset({'dictionary', 'random_features'})),
    ('vars_s', frozenset({'dictionary'})),
    ('vars_d', frozenset({'gram_modulation', 'random_features'})),
    ('performer', frozenset({'random_features'})),
    ('masked_attention', frozenset({'attention_mask'})),
    ('global_filter', frozenset({'complex_weight'})),
    ('self_attention', frozenset({'qkv.weight'})),
)
"""Mixer <- names of tensors that tell it, the more telling first."""

_DYNAMIC = ('performer', 'vars_d', 'vars_sd')


class Shown(NamedTuple):
    """An option that the tensors of a mixer show.

    Attributes:
        mixers: Whose option it is.
        option: Its name.
        leaf: The tensor that shows it.
        value: Shape of that tensor, ``None`` if it is not there -> the value it was made with, or
            ``None`` if that cannot be told.
    """

    mixers: tuple[str, ...]
    option: str
    leaf: str
    value: Callable[[tuple[int, ...] | None], Any]


_SHOWN: tuple[Shown, ...] = (
    Shown(('vars_sd', ), 'static_atoms', 'static_atoms',
          lambda shape: 'convolution' if shape is None else 'free'),
    Shown(_DYNAMIC, 'feature_ratio', 'random_features',
          lambda shape: _ratio(shape[-1], shape[-2]) if shape and len(shape) == 3 else None),
    Shown(('vars_s', 'vars_sd'), 'atoms_per_channel', 'dictionary',
          lambda shape: shape[1] if shape and len(shape) == 5 else None),
    Shown(('vars_d', 'vars_sd'), 'value', 'qv.weight',
          lambda shape: (None if not shape or len(shape) != 2 else
                         'projected' if shape[0] == 2 * shape[1] else 'input')),
    *(Shown(('vars_s', ), option, leaf,
            lambda shape, yes=yes, no=no: no if shape is None else yes)
      for option, leaf, yes, no in (('value', 'value.weight', 'projected', 'input'),
                                    ('norm', 'norm.bn.weight', 'batch', 'layer'),
                                    ('output_filter', 'output_filter', True, False),
                                    ('step_bound', 'step_bound', 'running', 'spectral'),
                                    ('learned_scaling', 'gram_modulation', True, False))),
)

SHOWN_OPTIONS = frozenset(row.option for row in _SHOWN)
"""Options that tensors show, at least for some mixers."""


def mixers_seen(names: Collection[str]) -> Counter[str]:
    """Which mixers the names of a network's tensors show, and in how many blocks."""
    found = (next((mixer for mixer, signs in _SIGNS if signs <= leaves), None)
             for leaves in _by_block(names).values())
    return Counter(mixer for mixer in found if mixer)


def shown_options(sources: Mapping[str, Source], mixer: str) -> dict[str, tuple[Any, str]]:
    """Options of ``mixer`` that a file's tensors show: name -> value, and what shows it."""
    for block, leaves in _by_block(sources).items():
        if mixer in mixers_seen(f'{block}.attn.{leaf}' for leaf in leaves):
            break
    else:
        return {}
    shown = {}
    for row in _SHOWN:
        source = sources.get(f'{block}.attn.{row.leaf}')
        shape = getattr(source and source.value, 'shape', None)
        value = row.value(shape) if mixer in row.mixers else None
        if value is not None:
            shown[row.option] = value, (
                f'{source.key} has shape {"x".join(map(str, source.shape))}' if source else
                f'it has no {row.leaf}')
    return shown


def check_mixer(network: TopDown, sources: Mapping[str, Source], title: str,
                advice: Callable[[], str]) -> None:
    """Refuse a file whose blocks mix tokens with something that the network does not have.

    Args:
        network: What the file is for.
        sources: Network name -> tensor of the file.
        title: Of the message.
        advice: Makes the remedy.

    Raises:
        InputError: Naming both mixers.
    """
    wanted, found = mixers_seen(network.state_dict()), mixers_seen(sources)
    if found and wanted and not set(found) & set(wanted):
        raise InputError(f'{title}: the file mixes tokens with {_list(found)}, the network with '
                         f'{_list(wanted)}. {advice()}')


def check_shown(trunk: Trunk, sources: Mapping[str, Source], title: str, remedy: str) -> None:
    """Refuse a file whose tensors show other options than the network's.

    Args:
        trunk: What the file is for.
        sources: Network name -> tensor of the file.
        title: Of the message.
        remedy: Template with ``{options}`` for the file's.

    Raises:
        InputError: Naming each option and both values.
    """
    own = trunk.mixer_options
    others = {option: (value, why)
              for option, (value, why) in shown_options(sources, trunk.mixer).items()
              if option in own and not _same(trunk, option, value, own[option])}
    if others:
        told = '; '.join(f'{option}={value!r} ({why}), but the network has {option}={own[option]!r}'
                         for option, (value, why) in others.items())
        options = {option: value for option, (value, _) in others.items()}
        raise InputError(f'{title}: the file was made with {told}. '
                         f'{remedy.format(**_told_twice(options))}')


def _by_block(names: Collection[str]) -> dict[str, set[str]]:
    blocks: dict[str, set[str]] = {}
    for name in names:
        if match := _OF_BLOCK.fullmatch(name):
            blocks.setdefault(match[1], set()).add(match[2])
    return blocks


def _ratio(features: int, head_dim: int) -> float | None:
    if not head_dim:
        return None
    return features // head_dim if features % head_dim == 0 else features / head_dim


def _same(trunk: Trunk, option: str, found: Any, own: Any) -> bool:
    if option != 'feature_ratio':
        return found == own
    # Several ratios give the same number of features; the tensors know the number.
    shape = next(value.shape for name, value in trunk.state_dict().items()
                 if name.endswith('.random_features'))
    return found == _ratio(shape[-1], shape[-2])


def _told_twice(options: Mapping[str, Any]) -> dict[str, str]:
    return dict(options=stated(options),
                words=' '.join(f'{name}={value}' for name, value in options.items()))


def _list(mixers: Collection[str]) -> str:
    return ' and '.join(sorted(mixers))
