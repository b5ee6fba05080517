"""From the arguments of an OpenMMLab config to those of a network."""

import functools
import inspect
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import timm
import torch
from mmengine.config import ConfigDict
from mmengine.model import PretrainedInit
from torch import Tensor

from mmvars.errors import InputError, check_choice, check_flag, check_number, did_you_mean
from mmvars.networks import (
    ARCH_ZOO,
    PRIORS,
    TIMM_PREFIXES,
    ClassPrototype,
    LearnedText,
    PerceiverIO,
    TopDown,
    Trunk,
    create_model,
)
from mmvars.registry import MODELS

__all__ = [
    'build_network',
    'check_class_priors',
    'register_backbone',
    'fill_in_channels',
    'prompt_arguments',
    'split_init_cfg',
    'stack_priors',
    'with_num_classes',
]

_NETWORK_NAMES = {
    'embed_dims': 'embed_dim',
    'num_layers': 'depth',
    'in_channels': 'in_chans',
    'design': 'top_down',
    'prompt_cfg.num_tokens': 'num_prompt_tokens',
    'prompt_cfg.deep': 'deep_prompts',
    'prompt_cfg.dropout': 'prompt_dropout',
}
"""Argument in a config -> its name in a network, where that is another."""

_REPLACED = {
    'pretrained': "write init_cfg=dict(type='Pretrained', checkpoint=FILE) in the backbone, and "
    'pretrained=None in the model where the config inherits another',
    'shortcuts': 'write first_pass_scale=0.5 for shortcuts=dict(first_pass_scale=0.5); '
    'restart_block, share_query_key and feedback_rank were removed: leave them out',
}
"""Arguments of other backbones, or of earlier versions -> what to write instead."""

_MMPRETRAIN_OPTIONS = ('patch_size', 'layer_scale_init_value', 'pre_norm', 'global_pool')

Class = TypeVar('Class', bound=type)


def register_backbone(backbone: Class) -> Class:
    """Register a class that refuses unknown arguments in the name that the user typed.

    It accepts ``None`` for one of :data:`_REPLACED`, since mmseg's configs hand
    ``pretrained=None`` down to every backbone.
    """
    init, name = vars(backbone)['__init__'], f'mmvars.{backbone.__name__}'
    known = tuple(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def checked_init(self: Any, *args: Any, **kwargs: Any) -> None:
        problems = [
            f'{name} takes no {argument!r}: {remedy}'
            for argument, remedy in _REPLACED.items()
            if argument not in known and kwargs.pop(argument, None) is not None
        ]
        unknown = [argument for argument in kwargs if argument not in known]
        if unknown:
            problems.append(
                f'{name} takes no {", ".join(map(repr, unknown))}; in a config that inherits its '
                f'backbone write backbone=dict(_delete_=True, type={name!r}, ...). '
                f'{name} takes {", ".join(known)}{did_you_mean(unknown[0], known)}'
            )
        if problems:
            raise InputError('; '.join(problems))
        init(self, *args, **kwargs)

    backbone.__init__ = checked_init  # type: ignore[misc]
    return MODELS.register_module(module=backbone)


def build_network(
    arch: str | dict,
    trunks: Sequence[str],
    img_size: int | Sequence[int] | None,
    in_channels: int,
    drop_path_rate: float,
    with_cp: bool,
    channels_last: bool,
    **options: Any,
) -> Trunk | TopDown | PerceiverIO:
    """:func:`~mmvars.networks.create_model`, whose errors name arguments as in a config.

    Args:
        arch: The name of a network with one of the trunks, or a dict of sizes; with ``trunk``,
            where there is a choice. With ``'timm'`` among the trunks also ``'timm/NAME'`` and
            ``'mmpretrain/NAME'``.
        trunks: Trunks that the backbone takes; ``'vit'`` is the default where it is one of them.
        img_size: As for a backbone; ``None``: 224, or what a network of timm was pretrained with.
        in_channels, drop_path_rate, with_cp, channels_last: As for a backbone.
        **options: Further arguments, by the network's names.
    """
    name, sizes = _resolve_arch(arch, trunks)
    if img_size is None and 'timm' in trunks and not name.startswith(TIMM_PREFIXES):
        img_size = 224
    if 'num_prompt_tokens' in options and not name.startswith(('vit_', *TIMM_PREFIXES)):
        raise InputError(f"transfer='prompt' is for ViT sizes and timm's, got arch={arch!r}")
    try:
        return create_model(
            name,
            num_classes=0,
            img_size=img_size,
            in_chans=in_channels,
            drop_path_rate=drop_path_rate,
            grad_checkpointing=with_cp,
            channels_last=channels_last,
            **sizes,
            **options,
        )
    except InputError as error:
        text = str(error)
        for config_name, network_name in _NETWORK_NAMES.items():
            text = re.sub(rf'\b{network_name}\b', config_name, text)
        raise InputError(text) from error


def _resolve_arch(arch: str | dict, trunks: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The name of a network, and the sizes that replace its own.

    A config may leave out ``vit_``, and in a backbone with one trunk the trunk's name.
    """
    default = f'{trunks[0]}_' if len(trunks) == 1 else 'vit_'
    zoo = {
        name.removeprefix(default): name
        for name in ARCH_ZOO
        if name.startswith(tuple(f'{trunk}_' for trunk in trunks))
    }
    takes_timm = 'timm' in trunks
    trunks = [trunk for trunk in trunks if trunk != 'timm']
    if isinstance(arch, str):
        if takes_timm and arch.startswith(TIMM_PREFIXES):
            return arch, {}
        name = arch.removesuffix('_patch16')  # of earlier versions
        if len(trunks) > 1:  # AbSViT
            name = name.replace('absvit_', 'vit_')
        if name in zoo:
            return zoo[name], {}
        if name in zoo.values():
            return name, {}
    if not isinstance(arch, dict):
        raise InputError(
            f'arch must be one of {", ".join(zoo)}, or a dict; got {arch!r}'
            f'{" (or timm/NAME, mmpretrain/NAME: their vision transformers)" if takes_timm else ""}'
            f'{_did_you_mean_timm(arch) if takes_timm else ""}{did_you_mean(arch, zoo)}'
        )
    sizes: dict[str, Any] = dict(arch)
    trunk: Any = trunks[0]
    if takes_timm and str(sizes.get('trunk')).startswith(TIMM_PREFIXES):
        trunk = sizes.pop('trunk')
        options = () if trunk.startswith('timm/') else _MMPRETRAIN_OPTIONS
        _check_keys('arch', sizes, (), ('num_layers', *options))
        return trunk, {_NETWORK_NAMES.get(key, key): value for key, value in sizes.items()}
    if len(trunks) > 1 or 'trunk' in sizes:
        trunk = sizes.pop('trunk', 'vit' if 'vit' in trunks else None)
        check_choice("arch['trunk']", trunk, trunks)
    options = ('mlp_ratio', *(('patch_size', 'global_pool') if trunk == 'vit' else ()))
    _check_keys('arch', sizes, ('embed_dims', 'num_layers', 'num_heads'), options)
    name = f'{trunk}_tiny'
    return name, {_NETWORK_NAMES.get(key, key): value for key, value in sizes.items()}


def _did_you_mean_timm(arch: Any) -> str:
    known = isinstance(arch, str) and timm.is_model(arch.partition('.')[0])
    return f"; timm has a network of this name: write arch='timm/{arch}'" if known else ''


def prompt_arguments(transfer: str, prompt_cfg: dict | None) -> dict[str, Any]:
    """The arguments of a network for its prompts: none, unless the prompts are what trains."""
    if transfer != 'prompt':
        if prompt_cfg is not None:
            raise InputError(f"prompt_cfg needs transfer='prompt', got transfer={transfer!r}")
        return {}
    if not isinstance(prompt_cfg, dict | None):
        raise InputError(
            f'prompt_cfg must be a dict such as dict(num_tokens=50), got {prompt_cfg!r}'
        )
    options = dict(num_tokens=50, deep=True, dropout=0.0)  # as in the released configs
    _check_keys('prompt_cfg', prompt_cfg or {}, (), tuple(options))
    options |= prompt_cfg or {}
    check_number('prompt_cfg.num_tokens', options['num_tokens'], 1, 10_000, whole=True)
    check_flag('prompt_cfg.deep', options['deep'])
    return {_NETWORK_NAMES[f'prompt_cfg.{key}']: value for key, value in options.items()}


def split_init_cfg(init_cfg: Any) -> tuple[dict[str, Any] | None, list[dict] | None]:
    """Arguments of ``load_pretrained`` from the ``Pretrained`` entry, and all other entries."""
    entries = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg] if init_cfg else []
    if not all(isinstance(entry, dict) for entry in entries):
        raise InputError(
            f'init_cfg must be a dict or a list of dicts, such as '
            f"dict(type='Pretrained', checkpoint=FILE); got {init_cfg!r}"
        )
    pretrained = [dict(e) for e in entries if e.get('type') in ('Pretrained', PretrainedInit)]
    others = [e for e in entries if e.get('type') not in ('Pretrained', PretrainedInit)] or None
    if len(pretrained) > 1:
        raise InputError(f'init_cfg may name one Pretrained checkpoint, got {len(pretrained)}')
    if not pretrained:
        return None, others
    entry = pretrained[0]
    entry.pop('type')
    _check_keys(
        'init_cfg of type Pretrained',
        entry,
        ('checkpoint',),
        ('prefix', 'allow_new', 'allow_constants', 'map_location'),
    )
    return dict(path=entry.pop('checkpoint'), **entry), others


def _check_keys(
    argument: str, options: Mapping[str, Any], required: tuple[str, ...], optional: tuple[str, ...]
) -> None:
    unknown = sorted(set(options) - set(required) - set(optional), key=str)
    missing = sorted(set(required) - set(options))
    if unknown or missing:
        raise InputError(
            f'{argument} takes the keys {[*required, *optional]}; unknown: {unknown}, '
            f'missing: {missing}'
        )


def fill_in_channels(head: Any, backbone: Any, neck: Any, in_index: Any) -> Any:
    """A head's config with ``in_channels``, where it is left out or ``None``.

    Args:
        head: Config of a head that takes ``in_channels``.
        backbone, neck: Their ``out_channels`` are those of each feature, or one number for all;
            the neck's, where there is one.
        in_index: Features that the head reads: an index, or a sequence of them.

    Raises:
        InputError: If there are no such features, they have other channels than those stated (what
            a neck puts out is its own affair), or a neck does not say how many.
    """
    stated = head.get('in_channels') if isinstance(head, dict) else None
    if not isinstance(head, dict) or (neck is not None and stated is not None):
        return head
    channels = getattr(backbone if neck is None else neck, 'out_channels', None)
    if channels is None:
        raise InputError(
            f'in_channels of {head.get("type")} cannot be filled in, since the neck '
            f'{type(neck).__name__} does not state its out_channels: write '
            f'in_channels=<channels that the neck puts out>'
        )
    indices = [in_index] if isinstance(in_index, int) else in_index
    try:
        widths = [channels if isinstance(channels, int) else channels[i] for i in indices]
    except IndexError as error:
        raise InputError(
            f'in_index={in_index!r} of {head.get("type")} asks for features that '
            f'are not there: the {"backbone" if neck is None else "neck"} has '
            f'{len(channels)}'
        ) from error
    if stated is not None and widths != ([stated] if isinstance(stated, int) else [*stated]):
        raise InputError(
            f'{head.get("type")} has in_channels={stated!r}, but the features that it reads '
            f'(in_index={in_index!r}) have {widths}: write in_channels=None, which takes them '
            'from the backbone'
        )
    head = head.copy()  # a ConfigDict stays one
    head['in_channels'] = widths[0] if isinstance(in_index, int) else widths
    return head


def stack_priors(samples: Sequence[Any] | None, images: Tensor) -> Tensor | None:
    """The priors of a batch as a backbone takes them, from the ``prior`` of every data sample.

    Args:
        samples: Data samples, or their meta information. The ``prior`` of each is a vector
            ``(C,)``, a class id (a number or an integer tensor), or ``None``.
        images: The batch; priors go to its device.

    Returns:
        ``(B, C)``, class ids ``(B,)``, or ``None`` if no image has a prior.
    """
    priors = [sample.get('prior') for sample in samples or ()]
    if all(prior is None for prior in priors):
        return None
    tensors = [
        _as_prior(f'data_samples[{index}].prior', prior) for index, prior in enumerate(priors)
    ]
    kinds = [
        f'vector of width {len(tensor)}' if tensor.is_floating_point() else 'class id'
        for tensor in tensors
    ]
    for index, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise InputError(
                f'priors of one batch must be of one kind, but data_samples[0].prior '
                f'is a {kinds[0]} and data_samples[{index}].prior a {kind}'
            )
    return torch.stack([tensor.to(images.device) for tensor in tensors])


def check_class_priors(prior: Any) -> None:
    """Refuse to ask for classes whose prototypes nobody has loaded.

    Raises:
        InputError: If the class priors are all zero.
    """
    if not prior.class_priors().any():
        raise InputError(
            'the class priors of the backbone are all zero, which asks for nothing: load a '
            'file of `mmvars prototypes` (with --text FOLDER, where they are texts) by '
            "init_cfg of the backbone, or use prior=dict(type='learned_classes') and "
            'prior_loss_weight=1'
        )


def _as_prior(name: str, prior: Any) -> Tensor:
    """A vector ``(C,)`` of finite floating-point numbers, or a class id ``()``."""
    if prior is None:
        raise InputError(
            f'{name} is missing, but other images of the batch have a prior: give '
            f'each image one, or none of them; as a class id, -1 asks for nothing'
        )
    with suppress(TypeError, ValueError, RuntimeError):
        tensor = torch.as_tensor(prior)
        if tensor.is_floating_point() and tensor.ndim == 1:
            if tensor.is_cuda or tensor.isfinite().all():  # the GPU is not waited for
                return tensor
        if tensor.numel() == 1 and not (
            tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool
        ):
            return tensor.reshape(())
    raise InputError(
        f'{name} must be a vector of finite floating-point numbers, or a class id, a single '
        f'integer; got {prior!r}'
    )


def with_num_classes(backbone: ConfigDict, decode_head: dict) -> ConfigDict:
    """A backbone's config whose priors of classes are as many as the head's, where left out."""
    prior = backbone.get('prior')
    prior = ConfigDict(type=prior) if isinstance(prior, str) else prior
    kind = PRIORS.get(prior.get('type', '')) if isinstance(prior, dict) else None
    if kind is None or not issubclass(kind, ClassPrototype | LearnedText) or 'num_classes' in prior:
        return backbone
    if decode_head.get('num_classes') is None:
        return backbone
    return ConfigDict(backbone, prior=ConfigDict(prior, num_classes=decode_head['num_classes']))
