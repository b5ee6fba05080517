"""What a mixer may be given as its top-down signal, besides a tensor."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.layers.precision import full_precision, widened

__all__ = ['AddedToAll', 'FoldedSignal', 'MaskedValue', 'SharedInput', 'TopDownSignal',
           'exact_product']


class AddedToAll(NamedTuple):
    """A signal ``(B, N, C)`` on query, key *and* value: the arbitrary design of Table 2.5."""

    tokens: Tensor


class MaskedValue(NamedTuple):
    """A mask ``(B, N, 1)`` that the value is multiplied with: MaskAtt of Table 2.3."""

    mask: Tensor


@dataclass
class SharedInput:
    """No signal; but what the block projects is kept for a later pass.

    Attributes:
        joint: What each projection gave, ``(B, N, rows)``.
        same_value: Whether the later pass has the same input. If not, it takes over query and key
            alone (an option that changes the mathematics).
    """

    joint: dict[nn.Module, Tensor] = field(default_factory=dict)
    same_value: bool = True


@dataclass
class FoldedSignal:
    """A signal for the value, as tokens and the matrices that they have yet to meet.

    ``t = z W_1' W_2' ...``: decoders are linear, so they can be multiplied together beforehand.

    The mixer multiplies its value projection in too, so that the signal costs one product of the
    tokens z, which all blocks share.

    Attributes:
        tokens: z, ``(B, N, C)``; or, where ``rows`` is given, these rows of it, ``(M, C)``.
        weights: W_1, W_2, ..., each ``(out, in)``: none where z is the signal itself, more than
            one where the feedback has low rank.
        rows: Tokens that are not zero, as places in ``B N``; for forwards without gradients.
        shape: ``(B, N)``.
        keep: Keeps the last of ``weights`` times the value projection, given this projection and
            what makes the product; ``None``: it is made each time.
        shared: What pass 1 projected in this block.
    """

    tokens: Tensor
    weights: tuple[Tensor, ...]
    rows: Tensor | None = None
    shape: tuple[int, int] | None = None
    keep: Callable[[Tensor, Callable[[], Tensor]], Tensor] | None = None
    shared: SharedInput | None = None

    def decode(self) -> Tensor:
        """The signal ``t`` itself: ``(B, N, C)``."""
        signal = self.through(None)
        if self.rows is None:
            return signal
        full = signal.new_zeros(self.shape[0] * self.shape[1], signal.shape[-1])
        return full.index_copy_(0, self.rows, signal).unflatten(0, self.shape)

    def through(self, value_rows: Tensor | None, bias: Tensor | None = None) -> Tensor:
        """``t Wv' + bias`` for the tokens at hand, with the rows ``(C, C)`` that project the value.

        ``None`` stands for a mixer whose value is its input.
        """
        *weights, last = self.weights or (None, )
        if last is None:
            last = value_rows
        elif value_rows is not None:
            last = self._folded(value_rows, last)
        tokens = self.tokens
        for weight in weights:
            tokens = F.linear(tokens, weight)
        return tokens if last is None else F.linear(tokens, last, bias)

    def _folded(self, value_rows: Tensor, last: Tensor) -> Tensor:
        if self.keep is None:
            return value_rows @ last
        return self.keep(value_rows, lambda: exact_product(value_rows, last))


def exact_product(*factors: Tensor) -> Tensor:
    """Product of matrices in at least float32, whatever the precision of the forward pass."""
    with full_precision(factors[0]):
        result = widened(factors[0])
        for factor in factors[1:]:
            result = result @ widened(factor)
        return result.to(factors[0].dtype)


TopDownSignal = Tensor | AddedToAll | MaskedValue | SharedInput | FoldedSignal
"""What a mixer takes as its top-down signal; a bare tensor ``(B, N, C)`` is added to the value."""
