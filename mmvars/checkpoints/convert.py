"""Conversion between the released, timm and mmvars names of a network's tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmvars import __version__
from mmvars.checkpoints.account import Account, Status
from mmvars.checkpoints.containers import select_weights
from mmvars.checkpoints.files import check_destination, read_checkpoint, write_checkpoint
from mmvars.checkpoints.fit import Grid, Source, fit_tensors
from mmvars.checkpoints.formats import RELEASE, RELEASE_SEGMENTOR, TARGETS
from mmvars.checkpoints.naming import is_head, name_tensors, without_head
from mmvars.checkpoints.rules import Format, reason_for
from mmvars.checkpoints.sizes import NEW_PARTS, refuse_unknown_parts, size_advice, size_of_source
from mmvars.errors import InputError
from mmvars.networks import VARIANTS, TopDown, build_network

__all__ = ['TASKS', 'Conversion', 'convert_checkpoint', 'convert_state_dict']

TASKS = ('segmentation', 'classification')


class Conversion(NamedTuple):
    """The result of :func:`convert_state_dict`.

    Attributes:
        tensors: In the names and the order of the target format.
        account: What became of every tensor of either side.
        container: Key of the dict around the tensors in a file of the target format.
    """

    tensors: dict[str, Tensor]
    account: Account
    container: str | None


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
    tensors, _, container = convert_state_dict(state_dict, arch, to=to, ignore=ignore,
                                               account=account, **options)
    meta = dict(converted_by=f'mmvars {__version__}', converted_from=Path(source).name, arch=arch)
    write_checkpoint(destination, tensors, container, meta if to == 'mmvars' else None, overwrite)
    return account


def convert_state_dict(state_dict: Mapping[str, Any], arch: str, *, to: str = 'mmvars',
                       task: str | None = None, img_size: int | tuple[int, int] | None = None,
                       source_grid: Grid | None = None, num_classes: int | None = None,
                       allow_new: Sequence[str] = (), ignore: Sequence[str] = (), seed: int = 0,
                       account: Account | None = None, **overrides: Any) -> Conversion:
    """Rename the tensors of a state dict, with an account of every one.

    Args:
        state_dict: Key -> tensor, in the names of any known format.
        arch: One of :data:`mmvars.networks.VARIANTS`.
        to: ``'mmvars'``, ``'release'`` or ``'timm'``.
        task: ``'segmentation'`` drops the classifier, ``'classification'`` demands it; ``None``
            keeps what there is.
        img_size: Pixels (side, or height and width) that the positions shall be for; ``None``
            keeps their grid.
        source_grid: ``(h, w)`` of the source's positions, where they are not square and the source
            does not say.
        num_classes: Rows of a classifier that is allowed to be new.
        allow_new: Prefixes of network names (``'trunk.head'``) that may be missing altogether and
            are then initialised. Prior, feedback and prompts always may.
        ignore: Shell-style patterns of source keys to leave out.
        seed: Of the values of new tensors.
        account: Account to continue.
        **overrides: Arguments of :func:`~mmvars.networks.build_network` for other sizes. Prompts
            are found out; heads do not matter here.

    Raises:
        CheckpointError: If a tensor is missing, unexpected, of the wrong shape, or holds NaN; it
            lists all of them and names the ``arch`` that would fit.
        InputError: On an argument that cannot be used.
    """
    _check_choices(arch, to)
    account = account or Account(arch)
    read = name_tensors(state_dict, account, ignore, carry=to != 'timm')
    target = RELEASE_SEGMENTOR if to == RELEASE.name and read.carried else TARGETS[to]
    sources, classes = _for_task(task, read.tensors, num_classes, account)
    size = size_of_source(arch, sources, img_size, source_grid, **overrides)
    size['num_classes'] = classes
    with torch.device('meta'):
        network = build_network(arch, **size)
    refuse_unknown_parts(allow_new, network)
    may_be_new = NEW_PARTS | dict.fromkeys(allow_new, 'the file has none; initialised afresh, as '
                                           'allowed')
    fitted = fit_tensors(network, sources, account, may_be_new,
                         lambda name: target.from_network(name) or name, source_grid)
    _check_names(network, target, account)
    _raise_problems(account, read.tensors)
    if account.of(Status.NEW):
        fitted = _fresh(arch, size, seed, account) | fitted
    tensors = {key: fitted[name] for name in network.state_dict()
               if (key := target.from_network(name)) is not None}
    tensors = dict(sorted(tensors.items(), key=lambda item: target.position(item[0])))
    tensors |= read.carried
    account.check_complete(state_dict, tensors)
    return Conversion(tensors, account, target.container)


def _check_choices(arch: str, to: str) -> None:
    if arch not in VARIANTS:
        raise InputError(f'arch must be one of {", ".join(VARIANTS)}; got {arch!r}')
    if to not in TARGETS:
        raise InputError(f'to must be one of {", ".join(TARGETS)}; got {to!r}')


def _for_task(task: str | None, sources: dict[str, Source], num_classes: int | None,
              account: Account) -> tuple[dict[str, Source], int]:
    """The tensors that the task needs, and the classes of its network."""
    if task not in (None, *TASKS):
        raise InputError(f'task must be one of {", ".join(TASKS)}; got {task!r}')
    head = sources.get('trunk.head.weight')
    if task == 'segmentation' or (task is None and not any(map(is_head, sources))):
        return without_head(sources, account, 'classifier, dropped for segmentation'), 0
    rows = num_classes or (head.value.shape[0] if getattr(head and head.value, 'ndim', 0) else 0)
    if not rows:
        raise InputError(f'{account.title}: a classifier is wanted, but the file has none; convert '
                         f'for segmentation (--for segmentation), or start one with --num-classes '
                         f'K --allow-new trunk.head')
    return sources, rows


def _check_names(network: TopDown, target: Format, account: Account) -> None:
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
            account.add(Status.REFUSED, line.source, name, tensor.shape,
                        note=f'--to {target.name} has no name for it')


def _raise_problems(account: Account, sources: Mapping[str, Source]) -> None:
    misfits = account.of(Status.MISSING, Status.UNEXPECTED, Status.MISSHAPED)
    account.raise_problems(f'{size_advice(sources)} Nothing was written.' if misfits else
                           'Nothing was written.')


def _fresh(arch: str, size: dict[str, Any], seed: int, account: Account) -> dict[str, Tensor]:
    """The state dict of a newly built network; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = build_network(arch, **size).state_dict()
    account.remarks.append(f'new values drawn with seed {seed}')
    return fresh
