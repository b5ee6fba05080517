"""Tensors by network name, compared with a network, at its patch grid or another, and loaded."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmvars.checkpoints.formats import NOT_OURS
from mmvars.checkpoints.io import tensor_fault
from mmvars.checkpoints.key_mapping import first_match
from mmvars.checkpoints.naming import Source
from mmvars.checkpoints.report import ConversionReport, Status
from mmvars.checkpoints.weights import drop
from mmvars.errors import InputError
from mmvars.layers import GridResizeMixin, TokenGrid
from mmvars.networks import Trunk

__all__ = [
    'GRID_RECORD',
    'NEW_PARTS',
    'check_parts',
    'fit_tensors',
    'load_tensors',
    'named_state',
    'shapes_of',
    'source_grids',
    'trunk_of',
]

Grid = tuple[int, int]  # height, width, in patches


GRID_RECORD = 'trained_grid'
"""Name of the buffer in which a module states that its patch grid is not square."""

NEW_PARTS = ('prior.', 'feedback.', 'trunk.prompt_embeddings', 'trunk.deep_prompt_embeddings')
"""Parts that a pretraining may lack: those of an AbSViT in a plain ViT, and prompts."""


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
        key, value, shape, note = sources.pop(name)
        fault = faults.get(name) or tensor_fault(value, target)
        details = [note, fault or notes.get(name, '')]
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
    for name, source in sources.items():
        note = NOT_OURS.get(first_match(NOT_OURS, name), '')
        status = Status.REFUSED if note else Status.UNEXPECTED
        report.add(status, source.key, shape=source.shape, note=note)
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
