"""The size of the network that a file was made for."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmvars.checkpoints.constants import stated
from mmvars.checkpoints.grids import Grid, tied_tensors
from mmvars.checkpoints.mixers import mixers_seen, shown_options
from mmvars.checkpoints.naming import is_head
from mmvars.checkpoints.source import Source
from mmvars.errors import InputError
from mmvars.networks import TRUNKS, VARIANTS, TopDown, build_network

__all__ = ['NEW_PARTS', 'meta_network', 'refuse_unknown_parts', 'size_advice', 'size_of_source']

_FRESH = 'the file has none; initialised as for training from scratch: '
NEW_PARTS = {
    'prior.': _FRESH + 'normal, std 1',
    'feedback.': _FRESH + 'truncated normal, std 0.02',
    'trunk.prompt_embeddings': _FRESH + 'uniform, Glorot bound of a patch embedding',
    'trunk.deep_prompt_embeddings': _FRESH + 'uniform, Glorot bound of a patch embedding',
}
"""Parts that a pretraining may lack: those of an AbSViT in a plain ViT, and prompts."""

_BLOCK = re.compile(r'trunk\.(?:stages\.(\d+)\.)?blocks\.(\d+)\.(.+)')
_BY_HEAD = ('attn.random_features', 'attn.attention_mask')  # their first axis counts the heads


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


def meta_network(arch: str, **size: Any) -> TopDown:
    """:func:`~mmvars.networks.build_network` on the meta device: names and shapes, to look at."""
    return _meta_network(arch, json.dumps(size, sort_keys=True))


@functools.lru_cache(maxsize=32)  # a conversion asks for the same one up to three times
def _meta_network(arch: str, size: str) -> TopDown:
    with torch.device('meta'):
        return build_network(arch, **json.loads(size))


def size_of_source(arch: str, sources: Mapping[str, Source],
                   img_size: int | tuple[int, int] | None = None, source_grid: Grid | None = None,
                   **overrides: Any) -> dict[str, Any]:
    """Arguments of :func:`~mmvars.networks.build_network` for a file, beside the name.

    What the named size leaves open is read off the tensors: classes, prompts, heads, and, without
    ``img_size``, the size of image that tensors tied to a grid are for.

    Args:
        arch: One of :data:`~mmvars.networks.VARIANTS`.
        sources: Network name -> tensor of the file.
        img_size: Pixels (side, or height and width) that those tensors shall be for.
        source_grid: ``(h, w)`` of the file's patches, where the file does not say it.
        **overrides: Win over everything.
    """
    size: dict[str, Any] = dict(num_classes=_length(sources, 'trunk.head.weight', 0))
    prompts = _length(sources, 'trunk.prompt_embeddings', 1)
    if prompts:
        size |= dict(num_prompt_tokens=prompts,
                     deep_prompts='trunk.deep_prompt_embeddings' in sources)
    if 'embed_dim' in overrides:
        size['num_heads'] = _heads(sources, overrides['embed_dim'])
    size |= overrides
    if img_size is None:
        img_size = _img_size(meta_network(arch, **size), sources, source_grid)
    return size if img_size is None else size | dict(img_size=img_size)


def size_advice(sources: Mapping[str, Source]) -> str:
    """Which network would fit, as a sentence; the widths and depths found if none does."""
    stages = _stages(sources)
    fits = [words for arch in VARIANTS if stages == _stages_of(arch)
            and (words := _words_of_fit(arch, sources))]
    if fits:
        return f'The tensors fit --arch {" or ".join(fits)}.'
    patches = _value(sources, 'trunk.patch_embed.proj.weight')
    found = dict(embed_dim=' '.join(str(width) for width, _ in stages),
                 depth=' '.join(str(depth) for _, depth in stages),
                 patch_size=None if patches is None else patches.shape[-1])
    told = ', '.join(f'{name} {value}' for name, value in found.items() if value)
    return (f'No named size fits all tensors. The file looks like {told}; sizes of your own are '
            f'given with --embed-dim, --depth and so on.' if told else
            'No named size fits, and the file shows no part of a network of mmvars.')


def _words_of_fit(arch: str, sources: Mapping[str, Source]) -> str:
    """``arch`` and the options that make it fit the file, as for the command line; or ``''``."""
    prompts = _length(sources, 'trunk.prompt_embeddings', 1)
    deep = 'trunk.deep_prompt_embeddings' in sources
    if _fits(_shapes(arch, None, '', prompts, deep), sources):
        return arch
    for mixer in mixers_seen(sources):
        shown = {name: value for name, (value, _) in shown_options(sources, mixer).items()}
        usual = _shapes(arch, mixer, '', prompts, deep)
        if _fits(usual, sources):
            return f'{arch} --mixer {mixer}'
        if _fits(_shapes(arch, mixer, json.dumps(shown), prompts, deep), sources):
            return f'{arch} --mixer {mixer} --mixer-cfg {stated(shown).replace(",", "")}'
    return ''


@functools.lru_cache(maxsize=256)  # one for each arch and mixer
def _shapes(arch: str, mixer: str | None, options: str, prompts: int,
            deep: bool) -> dict[str, tuple[int, ...] | None]:
    """Shapes by name, ``None`` where the grid decides; empty where there is no such network."""
    size: dict[str, Any] = dict(num_classes=0)
    if mixer:
        size |= dict(mixer=mixer, mixer_options=json.loads(options or '{}'))
    if prompts:
        size |= dict(num_prompt_tokens=prompts, deep_prompts=deep)
    try:
        network = meta_network(arch, **size)
    except InputError:
        return {}
    tied = tied_tensors(network)
    records = {each.record for each in tied.values()}
    return {name: None if name in tied else tuple(tensor.shape)
            for name, tensor in network.state_dict().items() if name not in records}


def _fits(targets: Mapping[str, tuple[int, ...] | None], sources: Mapping[str, Source]) -> bool:
    found = {name: getattr(source.value, 'shape', None) for name, source in sources.items()
             if not is_head(name) and not name.endswith('.trained_grid')}
    lacking = [name for name in targets if name not in found
               and not name.startswith(tuple(NEW_PARTS))]
    return bool(targets) and not lacking and all(
        name in targets and (targets[name] is None or targets[name] == shape)
        for name, shape in found.items())


def _img_size(network: TopDown, sources: Mapping[str, Source],
              source_grid: Grid | None) -> tuple[int, int] | None:
    """Pixels that the file's tensors are for; ``None`` where none says, or the ones that do are
    faulty, which :func:`~mmvars.checkpoints.fit.fit_tensors` reports.
    """
    for name, tied in tied_tensors(network).items():
        table = _value(sources, name)
        if table is None or not tied.of_input or table.ndim != tied.ndim:
            continue
        try:
            grid = tied.source_grid(table, sources.get(tied.record), source_grid)
        except InputError:
            return None
        return tuple(side * network.trunk.patch_embed.patch_size for side in grid)
    return None


def _heads(sources: Mapping[str, Source], embed_dim: int | Sequence[int]) -> int | list[int]:
    """Heads of each stage. Where no tensor depends on them it is 1, which divides every width."""
    found = {}
    for name in sources:
        match = _BLOCK.fullmatch(name)
        value = _value(sources, name)
        if match and match[3] in _BY_HEAD and value is not None:
            found[int(match[1] or 0)] = value.shape[0]
    if isinstance(embed_dim, int):
        return found.get(0, 1)
    return [found.get(stage, 1) for stage in range(len(embed_dim))]


def _stages(sources: Mapping[str, Source]) -> list[tuple[int, int]]:
    """Width and number of blocks of each stage, as far as the tensors show them."""
    widths, blocks = {}, {}
    for name in sources:
        if match := _BLOCK.fullmatch(name):
            stage, value = int(match[1] or 0), _value(sources, name)
            blocks.setdefault(stage, set()).add(match[2])
            if match[3] == 'mlp.fc2.bias' and value is not None:
                widths[stage] = value.shape[0]
    return [(widths[stage], len(blocks[stage])) for stage in sorted(widths)]


def _stages_of(arch: str) -> list[tuple[int, int]]:
    """The same for a named size."""
    size = TRUNKS[arch.replace('absvit_', 'vit_')][1]
    width, depth = size['embed_dim'], size['depth']
    return [(width, depth)] if isinstance(width, int) else list(zip(width, depth, strict=True))


def _value(sources: Mapping[str, Source], name: str) -> Tensor | None:
    value = sources[name].value if name in sources else None
    return value if isinstance(value, Tensor) and value.ndim else None


def _length(sources: Mapping[str, Source], name: str, axis: int) -> int:
    value = _value(sources, name)
    return value.shape[axis] if value is not None and value.ndim > axis else 0
