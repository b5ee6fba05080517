"""Token mixers by name."""

import inspect
from typing import Any, Protocol

from torch import Tensor, nn

from mmvars.errors import InputError, check_choice, did_you_mean
from mmvars.layers.attention import MaskedAttention, SelfAttention
from mmvars.layers.embed import Grid, TokenGrid
from mmvars.layers.global_filter import GlobalFilter
from mmvars.layers.performer import Performer
from mmvars.layers.vars_attention import VARSConvolutionalDynamic, VARSDynamic, VARSStaticDynamic
from mmvars.layers.vars_static import VARSStatic

__all__ = ['MIXERS', 'PRESETS', 'TokenMixer', 'build_mixer', 'resolve_mixer_cfg']


class TokenMixer(Protocol):
    """The contract of a module in a block's ``attn`` place.

    A mixer that is registered in :data:`mmvars.layers.MIXERS` is built as
    ``Mixer(embed_dim, num_heads, grid, num_prefix=0, qkv_bias=True, **options)``, where ``grid`` is
    the ``(height, width)`` of the training images' patches.

    Two optional class attributes: ``takes_top_down = False`` for a mixer without a value path,
    which :class:`mmvars.networks.TopDown` refuses; ``takes_num_queries = True`` for one whose
    forward takes ``num_queries`` as a fourth argument and then returns that many first tokens.
    """

    def __call__(self, x: Tensor, grid: TokenGrid, top_down: Tensor | None = None) -> Tensor:
        """Mix ``x (B, N, C)``. ``top_down (B, N, C)`` is added to what the value is made from."""
        ...


MIXERS: dict[str, type[nn.Module]] = {
    'self_attention': SelfAttention,
    'masked_attention': MaskedAttention,
    'performer': Performer,
    'vars_s': VARSStatic,
    'vars_d': VARSDynamic,
    'vars_sd': VARSStaticDynamic,
    'global_filter': GlobalFilter,
}
"""Name -> class, see :class:`~mmvars.layers.TokenMixer` for its constructor.

With ``preset='thesis'``, ``'vars_sd'`` is :class:`~mmvars.layers.VARSConvolutionalDynamic`."""

PRESETS = ('release', 'thesis')
"""Which equations VARS computes: those of the released models, or those of chapter 1 as printed.
The constants ``num_steps``, ``sparsity``, ... default to the preset's and stay free."""

RETIRED_OPTIONS = frozenset(
    {
        'gram_transpose',
        'hermitian_filters',
        'learned_scaling',
        'norm',
        'normalise_atoms',
        'normalise_queries',
        'output_filter',
        'residual',
        'shrinkage',
        'start',
        'static_atoms',
        'step_bound',
        'step_scaling',
        'value',
    }
)
"""Options of earlier versions."""

_NOT_OPTIONS = (
    'embed_dim',
    'num_heads',
    'grid',
    'num_prefix',
    'qkv_bias',
    'injection',
    'double_value_bias',
)


def resolve_mixer_cfg(name: str, /, preset: str = 'release', **options: Any) -> dict[str, Any]:
    """All options of a mixer, with those that were not given filled in from the preset.

    Args:
        name: One of :data:`MIXERS`.
        preset: One of :data:`PRESETS`. Mixers other than VARS have none, and ignore it.
        **options: Win over the preset.

    Returns:
        Options of :func:`build_mixer`, ``preset`` included where the mixer has presets.

    Raises:
        InputError: On an unknown name, preset or option, listing the choices.
    """
    check_choice('mixer', name, MIXERS)
    check_choice('preset', preset, PRESETS)
    mixer = _mixer_class(name, preset)
    parameters = inspect.signature(mixer).parameters.values()
    defaults = {
        p.name: p.default
        for p in parameters
        if p.name not in _NOT_OPTIONS and p.kind is not p.VAR_KEYWORD
    }
    if 'preset' in defaults:
        defaults |= getattr(mixer, 'presets', {}).get(preset, {}) | dict(preset=preset)
    unknown = sorted(set(options) - set(defaults))
    retired = [option for option in unknown if option in RETIRED_OPTIONS]
    if retired and 'preset' in defaults:
        raise InputError(
            f'mixer {name!r} takes no option {", ".join(retired)}: the preset decides '
            f"it; leave it out and choose preset='release' (as released) or "
            f"preset='thesis' (the equations as printed)"
        )
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise InputError(
            f'mixer {name!r} takes no option {", ".join(unknown)}; it takes '
            f'{", ".join(defaults) or "none"}{did_you_mean(unknown[0], defaults)}'
        )
    resolved = defaults | {key: value for key, value in options.items() if value is not None}
    missing = [key for key, value in resolved.items() if value is inspect.Parameter.empty]
    if missing:
        raise InputError(
            f'mixer {name!r} needs the option {", ".join(missing)}; give it in mixer_cfg'
        )
    return resolved


def build_mixer(
    name: str,
    embed_dim: int,
    num_heads: int,
    grid: Grid,
    num_prefix: int = 0,
    qkv_bias: bool = True,
    injection: str = 'value',
    double_value_bias: bool = True,
    **mixer_cfg: Any,
) -> nn.Module:
    """Build a mixer by name.

    Args:
        name: One of :data:`MIXERS`.
        embed_dim: Channels C.
        num_heads: Heads.
        grid: ``(h, w)`` of the training images' patches.
        num_prefix: Class and prompt tokens.
        qkv_bias: Whether projections of the input have a bias.
        injection: Where a top-down input enters, see :data:`~mmvars.layers.attention.INJECTIONS`.
        double_value_bias: See :func:`~mmvars.layers.attention.project_with_top_down`; for mixers
            that have this argument.
        **mixer_cfg: ``preset`` and options of the mixer, see :func:`resolve_mixer_cfg`.

    Raises:
        InputError: On whatever the mixer cannot take.
    """
    options = resolve_mixer_cfg(name, **mixer_cfg)
    mixer = _mixer_class(name, options.get('preset', 'release'))
    parameters = inspect.signature(mixer).parameters
    if 'injection' in parameters:
        options['injection'] = injection
    elif injection != 'value' and getattr(mixer, 'takes_top_down', True):
        raise InputError(
            f'mixer {name!r} has no argument injection, so it cannot be built with '
            f"injection={injection!r}; use the design 'absvit' or another mixer"
        )
    if 'double_value_bias' in parameters:
        options['double_value_bias'] = double_value_bias
    return mixer(embed_dim, num_heads, grid, num_prefix, qkv_bias=qkv_bias, **options)


def _mixer_class(name: str, preset: str) -> type[nn.Module]:
    if name == 'vars_sd' and preset == 'thesis':
        return VARSConvolutionalDynamic
    return MIXERS[name]
