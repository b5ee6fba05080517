"""The size of the network that a file was made for."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmvars.checkpoints.fit import POSITION_GRID, POSITIONS, Grid, Source, positions_grid
from mmvars.checkpoints.naming import is_head
from mmvars.errors import InputError
from mmvars.networks import SIZES, VARIANTS, TopDown, build_network

__all__ = ['NEW_PARTS', 'refuse_unknown_parts', 'size_advice', 'size_of_source']

_FRESH = 'the file has none; initialised as for training from scratch: '
NEW_PARTS = {
    'prior.': _FRESH + 'normal, std 1',
    'feedback.': _FRESH + 'truncated normal, std 0.02',
    'trunk.prompt_embeddings': _FRESH + 'uniform, Glorot bound of a patch embedding',
    'trunk.deep_prompt_embeddings': _FRESH + 'uniform, Glorot bound of a patch embedding',
}
"""Parts that a pretraining may lack: those of an AbSViT in a plain ViT, and prompts."""


def refuse_unknown_parts(allow_new: Sequence[str], network: TopDown) -> None:
    """Refuse prefixes that no network has: a typing error there would allow nothing, unseen.

    Raises:
        InputError: With the prefixes, and the parts there are.
    """
    # A plain ViT may share the init_cfg of its AbSViT twin, so the twin's parts are no mistake.
    known = [*network.state_dict(), *NEW_PARTS, 'trunk.head.weight', 'trunk.head.bias']
    strangers = [part for part in allow_new if not any(name.startswith(part) for name in known)]
    if strangers:
        raise InputError(f'allow_new names parts that no network has: {strangers}; there are '
                         f'{sorted({name.split(".")[0] for name in known})}')


def size_of_source(arch: str, sources: Mapping[str, Source],
                   img_size: int | tuple[int, int] | None = None, source_grid: Grid | None = None,
                   **overrides: Any) -> dict[str, Any]:
    """Arguments of :func:`~mmvars.networks.build_network` for a file, beside the name.

    What the named size leaves open is read off the tensors: classes, prompts, and, without
    ``img_size``, the size of image that the positions are for.

    Args:
        arch: One of :data:`~mmvars.networks.VARIANTS`.
        sources: Network name -> tensor of the file.
        img_size: Pixels (side, or height and width) that the positions shall be for.
        source_grid: ``(h, w)`` of the file's positions, where the file does not say it.
        **overrides: Win over everything.
    """
    size: dict[str, Any] = dict(num_classes=_rows(sources, 'trunk.head.weight', 0))
    prompts = _rows(sources, 'trunk.prompt_embeddings', 1)
    if prompts:
        size |= dict(num_prompt_tokens=prompts,
                     deep_prompts='trunk.deep_prompt_embeddings' in sources)
    if 'embed_dim' in overrides:
        size['num_heads'] = 1  # no tensor depends on it, and 1 divides every width
    patch_size = (SIZES[arch.split('_', 1)[1]] | overrides)['patch_size']
    grid = _grid(sources, source_grid)
    if img_size is not None:
        size['img_size'] = img_size
    elif grid is not None:
        size['img_size'] = tuple(side * patch_size for side in grid)
    return size | overrides


def size_advice(sources: Mapping[str, Source]) -> str:
    """Which network would fit, as a sentence; the widths and depths found if none does."""
    archs = [arch for arch in VARIANTS if _fits(arch, sources)]
    if archs:
        return f'The tensors fit --arch {" or ".join(archs)}.'
    cls_token, patches = (_value(sources, name) for name in ('trunk.cls_token',
                                                             'trunk.patch_embed.proj.weight'))
    depth = len({match[1] for name in sources
                 if (match := re.match(r'trunk\.blocks\.(\d+)\.', name))})
    found = dict(embed_dim=None if cls_token is None else cls_token.shape[-1], depth=depth or None,
                 patch_size=None if patches is None else patches.shape[-1])
    told = ', '.join(f'{name} {value}' for name, value in found.items() if value)
    return (f'No named size fits all tensors. The file looks like {told}; sizes of your own are '
            f'given with --embed-dim, --depth and so on.' if told else
            'No named size fits, and the file shows no part of a ViT.')


def _fits(arch: str, sources: Mapping[str, Source]) -> bool:
    with torch.device('meta'):
        network = build_network(arch, **size_of_source(arch, sources, img_size=224))
    targets = _shapes(network.state_dict().items())
    found = _shapes((name, source.value) for name, source in sources.items())
    lacking = [name for name in targets if name not in found and not is_head(name)
               and not name.startswith(tuple(NEW_PARTS))]
    return not lacking and all(targets.get(name) == shape for name, shape in found.items())


def _shapes(tensors: Iterable[tuple[str, Any]]) -> dict[str, tuple[int, ...] | None]:
    """Shapes by name, but for the positions, whose length is no matter of size."""
    return {name: getattr(value, 'shape', None) for name, value in tensors
            if name not in (POSITIONS, POSITION_GRID)}


def _value(sources: Mapping[str, Source], name: str) -> Tensor | None:
    value = sources[name].value if name in sources else None
    return value if isinstance(value, Tensor) and value.ndim else None


def _rows(sources: Mapping[str, Source], name: str, axis: int) -> int:
    value = _value(sources, name)
    return value.shape[axis] if value is not None and value.ndim > axis else 0


def _grid(sources: Mapping[str, Source], source_grid: Grid | None) -> Grid | None:
    """The grid of the file's positions; ``None`` where they are missing or faulty, which
    :func:`~mmvars.checkpoints.fit.fit_tensors` reports.
    """
    table = _value(sources, POSITIONS)
    if table is None:
        return None
    try:
        return positions_grid(table, _value(sources, POSITION_GRID), source_grid)
    except InputError:
        return None
