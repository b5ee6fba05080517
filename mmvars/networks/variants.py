"""Named networks: the one place that knows all parts."""

import inspect
from collections.abc import Mapping

import torch
from torch import nn

from mmvars.errors import InputError, check_choice
from mmvars.networks.checks import check_top_down
from mmvars.networks.fan import FAN
from mmvars.networks.feedback import Feedback, MaskFeedback
from mmvars.networks.prior import PRIORS, ClassPrototype, Prior
from mmvars.networks.rvt import RVT
from mmvars.networks.shortcuts import Shortcuts
from mmvars.networks.top_down import TopDown
from mmvars.networks.trunk import Trunk
from mmvars.networks.vit import VisionTransformer

__all__ = ['DESIGNS', 'SIZES', 'TRUNKS', 'TRUNK_MIXERS', 'VARIANTS', 'build_network', 'build_prior']

_TINY = dict(embed_dim=192, depth=12, num_heads=3)
_SMALL = dict(embed_dim=384, depth=12, num_heads=6)
_BASE = dict(embed_dim=768, depth=12, num_heads=12)

SIZES: dict[str, dict] = {
    'tiny_patch16': _TINY | dict(patch_size=16),
    'small_patch16': _SMALL | dict(patch_size=16),
    'base_patch16': _BASE | dict(patch_size=16),
    'tiny_patch8_gap': _TINY | dict(patch_size=8, global_pool='avg'),
}
"""Sizes of the thesis's ViT and AbSViT (Table 2.2): width, depth, heads, patch."""

_RVT = {
    'rvt_tiny': dict(embed_dim=(192, 384), depth=(10, 2), num_heads=(6, 12)),
    'rvt_small': _SMALL,
    'rvt_base': _BASE | dict(mlp='linear'),
}
_MASKED_BLOCKS = {'rvt_tiny': 10, 'rvt_small': 5, 'rvt_base': 5}
_GFNET = dict(embed_dim=256, depth=12, num_heads=4, class_token=False, global_pool='norm_avg',
              single_residual=True, mixer='global_filter')

_FAN = {
    'fan_tiny': dict(embed_dim=192, depth=12, num_heads=4),
    'fan_small': dict(embed_dim=384, depth=12, num_heads=8),
    'fan_base': dict(embed_dim=448, depth=18, num_heads=8),
    'fan_large': dict(embed_dim=480, depth=24, num_heads=10),
    'fan_tiny_hybrid': dict(embed_dim=192, depth=8, num_heads=8, stem_widths=(128, 256)),
    'fan_small_hybrid': dict(embed_dim=384, depth=10, num_heads=8, stem_widths=(128, 256)),
    'fan_base_hybrid': dict(embed_dim=448, depth=16, num_heads=8, stem_widths=(128, 256)),
}

TRUNKS: dict[str, tuple[type[Trunk], dict]] = {
    **{f'vit_{size}': (VisionTransformer, arguments) for size, arguments in SIZES.items()},
    **{f'deit_convstem_{size}': (VisionTransformer, arguments | dict(stem='conv'))
       for size, arguments in (('tiny', _TINY), ('small', _SMALL), ('base', _BASE))},
    'gfnet_tiny': (VisionTransformer, _GFNET),
    'gfnet_convstem_tiny': (VisionTransformer, _GFNET | dict(stem='conv')),
    **{name: (RVT, arguments) for name, arguments in _RVT.items()},
    **{f'{name}_plus': (RVT, arguments | dict(num_masked_blocks=_MASKED_BLOCKS[name]))
       for name, arguments in _RVT.items()},
    **{name: (FAN, arguments) for name, arguments in _FAN.items()},
}
"""Bottom-up networks: class of the trunk, and its arguments (Tables 1.2 and 2.2).

``deit_convstem_*`` and ``gfnet_convstem_tiny`` are the modified baselines DeiT* and GFNet* with the
convolutional patch embedding."""

_ATTENTION = ('self_attention', 'performer', 'vars_s', 'vars_d', 'vars_sd')
TRUNK_MIXERS: dict[str, tuple[str, ...]] = {
    'vit': _ATTENTION,
    'deit': _ATTENTION,
    'absvit': _ATTENTION,
    'rvt': (*_ATTENTION, 'masked_attention'),
    'gfnet': ('global_filter', *_ATTENTION[1:]),
    'fan': ('self_attention', ),
}
"""Family -> mixers it is defined with (Table 1.2)."""

_WHY_NOT = {
    'global_filter': 'a global filter stands in for both attention and its projections, which only '
                     "GFNet's blocks with their single skip connection are made for",
    'self_attention': 'GFNet is built on token mixers that are linear in the number of tokens; of '
                      'attention it takes the Performer',
    'masked_attention': "the mask is one between the patches of RVT's maps",
}

VARIANTS: tuple[str, ...] = (*TRUNKS, *(f'absvit_{size}' for size in SIZES))
"""Names that :func:`build_network` knows."""


DESIGNS: dict[str, dict] = {
    'absvit': dict(injection='value'),
    'absvit_qkv': dict(injection='qkv'),
    'feedback': dict(injection='value', prior=None),
    'mask_attention': dict(feedback='mask'),
    'perceiver_io': dict(feedback=None),
}
"""Designs of top-down attention by their parts (Tables 2.3 and 2.5)."""


def build_prior(prior: str | dict, embed_dim: int, classifier: nn.Module | None = None) -> Prior:
    """Build a prior from its name or ``dict(type=name, ...)``.

    A ``'class_prototype'`` without ``num_classes`` takes a copy of ``classifier``'s rows.

    Raises:
        InputError: If the name is unknown, or prototypes are wanted of no classifier.
    """
    arguments = dict(prior) if isinstance(prior, dict) else dict(type=prior)
    name = arguments.pop('type', None)
    check_choice('prior', name, PRIORS)
    known = ['num_classes'] if name == 'class_prototype' else []
    if unknown := sorted(set(arguments) - set(known), key=str):
        raise InputError(f'prior {name!r} takes {" ".join(known) or "no options"}; unknown: '
                         f'{unknown}')
    if name == 'class_prototype' and 'num_classes' not in arguments:
        if not isinstance(classifier, nn.Linear):
            raise InputError("prior='class_prototype' needs a classifier: build the network with "
                             "num_classes > 0, or give dict(type='class_prototype', num_classes=K)")
        return ClassPrototype.from_classifier(classifier)
    return PRIORS[name](embed_dim, **arguments)


def build_network(name: str, top_down: str | None = None, prior: str | dict = 'learned_query',
                  alpha: float = 1., num_passes: int = 2, mixer: str | None = None,
                  mixer_options: dict | None = None, shortcuts: dict | None = None,
                  **overrides) -> TopDown:
    """Build a network by name, with torch's current default device and dtype.

    Args:
        name: One of :data:`VARIANTS`; ``absvit_*`` is ``vit_*`` with ``top_down='absvit'``.
        top_down: One of :data:`DESIGNS` around any trunk; ``None`` for one bottom-up pass.
        prior: With ``top_down``: a name of :data:`mmvars.networks.PRIORS`, or
            ``dict(type=name, ...)``.
        alpha: With ``top_down``: scale of the modulated tokens.
        num_passes: With ``top_down``: passes through the trunk.
        mixer: Token mixer, one of :data:`TRUNK_MIXERS`; ``None`` for the trunk's own. In a DeiT*
            ``vars_s``, which works on the map alone, comes without class token and with average
            pooling, unless ``overrides`` say otherwise.
        mixer_options: ``preset`` and options of the mixer, see
            :func:`mmvars.layers.mixer_options`. The preset is ``'release'``, but for ``vars_s``
            outside of RVT ``'thesis'``: the release's sparsity of 3.5 is made for RVT's
            un-normalised tokens, which its batch norms keep large; on photographs every code of a
            freshly built DeiT* or GFNet would be zero with it, and stay so.
        shortcuts: With ``top_down``: what to leave out at the cost of other outputs, by the names
            of :class:`~mmvars.networks.Shortcuts`, such as ``dict(restart_block=4)``.
        **overrides: Arguments of the trunk that replace the named size's.

    Raises:
        InputError: On an unknown name or argument, listing the choices; if the mixer has no value
            path for a top-down signal.
    """
    check_choice('network name', name, VARIANTS)
    family, size = name.split('_', 1)
    trunk_class, arguments = TRUNKS[f'vit_{size}' if family == 'absvit' else name]
    known = tuple(inspect.signature(trunk_class).parameters)
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise InputError(f'{name} takes no argument {", ".join(unknown)}; it takes '
                         f'{", ".join(known)}')
    if mixer is not None:
        _check_mixer(family, mixer)
        arguments = arguments | dict(mixer=mixer)
    if not isinstance(mixer_options, Mapping | None) or not all(
            isinstance(key, str) for key in mixer_options or {}):
        raise InputError(f'mixer_options (mixer_cfg of a backbone) must be a dict of options by '
                         f'name, such as dict(num_steps=3); got {mixer_options!r}')
    mixer_options = dict(mixer_options or {})
    if mixer == 'vars_s' and family == 'deit':
        arguments = arguments | dict(class_token=False, global_pool='avg')
    if mixer == 'vars_s' and family != 'rvt':
        mixer_options.setdefault('preset', 'thesis')
    trunk = trunk_class(**arguments | dict(mixer_options=mixer_options) | overrides)
    # Tokens lie in memory as a map in channels_last does: convolutions need not turn them around.
    # On CPU FAN takes a third less time at 512x512, RVT an eighth.
    trunk.to(memory_format=torch.channels_last)
    if family == 'absvit':
        top_down = top_down or 'absvit'
    if top_down is None:
        if shortcuts:
            raise InputError(f'shortcuts are for networks with top-down attention, and {name} has '
                             f'none: give top_down')
        return TopDown(trunk)
    return _with_top_down(trunk, top_down, prior, alpha, num_passes, shortcuts)


def _with_top_down(trunk: Trunk, design: str, prior: str | dict, alpha: float, num_passes: int,
                   shortcuts: dict | None) -> TopDown:
    check_choice('top_down', design, DESIGNS)
    chosen = _shortcuts(shortcuts, trunk)
    parts = DESIGNS[design]
    check_top_down(parts, prior, alpha, num_passes)
    wanted = parts.get('prior', prior)
    found = None if wanted is None else build_prior(wanted, trunk.embed_dim, trunk.head)
    kind = parts.get('feedback', 'decoders')
    if kind == 'decoders':
        feedback = Feedback(trunk.widths, trunk.strides, parts['injection'], chosen.feedback_rank,
                            chosen.restart_block)
    else:
        feedback = MaskFeedback() if kind == 'mask' else None
    return TopDown(trunk, found, feedback, alpha, num_passes, chosen)


def _shortcuts(given: dict | None, trunk: Trunk) -> Shortcuts:
    unknown = given is not None and (not isinstance(given, Mapping)
                                     or sorted(set(given) - set(Shortcuts._fields), key=str))
    if unknown:
        raise InputError(f'shortcuts must be a dict with any of {", ".join(Shortcuts._fields)}; '
                         f'got {given!r}')
    return Shortcuts(**given or {}).check(trunk.depth, trunk.widths)


def _check_mixer(family: str, mixer: str) -> None:
    choices = TRUNK_MIXERS[family]
    if isinstance(mixer, str) and mixer not in choices and mixer in _WHY_NOT:
        raise InputError(f'mixer={mixer!r} does not go into the {family} trunk: {_WHY_NOT[mixer]}. '
                         f'Take one of {", ".join(choices)}')
    check_choice(f'mixer of the {family} trunk', mixer, choices)
