"""Layouts of released files, written down here apart from the converter's own tables."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

WIDTHS = {'tiny': 192, 'small': 384, 'base': 768}


BATCH_NORM = ('weight', 'bias', 'running_mean', 'running_var')


def _layout(
    name: str,
    classes: int = 1000,
    grid: int | None = None,
    prompts: int = 0,
    attention: str = 'self-att',
) -> dict[str, tuple[int, ...]]:
    if name.startswith('rvt'):
        return _rvt_layout(name, attention)
    if name.startswith('gfnet'):
        return _gfnet_layout(name)
    if name.startswith('deit_convstem'):
        plain = _layout(name.replace('deit_convstem', 'vit'))
        return dict(_with_stem(plain, WIDTHS[name.split('_')[2]]))
    family, size, *gap = name.split('_')  # of all, patch8 with average pooling alone has more
    width, patch = WIDTHS[size], 8 if gap else 16
    rows = 1 + (grid or 224 // patch) ** 2
    shapes: dict[str, tuple[int, ...]] = {}
    if prompts:
        shapes |= {
            'prompt_embeddings': (1, prompts, width),
            'deep_prompt_embeddings': (11, prompts, width),
        }
    shapes |= {'cls_token': (1, 1, width), 'pos_embed': (1, rows, width)}
    if family == 'absvit':
        shapes['prompt'] = (width,)
    shapes |= {
        'patch_embed.proj.weight': (width, 3, patch, patch),
        'patch_embed.proj.bias': (width,),
    }
    parts = {
        'norm1': (width,),
        'attn.qkv': (3 * width, width),
        'attn.proj': (width, width),
        'norm2': (width,),
        'mlp.fc1': (4 * width, width),
        'mlp.fc2': (width, 4 * width),
    }
    for i in range(12):
        for part, shape in parts.items():
            shapes |= {f'blocks.{i}.{part}.weight': shape, f'blocks.{i}.{part}.bias': shape[:1]}
    norm = {'weight': (width,), 'bias': (width,)}
    if not gap:
        shapes |= {f'norm.{leaf}': shape for leaf, shape in norm.items()}
    if family == 'absvit':
        for i in range(12):
            shapes |= {
                f'decoders.{i}.{part}.weight': (width, width) for part in ('linear', 'linear2')
            }
    if gap:
        shapes |= {f'fc_norm.{leaf}': shape for leaf, shape in norm.items()}
    if classes:
        shapes |= {'head.weight': (classes, width), 'head.bias': (classes,)}
    return shapes


def _stem(width: int) -> dict[str, tuple[int, ...]]:
    return {
        'patch_embed.proj.0.weight': (32, 3, 7, 7),
        'patch_embed.proj.0.bias': (32,),
        **_batch_norm('patch_embed.proj.1', 32),
        'patch_embed.proj.3.weight': (width, 32, 4, 4),
        'patch_embed.proj.3.bias': (width,),
    }


def _batch_norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f'{name}.{leaf}': (width,) for leaf in BATCH_NORM} | {f'{name}.num_batches_tracked': ()}


def _linear(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f'{name}.weight': shape, f'{name}.bias': shape[:1]}


def _with_stem(shapes: dict, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for key, shape in shapes.items():
        if key == 'patch_embed.proj.weight':
            yield from _stem(width).items()
        elif key != 'patch_embed.proj.bias':
            yield key, shape


def _gfnet_layout(name: str) -> dict[str, tuple[int, ...]]:
    shapes = {'pos_embed': (1, 196, 256), **_linear('patch_embed.proj', 256, 3, 16, 16)}
    for i in range(12):
        shapes |= {
            **_linear(f'blocks.{i}.norm1', 256),
            f'blocks.{i}.filter.complex_weight': (14, 8, 256, 2),
            **_linear(f'blocks.{i}.norm2', 256),
            **_linear(f'blocks.{i}.mlp.fc1', 1024, 256),
            **_linear(f'blocks.{i}.mlp.fc2', 256, 1024),
        }
    shapes |= {**_linear('norm', 256), **_linear('head', 1000, 256)}
    return dict(_with_stem(shapes, 256)) if 'convstem' in name else shapes


def _rvt_layout(name: str, attention: str) -> dict[str, tuple[int, ...]]:
    _, size, *plus = name.split('_')
    masked = (10 if size == 'tiny' else 5) if plus else 0
    stages = {
        'tiny': [(192, 6, 14, 10), (384, 12, 7, 2)],
        'small': [(384, 6, 14, 12)],
        'base': [(768, 12, 14, 12)],
    }[size]
    shapes = _stem(stages[0][0])
    for s, (width, heads, side, depth) in enumerate(stages):
        for i in range(depth):
            block = _rvt_block(attention, width, heads, side, masked=s == 0 and i < masked)
            shapes |= {f'transformers.{s}.blocks.{i}.{key}': v for key, v in block.items()}
    if size == 'tiny':
        shapes |= _linear('pools.0.conv', 384, 1, 3, 3)
    return shapes | {**_linear('norm', width), **_linear('head', 1000, width)}


def _rvt_block(
    attention: str, width: int, heads: int, side: int, masked: bool
) -> dict[str, tuple[int, ...]]:
    head, features = width // heads, 2 * width // heads
    if attention == 'vars_s':
        half = (side, side // 2 + 1, 2)
        shapes = {
            'kernel': (width, 5, 1, *half),
            'L': (width,),
            'kernel_norm': (),
            'kernel2': (width, 1, 1, *half),
            **_linear('v', width, width),
            **_linear('proj', width, width),
            **_batch_norm('norm1.bn', width),
            **_batch_norm('norm2.bn', width),
        }
    else:
        shapes = _linear('norm1', width)
        if attention != 'self-att':
            shapes['attn.rand_matrix'] = (heads, head, features)
        if attention == 'vars_sd':
            shapes['attn.kernel'] = (1, heads, side**2, features)
        if attention.startswith('vars'):
            atoms = 2 * features if attention == 'vars_sd' else features
            shapes |= {
                'attn.L': (heads,),
                'attn.learned_k': (atoms, atoms),
                'attn.learned_lam': (1,),
                'attn.learned_L': (1,),
            }
        if masked:
            shapes['attn.att_mask'] = (heads, side**2, side**2)
        rows = 2 if attention.startswith('vars') else 3
        shapes |= {
            **_linear('attn.qkv', rows * width, width),
            **_linear('attn.proj', width, width),
            **_linear('norm2', width),
        }
    if width == 768:
        return shapes | {**_linear('mlp.fc1', 3072, 768), **_linear('mlp.fc2', 768, 3072)}
    return shapes | {
        **_linear('mlp.fc1', 4 * width, width, 1, 1),
        **_batch_norm('mlp.bn1', 4 * width),
        **_linear('mlp.dwconv', 4 * width, 1, 3, 3),
        **_batch_norm('mlp.bn2', 4 * width),
        **_linear('mlp.fc2', width, 4 * width, 1, 1),
        **_batch_norm('mlp.bn3', width),
    }


@pytest.fixture(scope='session')
def layout() -> Callable[..., dict[str, tuple[int, ...]]]:
    """Key -> shape of a released file at its real size, in the released order."""
    return _layout


@pytest.fixture(scope='session')
def light() -> Callable[[dict], dict[str, Tensor]]:
    """Tensors of given shapes that take no memory; each holds one number, its own."""

    def make(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        return {
            key: torch.tensor(i)
            if key.endswith('num_batches_tracked')
            else torch.tensor(float(i)).expand(shape)
            for i, (key, shape) in enumerate(shapes.items())
        }

    return make


@pytest.fixture(scope='session')
def network_names() -> Callable[[dict], dict[str, Tensor]]:
    """Tensors of an mmvars file in the names of a network's own state dict."""

    def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        plain = not any(key.startswith('backbone.network.trunk.') for key in tensors)
        head = 'head.' if plain else 'trunk.head.'
        return {
            key.replace('head.fc.', head).replace('backbone.network.', ''): value
            for key, value in tensors.items()
        }

    return rename


@pytest.fixture(scope='session')
def small() -> dict:
    """Size arguments of the recorded networks."""
    return dict(embed_dim=48, depth=3, num_heads=3)


class Payload:
    """What a hostile pickle holds: a call of ``os.system`` that leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.system, (f'touch {self.trace}',)


@pytest.fixture
def payload(tmp_path) -> Payload:
    return Payload(tmp_path / 'executed')


def pytest_assertrepr_compare(op, left, right):
    """Differences of state dicts by key: pytest's own would print every number."""
    if op == '==' and isinstance(left, dict) and isinstance(right, dict):
        return [
            'dicts differ',
            f'only left: {sorted(left.keys() - right.keys())}',
            f'only right: {sorted(right.keys() - left.keys())}',
        ]
    return None
