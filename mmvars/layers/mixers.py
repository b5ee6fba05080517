"""Token mixers by name, and the named sets of their constants."""

import inspect
from collections.abc import Callable
from numbers import Real
from typing import Any

from torch import nn

from mmvars.errors import InputError, check_choice, check_flag, check_number
from mmvars.layers.attention import MaskedAttention, SelfAttention
from mmvars.layers.grid_tied import Grid
from mmvars.layers.performer import Performer
from mmvars.layers.spectral import GlobalFilter
from mmvars.layers.vars_dynamic import (VARSConvolutionalDynamic, VARSDynamic,
                                        VARSStaticDynamic)
from mmvars.layers.vars_static import VARSStatic

__all__ = ['MIXERS', 'PRESETS', 'build_mixer', 'mixer_options']

MIXERS: dict[str, type[nn.Module]] = {
    'self_attention': SelfAttention,
    'masked_attention': MaskedAttention,
    'performer': Performer,
    'vars_s': VARSStatic,
    'vars_d': VARSDynamic,
    'vars_sd': VARSStaticDynamic,
    'global_filter': GlobalFilter,
}
"""Name -> class. All take ``(embed_dim, num_heads, grid, num_prefix, qkv_bias, **options)``."""

STATIC_ATOMS: dict[str, type[nn.Module]] = {
    'free': VARSStaticDynamic,
    'convolution': VARSConvolutionalDynamic,
}
"""The two kinds of static atoms of VARS-SD: as released, and as in the thesis."""

# Eq. 1.12 and 1.16-1.17 as printed. Eq. 1.16 weighs the code with twice lambda = 0.3.
_THESIS_DYNAMIC = dict(num_steps=3, sparsity=.6, shrinkage='soft', step_bound='spectral',
                       step_scaling='divide', gram_transpose=True, start='projection',
                       residual=True, normalise_atoms=False, normalise_queries=False,
                       value='input')

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    'release': {},
    'thesis': {
        'vars_d': _THESIS_DYNAMIC,
        'vars_sd': _THESIS_DYNAMIC | dict(static_atoms='convolution'),
        'vars_s': dict(num_steps=3, sparsity=.3, atoms_per_channel=3, step_bound='spectral',
                       start='projection', residual=True, norm='layer', output_filter=False,
                       learned_scaling=True, value='input', hermitian_filters=True),
    },
}
"""Named sets of options. ``'release'``: the classes' defaults, which released weights were trained
with (5 steps). ``'thesis'``: the equations of chapter 1 as printed (3 steps); the output projection
of the attention that is replaced stays, which the equations leave out."""

_MOST = dict(num_steps=1000, feature_ratio=1000, atoms_per_channel=1000, sparsity=1e6)
"""Far beyond any use: what is larger is a slip, and would end in a hang or without memory."""

_COMMON = ('self', 'embed_dim', 'num_heads', 'grid', 'num_prefix', 'qkv_bias', 'options')


def mixer_options(name: str, /, preset: str = 'release', **options: Any) -> dict[str, Any]:
    """All options of a mixer, with those that were not given filled in from the preset.

    Args:
        name: One of :data:`MIXERS`.
        preset: One of :data:`PRESETS`.
        **options: Win over the preset.

    Raises:
        InputError: On an unknown name, preset or option, listing the choices; on a switch that is
            neither true nor false.
    """
    check_choice('mixer', name, MIXERS)
    check_choice('preset', preset, PRESETS)
    given = PRESETS[preset].get(name, {}) | options
    found = _defaults(_class_of(name, given))
    if name == 'vars_sd':
        found = dict(static_atoms='free') | found
    unknown = sorted(set(given) - set(found))
    if unknown:
        raise InputError(f'mixer {name!r} takes no option {", ".join(unknown)}; it takes '
                         f'{", ".join(found) or "none"}')
    for option, value in given.items():
        if isinstance(found[option], bool):
            check_flag(option, value)
        if option in _MOST and isinstance(value, Real) and value > _MOST[option]:
            check_number(option, value, 0, _MOST[option])
    return found | given


def build_mixer(name: str, embed_dim: int, num_heads: int, grid: Grid, num_prefix: int = 0,
                qkv_bias: bool = True, **options: Any) -> nn.Module:
    """Build a mixer by name.

    Args:
        name: One of :data:`MIXERS`.
        embed_dim: Channels C.
        num_heads: Heads.
        grid: ``(h, w)`` of the training images' patches.
        num_prefix: Class and prompt tokens.
        qkv_bias: Whether projections of the input have a bias.
        **options: ``preset`` and options of the mixer, see :func:`mixer_options`.

    Raises:
        InputError: On whatever the mixer cannot take.
    """
    options = mixer_options(name, **options)
    mixer = _class_of(name, options)
    options.pop('static_atoms', None)
    return mixer(embed_dim, num_heads, grid, num_prefix, qkv_bias=qkv_bias, **options)


def _class_of(name: str, options: dict[str, Any]) -> type[nn.Module]:
    if name != 'vars_sd':
        return MIXERS[name]
    kind = options.get('static_atoms', 'free')
    check_choice('static_atoms', kind, STATIC_ATOMS)
    return STATIC_ATOMS[kind]


def _defaults(mixer: Callable) -> dict[str, Any]:
    """Options of a class and of those it hands the rest to, with their defaults."""
    found: dict[str, Any] = {}
    for cls in inspect.getmro(mixer):
        if '__init__' not in vars(cls) or cls is nn.Module:
            continue
        parameters = inspect.signature(cls.__init__).parameters
        found |= {key: p.default for key, p in parameters.items() if key not in _COMMON}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return found
