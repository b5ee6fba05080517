"""What of a backbone trains: the choices of ``transfer``, in one table."""

import re
from typing import Any

from torch import Tensor, nn

from mmvars.checkpoints.fit import named_state
from mmvars.checkpoints.partial import ADDED
from mmvars.errors import InputError, check_choice
from mmvars.networks import PerceiverIO, TopDown, Trunk

__all__ = ['BOTTOM_UP_TRANSFERS', 'TRANSFERS', 'added_names', 'apply_transfer', 'check_lora_cfg']

TRANSFERS: dict[str, str] = {
    'end2end': r'',
    'linear': r'(?!)',
    'bias': r'prior\.|trunk\.(.+\.)?\w*bias$',
    'prompt': r'prior\.|trunk\.(deep_)?prompt_embeddings$',
    'lora': r'prior\.|trunk\..+\.lora_',
    'top-down': r'prior\.|feedback\.',
    'top-down-lite': r'prior\.|feedback\..+\.(lora_.+|gate)$',
}
"""Choice -> how the names of the parameters that train begin, as a regular expression.

Names start with ``trunk.``, ``prior.`` or ``feedback.``, for plain networks too. ``bias`` (BitFit)
is every vector that is added: those of linear layers, convolutions and norms, and the separate
``q_bias`` and ``v_bias`` of some trunks; not a table of relative positions."""

BOTTOM_UP_TRANSFERS = tuple(name for name in TRANSFERS if not name.startswith('top-down'))
"""The choices of a backbone without top-down attention."""

_ATTENTION = ('qkv', 'qv', 'kv', 'q', 'k', 'v', 'value', 'q_proj', 'k_proj', 'v_proj')
_LORA_TARGETS = {
    'lora': ('trunk', [f'attn.{name}' for name in _ATTENTION]),
    'top-down-lite': ('feedback', ['to_below', 'to_value']),
}
"""Choice -> part of the network, and the linear layers in it that get low-rank updates."""

# Other entries of peft's LoraConfig read the weights when the layers are made, which is before
# these are loaded, or make more trainable than LoRA.
_LORA_KEYS = (
    'r',
    'lora_alpha',
    'lora_dropout',
    'use_rslora',
    'target_modules',
    'exclude_modules',
    'layers_to_transform',
    'layers_pattern',
    'rank_pattern',
    'alpha_pattern',
)


def check_lora_cfg(transfer: str, lora_cfg: Any) -> None:
    """Refuse options of LoRA where there is none, or that it does not take."""
    if lora_cfg is None:
        return
    if transfer not in _LORA_TARGETS:
        raise InputError(
            f"lora_cfg needs transfer='lora' or 'top-down-lite', got transfer={transfer!r}"
        )
    if not isinstance(lora_cfg, dict) or (unknown := sorted(set(lora_cfg) - set(_LORA_KEYS))):
        raise InputError(
            f'lora_cfg must be a dict with keys of {", ".join(_LORA_KEYS)} (see LoraConfig of '
            f'peft); {f"unknown: {unknown}" if isinstance(lora_cfg, dict) else f"got {lora_cfg!r}"}'
        )


def apply_transfer(
    network: Trunk | TopDown | PerceiverIO, transfer: str, lora_cfg: dict | None = None
) -> None:
    """Add low-rank updates where the choice has them, and let train what it lets train.

    Args:
        network: Changed in place.
        transfer: A key of :data:`TRANSFERS`.
        lora_cfg: Arguments of peft's ``LoraConfig``, of which ``r`` is 4 here.

    Raises:
        InputError: If the network does not have what is to train, or ``lora_cfg`` does not fit.
    """
    is_trunk = isinstance(network, Trunk)
    if is_trunk and transfer in TRANSFERS and transfer not in BOTTOM_UP_TRANSFERS:
        raise InputError(
            f'transfer must be one of {", ".join(BOTTOM_UP_TRANSFERS)} here; got {transfer!r}, '
            f'which trains the feedback of mmvars.AbSViT'
        )
    check_choice('transfer', transfer, BOTTOM_UP_TRANSFERS if is_trunk else TRANSFERS)
    check_lora_cfg(transfer, lora_cfg)
    if transfer == 'prompt' and not added_names(network):
        raise InputError(
            "transfer='prompt' is for backbones that take prompt_cfg, such as mmvars.ViT"
        )
    if transfer in _LORA_TARGETS:
        name, targets = _LORA_TARGETS[transfer]
        part = network if is_trunk else getattr(network, name, None)
        if part is None or (name == 'feedback' and not getattr(part, 'decoders', ())):
            raise InputError(
                f'transfer={transfer!r} updates the decoders, which this design does not have: '
                "use transfer='top-down'"
            )
        _add_lora(part, dict(r=4, target_modules=targets) | (lora_cfg or {}))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(
            re.match(TRANSFERS[transfer], f'trunk.{name}' if is_trunk else name) is not None
        )


def added_names(network: nn.Module) -> list[str]:
    """Tensors that the choice has added to a network, by their names in a file."""
    return [name for name in named_state(network) if ADDED.search(name)]


def _add_lora(part: nn.Module, arguments: dict[str, Any]) -> None:
    """Wrap linear layers by LoRA; in state dicts their own tensors keep their names."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer
    except ImportError as error:
        raise InputError(f'LoRA needs peft: pip install "mmvars[lora]" ({error})') from error
    try:
        inject_adapter_in_model(LoraConfig(**arguments), part)
    except (TypeError, ValueError) as error:
        if 'not found in the base model' in str(error):
            raise InputError(
                f'{type(part).__name__} has none of the layers that LoRA is to update, '
                f'{", ".join(arguments["target_modules"])}: name others in '
                f"lora_cfg=dict(target_modules=[...]), or use transfer='bias'"
            ) from error
        raise InputError(f'lora_cfg={arguments}: {error}') from error
    for module in part.modules():
        if isinstance(module, LoraLayer):
            module._register_state_dict_hook(_hide_base_layer)
            module._register_load_state_dict_pre_hook(_find_base_layer)


def _hide_base_layer(layer: nn.Module, state_dict: dict, prefix: str, *_: Any) -> None:
    for leaf in ('weight', 'bias'):
        if (key := f'{prefix}base_layer.{leaf}') in state_dict:
            state_dict[prefix + leaf] = state_dict.pop(key)


def _find_base_layer(state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for leaf in ('weight', 'bias'):
        if (key := prefix + leaf) in state_dict:
            state_dict[f'{prefix}base_layer.{leaf}'] = state_dict.pop(key)
