"""Conversion between the released, timm and mmvars names of a network's tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmvars import __version__
from mmvars.checkpoints.account import Account, Status
from mmvars.checkpoints.constants import (Recorded, mixer_meta, recorded_mixer,
                                          released_args)
from mmvars.checkpoints.containers import select_weights
from mmvars.checkpoints.files import (check_destination, read_checkpoint, read_meta,
                                      write_checkpoint)
from mmvars.checkpoints.fit import fit_tensors
from mmvars.checkpoints.formats import TARGETS, target_format
from mmvars.checkpoints.grids import Grid
from mmvars.checkpoints.mixer_choice import check_variable, choose_mixer
from mmvars.checkpoints.mixers import check_mixer, check_shown
from mmvars.checkpoints.naming import is_head, name_tensors, without_head
from mmvars.checkpoints.rules import Format, reason_for
from mmvars.checkpoints.sizes import (NEW_PARTS, meta_network, refuse_unknown_parts, size_advice,
                                      size_of_source)
from mmvars.checkpoints.source import Source
from mmvars.errors import InputError, check_choice
from mmvars.networks import VARIANTS, TopDown, build_network

__all__ = ['TASKS', 'Conversion', 'convert_checkpoint', 'convert_state_dict']

TASKS = ('segmentation', 'classification')


class Conversion(NamedTuple):
    """The result of :func:`convert_state_dict`.

    Attributes:
        tensors: In the names and the order of the target format.
        account: What became of every tensor of either side.
        container: Key of the dict around the tensors in a file of the target format.
        meta: What an mmvars file says of its token mixer; no tensor shows it.
    """

    tensors: dict[str, Tensor]
    account: Account
    container: str | None
    meta: dict[str, str]


def convert_checkpoint(source: str | Path, destination: str | Path, arch: str, *,
                       weights: str = 'auto', to: str = 'mmvars', ignore: Sequence[str] = (),
                       overwrite: bool = False, **options: Any) -> Account:
    """Convert a file: read safely, account for everything, write tensors only.

    ``to='mmvars'`` writes what both ``init_cfg=dict(type='Pretrained')`` of an mmvars backbone and
    ``load_from`` take.

    Args:
        source: Any file that :func:`~mmvars.checkpoints.files.read_checkpoint` reads.
        destination: ``.pth`` (``.pt``, ``.bin``) or ``.safetensors``.
        arch: See :func:`convert_state_dict`.
        weights: See :func:`~mmvars.checkpoints.containers.select_weights`.
        to: ``'mmvars'``, ``'release'`` or ``'timm'``.
        ignore: Shell-style patterns of keys and entries to leave out.
        overwrite: Whether an existing destination may be replaced.
        **options: See :func:`convert_state_dict`.

    Returns:
        The account.

    Raises:
        InputError: If anything is unaccounted for; then nothing is written.
    """
    account = Account(f'{Path(source).name} -> {Path(destination).name} (--arch {arch})')
    _check_choices(arch, to)
    content = read_checkpoint(source)
    check_destination(destination, source, overwrite)
    state_dict = select_weights(content, weights, account, ignore)
    recorded = recorded_mixer(read_meta(source, content), account.title) or released_args(content)
    tensors, _, container, meta = convert_state_dict(state_dict, arch, to=to, ignore=ignore,
                                                     recorded=recorded, account=account, **options)
    meta |= dict(converted_by=f'mmvars {__version__}', converted_from=Path(source).name, arch=arch)
    write_checkpoint(destination, tensors, container, meta if to == 'mmvars' else None, overwrite)
    return account


def convert_state_dict(state_dict: Mapping[str, Any], arch: str, *, to: str = 'mmvars',
                       mixer: str | None = None, mixer_options: Mapping[str, Any] | None = None,
                       task: str | None = None, img_size: int | tuple[int, int] | None = None,
                       source_grid: Grid | None = None, num_classes: int | None = None,
                       allow_new: Sequence[str] = (), ignore: Sequence[str] = (), seed: int = 0,
                       recorded: Recorded | None = None, account: Account | None = None,
                       **overrides: Any) -> Conversion:
    """Rename the tensors of a state dict, with an account of every one.

    Args:
        state_dict: Key -> tensor, in the names of any known format.
        arch: One of :data:`mmvars.networks.VARIANTS`.
        to: ``'mmvars'``, ``'release'`` or ``'timm'``.
        mixer: Token mixer, one of :data:`mmvars.layers.MIXERS`; ``None`` for the one that the
            tensors show.
        mixer_options: Constants that the weights were trained with (``preset``, ``num_steps``,
            ...), see :func:`mmvars.layers.mixer_options`.
        task: ``'segmentation'`` drops the classifier, ``'classification'`` demands it; ``None``
            keeps what there is.
        img_size: Pixels (side, or height and width) that tensors tied to a grid shall be for;
            ``None`` keeps their grid.
        source_grid: ``(h, w)`` of the source's patches, where they are not square and the source
            does not say.
        num_classes: Rows of a classifier that is allowed to be new.
        allow_new: Prefixes of network names (``'trunk.head'``) that may be missing altogether and
            are then initialised. Prior, feedback and prompts always may.
        ignore: Shell-style patterns of source keys to leave out.
        seed: Of the values of new tensors.
        recorded: What the source itself says of its mixer.
        account: Account to continue.
        **overrides: Arguments of :func:`~mmvars.networks.build_network` for other sizes. Prompts
            are found out; heads do not matter here, or are found out.

    Raises:
        CheckpointError: If a tensor is missing, unexpected, of the wrong shape, or holds NaN; it
            lists all of them and names the ``arch`` that would fit.
        InputError: On an argument that cannot be used, or a mixer or constant that is not the
            source's.
    """
    _check_choices(arch, to)
    account = account or Account(arch)
    read = name_tensors(state_dict, account, ignore, carry=to != 'timm')
    sources, classes = _for_task(task, read.tensors, num_classes, account)
    overrides |= choose_mixer(arch, mixer, mixer_options or {}, recorded, sources, account.title)
    size = size_of_source(arch, sources, img_size, source_grid, **overrides)
    size['num_classes'] = classes
    network = meta_network(arch, **size)
    target = target_format(to, list(network.state_dict()), heads=bool(read.carried))
    check_mixer(network, sources, account.title,
                lambda: ('' if mixer is None else 'Leave --mixer out, or name that of the file. ')
                + f'{size_advice(read.tensors)} Nothing was written.')
    check_shown(network.trunk, sources, account.title,
                'Say --mixer-cfg {words}. Nothing was written.')
    for each in {read.format.name: read.format, target.name: target}.values():
        check_variable(each, network.trunk, account)
    refuse_unknown_parts(allow_new, network)
    may_be_new = NEW_PARTS | dict.fromkeys(allow_new, 'the file has none; initialised afresh, as '
                                           'allowed')
    names = {name: target.from_network(name) for name in network.state_dict()}
    fitted = fit_tensors(network, sources, account, may_be_new,
                         lambda name: names[name][0] if names[name] else name, source_grid)
    _check_names(network, target, to, account)
    _raise_problems(account, read.tensors)
    if any(name not in fitted for name in names if names[name]):
        fitted = _fresh(arch, size, seed, account) | fitted
    tensors = {key: row.from_network(fitted[name]) for name, (key, row) in
               ((name, found) for name, found in names.items() if found)}
    for key, tensor, reason in target.constants(fitted):
        tensors[key] = tensor
        account.add(Status.NEW, target=key, shape=tensor.shape, note=reason)
    tensors = dict(sorted(tensors.items(), key=lambda item: target.position(item[0])))
    tensors |= read.carried
    account.settle_shapes({key: tensor.shape for key, tensor in tensors.items()})
    account.check_complete(state_dict, tensors)
    return Conversion(tensors, account, target.container, mixer_meta(network.trunk))


def _check_choices(arch: str, to: str) -> None:
    check_choice('arch', arch, VARIANTS)
    check_choice('to', to, TARGETS)


def _for_task(task: str | None, sources: dict[str, Source], num_classes: int | None,
              account: Account) -> tuple[dict[str, Source], int]:
    """The tensors that the task needs, and the classes of its network."""
    if task is not None:
        check_choice('task', task, TASKS)
    head = sources.get('trunk.head.weight')
    if task == 'segmentation' or (task is None and not any(map(is_head, sources))):
        return without_head(sources, account, 'classifier, dropped for segmentation'), 0
    rows = num_classes or (head.value.shape[0] if getattr(head and head.value, 'ndim', 0) else 0)
    if not rows:
        raise InputError(f'{account.title}: a classifier is wanted, but the file has none; convert '
                         f'for segmentation (--for segmentation), or start one with --num-classes '
                         f'K --allow-new trunk.head')
    return sources, rows


def _check_names(network: TopDown, target: Format, to: str, account: Account) -> None:
    """See that the target format has a name, or a reason, for every tensor of the network."""
    lines = {line.target: line for line in account.lines if line.target}
    for name, tensor in network.state_dict().items():
        if target.from_network(name) is not None:
            continue
        line = lines.pop(name)
        account.lines.remove(line)
        reason = reason_for(target.unnamed, name)
        if reason and line.source:
            account.add(Status.IGNORED, line.source, shape=tensor.shape, note=reason)
        elif not reason:
            square = name.endswith('.trained_grid')
            account.add(Status.REFUSED, line.source, name, tensor.shape,
                        note=f'--to {to} has no name for it' + (
                            ', its files are for square grids: say --img-size' if square else ''))


def _raise_problems(account: Account, sources: Mapping[str, Source]) -> None:
    misfits = account.of(Status.MISSING, Status.UNEXPECTED, Status.MISSHAPED)
    account.raise_problems(f'{size_advice(sources)} Nothing was written.' if misfits else
                           'Nothing was written.')


def _fresh(arch: str, size: dict[str, Any], seed: int, account: Account) -> dict[str, Tensor]:
    """The state dict of a newly built network; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = build_network(arch, **size).state_dict()
    account.remark(f'new values drawn with seed {seed}')
    return fresh
