"""Fitting tensors of a file into a network: every name, shape, dtype and value is checked."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mmvars.checkpoints.account import Account, Status
from mmvars.checkpoints.grids import Grid, grid_records, tied_tensors
from mmvars.checkpoints.source import Source, as_float32, tensor_fault
from mmvars.layers import GridTied
from mmvars.networks import TopDown
from mmvars.networks.feedback import LowRankLinear

__all__ = ['fit_tensors']


def fit_tensors(network: TopDown, sources: Mapping[str, Source], account: Account,
                may_be_new: Mapping[str, str] | None = None,
                name_of: Callable[[str], str] = str,
                source_grid: Grid | None = None) -> dict[str, Tensor]:
    """Find, check and convert the tensor of every name of ``network``'s state dict.

    Floating tensors become float32. Tensors that are tied to a patch grid (positions, static
    dictionaries, filters, masks) are resampled from another one, each by the rule of its module.
    Nothing is loaded.

    Args:
        network: What is to be filled; may be on the meta device.
        sources: Network name -> tensor of the file.
        account: Gets one line for each name of either side, problems included.
        may_be_new: Prefix of network names -> reason. Names under it may be missing from the file,
            but only all of them together: half a part is a problem.
        name_of: Network name -> name in the output, for the account.
        source_grid: ``(h, w)`` of the file's patches, where the file does not say it.

    Returns:
        Network name -> tensor; new and faulty names are absent.
    """
    sources, targets, tied = dict(sources), network.state_dict(), tied_tensors(network)
    _factorise(network, sources, account)
    records = grid_records(tied)
    recorded = {record.name: sources.pop(record.name, None) for record in records}
    for record in records:
        targets.pop(record.name, None)
    new_parts = {prefix: reason for prefix, reason in (may_be_new or {}).items()
                 if not any(name.startswith(prefix) for name in sources)}
    fitted, resampled = {}, {}
    for name, target in targets.items():
        if name not in sources:
            if not name.startswith(tuple(new_parts)):
                account.add(Status.MISSING, target=name_of(name), shape=target.shape)
            continue
        source, notes = sources.pop(name), []
        fault = tensor_fault(source.value, target)
        value = source.value if fault else as_float32(source.value, notes)
        if name in tied and not fault:
            record = recorded[tied[name].record]
            value, fault, how = tied[name].fit(value, record, source_grid)
            if how:
                resampled[tied[name].path] = tied[name].module
                notes.append(how)
                account.remark(how)
        status = (Status.BROKEN if fault else
                  Status.USED if value.shape == target.shape else Status.MISSHAPED)
        wanted = None if fault or source.shape == target.shape else target.shape
        account.add(status, source.key, name_of(name), source.shape, wanted,
                    fault or ', '.join(notes))
        if status is Status.USED:
            fitted[name] = value
    for path, module in resampled.items():
        fitted |= _followed(path, module, fitted, account)
    for record in records:
        fitted |= record.fit(recorded[record.name], account, name_of)
    for name in targets:
        for part, reason in new_parts.items():
            if name.startswith(part):
                account.add(Status.NEW, target=name_of(name), shape=targets[name].shape,
                            note=reason)
                break
    for source in sources.values():
        account.add(Status.UNEXPECTED, source.key, shape=source.shape)
    return fitted


def _factorise(network: TopDown, sources: dict[str, Source], account: Account) -> None:
    """Cut full readouts of a file to the rank of the network's."""
    for path, module in network.named_modules():
        full = sources.get(f'{path}.weight')
        if not isinstance(module, LowRankLinear) or full is None:
            continue
        shape = (module.up.out_features, module.down.in_features)
        if tensor_fault(full.value, torch.empty(shape, device='meta')) or full.shape != shape:
            continue  # reported as what it is: of no use here
        del sources[f'{path}.weight']
        for name, factor in module.factors(full.value).items():
            sources[f'{path}.{name}'] = full._replace(value=factor)
        account.remark(f'full readouts cut to rank {module.down.out_features}, the largest '
                       f'singular values')


def _followed(path: str, module: GridTied, fitted: Mapping[str, Tensor],
              account: Account) -> dict[str, Tensor]:
    """Tensors that depend on the resampled ones of a module, as they are now."""
    before = {name.removeprefix(path): value for name, value in fitted.items()
              if name.startswith(path)}
    after = dict(before)
    module.follow_resampling(after)
    changed = {leaf: value for leaf, value in after.items() if value is not before[leaf]}
    for leaf in changed:
        account.remark(f'{leaf} computed anew from what was resampled')
    return {path + leaf: value for leaf, value in changed.items()}
