"""From a file to a network: read, name, fit, report. The one pipeline for loading and converting.

:func:`read_checkpoint` -> :func:`select_weights` -> :func:`name_tensors` -> :func:`fit_tensors` ->
:func:`load_tensors`. Each step puts what becomes of a tensor into a
:class:`~mmvars.checkpoints.ConversionReport`; nothing is changed before all have done so. Names of
tensors start with ``trunk.``, ``prior.`` or ``feedback.``, for plain networks too.
"""

import fnmatch
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mmvars.checkpoints.formats import (
    FORMATS,
    MMVARS,
    Recorded,
    detect_format,
    recorded_mixer,
    stated,
)
from mmvars.checkpoints.io import read_checkpoint, read_meta, tensor_fault, tensors_in
from mmvars.checkpoints.key_mapping import Format, first_match, mixers_seen, shown_options
from mmvars.checkpoints.report import ConversionReport, Status
from mmvars.errors import InputError, check_choice
from mmvars.layers import GridResizeMixin, TokenGrid
from mmvars.networks import PerceiverIO, TopDown, Trunk, rename_old_keys

__all__ = [
    'GRID_RECORD',
    'NEW_PARTS',
    'WEIGHTS',
    'Source',
    'check_constants',
    'check_mixer',
    'check_parts',
    'drop',
    'fit_tensors',
    'load_heads',
    'load_pretrained',
    'load_tensors',
    'name_tensors',
    'named_state',
    'select_weights',
    'shapes_of',
    'source_grids',
    'trunk_of',
    'with_prefix',
]

Grid = tuple[int, int]  # height, width, in patches

GRID_RECORD = 'trained_grid'
"""Name of the buffer in which a module states that its patch grid is not square."""

NEW_PARTS = ('prior.', 'feedback.', 'trunk.prompt_embeddings', 'trunk.deep_prompt_embeddings')
"""Parts that a pretraining may lack: those of an AbSViT in a plain ViT, and prompts."""

WEIGHTS: dict[str, tuple[str, ...]] = {
    'model': ('model', 'state_dict'),
    'ema': ('model_ema', 'state_dict_ema'),
    'teacher': ('teacher',),
    'student': ('student',),
}
"""Kinds of weights -> entries of a file that hold them: as trained, their moving averages, and the
two networks of a self-distillation."""

_SWAPPED = 'ema_state_dict'  # mmengine's EMA hook puts the averages into `state_dict`
_OTHER_ENTRIES = {
    **dict.fromkeys(
        (
            'optimizer',
            'lr_scheduler',
            'scheduler',
            'param_schedulers',
            'scaler',
            'amp_scaler',
            'optim_wrapper',
        ),
        'state of training',
    ),
    'message_hub': 'log of training',
    'args': 'options of the training script',
    'meta': 'description of the training run',
}
_COUNTERS = ('steps', 'n_averaged')  # of averaging wrappers, beside the model's tensors
_WRAPPERS = {
    'module.': 'a parallel or averaging wrapper',
    '_orig_mod.': 'torch.compile',
    'model.': "Lightning's module",
}

_OPENMMLAB_VIT = re.compile(r'(^|\.)layers\.\d+\.(ln1|attn\.attn|ffn\.layers)\.')  # keys of theirs

_REMEDY = (
    'The module was left as it is. Files of the release, timm or DeiT are converted with '
    '`mmvars convert SRC DST --arch ...` (tools/convert_checkpoint.py); parts that a file '
    "is known to lack are named in allow_new, for instance ('prior', 'feedback')."
)

_log = logging.getLogger(__name__)


class Source(NamedTuple):
    """A tensor of a file: key and shape there, and value in the form that the network has."""

    key: str
    value: Any
    shape: tuple[int, ...] | None


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
    each by the rule of its module. Files of mmvars 0.1 are read too.

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
            was made with another token mixer or other constants than the network's.
        TypeError: If ``module`` holds no network of mmvars.
    """
    network = getattr(module, 'network', module)
    if not isinstance(network, (Trunk, TopDown, PerceiverIO)):
        raise TypeError(
            f'module must be a network or a backbone of mmvars, got {type(module).__name__}'
        )
    trunk, current = trunk_of(network), named_state(network)
    new_parts = check_parts(allow_new, network)
    report = ConversionReport(f'{path} into {type(module).__name__}')
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
    names, sources, _ = name_tensors(state_dict, report, pass_through=False)
    if names is not MMVARS and any(name != f'trunk.{each.key}' for name, each in sources.items()):
        raise InputError(f'{report.title}: the file has the names of: {names.title}. {_REMEDY}')
    check_mixer(network, sources, report.title)
    check_constants(
        trunk, recorded_mixer(read_meta(path, content), report.title), report, allow_constants
    )
    if isinstance(trunk.head, nn.Identity):
        sources = drop(
            sources,
            report,
            'classifier, which the module does not have',
            [name for name in sources if name.startswith('trunk.head.')],
        )
    fitted = fit_tensors(
        network, sources, report, new_parts, 'not in the file; keeps its initial values, as allowed'
    )
    report.raise_problems(_REMEDY)
    load_tensors(network, fitted, current)
    _log.info(report.summary())
    return report


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
    if not outside or len(outside) == len(tensors):
        raise InputError(
            f'{path} holds a backbone alone, and predictions need the heads too: give '
            f'a checkpoint of the whole model'
        )
    fitted = fit_tensors(heads, outside, report)
    report.raise_problems('The checkpoint must be one of the model that the config describes.')
    heads.load_state_dict(fitted)
    return read_meta(path, content)


def select_weights(
    content: Any, weights: str, report: ConversionReport, ignore: Sequence[str] = ()
) -> dict[str, Any]:
    """The state dict among the entries of a file, without the prefixes of wrappers.

    ``weights`` is a key of :data:`WEIGHTS`, or ``'auto'`` for the first entry of any. Patterns in
    ``ignore`` leave out entries that may hold tensors.

    Raises:
        InputError: If the file holds no such weights.
    """
    check_choice('weights', weights, ('auto', *WEIGHTS))
    if not isinstance(content, Mapping) or not content:
        raise InputError(
            f'{report.title}: the file holds a {type(content).__name__}, not a dict '
            f'of tensors; save the state dict of the model'
        )
    every = sum(WEIGHTS.values(), ())
    if not set(content) & set(every) and all(isinstance(v, Tensor) for v in content.values()):
        if weights not in ('auto', 'model'):
            raise InputError(
                f'{report.title}: the file is one flat state dict and has no weights '
                f'{weights!r}; leave --weights out'
            )
        return _unwrapped(content, report)
    choices = [entry for entry in WEIGHTS.get(weights, every) if entry in content]
    if _SWAPPED in content and 'state_dict' in content and weights in ('auto', 'model', 'ema'):
        choices = [_SWAPPED if weights == 'model' else 'state_dict']
    if not choices:
        raise InputError(
            f'{report.title}: the file has no entry for --weights {weights} (one of '
            f'{", ".join(WEIGHTS.get(weights, every))}); its entries are '
            f'{", ".join(map(repr, list(content)[:20]))}'
        )
    entry = choices[0]
    averaged = entry in WEIGHTS['ema'] or (entry == 'state_dict' and _SWAPPED in content)
    report.remark(
        f'weights: entry {entry!r}{" (moving averages)" if averaged else ""}, '
        f'{"the default" if weights == "auto" else "as requested"}'
    )
    notes = _OTHER_ENTRIES | dict.fromkeys((*every, _SWAPPED), 'other weights than those chosen')
    for name in [name for name in content if name != entry]:
        note = 'as requested' if _matches(str(name), ignore) else notes.get(name, '')
        if not note and not any(tensor.ndim for _, tensor in tensors_in(content[name])):
            note = 'holds no tensors'
        report.add(
            Status.IGNORED if note else Status.UNEXPECTED,
            f'[{name}]',
            note=note or 'an unknown entry with tensors; --ignore leaves it out',
        )
    if not isinstance(content[entry], Mapping):
        raise InputError(
            f'{report.title}: entry {entry!r} is a {type(content[entry]).__name__}, '
            f'not a state dict'
        )
    return _unwrapped(content[entry], report)


def with_prefix(
    state_dict: Mapping[str, Any], prefix: str, report: ConversionReport
) -> dict[str, Any]:
    """The entries whose keys start with ``prefix``, without it; the others are ignored."""
    start = prefix if not prefix or prefix.endswith('.') else f'{prefix}.'
    others = [key for key in state_dict if not key.startswith(start)]
    if len(others) == len(state_dict):
        raise InputError(
            f'{report.title}: no key starts with prefix {prefix!r}; the keys begin '
            f'with {", ".join(others[:5])}'
        )
    inside = drop(state_dict, report, f'does not start with {start!r}', others)
    return {key.removeprefix(start): value for key, value in inside.items()}


def drop(
    tensors: Mapping[str, Any], report: ConversionReport, reason: str, names: Collection[str]
) -> dict[str, Any]:
    """``tensors`` (values or :class:`Source`) without ``names``, reported as ignored."""
    names = dict.fromkeys(names)
    for name in names:
        report.add(
            Status.IGNORED,
            getattr(tensors[name], 'key', name),
            shape=getattr(tensors[name], 'shape', None),
            note=reason,
        )
    return {name: tensors[name] for name in tensors if name not in names}


def name_tensors(
    state_dict: Mapping[str, Any],
    report: ConversionReport,
    ignore: Sequence[str] = (),
    pass_through: bool = True,
) -> tuple[Format, dict[str, Source], dict[str, Tensor]]:
    """The format of a state dict, its tensors by network name, and those handed on by key.

    Keys that become no tensor of the network get their entry in ``report`` here. Patterns in
    ``ignore`` leave keys out; ``pass_through`` says whether heads of segmentors are handed on.

    Raises:
        InputError: If the keys are those of no known format.
    """
    source = None if any(map(_OPENMMLAB_VIT.search, state_dict)) else detect_format(state_dict)
    if source is None:
        raise InputError(f'{report.title}: {_unknown_names(list(state_dict))}')
    report.remark(f'source names: {source.title}')
    named: dict[str, Source] = {}
    passthrough = {}
    for key, value in state_dict.items():
        shape, (name, axes) = getattr(value, 'shape', None), source.to_network(key) or ('', ())
        name = rename_old_keys([name], plain=False)[name]
        passes = first_match(source.passthrough, key)
        if note := (
            'as requested'
            if _matches(key, ignore)
            else source.reason_to_ignore(key)
            or ('not part of the network' if passes and not pass_through else '')
        ):
            report.add(Status.IGNORED, key, shape=shape, note=note)
        elif refused := first_match(source.refused, key.removeprefix(source.prefix)):
            report.add(Status.REFUSED, key, shape=shape, note=source.refused[refused])
        elif passes:
            fault = tensor_fault(value)
            report.add(
                Status.BROKEN if fault else Status.PASSTHROUGH,
                key,
                None if fault else key,
                shape,
                note=fault,
            )
            passthrough[key] = value
        elif not name or name in named:
            report.add(
                Status.UNEXPECTED,
                key,
                shape=shape,
                note=name and f'names the same tensor as {named[name].key}',
            )
        else:
            if axes and shape is not None and all(shape[axis : axis + 1] == (1,) for axis in axes):
                value = value.squeeze(axes)
            named[name] = Source(key, value, shape)
    return source, named, passthrough


def _unknown_names(keys: list[str]) -> str:
    """What is known of a file whose keys are those of no known format, and the remedy."""
    if any(map(_OPENMMLAB_VIT.search, keys)):
        return (
            'the file is of a VisionTransformer of MMPretrain or MMSegmentation, whose names '
            'mmvars does not convert; take the file of timm, DeiT or the release that it was made '
            'from'
        )
    for prefix in dict.fromkeys(key.split('.')[0] + '.' for key in keys if '.' in key):
        inside = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
        if (source := detect_format(inside)) is not None:
            return (
                f'the keys after {prefix!r} are those of: {source.title}; take them alone with '
                f'--prefix {prefix[:-1]} (prefix={prefix!r})'
            )
    known = ', '.join(f.title for f in FORMATS)
    return (
        f'the keys are those of no known source ({known}); they begin with '
        f'{", ".join(keys[:5]) or "nothing: there are none"}'
    )


def check_mixer(
    network: nn.Module, sources: Mapping[str, Source], title: str, advice: str = ''
) -> None:
    """Refuse a file whose tensors show another mixer than the network's, or other options of it.

    Raises:
        InputError: Naming both mixers, with ``advice``, or each option and both values.
    """
    trunk, expected, shapes = trunk_of(network), shapes_of(named_state(network)), shapes_of(sources)
    ours, file = mixers_seen(expected), mixers_seen(shapes)
    if file and ours and not file.keys() & ours.keys():
        raise InputError(
            f'{title}: the file mixes tokens with {" and ".join(sorted(file))}, the '
            f'network with {" and ".join(sorted(ours))}. Build the network with the '
            f'mixer of the file (leave --mixer out). {advice}'
        )
    options = shown_options(expected, trunk.mixer)
    if others := {
        name: value
        for name, value in shown_options(shapes, trunk.mixer).items()
        if options.get(name, value) != value
    }:
        present = {name: trunk.mixer_cfg.get(name, options[name]) for name in others}
        raise InputError(
            f'{title}: the tensors of the file show {stated(others)}, but the network '
            f'has {stated(present)}. {_build_with(others)}'
        )


def check_constants(
    trunk: Trunk, recorded: Recorded | None, report: ConversionReport, allow: Sequence[str] = ()
) -> None:
    """Refuse a file that was made with other constants than the network's, but for ``allow``.

    Raises:
        InputError: Naming each constant and both values; or an unknown name in ``allow``.
    """
    constants = trunk.mixer_cfg
    if unknown := sorted(set(allow) - set(constants)):
        raise InputError(
            f'allow_constants names {", ".join(unknown)}; the constants of mixer '
            f'{trunk.mixer!r} are {", ".join(constants) or "none"}'
        )
    options = recorded.options if recorded and recorded.mixer == trunk.mixer else None
    if options is None and constants:
        report.remark(f'the file does not say its constants; the network has {stated(constants)}')
    others = {
        name: value
        for name, value in (options or {}).items()
        if name in constants and value != constants[name]
    }
    if refused := {name: value for name, value in others.items() if name not in allow}:
        compared = ', '.join(
            f'{name}={value!r} (network: {constants[name]!r})' for name, value in refused.items()
        )
        raise InputError(
            f'{report.title}: the file was made with {compared}. '
            f'{_build_with(refused)}, or, to run it with other constants on purpose, '
            f'load it with allow_constants={tuple(refused)!r} (in init_cfg, of '
            f'load_pretrained; --cfg-options allow_constants={",".join(refused)})'
        )
    if others:
        report.remark(
            f'other constants than the file was made with, as allowed: '
            f'{stated({name: constants[name] for name in others})} instead of '
            f'{stated(others)}'
        )


def check_parts(allow_new: Sequence[str], network: nn.Module) -> list[str]:
    """``allow_new`` as prefixes of network names; an ``InputError`` if no network has them."""
    parts = {
        part: part if part.startswith(('trunk', 'prior', 'feedback')) else f'trunk.{part}'
        for part in ([allow_new] if isinstance(allow_new, str) else allow_new)
    }
    # A plain ViT may share the init_cfg of its AbSViT twin, so the twin's parts are no mistake.
    known = [*named_state(network), *NEW_PARTS, 'trunk.head.weight', 'trunk.head.bias']
    if unknown := [
        part for part, name in parts.items() if not any(each.startswith(name) for each in known)
    ]:
        raise InputError(
            f'allow_new names parts that no network has: {unknown}; there are '
            f'{sorted({name.split(".")[0] for name in known})}'
        )
    return list(parts.values())


def fit_tensors(
    network: nn.Module,
    sources: Mapping[str, Source],
    report: ConversionReport,
    new_parts: Sequence[str] = (),
    new_note: str = '',
    source_grid: Grid | None = None,
) -> dict[str, Tensor]:
    """Check ``sources`` for every name of ``network``'s state dict. Nothing is loaded.

    Floating tensors become float32. Tensors of another patch grid stay as they are: the modules
    resample them when they are loaded.

    Args:
        network: What is to be filled; may be on the meta device.
        sources: Network name -> tensor of the file.
        report: Gets one entry for each name of either side, problems included.
        new_parts: Prefixes of names that the file may lack, all of a prefix or none.
        new_note: What the report says of them.
        source_grid: ``(h, w)`` of the file's patches, if the file does not say it.

    Returns:
        Network name -> tensor, for :func:`load_tensors`; new and faulty names are absent.
    """
    targets = named_state(network)
    new_parts = [part for part in new_parts if not any(name.startswith(part) for name in sources)]
    shapes, records = shapes_of(targets), []
    fitted, notes, faults = dict[str, Tensor](), dict[str, str](), dict[str, str]()
    for path, module, leaf, grid, fault in source_grids(network, sources, source_grid):
        record, name = path + GRID_RECORD, path + leaf
        records.append(record)
        if grid is None:
            faults[name] = fault
            if name not in sources:  # what stays is for the module's own grid
                fitted.setdefault(record, torch.tensor(module.grid))
            continue
        shapes[name] = _shape_at(module, leaf, grid)
        if record in sources or source_grid is not None:
            fitted[record] = torch.tensor(grid)
        if grid != module.grid:
            notes[name] = _resampled(module, leaf, grid, report)
    sources = drop(
        sources,
        report,
        'the new grid is square and needs no record',
        [name for name in records if name in sources and name not in targets],
    )
    for name, target in targets.items():
        if name not in sources:
            new = (
                'records a grid that is not square'
                if name.endswith(GRID_RECORD)
                else new_note
                if name.startswith(tuple(new_parts))
                else ''
            )
            report.add(
                Status.NEW if new else Status.MISSING, target=name, shape=target.shape, note=new
            )
            continue
        key, value, shape = sources.pop(name)
        fault = faults.get(name) or tensor_fault(value, target)
        details = [fault or notes.get(name, '')]
        if not fault and value.is_floating_point() and value.dtype != torch.float32:
            details.insert(0, f'{value.dtype} -> float32'.replace('torch.', ''))
            value = value.float()
        status = (
            Status.BROKEN
            if fault
            else Status.USED
            if value.shape == shapes[name]
            else Status.MISSHAPED
        )
        report.add(
            status,
            key,
            name,
            shape,
            None if fault or shape == target.shape else target.shape,
            ', '.join(filter(None, details)),
        )
        if status is Status.USED:
            fitted[name] = value
    for source in sources.values():
        report.add(Status.UNEXPECTED, source.key, shape=source.shape)
    return fitted


def load_tensors(
    network: nn.Module,
    fitted: Mapping[str, Tensor],
    rest: Mapping[str, Tensor],
    assign: bool = False,
) -> None:
    """Load what :func:`fit_tensors` returned; modules resample what is for another patch grid.

    ``rest`` holds values, at the grid of ``network``, for names that ``fitted`` lacks. ``assign``
    replaces the tensors of a network on the meta device, instead of copying into them.
    """
    tensors = {name: value for name, value in rest.items() if not name.endswith(GRID_RECORD)}
    tensors |= fitted
    with torch.no_grad():
        network.load_state_dict(
            {name.removeprefix(_start(network)): value for name, value in tensors.items()},
            strict=True,
            assign=assign,
        )


def source_grids(
    network: nn.Module,
    sources: Mapping[str, Source],
    stated_grid: Grid | None = None,
) -> Iterator[tuple[str, GridResizeMixin, str, Grid | None, str]]:
    """The patch grid in a file of each tensor of ``network`` that is made for one grid.

    The file's own record of it counts first, then ``stated_grid``, the user's grid of the
    embedding, then the square grid that the shape shows.

    Yields:
        What stands before the tensor's name, its module, its name in there, the grid (``None`` if
        the file has none or no usable tensor), and what is wrong with the grid.
    """
    for path, module in network.named_modules():
        path = _start(network) + (f'{path}.' if path else '')
        for leaf in module.grid_tensors if isinstance(module, GridResizeMixin) else ():
            target, source = getattr(module, leaf, None), sources.get(path + leaf)
            record, grid, fault = sources.get(path + GRID_RECORD), None, ''
            if not isinstance(target, Tensor):
                continue
            if (
                source is None
                or tensor_fault(source.value, target)
                or source.value.ndim != target.ndim
            ):
                yield path, module, leaf, None, ''
                continue
            if record is not None:
                is_grid = not tensor_fault(record.value, torch.tensor(0)) and record.shape == (2,)
                grid = tuple(record.value.tolist()) if is_grid else (0, 0)
            elif stated_grid is not None:
                trunk = trunk_of(network)
                block = trunk.layer_id(f'{path}{leaf}'.removeprefix('trunk.'))
                grid = (
                    stated_grid
                    if block is None
                    else trunk.block_grids(TokenGrid(*stated_grid))[block][:2]
                )
            try:
                if grid is None:
                    grid = module.infer_grid(leaf, source.value)
                elif min(grid) < 1:
                    fault = 'its grid must be (height, width), two whole numbers of at least 1'
                elif source.value.shape != (shape := _shape_at(module, leaf, grid)):
                    fault = (
                        f'a grid of {grid[0]}x{grid[1]} patches needs shape {shape}, not '
                        f'{tuple(source.value.shape)}'
                    )
            except InputError as error:
                fault = str(error)
            yield path, module, leaf, None if fault else grid, fault


def named_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network in the names of the tables."""
    return {_start(network) + name: value for name, value in network.state_dict().items()}


def trunk_of(network: nn.Module) -> Trunk:
    """The trunk of a network, which for a plain one is the network itself."""
    return network if isinstance(network, Trunk) else cast(Trunk, network.trunk)


def shapes_of(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of tensors, or of the values of :class:`Source`; ``()`` for no tensor."""
    return {
        name: tuple(getattr(getattr(value, 'value', value), 'shape', ()))
        for name, value in tensors.items()
    }


def _start(network: nn.Module) -> str:
    """What the tables have before the names of a network."""
    return 'trunk.' if isinstance(network, Trunk) else ''


def _build_with(options: Mapping[str, Any]) -> str:
    words = ' '.join(f'{name}={value}' for name, value in options.items())
    return f'Build the network with mixer_cfg=dict({stated(options)}) (--mixer-cfg {words})'


def _shape_at(module: GridResizeMixin, leaf: str, grid: Grid) -> tuple[int, ...]:
    table = torch.empty_like(getattr(module, leaf), device='meta')
    return tuple(module.resample(leaf, table, module.grid, grid).shape)


def _resampled(module: GridResizeMixin, leaf: str, grid: Grid, report: ConversionReport) -> str:
    """A note on the resampling of a tensor; the report gets it, and what follows from it."""
    note = '{} resampled from {}x{} to {}x{} patches (height x width) by {}.resample'.format(
        'positions' if leaf == 'pos_embed' else leaf, *grid, *module.grid, type(module).__name__
    )
    report.remark(note)
    before = {name: value.to('meta') for name, value in module.state_dict().items()}
    after = dict(before)
    module.after_resize(after)
    for name in [name for name in after if after[name] is not before[name]]:
        report.remark(f'{name} computed anew from what was resampled')
    return note


def _matches(key: str, ignore: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in ignore)


def _unwrapped(state_dict: Mapping[Any, Any], report: ConversionReport) -> dict[str, Any]:
    """A state dict without the counters of averaging wrappers, and the prefixes of wrappers."""
    tensors = {str(key): value for key, value in state_dict.items()}
    tensors = drop(
        tensors,
        report,
        'counter of an averaging wrapper',
        [
            name
            for name in _COUNTERS
            if isinstance(tensors.get(name), Tensor) and tensors[name].numel() == 1
        ],
    )
    while prefix := next(
        (
            prefix
            for prefix in _WRAPPERS
            if tensors and all(key.startswith(prefix) for key in tensors)
        ),
        None,
    ):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
        report.remark(f'prefix {prefix!r} of {_WRAPPERS[prefix]} removed from every key')
    return tensors
