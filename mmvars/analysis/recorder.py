"""Recorders: look at both passes of a network from outside, and leave nothing behind."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from mmvars.errors import InputError
from mmvars.layers import TokenGrid

__all__ = ['AttentionRecorder', 'Recorder', 'TopDownRecorder', 'default_layer',
           'mixes_by_attention', 'resolve_layer']

NUM_LATE_BLOCKS = 3


def default_layer(depth: int) -> int:
    """Index of the block whose tokens are drawn: the last of the first ``depth - 3``.

    That is where the authors' demonstration looks (block 9 of 12). In networks of up to three
    blocks it is the first block.
    """
    return max(depth - NUM_LATE_BLOCKS - 1, 0)


def resolve_layer(layer: int | None, depth: int) -> int:
    """The block index that ``layer`` means; negative counts from the end, ``None`` is the default.

    Raises:
        InputError: If there is no such block.
    """
    if layer is None:
        return default_layer(depth)
    if not -depth <= layer < depth:
        raise InputError(f'layer must be a block index from 0 to {depth - 1} (or {-depth} to -1 '
                         f'from the end), got {layer}')
    return layer % depth


def mixes_by_attention(module: nn.Module) -> bool:
    """Whether a token mixer can say its attention probabilities, ``(B, heads, N, N)``."""
    return callable(getattr(module, 'attention_probabilities', None))


class Recorder:
    """Shared frame: forward hooks that live as long as the ``with`` block, and see one forward.

    Records start afresh with every forward of the network. Calls outside of it are ignored: with
    gradient checkpointing the backward pass runs the blocks again, which is nobody's third pass.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._handles: list = []
        self._inside = False

    def __enter__(self) -> 'Recorder':
        if self._handles:
            raise InputError('this recorder is recording already; make a second one')
        self._handles = [
            self.network.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.network.register_forward_hook(self._end, always_call=True),
        ]
        self._attach()
        return self

    def __exit__(self, *exc_info) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._inside = False

    def _hook(self, module: nn.Module, hook: Callable) -> None:
        self._handles.append(module.register_forward_hook(hook))

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        self._clear()
        self._inside = True
        return args, self._arguments(kwargs)

    def _end(self, module: nn.Module, args: tuple, output: object) -> None:
        self._inside = False

    def _arguments(self, kwargs: dict) -> dict:
        return kwargs | {'pooled_only': False}  # what is looked at has all tokens

    def _attach(self) -> None:
        raise NotImplementedError

    def _clear(self) -> None:
        raise NotImplementedError


class AttentionRecorder(Recorder):
    """Records the attention probabilities of a network's mixers, both passes apart.

    The fused forward is unchanged; the probabilities are computed beside it, for the pictures only.

    Example::

        with AttentionRecorder(net, layers=[11]) as attention:
            net(images)
        bottom_up, top_down = (passes[0] for passes in attention.passes)

    Args:
        network: The :class:`~mmvars.networks.TopDown` network, or any module with mixers in it
            that have ``attention_probabilities`` (see :func:`mixes_by_attention`).
        layers: Which of them, counted in the order of the network; ``None``: all. A matrix has
            ``heads * N * N`` numbers: 200 MB for one layer of ViT-B at 512x1024.
        query: Keep only this row of each matrix (0: the class token's), as ``(B, heads, 1, N)``;
            ``'mean'``: the mean of all rows, in the same shape.

    Raises:
        InputError: If the network has no such attention, or ``layers`` names one it lacks.
    """

    def __init__(self, network: nn.Module, layers: list[int] | tuple[int, ...] | None = None,
                 query: int | Literal['mean'] | None = None) -> None:
        super().__init__(network)
        modules = [m for m in network.modules() if mixes_by_attention(m)]
        if not modules:
            raise InputError(f'{type(network).__name__} has no attention whose probabilities could '
                             'be recorded')
        wanted = range(len(modules)) if layers is None else layers
        self._modules = [modules[resolve_layer(layer, len(modules))] for layer in wanted]
        self._query = query
        self._records: dict[nn.Module, list[Tensor]] = {}

    @property
    def passes(self) -> tuple[tuple[Tensor, ...], ...]:
        """``passes[p][i]``: ``(B, heads, N, N)`` of pass ``p + 1`` in layer ``layers[i]``.

        One entry for a plain ViT, two for AbSViT, none before the first forward.
        """
        return tuple(zip(*(self._records.get(m, []) for m in self._modules), strict=True))

    def _attach(self) -> None:
        for module in self._modules:
            self._hook(module, self._record)

    def _record(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        if not self._inside:
            return
        with torch.no_grad():  # no trace in the graph: checkpointed blocks count what they save
            probabilities = module.attention_probabilities(*args)
            if self._query == 'mean':
                probabilities = probabilities.mean(dim=2, keepdim=True)
            elif self._query is not None:
                probabilities = probabilities[:, :, self._query:self._query + 1].clone()
        self._records.setdefault(module, []).append(probabilities)

    def _clear(self) -> None:
        self._records = {}


class TopDownRecorder(Recorder):
    """Records what top-down attention did in a forward: the tokens of both passes and the mask.

    It works through any model that has the network inside (segmentor, classifier), so the recorded
    tokens and the model's prediction come from the same forward. A prior or a scale given here
    replaces the network's own for the time of the ``with`` block.

    Args:
        network: The :class:`~mmvars.networks.TopDown` network.
        layer: Block whose output tokens are recorded (see :func:`resolve_layer`).
        prior: ``(C,)`` or ``(B, C)``; ``None``: the network's own.
        alpha: Scale of the top-down signal; ``None``: the network's own.
    """

    def __init__(self, network: nn.Module, layer: int | None = None, prior: Tensor | None = None,
                 alpha: float | None = None) -> None:
        super().__init__(network)
        self.layer = resolve_layer(layer, len(network.trunk.blocks))
        self._given = {'prior': prior, 'alpha': alpha}
        self._clear()

    def _arguments(self, kwargs: dict) -> dict:
        return super()._arguments(kwargs) | {
            name: value for name, value in self._given.items() if value is not None}

    def _attach(self) -> None:
        self._hook(self.network.trunk.blocks[self.layer], self._record)

    def _record(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        if self._inside:
            self.tokens += (output.detach(),)
            self.grid = args[1]

    def _end(self, module: nn.Module, args: tuple, output) -> None:
        super()._end(module, args, output)
        self.output = output

    def _clear(self) -> None:
        self.tokens: tuple[Tensor, ...] = ()  # (B, N, C) of pass 1, then of pass 2
        self.grid: TokenGrid | None = None  # of these tokens: stages differ in theirs
        self.output = None  # the network's TopDownOutput
