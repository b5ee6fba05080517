"""Strict loading of a checkpoint into an mmvars network or backbone."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmvars.checkpoints.account import Account, Status
from mmvars.checkpoints.constants import check_constants, recorded_mixer
from mmvars.checkpoints.containers import select_weights
from mmvars.checkpoints.files import read_checkpoint, read_meta
from mmvars.checkpoints.fit import fit_tensors
from mmvars.checkpoints.formats import MMVARS
from mmvars.checkpoints.mixers import check_mixer, check_shown
from mmvars.checkpoints.naming import name_tensors, without_head
from mmvars.checkpoints.sizes import refuse_unknown_parts
from mmvars.errors import InputError
from mmvars.networks import TopDown

__all__ = ['load_pretrained']

_BACKBONE = 'backbone.'
_REMEDY = ('The module was left as it is. Files of the release, timm or DeiT are converted with '
           '`mmvars convert SRC DST --arch ...` (tools/convert_checkpoint.py); parts that a file '
           "is known to lack are named in allow_new, for instance ('prior', 'feedback').")

_log = logging.getLogger(__name__)


def load_pretrained(module: nn.Module, path: str | Path, prefix: str | None = None,
                    allow_new: Sequence[str] = (),
                    allow_constants: Sequence[str] = ()) -> Account:
    """Fill every tensor of ``module`` from a file, or change nothing and say why not.

    Tensors for another patch grid (positions, static dictionaries, filters, masks) are resampled,
    each by the rule of its module.

    Args:
        module: A :class:`~mmvars.networks.TopDown`, or a backbone whose ``network`` is one.
        path: A converted file or a checkpoint of an OpenMMLab runner, ``.pth`` or safetensors.
        prefix: What stands before the backbone's keys; other keys are then not the backbone's.
            ``None``: ``'backbone.'`` where there are such keys.
        allow_new: Prefixes of network names that may be missing altogether and keep the values
            that they have: ``('prior', 'feedback')`` starts an AbSViT from a plain ViT.
        allow_constants: Constants of the token mixer that may be others than those the file was
            made with: ``('num_steps', )`` runs trained weights with more or fewer steps.

    Returns:
        The account; ``account.summary()`` is one line for a log.

    Raises:
        InputError: If the file cannot be read, or does not fit: all missing, unexpected, broken
            and misshaped tensors at once; or if it was made with another token mixer or other
            constants than the network's.
        TypeError: If ``module`` holds no network of mmvars.
    """
    network = module if isinstance(module, TopDown) else getattr(module, 'network', None)
    if not isinstance(network, TopDown):
        raise TypeError(f'module must be a TopDown network or a backbone of mmvars, got '
                        f'{type(module).__name__}')
    refuse_unknown_parts(allow_new, network)
    account = Account(f'{path} into {type(module).__name__}')
    content = read_checkpoint(path)
    state_dict = select_weights(content, 'auto', account)
    state_dict = _of_backbone(state_dict, prefix, account)
    read = name_tensors(state_dict, account, carry=False)
    if read.format is not MMVARS:
        raise InputError(f'{account.title}: the file has the names of: {read.format.title}. '
                         f'{_REMEDY}')
    sources = read.tensors
    check_mixer(network, sources, account.title, lambda: 'Build the network with the mixer of the '
                'file.')
    check_shown(network.trunk, sources, account.title, 'Build the network with '
                'mixer_cfg=dict({options}).')
    recorded = recorded_mixer(read_meta(path, content), account.title)
    check_constants(network.trunk, recorded, account, allow_constants)
    if isinstance(network.trunk.head, nn.Identity):
        sources = without_head(sources, account, 'classifier, which the module does not have')
    may_be_new = dict.fromkeys(allow_new, 'not in the file; keeps its initial values, as allowed')
    fitted = fit_tensors(network, sources, account, may_be_new)
    account.raise_problems(_REMEDY)
    fresh = {name: value for name, value in network.state_dict().items() if name not in fitted}
    with torch.no_grad():
        network.load_state_dict(fitted | fresh, strict=True)
    _log.info(account.summary())
    return account


def _of_backbone(state_dict: Mapping[str, Any], prefix: str | None,
                 account: Account) -> dict[str, Any]:
    """The entries that are the backbone's; the others are accounted for as ignored."""
    if prefix is not None:
        inside = {key: key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)}
    elif any(key.startswith(_BACKBONE) for key in state_dict):
        # A whole model. Of what stands beside the backbone, the table knows the classifier.
        inside = {key: key for key in state_dict
                  if key.startswith(_BACKBONE) or MMVARS.to_network(key) is not None}
    else:
        inside = {key: key for key in state_dict}
    if not inside:
        raise InputError(f'{account.title}: no key starts with prefix {prefix!r}; the keys begin '
                         f'with {", ".join(list(state_dict)[:5])}')
    for key, value in state_dict.items():
        if key not in inside:
            account.add(Status.IGNORED, key, shape=getattr(value, 'shape', None),
                        note='not part of the backbone')
    return {name: state_dict[key] for key, name in inside.items()}
