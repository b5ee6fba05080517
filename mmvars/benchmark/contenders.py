"""What is measured: a name, how to build it, and what it gets."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmvars.errors import InputError, check_choice, check_number
from mmvars.layers import MIXERS, TokenGrid, build_mixer, mixer_options

__all__ = ['Case', 'Contender', 'MixerCall', 'mixer_cases', 'parse_tokens']

_WIDEST = 4  # a grid longer than this is no picture


@dataclass(frozen=True)
class Contender:
    """Something that is measured: mixer, network, or anything else that maps tensors.

    Attributes:
        name: In tables.
        build: Makes the module, on CPU in float32, from torch's present seed. Its result is a
            tensor, or a tuple or list of them.
        inputs: Makes the tensors of one call, likewise.
        twins: Contenders of a case with the same value compute the same function with the same
            weights: their outputs (and in training their gradients) are compared before timing.
        input_gradients: Whether the backward pass of training goes on into the inputs.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    twins: str | None = None
    input_gradients: bool = True


@dataclass(frozen=True)
class Case:
    """Contenders that take the same task, measured in turns.

    Attributes:
        group: What stays the same while the size varies, for instance a width.
        size: The size varied, for instance the number of tokens.
        contenders: In the order of each round.
        details: Plain values for the report.
    """

    group: str
    size: int
    contenders: tuple[Contender, ...]
    details: dict[str, Any] = field(default_factory=dict)


class MixerCall(nn.Module):
    """A token mixer with its grid: ``(B, N, C)`` to ``(B, N, C)``."""

    def __init__(self, mixer: nn.Module, grid: TokenGrid) -> None:
        super().__init__()
        self.mixer = mixer
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x, self.grid)


def mixer_cases(names: Sequence[str], widths: Sequence[tuple[int, int]],
                grids: Sequence[tuple[int, int]], batch_size: int = 1,
                num_steps: int | None = None, preset: str = 'release') -> list[Case]:
    """Mixers alone, at every width and grid.

    Args:
        names: Of :data:`mmvars.layers.MIXERS`.
        widths: Pairs of channels and heads.
        grids: Patch grids ``(h, w)``. Each mixer is built for the grid it is measured at.
        batch_size: Images.
        num_steps: Updates of the VARS mixers; ``None`` for the preset's.
        preset: Of :data:`mmvars.layers.PRESETS`.

    Raises:
        InputError: On what cannot be built.
    """
    check_number('batch size', batch_size, 1, whole=True)
    for name in names:
        check_choice('mixer', name, MIXERS)
    cases = []
    for embed_dim, num_heads in widths:
        for grid in sorted(grids, key=math.prod):
            contenders = tuple(_mixer(name, embed_dim, num_heads, grid, batch_size, num_steps,
                                      preset) for name in names)
            cases.append(Case(f'dim {embed_dim}, {num_heads} heads', math.prod(grid), contenders,
                              dict(embed_dim=embed_dim, num_heads=num_heads, grid=list(grid),
                                   batch_size=batch_size)))
    return cases


def parse_tokens(text: str) -> tuple[int, int]:
    """A patch grid from ``HxW``, or from a number N of tokens: the grid nearest to a square.

    Raises:
        InputError: If the text is neither, or N has no grid that is at most four times as wide as
            high.
    """
    found = re.fullmatch(r'(\d+)(?:x(\d+))?', text.strip().lower())
    if not found or '0' in (sides := [side.lstrip('0') or '0' for side in found.groups() if side]):
        raise InputError(f'--tokens takes a number of tokens or HEIGHTxWIDTH, for instance 196 or '
                         f'14x14, got {text!r}')
    if len(sides) == 2:
        return int(sides[0]), int(sides[1])
    tokens = int(sides[0])
    height = next(side for side in range(math.isqrt(tokens), 0, -1) if tokens % side == 0)
    if tokens // height > _WIDEST * height:
        raise InputError(f'--tokens {tokens} has no grid nearer to a square than '
                         f'{height}x{tokens // height}; take another number '
                         f'({math.isqrt(tokens)**2}), or say {height}x{tokens // height} itself')
    return height, tokens // height


def _mixer(name: str, embed_dim: int, num_heads: int, grid: tuple[int, int], batch_size: int,
           num_steps: int | None, preset: str) -> Contender:
    options = mixer_options(name, preset=preset)
    if num_steps is not None and 'num_steps' in options:
        options['num_steps'] = num_steps

    def build() -> nn.Module:
        return MixerCall(build_mixer(name, embed_dim, num_heads, grid, **options),
                         TokenGrid(*grid))

    def inputs() -> tuple[Tensor, ...]:
        return (torch.randn(batch_size, math.prod(grid), embed_dim), )

    with torch.device('meta'):
        build()  # so that what cannot be built is known before anything is measured
    return Contender(name, build, inputs)
