"""From a file to a network: read, name, fit, report. The one pipeline for loading and converting.

:func:`read_checkpoint` -> :func:`~mmvars.checkpoints.weights.select_weights` ->
:func:`~mmvars.checkpoints.naming.name_tensors` -> :func:`~mmvars.checkpoints.fit.fit_tensors` ->
:func:`~mmvars.checkpoints.fit.load_tensors`. Each step puts what becomes of a tensor into a
:class:`~mmvars.checkpoints.ConversionReport`; nothing is changed before all have done so. Names of
tensors start with ``trunk.``, ``prior.`` or ``feedback.``, for plain networks too.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmvars.checkpoints.adapt import add_class_position, fold_layer_scale
from mmvars.checkpoints.fit import check_parts, fit_tensors, load_tensors, named_state, trunk_of
from mmvars.checkpoints.formats import MMVARS, recorded_mixer
from mmvars.checkpoints.io import read_checkpoint, read_meta
from mmvars.checkpoints.mixers import check_constants, check_mixer
from mmvars.checkpoints.naming import Source, name_tensors
from mmvars.checkpoints.partial import ADDED, check_trunk, recorded_trunk
from mmvars.checkpoints.report import ConversionReport
from mmvars.checkpoints.timm_files import HEADS, TIMM_REMEDY, published_file, timm_sources
from mmvars.checkpoints.weights import drop, select_weights, with_prefix
from mmvars.errors import InputError
from mmvars.networks import PerceiverIO, TopDown, Trunk

__all__ = ['load_heads', 'load_pretrained', 'load_timm_weights']

_REMEDY = (
    'The module was left as it is. Files of the release, timm or DeiT are converted with '
    '`mmvars convert SRC DST --arch ...` (tools/convert_checkpoint.py); parts that a file '
    "is known to lack are named in allow_new, for instance ('prior', 'feedback')."
)

_log = logging.getLogger(__name__)


def load_pretrained(
    module: nn.Module,
    path: str | Path,
    prefix: str | None = None,
    allow_new: Sequence[str] = (),
    allow_constants: Sequence[str] = (),
    map_location: Any = 'cpu',
) -> ConversionReport:
    """Fill every tensor of ``module`` from a file, or change nothing and say why not.

    Tensors for another patch grid (positions, static dictionaries, filters, masks) are resampled,
    each by the rule of its module. Files of mmvars 0.1 are read too. A file that holds a part of a
    network, such as its decoders, says so, and leaves everything else as it is; the trunk must be
    the one that it names (:mod:`mmvars.checkpoints.partial`). A trunk of timm takes published files
    too, see :func:`~mmvars.checkpoints.timm_files.timm_sources`.

    Args:
        module: A network of :func:`~mmvars.networks.create_model`, or a backbone that holds one.
        path: A converted file, a checkpoint of an OpenMMLab runner, or any file in the network's
            own names, ``.pth`` or safetensors; or an ``http(s)://`` address of one.
        prefix: What stands before the backbone's keys, with or without its last dot; other keys
            are then not the backbone's. ``None``: ``'backbone.'`` if there are such keys.
        allow_new: Prefixes of network names that may be missing altogether and keep the values
            that they have: ``('prior', 'feedback')`` starts an AbSViT from a plain ViT.
        allow_constants: Constants of the token mixer that may differ from those that the file was
            made with: ``('num_steps', )`` runs trained weights with more or fewer steps.
        map_location: A key of OpenMMLab's configs, of no effect: tensors are read to the CPU and
            copied from there to where the module is.

    Returns:
        The report; ``report.summary()`` is one line for a log.

    Raises:
        InputError: If the file cannot be read, does not fit (with all its problems at once), or
            was made with another token mixer, other constants or (a part) another trunk than the
            network's.
        TypeError: If ``module`` holds no network of mmvars.
    """
    network = getattr(module, 'network', module)
    if not isinstance(network, (Trunk, TopDown, PerceiverIO)):
        raise TypeError(
            f'module must be a network or a backbone of mmvars, got {type(module).__name__}'
        )
    trunk, current = trunk_of(network), named_state(network)
    new_parts = check_parts(allow_new, network)
    is_of_timm = hasattr(trunk, 'adapt_state_dict')
    of_trunk = f' with {trunk.name}' if is_of_timm else ''
    report = ConversionReport(f'{path} into {type(module).__name__}{of_trunk}')
    content = read_checkpoint(path)
    state_dict = select_weights(content, 'auto', report)
    if prefix is not None:
        state_dict = with_prefix(state_dict, prefix, report)
    elif any(key.startswith('backbone.') for key in state_dict):  # a whole model
        state_dict = drop(
            state_dict,
            report,
            'not part of the backbone',
            [
                key
                for key in state_dict
                if not key.startswith('backbone.') and MMVARS.to_network(key) is None
            ],
        )
    remedy = TIMM_REMEDY if is_of_timm else _REMEDY
    if is_of_timm:
        sources = timm_sources(trunk, state_dict, report)
    else:
        sources = _own_sources(state_dict, report)
        check_mixer(network, sources, report.title)
    meta = read_meta(path, content)
    check_constants(trunk, recorded_mixer(meta, report.title), report, allow_constants)
    new_note = 'not in the file; keeps its initial values, as allowed'
    if (record := recorded_trunk(meta, report.title)) is not None:
        check_trunk(network, record, sources, report.title)
        new_parts = [name for name in current if name not in sources]
        new_note = 'not in the file, which holds a part; keeps its value'
        remedy = (
            'The module was left as it is. The file holds a part of another network than this: '
            "decoders, for instance, are for mmvars.AbSViT with design='absvit', 'absvit_qkv' or "
            "'feedback'"
        )
        if not any(name.startswith('prior.') for name in current):
            space = [name for name in sources if name in ('prior.center', 'prior.whitening')]
            sources = drop(sources, report, 'space of a prior, which the module lacks', space)
    elif 'prior.center' in sources and 'prior.whitening' in current:
        identity = torch.eye(len(current['prior.center']))
        absent = Source('(none)', identity, identity.shape, 'the identity, as in older files')
        sources.setdefault('prior.whitening', absent)
    if 'prior.projection.weight' in current and 'prior.query' in sources:
        sources = drop(sources, report, 'a query, in whose place text asks here', ['prior.query'])
    if isinstance(trunk.head, nn.Identity):
        sources = drop(
            sources,
            report,
            'classifier, which the module does not have',
            [name for name in sources if name.startswith('trunk.head.')],
        )
    fitted = fit_tensors(network, sources, report, new_parts, new_note)
    report.raise_problems(remedy)
    load_tensors(network, fitted, current)
    _log.info(report.summary())
    return report


def _own_sources(state_dict: Mapping[str, Any], report: ConversionReport) -> dict[str, Source]:
    """The tensors of a file in the names of mmvars' own networks, or of timm's, by network name."""
    names, sources, _ = name_tensors(state_dict, report, pass_through=False)
    if names is not MMVARS and not all(
        each.key.endswith(name.removeprefix('trunk.')) for name, each in sources.items()
    ):
        raise InputError(f'{report.title}: the file has the names of: {names.title}. {_REMEDY}')
    return add_class_position(fold_layer_scale(sources, report), None)


def load_timm_weights(trunk: Any, weights: str | Path | bool) -> ConversionReport:
    """Fill a :class:`~mmvars.networks.timm_trunk.TimmTrunk`, as :func:`load_pretrained` does.

    A head of another number of classes than the file's, prompts and low-rank updates start anew.

    Args:
        trunk: The trunk.
        weights: A file, see :func:`~mmvars.checkpoints.timm_files.timm_sources`; ``True``: timm's
            own weights of the tag in the trunk's name, from Hugging Face's cache or the network.

    Raises:
        InputError: If the weights cannot be had, or do not fit.
    """
    path = published_file(trunk) if weights is True else str(weights)
    fresh = [each for each in named_state(trunk) if each.startswith(HEADS) or ADDED.search(each)]
    return load_pretrained(trunk, path, allow_new=fresh)


def load_heads(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Fill all of a segmentor or classifier but its ``backbone``, and return the file's ``meta``.

    Raises:
        InputError: If the file does not fit, or holds a backbone alone.
    """
    heads = nn.ModuleDict(
        {name: part for name, part in model.named_children() if name != 'backbone'}
    )
    report = ConversionReport(f'{path} into the heads of {type(model).__name__}')
    content = read_checkpoint(path)
    tensors = select_weights(content, 'auto', report)
    outside = {
        key: Source(key, value, getattr(value, 'shape', None))
        for key, value in tensors.items()
        if not key.startswith('backbone.')
    }
    meta = read_meta(path, content)
    is_heads_alone = len(outside) == len(tensors) and recorded_trunk(meta, str(path)) is None
    if not outside or is_heads_alone:
        raise InputError(
            f'{path} holds a backbone alone, and predictions need the heads too: give '
            f'a checkpoint of the whole model'
        )
    fitted = fit_tensors(heads, outside, report)
    report.raise_problems('The checkpoint must be one of the model that the config describes.')
    heads.load_state_dict(fitted)
    return meta
