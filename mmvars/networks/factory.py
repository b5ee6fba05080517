"""Networks by name: the one place that knows all parts."""

import inspect
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn

from mmvars.errors import InputError, check_choice, check_flag, check_number, did_you_mean
from mmvars.layers import MIXERS
from mmvars.networks.fan import FAN
from mmvars.networks.feedback import PRIORS, ClassPrototype, Feedback, MaskFeedback, Prior
from mmvars.networks.rvt import RVT
from mmvars.networks.top_down import PerceiverIO, TopDown
from mmvars.networks.trunk import Trunk
from mmvars.networks.vit import VisionTransformer

__all__ = [
    'ARCH_ZOO',
    'MODELS',
    'TIMM_PREFIXES',
    'TOP_DOWN_DESIGNS',
    'build_prior',
    'create_model',
    'network_name',
]

_TINY = dict(embed_dim=192, depth=12, num_heads=3)
_SMALL = dict(embed_dim=384, depth=12, num_heads=6)
_BASE = dict(embed_dim=768, depth=12, num_heads=12)
_GFNET = dict(
    embed_dim=256,
    depth=12,
    num_heads=4,
    class_token=False,
    global_pool='norm_avg',
    single_residual=True,
    mixer='global_filter',
)
_RVT_TINY = dict(embed_dim=(192, 384), depth=(10, 2), num_heads=(6, 12))
_RVT_BASE = _BASE | dict(mlp='linear')
_HYBRID = dict(num_heads=8, stem_widths=(128, 256))

ARCH_ZOO: dict[str, tuple[type[Trunk], dict[str, Any]]] = {
    'vit_tiny': (VisionTransformer, _TINY),
    'vit_small': (VisionTransformer, _SMALL),
    'vit_base': (VisionTransformer, _BASE),
    'vit_tiny_patch8_gap': (VisionTransformer, _TINY | dict(patch_size=8, global_pool='avg')),
    'deit_convstem_tiny': (VisionTransformer, _TINY | dict(stem='conv')),
    'deit_convstem_small': (VisionTransformer, _SMALL | dict(stem='conv')),
    'deit_convstem_base': (VisionTransformer, _BASE | dict(stem='conv')),
    'gfnet_tiny': (VisionTransformer, _GFNET),
    'gfnet_convstem_tiny': (VisionTransformer, _GFNET | dict(stem='conv')),
    'rvt_tiny': (RVT, _RVT_TINY),
    'rvt_small': (RVT, _SMALL),
    'rvt_base': (RVT, _RVT_BASE),
    'rvt_tiny_plus': (RVT, _RVT_TINY | dict(num_masked_blocks=10)),
    'rvt_small_plus': (RVT, _SMALL | dict(num_masked_blocks=5)),
    'rvt_base_plus': (RVT, _RVT_BASE | dict(num_masked_blocks=5)),
    'fan_tiny': (FAN, dict(embed_dim=192, depth=12, num_heads=4)),
    'fan_small': (FAN, dict(embed_dim=384, depth=12, num_heads=8)),
    'fan_base': (FAN, dict(embed_dim=448, depth=18, num_heads=8)),
    'fan_large': (FAN, dict(embed_dim=480, depth=24, num_heads=10)),
    'fan_tiny_hybrid': (FAN, _HYBRID | dict(embed_dim=192, depth=8)),
    'fan_small_hybrid': (FAN, _HYBRID | dict(embed_dim=384, depth=10)),
    'fan_base_hybrid': (FAN, _HYBRID | dict(embed_dim=448, depth=16)),
}
"""Bottom-up networks: class of the trunk, and its arguments (Tables 1.2 and 2.2).

``deit_convstem_*`` and ``gfnet_convstem_tiny`` are the modified baselines DeiT* and GFNet* with the
convolutional patch embedding."""

MODELS: tuple[str, ...] = (
    *ARCH_ZOO,
    *(name.replace('vit_', 'absvit_') for name in ARCH_ZOO if name.startswith('vit_')),
)
"""Names that :func:`create_model`, ``mmvars convert --arch`` and configs know."""

TOP_DOWN_DESIGNS: tuple[str, ...] = (
    'absvit',
    'absvit_qkv',
    'feedback',
    'mask_attention',
    'perceiver_io',
)
"""Designs of top-down attention (Tables 2.3 and 2.5), see :class:`TopDown` and
:class:`PerceiverIO`."""

TIMM_PREFIXES = ('timm/', 'mmpretrain/')
"""What the names of trunks begin with that timm builds."""

_INJECTIONS = {'absvit_qkv': 'qkv', 'mask_attention': 'mask'}

_UNFIT_MIXERS: dict[str, dict[str, str]] = {
    'vit': {
        'global_filter': 'a global filter replaces attention together with its projections, which '
        "only GFNet's blocks with their single skip connection are made for",
        'masked_attention': "the mask is one between the patches of RVT's maps",
    },
    'gfnet': {
        'self_attention': 'GFNet is built on token mixers that are linear in the number of tokens; '
        'of attention it takes performer',
        'masked_attention': "the mask is one between the patches of RVT's maps",
    },
}
_UNFIT_MIXERS['deit'] = _UNFIT_MIXERS['absvit'] = _UNFIT_MIXERS['vit']
_UNFIT_MIXERS['rvt'] = {'global_filter': _UNFIT_MIXERS['vit']['global_filter']}
"""Family -> mixers that do not go into its trunks, and why."""


def network_name(name: Any, argument: str = 'network name') -> str:
    """One of :data:`MODELS`; earlier versions wrote ``vit_tiny_patch16`` for ``vit_tiny``.

    Raises:
        InputError: On an unknown name.
    """
    present = name.removesuffix('_patch16') if isinstance(name, str) else name
    check_choice(argument, present, MODELS)
    return present


def create_model(
    name: str,
    top_down: str | None = None,
    prior: str | dict[str, Any] | None = 'learned_query',
    alpha: float = 1.0,
    num_passes: int = 2,
    first_pass_scale: float = 1.0,
    mixer: str | None = None,
    mixer_cfg: Mapping[str, Any] | None = None,
    double_value_bias: bool | None = None,
    channels_last: bool = False,
    reconstruction_loss: str = 'l2',
    stop_gradient: bool = True,
    code_sparsity: float = 0.0,
    modulation: str = 'weight',
    **overrides: Any,
) -> Trunk | TopDown | PerceiverIO:
    """Build a network by name, with torch's current default device and dtype.

    Args:
        name: One of :data:`MODELS`; ``absvit_*`` is ``vit_*`` with ``top_down='absvit'``. Or
            ``'timm/NAME'``: any plain vision transformer of timm, such as
            ``'timm/vit_small_patch14_dinov2.lvd142m'``. Feedback through decoders (all designs but
            ``'mask_attention'`` and ``'perceiver_io'``) is gated there, see :class:`Feedback`: the
            network starts as its trunk, and ``alpha=0`` is its trunk. Or ``'mmpretrain/NAME'``: a
            VisionTransformer of MMPretrain, built by timm.
        top_down: One of :data:`TOP_DOWN_DESIGNS` around any trunk; ``None``: the trunk alone.
        prior: With ``top_down``: a name of :data:`mmvars.networks.PRIORS`, or
            ``dict(type=name, ...)``.
        alpha: With ``top_down``: scale of the weighted tokens.
        num_passes, first_pass_scale: With ``top_down``: see :class:`TopDown`.
        mixer: Token mixer, one of :data:`mmvars.layers.MIXERS`; ``None`` for the trunk's own. In a
            DeiT* ``'vars_s'``, which works on the map alone, comes without class token and with
            average pooling, unless ``overrides`` say otherwise.
        mixer_cfg: ``preset`` and options of the mixer, see
            :func:`mmvars.layers.resolve_mixer_cfg`. The preset is ``'release'``, but for
            ``'vars_s'`` outside of RVT ``'thesis'``: the release's sparsity of 3.5 is made for
            RVT's un-normalized tokens, which its batch norms keep large. In a DeiT* or GFNet every
            code would start at zero with it, and stay there.
        double_value_bias: Whether a top-down input brings the bias of the value projection along a
            second time, as in the released models, which is the default. With ``False``,
            ``alpha=0`` turns top-down attention off (but for the bias of the upsampling between
            stages of an RVT). On a trunk of timm it never does.
        channels_last: Store the weights of convolutions in ``torch.channels_last``: on a CPU about
            a third less time for FAN at 512x512, an eighth for RVT. Tools that need contiguous
            parameters (safetensors, LBFGS, FSDP2) refuse such a network.
        reconstruction_loss, stop_gradient: With ``top_down`` through decoders: see
            :class:`Feedback`.
        code_sparsity, modulation: Likewise: see :class:`TopDown`.
        **overrides: Arguments of the trunk that replace those of the named size; of a trunk of timm
            those of :func:`~mmvars.networks.timm_trunk.build_timm_trunk` (of MMPretrain
            :func:`~mmvars.networks.mmpretrain_zoo.build_mmpretrain_trunk`), and ``pretrained``:
            ``True`` or a file, see :func:`mmvars.checkpoints.load_timm_weights`.

    Raises:
        InputError: On an unknown name or argument, listing the choices; if the mixer does not go
            into the trunk, or an option has no use in the design.
    """
    check_flag('channels_last', channels_last)
    if double_value_bias is not None:
        check_flag('double_value_bias', double_value_bias)
    if isinstance(name, str) and name.startswith('absvit_'):
        top_down = top_down or 'absvit'
    _check_top_down(top_down, prior, alpha, num_passes, first_pass_scale)
    if top_down in (None, 'mask_attention', 'perceiver_io'):
        for option, value, default in (
            ('reconstruction_loss', reconstruction_loss, 'l2'),
            ('stop_gradient', stop_gradient, True),
            ('code_sparsity', code_sparsity, 0),
            ('modulation', modulation, 'weight'),
        ):
            if value != default:
                raise InputError(
                    f'{option}={value!r} is for feedback through decoders, which only '
                    f"top_down='absvit', 'absvit_qkv' and 'feedback' have: leave it out"
                )
    injection = _INJECTIONS.get(top_down or '', 'value')
    if isinstance(name, str) and name.startswith(TIMM_PREFIXES):
        if mixer is not None or mixer_cfg or double_value_bias:
            raise InputError(
                f'{name} has attention of its own, whose value bias counts once: leave mixer, '
                f'mixer_cfg and double_value_bias out'
            )
        trunk = _create_timm_trunk(name, injection=injection, **overrides)
    else:
        counts_twice = double_value_bias is not False
        trunk = _create_trunk(name, mixer, mixer_cfg, injection, counts_twice, overrides)
    if channels_last:
        for module in trunk.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)
    if top_down is None:
        return trunk
    gated = trunk.has_gated_feedback
    prior_module = (
        None if top_down == 'feedback' else build_prior(prior, trunk.embed_dim, trunk.head, gated)
    )
    if top_down == 'perceiver_io':
        return PerceiverIO(trunk, cast(Prior, prior_module), alpha)
    feedback = (
        MaskFeedback()
        if top_down == 'mask_attention'
        else Feedback(trunk.widths, trunk.strides, gated, reconstruction_loss, stop_gradient)
    )
    return TopDown(
        trunk,
        prior_module,
        feedback,
        alpha,
        num_passes,
        first_pass_scale,
        code_sparsity,
        modulation,
    )


def _create_trunk(
    name: str,
    mixer: str | None,
    mixer_cfg: Mapping[str, Any] | None,
    injection: str,
    double_value_bias: bool,
    overrides: Mapping[str, Any],
) -> Trunk:
    """One of :data:`MODELS`, without top-down attention."""
    name = network_name(name)
    trunk_class, arguments = ARCH_ZOO[name.replace('absvit_', 'vit_')]
    known = inspect.signature(trunk_class).parameters
    if 'mixer_options' in overrides:
        raise InputError('mixer_options is mixer_cfg now: write create_model(..., mixer_cfg=...)')
    _check_arguments(name, overrides, set(known) - {'injection'})
    parts = _mixer_arguments(
        name.split('_')[0], mixer, mixer_cfg, overrides.get('class_token', True)
    ) | dict(injection=injection, double_value_bias=double_value_bias)
    if refused := [key for key in ('mixer', 'mixer_cfg') if parts.get(key) and key not in known]:
        raise InputError(f'{name} has a mixer of its own: leave {" and ".join(refused)} out')
    parts = {key: value for key, value in parts.items() if key in known}
    trunk = trunk_class(**arguments | parts | dict(overrides))
    trunk.name = name.replace('absvit_', 'vit_')
    return trunk


def _create_timm_trunk(
    name: str,
    pretrained: bool | str | Path = False,
    num_prompt_tokens: int = 0,
    deep_prompts: bool = True,
    prompt_dropout: float = 0.0,
    **arguments: Any,
) -> Trunk:
    version = timm.__version__
    if [int(part) for part in re.findall(r'\d+', version)[:3]] < [1, 0, 22]:
        raise InputError(f'{name} needs timm 1.0.22 or newer, found {version}: pip install -U timm')
    # Lazily: an older timm lacks parts of what these import.
    from mmvars.networks.mmpretrain_zoo import build_mmpretrain_trunk
    from mmvars.networks.timm_trunk import build_timm_trunk

    build = build_timm_trunk if name.startswith('timm/') else build_mmpretrain_trunk
    own = inspect.signature(_create_timm_trunk).parameters.keys() - {'arguments'}
    _check_arguments(name, arguments, {*inspect.signature(build).parameters, *own})
    trunk = build(name, **arguments)
    if num_prompt_tokens != 0:
        trunk.add_prompts(num_prompt_tokens, deep_prompts, prompt_dropout)
    if pretrained:
        from mmvars.checkpoints import load_timm_weights  # which imports this module

        load_timm_weights(trunk, pretrained)
    return trunk


def _check_arguments(name: str, arguments: Mapping[str, Any], known: Collection[str]) -> None:
    if unknown := sorted(set(arguments) - set(known)):
        accepted = [*known, *inspect.signature(create_model).parameters]
        raise InputError(
            f'{name} takes no argument {", ".join(unknown)}; it takes '
            f'{", ".join(dict.fromkeys(accepted))}{did_you_mean(unknown[0], accepted)}'
        )


def build_prior(
    prior: str | dict[str, Any] | None,
    embed_dim: int,
    classifier: nn.Module | None = None,
    has_center: bool = False,
) -> Prior:
    """Build a prior from its name or ``dict(type=name, ...)``.

    A ``'class_prototype'`` without ``num_classes`` takes a copy of ``classifier``'s rows.
    ``has_center``: see :class:`Prior`.

    Raises:
        InputError: If the name is unknown, or prototypes are requested of no classifier.
    """
    arguments = dict(prior) if isinstance(prior, dict) else dict(type=prior)
    name: Any = arguments.pop('type', None)
    check_choice('prior', name, PRIORS)
    size = 'num_classes' if issubclass(PRIORS[name], ClassPrototype) else None
    size = 'text_dim' if name == 'text' else size
    known = [size] if size else []
    known += ['num_classes'] if name == 'text' else []
    if unknown := sorted(set(arguments) - set(known), key=str):
        raise InputError(
            f'prior {name!r} takes {", ".join(known) or "no options"}; unknown: {unknown}'
        )
    if name == 'class_prototype' and size not in arguments:
        if not isinstance(classifier, nn.Linear):
            raise InputError(
                "prior='class_prototype' copies the rows of a classifier, and this "
                "network has none: use prior=dict(type='class_prototype', "
                'num_classes=K)'
            )
        return ClassPrototype.from_classifier(classifier, has_center)
    if size and size not in arguments:
        meaning = 'number of classes' if size == 'num_classes' else 'width of the text vectors'
        raise InputError(f'prior={name!r} needs the {meaning}: prior=dict(type={name!r}, {size}=K)')
    return PRIORS[name](embed_dim, has_center=has_center, **arguments)


def _mixer_arguments(
    family: str, mixer: str | None, mixer_cfg: Mapping[str, Any] | None, class_token: bool
) -> dict[str, Any]:
    """The arguments of a trunk that follow from a mixer.

    Raises:
        InputError: If the mixer does not go into trunks of the family.
    """
    if not isinstance(mixer_cfg, Mapping | None) or not all(
        isinstance(key, str) for key in mixer_cfg or {}
    ):
        raise InputError(
            f'mixer_cfg must be a dict of options by name, such as dict(num_steps=3); '
            f'got {mixer_cfg!r}'
        )
    arguments: dict[str, Any] = dict(mixer_cfg=dict(mixer_cfg or {}))
    if mixer is None:
        return arguments
    check_choice('mixer', mixer, MIXERS)
    if reason := _UNFIT_MIXERS.get(family, {}).get(mixer):
        raise InputError(f'mixer={mixer!r} does not go into the {family} trunk: {reason}')
    if mixer == 'vars_s' and family in ('vit', 'absvit') and class_token:
        raise InputError(
            "mixer='vars_s' filters the map of patches and cannot mix the class token "
            'of a ViT; use a trunk without one, such as rvt_tiny or '
            'deit_convstem_tiny'
        )
    arguments['mixer'] = mixer
    if mixer == 'vars_s' and family == 'deit':
        arguments |= dict(class_token=False, global_pool='avg')
    if mixer == 'vars_s' and family != 'rvt':
        arguments['mixer_cfg'].setdefault('preset', 'thesis')
    return arguments


def _check_top_down(
    design: str | None, prior: Any, alpha: Any, num_passes: Any, first_pass_scale: Any
) -> None:
    """Refuse options that a design of top-down attention, or none, has no use for.

    Raises:
        InputError: Naming the option.
    """
    if design is None:
        for name, value, default in (
            ('prior', prior, 'learned_query'),
            ('alpha', alpha, 1),
            ('num_passes', num_passes, 2),
            ('first_pass_scale', first_pass_scale, 1),
        ):
            if value != default:
                raise InputError(
                    f'{name}={value!r} needs top-down attention: add '
                    f"top_down='absvit', or leave {name} out"
                )
        return
    check_choice('top_down (design of a backbone)', design, TOP_DOWN_DESIGNS)
    check_number('alpha', alpha)
    check_number('num_passes', num_passes, 2, 100, whole=True)
    check_number('first_pass_scale', first_pass_scale, 1e-3, 1)
    if design == 'feedback' and prior not in (None, 'learned_query'):
        raise InputError(
            f"prior has no place in design 'feedback', which feeds the tokens back as "
            f'they are: leave it out, got {prior!r}'
        )
    if design != 'feedback' and prior is None:
        raise InputError(
            "prior=None leaves nothing to look for; feedback without a prior is design 'feedback'"
        )
    if design == 'mask_attention' and alpha != 1:
        raise InputError(
            f"alpha scales the tokens that are fed back, and design 'mask_attention' "
            f'feeds back their weights alone: leave it at 1, got {alpha!r}'
        )
    if design == 'perceiver_io' and num_passes != 2:
        raise InputError(
            f"num_passes counts rounds of feedback, and design 'perceiver_io' has "
            f'none: leave it out, got {num_passes!r}'
        )
    if design == 'perceiver_io' and first_pass_scale != 1:
        raise InputError(
            f"first_pass_scale needs a second pass, and design 'perceiver_io' has a "
            f'single one: leave it at 1, got {first_pass_scale!r}'
        )
