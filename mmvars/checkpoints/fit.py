"""Fitting tensors of a file into a network: every name, shape, dtype and value is checked."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmvars.checkpoints.account import Account, Status
from mmvars.errors import InputError
from mmvars.layers import resample_positions, square_grid
from mmvars.networks import TopDown

__all__ = ['POSITIONS', 'POSITION_GRID', 'Grid', 'Source', 'fit_tensors', 'positions_grid',
           'tensor_fault']

POSITIONS = 'trunk.pos_embed'
POSITION_GRID = 'trunk.pos_grid'
_PREFIX_ROWS = 1  # the class token's

Grid = tuple[int, int]


class Source(NamedTuple):
    """A tensor of a file: its key there, and what stands under it."""

    key: str
    value: Any


def fit_tensors(network: TopDown, sources: Mapping[str, Source], account: Account,
                may_be_new: Mapping[str, str] | None = None,
                name_of: Callable[[str], str] = str,
                source_grid: Grid | None = None) -> dict[str, Tensor]:
    """Find, check and convert the tensor of every name of ``network``'s state dict.

    Floating tensors become float32. Positions of another grid are resampled (bicubic, no
    antialiasing, corners unaligned). Nothing is loaded.

    Args:
        network: What is to be filled; may be on the meta device.
        sources: Network name -> tensor of the file.
        account: Gets one line for each name of either side, problems included.
        may_be_new: Prefix of network names -> reason. Names under it may be missing from the file,
            but only all of them together: half a part is a problem.
        name_of: Network name -> name in the output, for the account.
        source_grid: ``(h, w)`` of the file's positions, where the file does not say it.

    Returns:
        Network name -> tensor; new and faulty names are absent.
    """
    sources, targets = dict(sources), network.state_dict()
    new_parts = {prefix: reason for prefix, reason in (may_be_new or {}).items()
                 if not any(name.startswith(prefix) for name in sources)}
    fitted = {}
    for name, target in targets.items():
        if name == POSITION_GRID or (name not in sources and name.startswith(tuple(new_parts))):
            continue
        if name not in sources:
            account.add(Status.MISSING, target=name_of(name), shape=target.shape)
            continue
        source, notes = sources.pop(name), []
        fault = tensor_fault(source.value, target)
        value = source.value if fault else _as_float32(source.value, notes)
        if name == POSITIONS and not fault:
            grid = sources.get(POSITION_GRID)
            value, fault, resampling = _resampled(value, grid and grid.value, source_grid, network)
            notes += resampling
            account.remarks += resampling
        shape = getattr(source.value, 'shape', None)
        if fault:
            account.add(Status.BROKEN, source.key, name_of(name), shape, note=fault)
        elif value.shape != target.shape:
            account.add(Status.MISSHAPED, source.key, name_of(name), shape, target.shape,
                        ', '.join(notes))
        else:
            account.add(Status.USED, source.key, name_of(name), shape,
                        None if shape == target.shape else target.shape, ', '.join(notes))
            fitted[name] = value
    fitted |= _grid_entry(targets, sources.pop(POSITION_GRID, None), network, account, name_of)
    for name in targets:
        for part, reason in new_parts.items():
            if name.startswith(part):
                account.add(Status.NEW, target=name_of(name), shape=targets[name].shape,
                            note=reason)
                break
    for source in sources.values():
        account.add(Status.UNEXPECTED, source.key, shape=getattr(source.value, 'shape', None))
    return fitted


def tensor_fault(value: Any, target: Tensor | None = None) -> str:
    """Why ``value`` cannot be the contents of ``target`` (of any tensor if ``None``), or ``''``.

    Shapes are not compared.
    """
    if not isinstance(value, Tensor):
        return f'a {type(value).__name__}, not a tensor'
    if value.is_quantized or value.layout != torch.strided or value.is_meta:
        return f'not a plain dense tensor ({value.dtype}, {value.layout}, {value.device})'
    if target is not None and value.is_floating_point() != target.is_floating_point():
        return f'{value.dtype} where {target.dtype} belongs'
    if value.is_floating_point() and value.numel():
        value = value.float()  # what it will be; a float64 may overflow
        # The extremes are NaN if any value is, and need no temporary of the tensor's size.
        if not all(extreme.isfinite() for extreme in value.aminmax()):
            return (f'{int(value.isnan().sum())} NaN and {int(value.isinf().sum())} infinite of '
                    f'{value.numel()} values')
    return ''


def positions_grid(table: Tensor, recorded: Tensor | None = None,
                   given: Grid | None = None) -> Grid:
    """The patch grid ``(h, w)`` of a file's table of positions ``(1, 1 + h * w, C)``.

    Args:
        table: The positions, with the class token's row first.
        recorded: The grid that the file itself states.
        given: The grid that the user states.

    Raises:
        InputError: If the length of the table fits no such grid, or neither says which.
    """
    if table.ndim != 3 or table.shape[0] != 1:
        raise InputError(f'positions must have shape (1, 1 + h * w, C), got {tuple(table.shape)}')
    patches = table.shape[1] - _PREFIX_ROWS
    if recorded is not None:
        given = tuple(int(side) for side in recorded)
    grid = given or square_grid(patches, 'a table without the class token\'s row')
    if len(grid) != 2 or min(grid) < 1 or grid[0] * grid[1] != patches:
        raise InputError(f'{table.shape[1]} rows of positions are not one class token and a grid '
                         f'of {grid}')
    return grid


def _as_float32(value: Tensor, notes: list[str]) -> Tensor:
    if not value.is_floating_point() or value.dtype == torch.float32:
        return value
    notes.append(f'{value.dtype} -> float32'.replace('torch.', ''))
    return value.float()


def _resampled(table: Tensor, recorded: Tensor | None, given: Grid | None,
               network: TopDown) -> tuple[Tensor, str, list[str]]:
    """The table for the network's grid, what is wrong with it (``''``: nothing), and a note."""
    try:
        grid = positions_grid(table, recorded, given)
    except InputError as error:
        return table, str(error), []
    wanted = tuple(network.trunk.grid)
    if grid == wanted:
        return table, '', []
    note = 'positions resampled from {}x{} to {}x{} patches (height x width): bicubic, no ' \
           'antialiasing, align_corners=False'.format(*grid, *wanted)
    return resample_positions(table, grid, wanted), '', [note]


def _grid_entry(targets: Mapping[str, Tensor], source: Source | None, network: TopDown,
                account: Account, name_of: Callable[[str], str]) -> dict[str, Tensor]:
    """The record of a grid that is not square: always the network's own."""
    if POSITION_GRID not in targets:
        if source is not None:
            account.add(Status.IGNORED, source.key, shape=source.value.shape,
                        note='the new grid is square and needs no record')
        return {}
    shape = targets[POSITION_GRID].shape
    if source is None:
        account.add(Status.NEW, target=name_of(POSITION_GRID), shape=shape,
                    note='records a grid that is not square')
    else:
        account.add(Status.USED, source.key, name_of(POSITION_GRID), shape)
    return {POSITION_GRID: torch.tensor(network.trunk.grid)}
