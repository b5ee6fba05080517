"""Tensors that are tied to a patch grid: for which grid a file has them, and resampling."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mmvars.checkpoints.account import Account, Status
from mmvars.checkpoints.source import Source, tensor_fault
from mmvars.errors import InputError
from mmvars.layers import GridTied, TokenGrid
from mmvars.networks import TopDown, Trunk

__all__ = ['Grid', 'GridRecord', 'TiedTensor', 'grid_records', 'tied_tensors']

Grid = tuple[int, int]

_RECORD = 'trained_grid'
_BICUBIC = 'bicubic, no antialiasing, align_corners=False'
_PADDED = 'filters keep their size in pixels, zero-padded or cropped'
_HOW = {
    'pos_embed': _BICUBIC,
    'static_atoms': _BICUBIC,
    'attention_mask': f'{_BICUBIC}, over both of its grids',
    'complex_weight': 'bicubic over the frequencies, align_corners=True',
    'dictionary': _PADDED,
    'output_filter': _PADDED,
}
_NAMES = {'pos_embed': 'positions'}


class TiedTensor(NamedTuple):
    """A tensor of a network that is made for one patch grid.

    Attributes:
        module: What it belongs to.
        leaf: Its name there.
        path: What stands before the network names of the module's tensors.
        of_input: Whether the module stands at the grid of the embedding, not at that of a later
            stage.
        place: Grid of the embedding -> that of the module.
    """

    module: GridTied
    leaf: str
    path: str
    of_input: bool
    place: Callable[[Grid], Grid]

    @property
    def record(self) -> str:
        """Network name under which a grid that is not square is recorded."""
        return self.path + _RECORD

    @property
    def ndim(self) -> int:
        return getattr(self.module, self.leaf).ndim

    def source_grid(self, table: Tensor, recorded: Source | None = None,
                    given: Grid | None = None) -> Grid:
        """The patch grid ``(h, w)`` that a file's tensor is for.

        Args:
            table: The tensor, with as many axes as the network's.
            recorded: The grid that the file itself states.
            given: The grid of the embedding that the user states.

        Raises:
            InputError: If it cannot be told, or the tensor does not have the shape for it.
        """
        if recorded is not None:
            fault = tensor_fault(recorded.value, torch.empty(0, dtype=torch.long))
            if fault or recorded.shape != (2, ):
                raise InputError(f'{recorded.key} must hold (height, width), two whole numbers')
            grid = tuple(recorded.value.tolist())
        elif given is not None:
            grid = self.place(given) if len(given) == 2 else tuple(given)
        else:
            return self.module.stored_grid(self.leaf, table)
        if len(grid) != 2 or min(grid) < 1:
            raise InputError(f'a grid is (height, width), each at least 1, got {grid}')
        own = torch.empty_like(getattr(self.module, self.leaf), device='meta')
        wanted = self.module.resample(self.leaf, own, self.module.grid, grid).shape
        if table.shape != wanted:
            raise InputError('a grid of {}x{} patches needs shape {}, not {}'.format(
                *grid, tuple(wanted), tuple(table.shape)))
        return grid

    def fit(self, table: Tensor, recorded: Source | None,
            given: Grid | None) -> tuple[Tensor, str, str]:
        """A file's tensor at the network's grid, what is wrong with it, and how it was resampled.

        Both texts are empty where there is nothing to say.
        """
        if table.ndim != self.ndim:
            return table, '', ''  # a wrong shape, which is reported as such
        try:
            grid = self.source_grid(table, recorded, given)
        except InputError as error:
            return table, str(error), ''
        if grid == self.module.grid:
            return table, '', ''
        note = '{} resampled from {}x{} to {}x{} patches (height x width): {}'.format(
            _NAMES.get(self.leaf, self.leaf), *grid, *self.module.grid, _HOW[self.leaf])
        with torch.no_grad():  # to the last bit what a network does with its own in eval
            return self.module.resample(self.leaf, table, grid, self.module.grid), '', note


def tied_tensors(network: TopDown) -> dict[str, TiedTensor]:
    """Network name -> tensor that is tied to a grid, for all that ``network`` has."""
    tied = {}
    for path, module in network.named_modules():
        if isinstance(module, GridTied) and module.grid is not None:
            for leaf in module.grid_tied:
                if isinstance(getattr(module, leaf), Tensor):
                    name = f'{path}.{leaf}'
                    block = network.trunk.block_index(name.removeprefix('trunk.'))
                    tied[name] = TiedTensor(module, leaf, f'{path}.',
                                            module.grid == network.trunk.grid,
                                            partial(_grid_in, network.trunk, block))
    return tied


def _grid_in(trunk: Trunk, block: int | None, grid: Grid) -> Grid:
    """The grid in a block (``None``: in the embedding) of images with ``grid`` patches."""
    if block is None:
        return tuple(grid)
    placed = trunk.block_grids(TokenGrid(*grid))[block]
    return placed.height, placed.width


class GridRecord(NamedTuple):
    """The entry that says for which grid a module's tensors are; the network's own always wins.

    Attributes:
        name: Its network name.
        grid: The grid, ``None`` for a square one, which needs no entry.
    """

    name: str
    grid: Grid | None

    def fit(self, source: Source | None, account: Account,
            name_of: Callable[[str], str]) -> dict[str, Tensor]:
        """The entry for the network's state dict, with a line about it and the file's."""
        if self.grid is None:
            if source is not None:
                account.add(Status.IGNORED, source.key, shape=source.shape,
                            note='the new grid is square and needs no record')
            return {}
        entry = torch.tensor(self.grid)
        if source is None:
            account.add(Status.NEW, target=name_of(self.name), shape=entry.shape,
                        note='records a grid that is not square')
        else:
            account.add(Status.USED, source.key, name_of(self.name), source.shape)
        return {self.name: entry}


def grid_records(tied: Mapping[str, TiedTensor]) -> list[GridRecord]:
    """One for each module with tied tensors."""
    grids = {each.record: each.module.grid for each in tied.values()}
    return [GridRecord(name, None if grid[0] == grid[1] else grid) for name, grid in grids.items()]
