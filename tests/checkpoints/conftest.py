"""Layouts of released files, written down here apart from the converter's own tables."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

WIDTHS = {'tiny': 192, 'small': 384, 'base': 768}


def _layout(name: str, classes: int = 1000, grid: int | None = None,
            prompts: int = 0) -> dict[str, tuple[int, ...]]:
    family, size, patch, *gap = name.split('_')
    width, patch = WIDTHS[size], int(patch.removeprefix('patch'))
    rows = 1 + (grid or 224 // patch)**2
    shapes: dict[str, tuple[int, ...]] = {}
    if prompts:
        shapes |= {'prompt_embeddings': (1, prompts, width),
                   'deep_prompt_embeddings': (11, prompts, width)}
    shapes |= {'cls_token': (1, 1, width), 'pos_embed': (1, rows, width)}
    if family == 'absvit':
        shapes['prompt'] = (width, )
    shapes |= {'patch_embed.proj.weight': (width, 3, patch, patch),
               'patch_embed.proj.bias': (width, )}
    parts = {'norm1': (width, ), 'attn.qkv': (3 * width, width), 'attn.proj': (width, width),
             'norm2': (width, ), 'mlp.fc1': (4 * width, width), 'mlp.fc2': (width, 4 * width)}
    for i in range(12):
        for part, shape in parts.items():
            shapes |= {f'blocks.{i}.{part}.weight': shape, f'blocks.{i}.{part}.bias': shape[:1]}
    norm = {'weight': (width, ), 'bias': (width, )}
    if not gap:
        shapes |= {f'norm.{leaf}': shape for leaf, shape in norm.items()}
    if family == 'absvit':
        for i in range(12):
            shapes |= {f'decoders.{i}.{part}.weight': (width, width)
                       for part in ('linear', 'linear2')}
    if gap:
        shapes |= {f'fc_norm.{leaf}': shape for leaf, shape in norm.items()}
    if classes:
        shapes |= {'head.weight': (classes, width), 'head.bias': (classes, )}
    return shapes


@pytest.fixture(scope='session')
def layout() -> Callable[..., dict[str, tuple[int, ...]]]:
    """Key -> shape of a released file at its real size, in the released order."""
    return _layout


@pytest.fixture(scope='session')
def light() -> Callable[[dict], dict[str, Tensor]]:
    """Tensors of given shapes that take no memory; each holds one number, its own."""

    def make(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        return {key: torch.tensor(float(i)).expand(shape)
                for i, (key, shape) in enumerate(shapes.items())}

    return make


@pytest.fixture(scope='session')
def small() -> dict:
    """Size arguments of the recorded networks."""
    return dict(embed_dim=48, depth=3, num_heads=3)


class Payload:
    """What a hostile pickle holds: a call of ``os.system`` that leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.system, (f'touch {self.trace}', )


@pytest.fixture
def payload(tmp_path) -> Payload:
    return Payload(tmp_path / 'executed')


def pytest_assertrepr_compare(op, left, right):
    """Differences of state dicts by key: pytest's own would print every number."""
    if op == '==' and isinstance(left, dict) and isinstance(right, dict):
        return ['dicts differ', f'only left: {sorted(left.keys() - right.keys())}',
                f'only right: {sorted(right.keys() - left.keys())}']
    return None
