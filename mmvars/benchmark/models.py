"""Whole networks as contenders: ours, timm's and mmseg's ViT, and the textbook's AbSViT.

A contender is written ``[library/]name[:option=value...]``: ``absvit_tiny``, ``timm/vit_tiny``,
``rvt_tiny:mixer=vars_d``, ``absvit_base:grad_checkpointing=True``.
"""

import ast
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmvars.benchmark.adapters import ADAPTERS, Adapter, Size, build_ours
from mmvars.benchmark.contenders import Case, Contender
from mmvars.errors import InputError, check_choice, check_number
from mmvars.networks import SIZES, VARIANTS

__all__ = ['NUM_CLASSES', 'TASKS', 'ModelSpec', 'method_of', 'model_cases', 'parse_model']

TASKS = ('auto', 'classify', 'features')
NUM_CLASSES = 1000
"""Of every classifier here, as in ImageNet-1k."""

_CLASSIFIED = (224, 224)
_SAME_FUNCTION = ('grad_checkpointing', 'plain')  # of the options


@dataclass(frozen=True)
class ModelSpec:
    """A contender as it was asked for.

    Attributes:
        text: As written: its name in tables.
        library: A key of :data:`~mmvars.benchmark.adapters.ADAPTERS`.
        name: Of :data:`mmvars.networks.VARIANTS`, ``_patch16`` written out.
        options: Arguments of the network.
    """

    text: str
    library: str
    name: str
    options: dict[str, Any]

    @property
    def twins(self) -> str:
        """What this computes, whatever code does it."""
        changes = {key: self.options[key] for key in sorted(self.options)
                   if key not in _SAME_FUNCTION}
        return f'{self.name} {changes}'


class ModelCall(nn.Module):
    """One of an adapter's methods as a module."""

    def __init__(self, adapter: Adapter, method: str) -> None:
        super().__init__()
        self.adapter = adapter
        self.method = method

    def forward(self, *inputs: Tensor) -> Tensor | list[Tensor]:
        return getattr(self.adapter, self.method)(*inputs)


def parse_model(text: str) -> ModelSpec:
    """A contender from ``[library/]name[:option=value...]``.

    Raises:
        InputError: If there is no such library or network, or an option is malformed.
    """
    whole, *options = text.split(':')
    library, slash, name = whole.rpartition('/')
    library = library if slash else 'mmvars'
    check_choice(f'the library of {text!r}', library, ADAPTERS)
    family, _, size = name.partition('_')
    if family in ('vit', 'absvit') and f'{size}_patch16' in SIZES:
        name = f'{name}_patch16'
    check_choice('network name', name, VARIANTS)
    found = {}
    for option in options:
        key, equals, value = option.partition('=')
        if not (equals and key.isidentifier() and value):
            raise InputError(f'{text!r}: an option is written NAME=VALUE, got {option!r}')
        found[key] = _value(value)
    if found and library != 'mmvars':
        raise InputError(f'{text!r}: only networks of mmvars take options')
    return ModelSpec(text, library, name, found)


def model_cases(specs: Sequence[ModelSpec], sizes: Sequence[tuple[int, int]],
                batches: Sequence[int], task: str = 'auto', training: bool = False,
                overrides: dict[str, Any] | None = None) -> list[Case]:
    """Whole networks at every size and batch.

    Args:
        specs: The contenders.
        sizes: Images ``(H, W)``. Each network is built for the size it is measured at.
        batches: Images a batch.
        task: ``'classify'``: class scores. ``'features'``: four maps, as a dense head reads them.
            ``'auto'``: class scores at 224 x 224, maps at other sizes.
        training: One training step instead: losses of the class scores, whatever the task.
        overrides: Sizes that replace those of all the networks, for tests.

    Raises:
        InputError: On what cannot be built.
    """
    check_choice('--task', task, TASKS)
    if training and task == 'features':
        raise InputError('--mode training takes the loss of class scores; --task features has none')
    if training and any('carry_over' in spec.options for spec in specs):
        raise InputError('carry_over is for inference on the frames of a video: leave --mode out')
    cases = []
    for height, width in sorted(sizes, key=math.prod):
        for batch in batches:
            check_number('--batch-sizes', batch, 1, whole=True)
            method = 'losses' if training else method_of(task, (height, width))
            size = Size(height, width, batch, 0 if method == 'features' else NUM_CLASSES,
                        overrides or {})
            contenders = tuple(model_contender(spec, size, method) for spec in specs)
            cases.append(Case(f'{height}x{width}, batch {batch}', height * width, contenders,
                              dict(image_size=[height, width], batch_size=batch, task=method)))
    return cases


def model_contender(spec: ModelSpec, size: Size, method: str, name: str | None = None,
                    inputs: Callable[[], tuple[Tensor, ...]] | None = None) -> Contender:
    """A network and the method of its adapter that is measured.

    Args:
        spec: The network.
        size: Of the images.
        method: Of :class:`~mmvars.benchmark.adapters.Adapter`.
        name: In tables; ``None`` for the contender as it was written.
        inputs: What the method takes; ``None`` for images, and classes where it gives losses.
    """

    def build() -> nn.Module:
        return ModelCall(ADAPTERS[spec.library](spec.name, size, spec.options), method)

    ADAPTERS[spec.library].check(spec.name, method)
    with torch.device('meta'):  # so that what cannot be built is known before anything is measured
        build_ours(spec.name, size, spec.options)
    return Contender(name or spec.text, build, inputs or _inputs(size, method == 'losses'),
                     spec.twins, input_gradients=False)


def _inputs(size: Size, with_classes: bool) -> Callable[[], tuple[Tensor, ...]]:

    def inputs() -> tuple[Tensor, ...]:
        images = torch.randn(size.batch, 3, size.height, size.width)
        if not with_classes:
            return (images, )
        return images, torch.randint(size.num_classes, (size.batch, ))

    return inputs


def method_of(task: str, size: tuple[int, int]) -> str:
    if task == 'auto':
        task = 'classify' if size == _CLASSIFIED else 'features'
    return dict(classify='logits', features='features')[task]


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
