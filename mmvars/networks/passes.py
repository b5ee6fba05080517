"""What the passes of a :class:`~mmvars.networks.TopDown` network give."""

from typing import NamedTuple

from torch import Tensor

from mmvars.layers import TokenGrid
from mmvars.layers.signals import FoldedSignal, SharedInput, TopDownSignal
from mmvars.networks.trunk import TrunkOutput

__all__ = ['FirstPass', 'TopDownOutput']


class FirstPass(NamedTuple):
    """What all second passes over the same images share; see :meth:`TopDown.look`.

    Attributes:
        output: Of pass 1, or what was seen before in its place.
        tokens: ``(B, N, C)``, where a second pass starts.
        grids: Layout of each block's tokens.
        shared: What pass 1 projected in each block, where a second pass can use it.
    """

    output: TrunkOutput
    tokens: Tensor
    grids: tuple[TokenGrid, ...]
    shared: tuple[SharedInput | None, ...]


class TopDownOutput(NamedTuple):
    """All passes of one forward.

    Attributes:
        bottom_up: Pass 1.
        top_down: The last pass; ``None`` where no feedback ran. Of a network that reweights its
            output and has no second pass: pass 1 with reweighted tokens.
        token_mask: ``(B, N, 1)``, clamped cosine of the tokens of the pass before with the prior
            (ones where there is no prior), or ``None``. For the tokens that go back: a FAN's class
            token does not.
        top_down_signals: One signal a block, the top-down input of the last pass, or ``None``; see
            :meth:`decoded_signals`.
        reconstruction: ``(L,)`` reconstruction errors of the last pass where asked for, else
            ``None``.
    """

    bottom_up: TrunkOutput
    top_down: TrunkOutput | None = None
    token_mask: Tensor | None = None
    top_down_signals: tuple[TopDownSignal | None, ...] | None = None
    reconstruction: Tensor | None = None

    @property
    def final(self) -> TrunkOutput:
        """The last pass: what a head should read."""
        return self.bottom_up if self.top_down is None else self.top_down

    def decoded_signals(self) -> tuple[TopDownSignal | None, ...] | None:
        """The signals, with those that are kept as factors multiplied out: ``(B, N, C)``."""
        if self.top_down_signals is None:
            return None
        return tuple(signal.decode() if isinstance(signal, FoldedSignal) else signal
                     for signal in self.top_down_signals)
