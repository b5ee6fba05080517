"""Files that hold a part of a network, such as its decoders, and name the trunk it belongs to.

Names of tensors start with ``trunk.``, ``prior.`` or ``feedback.``, for plain networks too.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmvars.checkpoints.fit import named_state, trunk_of
from mmvars.checkpoints.formats import mixer_meta
from mmvars.checkpoints.write import write_checkpoint
from mmvars.errors import InputError
from mmvars.layers import GridResizeMixin

__all__ = [
    'ADDED',
    'check_trunk',
    'recorded_trunk',
    'sha256_of',
    'trunk_meta',
    'trunk_record',
    'write_partial',
]

ADDED = re.compile(r'(^|\.)(deep_)?prompt_embeddings$|\.lora_')
"""Names of tensors that no pretraining has, since ``transfer`` adds them: prompts and LoRA."""

_NOT_COUNTED = ('head.', 'fc_norm.', 'attn_pool.')
"""What the tokens of a trunk do not depend on."""

_AT_GRID = ('pos_embed', 'relative_position_bias_table', 'relative_position_index')
"""What belongs to one patch grid in timm's networks."""


def trunk_record(network: nn.Module, held: Collection[str] = ()) -> dict[str, str]:
    """Which trunk a network has: its ``name``, and the ``sha256`` of its weights.

    Counted are names, dtypes, shapes and bytes of all tensors of the trunk but those of the
    classifier, prompts, LoRA, and those made for one patch grid (positions), so that the same
    weights have the same record at every image size and with every way of transfer.

    Args:
        network: A trunk, or a network around one.
        held: Names of tensors that are not counted either: those that the file itself holds, such
            as biases that were trained.
    """
    trunk: Any = trunk_of(network)
    at_grid = {
        f'{path}.{leaf}'.lstrip('.')
        for path, module in trunk.named_modules()
        if isinstance(module, GridResizeMixin)
        for leaf in (*module.grid_tensors, 'trained_grid')
    }
    counted = {
        name.replace('.base_layer.', '.'): value  # where peft has wrapped a layer
        for name, value in trunk.state_dict().items()
        if name not in at_grid
        and name.rpartition('.')[2] not in _AT_GRID
        and f'trunk.{name}' not in held
        and not ADDED.search(name)
        and not name.removeprefix('model.').startswith(_NOT_COUNTED)
    }
    return dict(name=trunk.name, sha256=sha256_of(counted))


def trunk_meta(
    network: nn.Module, held: Collection[str] = (), frozen_decoders: bool = False
) -> dict[str, str]:
    """What the meta of a partial file says, in strings: :func:`trunk_record` as JSON.

    With ``frozen_decoders`` the record has the hash of the feedback too, but for what is ``held``.
    """
    record = trunk_record(network, held)
    if frozen_decoders:
        record['feedback'] = _feedback_sha256(network, held)
    return dict(trunk=json.dumps(record))


def recorded_trunk(meta: Mapping[str, Any], title: str) -> dict[str, str] | None:
    """The record in the ``meta`` of a file; ``None`` for a file of a whole network.

    Raises:
        InputError: If it is damaged.
    """
    record = meta.get('trunk')
    try:
        record = json.loads(record) if isinstance(record, str) else record
        if record is None:
            return None
        keys = ('name', 'sha256', *(('feedback',) if 'feedback' in record else ()))
        return {key: str(record[key]) for key in keys}
    except (TypeError, ValueError, KeyError, RecursionError):
        raise InputError(
            f'{title}: the entry trunk of its meta is damaged ({meta["trunk"]!r:.200}); make the '
            'file again, for decoders with `mmvars pretune`'
        ) from None


def check_trunk(
    network: nn.Module, record: Mapping[str, str], held: Collection[str], title: str
) -> None:
    """Refuse a partial file of another trunk than the network's.

    Args:
        network: What is to be filled, its trunk with all its weights.
        record: Of :func:`recorded_trunk`.
        held: Names of the tensors that the file holds.
        title: What the message starts with.

    Raises:
        InputError: Naming both trunks, and what to do.
    """
    ours = trunk_record(network, held)
    if ours['sha256'] == record['sha256']:
        if record.get('feedback', '') not in ('', _feedback_sha256(network, held)):
            raise InputError(
                f'{title}: the file leaves out frozen decoders, and those of this network are '
                'others: give it the file of decoders that it was trained with, as '
                "init_cfg=dict(type='Pretrained', checkpoint=FILE)"
            )
        return
    theirs, here = (
        f'{each["name"][:100] or "a trunk without a name"} (weights {each["sha256"][:12]})'
        for each in (record, ours)
    )
    raise InputError(
        f'{title}: the file holds a part of a network on the trunk {theirs}, and this trunk is '
        f'{here}. Give this one the weights, dtype and depth of that one: the trunk is loaded '
        'first, by pretrained=... or init_cfg. If its weights were trained since the file was '
        'made, make the file again (for decoders: `mmvars pretune`)'
    )


def write_partial(
    path: str | Path,
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a part of a network, which then loads on networks with the same trunk alone.

    Args:
        path: See :func:`~mmvars.checkpoints.write_checkpoint`.
        network: A network with top-down attention, its trunk as it is now.
        tensors: Some of its state dict.
        meta: Further entries of the file's ``meta``.
        overwrite: Whether an existing file may be replaced.
    """
    trunk: Any = network.trunk
    meta = mixer_meta(trunk) | trunk_meta(network, tensors) | dict(meta or {})
    container = None if str(path).endswith('.safetensors') else 'state_dict'
    named = {f'backbone.network.{name}': value for name, value in tensors.items()}
    write_checkpoint(path, named, container, meta, overwrite)


def _feedback_sha256(network: nn.Module, held: Collection[str]) -> str:
    return sha256_of(
        {
            name: value
            for name, value in named_state(network).items()
            if name.startswith('feedback.') and name not in held and not ADDED.search(name)
        }
    )


def sha256_of(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, dtypes, shapes and bytes of tensors, in whatever order they come."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f'{name} {value.dtype} {tuple(value.shape)}\n'.encode())
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(content.numpy().data)
    return digest.hexdigest()
