"""Parts that a file has in another form than the networks of mmvars: joined, folded, resampled."""

import re
from collections.abc import Iterable, Iterator, Mapping

import torch
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor

from mmvars.checkpoints.naming import Source
from mmvars.checkpoints.report import ConversionReport, Status

__all__ = ['add_class_position', 'fold_layer_scale', 'join_projections', 'resample_patches']


def join_projections(sources: Mapping[str, Source], report: ConversionReport) -> dict[str, Source]:
    """``sources`` with query, key and value projections joined to one, where a file has three."""
    joined = dict(sources)
    for block, leaf in _matches(sources, r'(.+\.attn\.)q_proj\.(.+)'):
        names = [f'{block}{part}_proj.{leaf}' for part in 'qkv']
        if leaf == 'bias' and names[1] not in joined:  # DINOv3 has none of the key
            zeros = torch.zeros_like(joined[names[0]].value)
            joined[names[1]] = Source('', zeros, None)
        if len({_shape(joined, name) for name in names}) > 1:
            continue  # each is reported as unexpected, and the joined one as missing
        query, key, value = (joined.pop(name) for name in names)
        joined[f'{block}qkv.{leaf}'] = Source(
            query.key,
            torch.cat([query.value, key.value, value.value]),
            query.shape,
            'query, key and value one below the other',
        )
        for other in (each for each in (key, value) if each.key):
            report.add(Status.MERGED, other.key, shape=other.shape, note=f'below {query.key}')
    return joined


def fold_layer_scale(sources: Mapping[str, Source], report: ConversionReport) -> dict[str, Source]:
    """``sources`` with layer scales multiplied into the layers before them.

    ``gamma * (W x + b) = (gamma W) x + gamma b``, in float32.
    """
    folded = dict(sources)
    for scale, layer in (('ls1', 'attn.proj'), ('ls2', 'mlp.fc2')):
        for (block,) in _matches(sources, rf'(.+\.){scale}\.gamma'):
            name, weight, bias = (
                f'{block}{scale}.gamma',
                f'{block}{layer}.weight',
                f'{block}{layer}.bias',
            )
            shape = _shape(folded, name)
            if (
                len(shape) != 1
                or _shape(folded, weight)[:1] != shape
                or _shape(folded, bias) != shape
            ):
                continue  # is refused later, as what is left over
            gamma = folded.pop(name)
            for each, factor in (
                (weight, gamma.value.float()[:, None]),
                (bias, gamma.value.float()),
            ):
                folded[each] = folded[each]._replace(
                    value=factor * folded[each].value.float(), note='rows times the layer scale'
                )
            report.add(
                Status.MERGED, gamma.key, shape=gamma.shape, note=f'factor of the rows of {layer}'
            )
    return folded


def add_class_position(
    sources: Mapping[str, Source], source_grid: tuple[int, int] | None
) -> dict[str, Source]:
    """``sources`` with a position of zero for the class token, if positions are for patches alone.

    That is how DeiT III has them. Without ``source_grid``, ``(h, w)`` of
    the patches, their number alone tells: a square, where one less is none.
    """
    name, rows = 'trunk.pos_embed', _shape(sources, 'trunk.pos_embed')[1:2]
    if 'trunk.cls_token' not in sources or 'trunk.trained_grid' in sources or not rows:
        return dict(sources)
    height, width = source_grid or [round(rows[0] ** 0.5)] * 2
    if rows[0] != height * width:
        return dict(sources)
    table = sources[name]
    return dict(sources) | {
        name: table._replace(
            value=torch.cat([torch.zeros_like(table.value[:, :1]), table.value], dim=1),
            note='and a row of zeros for the class token',
        )
    }


def resample_patches(
    sources: Mapping[str, Source], target: Tensor | None, report: ConversionReport
) -> dict[str, Source]:
    """``sources`` with the patch embedding for patches of the size of ``target``, by timm's rule.

    A linear map after which the embedding of a resized patch is as near as possible to that of the
    patch (pseudo-inverse of the bicubic resizing).
    """
    name = 'trunk.patch_embed.proj.weight'
    shape = _shape(sources, name)
    if target is None or len(shape) != 4 or shape[:2] != target.shape[:2] or shape == target.shape:
        return dict(sources)
    (*_, height, width), size = shape, [*target.shape[2:]]
    note = f'patches resampled from {height}x{width} to {size[0]}x{size[1]} pixels by timm'
    report.remark(note)
    weight = sources[name]
    value = resample_patch_embed(weight.value.float(), size)
    return dict(sources) | {name: weight._replace(value=value, note=note)}


def _matches(names: Iterable[str], pattern: str) -> Iterator[tuple[str, ...]]:
    return (match.groups() for name in names if (match := re.fullmatch(pattern, name)))


def _shape(sources: Mapping[str, Source], name: str) -> tuple[int, ...]:
    """Shape of a floating tensor, ``()`` where there is none."""
    value = sources[name].value if name in sources else None
    return tuple(value.shape) if isinstance(value, Tensor) and value.is_floating_point() else ()
