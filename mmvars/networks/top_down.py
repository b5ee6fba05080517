"""TopDown: a trunk, a prior and a feedback path, run in two passes (Figure 2.3 a)."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from mmvars.errors import InputError
from mmvars.networks.feedback import Feedback
from mmvars.networks.prior import Prior, token_mask
from mmvars.networks.trunk import Trunk, TrunkOutput

__all__ = ['TopDown', 'TopDownOutput']


class TopDownOutput(NamedTuple):
    """Both passes of one forward.

    Attributes:
        bottom_up: Pass 1.
        top_down: Pass 2; ``None`` where no feedback ran.
        token_mask: ``(B, N, 1)``, clamped cosine of pass 1's tokens with the prior, or ``None``.
        top_down_signals: L tensors ``(B, N, C)``, the top-down input of each block, or ``None``.
        reconstruction: ``(L,)`` reconstruction errors of pass 2 where asked for, else ``None``.
    """

    bottom_up: TrunkOutput
    top_down: TrunkOutput | None = None
    token_mask: Tensor | None = None
    top_down_signals: tuple[Tensor, ...] | None = None
    reconstruction: Tensor | None = None

    @property
    def final(self) -> TrunkOutput:
        """Pass 2 if there was one, else pass 1: what a head should read."""
        return self.bottom_up if self.top_down is None else self.top_down


class TopDown(nn.Module):
    """Analysis by synthesis around a trunk (Section 2.5).

    1. Pass 1 of the trunk gives tokens z. 2. z is reweighted by its clamped cosine similarity with
    the prior, times ``alpha``. 3. The feedback decoders turn it into one signal a block. 4. Pass 2
    runs the same blocks on the same embedding, each with its signal on the value path.

    Without ``prior`` and ``feedback`` this is the plain trunk: one pass.

    Args:
        trunk: The bottom-up network.
        prior: What to look for.
        feedback: The decoders.
        alpha: Scale of the modulated tokens.

    Raises:
        InputError: If only one of ``prior`` and ``feedback`` is given, or a block's mixer has no
            value path for the signal.
    """

    def __init__(self, trunk: Trunk, prior: Prior | None = None, feedback: Feedback | None = None,
                 alpha: float = 1.) -> None:
        super().__init__()
        if (prior is None) != (feedback is None):
            raise InputError('prior and feedback go together: give both, or neither for the plain '
                             'bottom-up network')
        if feedback is not None:
            for index, block in enumerate(trunk.blocks):
                if not block.attn.takes_top_down:
                    raise InputError(f'block {index} mixes tokens with '
                                     f'{type(block.attn).__name__}, which has no value path for a '
                                     f'top-down signal')
        self.trunk = trunk
        self.prior = prior
        self.feedback = feedback
        self.alpha = alpha

    def forward(self, images: Tensor, prior: Tensor | None = None,
                alpha: float | Tensor | None = None, out_indices: Sequence[int] = (),
                reconstruction: bool = False, feedback: bool = True) -> TopDownOutput:
        """Run one or two passes.

        Args:
            images: ``(B, in_chans, H, W)``.
            prior: Prior for this call, see :meth:`Prior.forward`; ``None`` for the network's own.
            alpha: Scale for this call, a number or ``(B,)``; ``None`` for the network's own.
            out_indices: Blocks whose tokens are wanted, of the final pass only.
            reconstruction: Whether to compute the reconstruction errors of pass 2.
            feedback: ``False`` runs pass 1 only: exactly the plain trunk.

        Raises:
            InputError: If a prior, a scale or the reconstruction is asked of a network (or a call)
                without feedback, or does not fit.
        """
        two_passes = feedback and self.feedback is not None
        if not two_passes and (prior is not None or alpha is not None or reconstruction):
            raise InputError('prior, alpha and reconstruction need feedback; this network has none'
                             if feedback else
                             'prior, alpha and reconstruction need feedback, but feedback=False')
        tokens, grid = self.trunk.embed(images)
        bottom_up = self.trunk.run(tokens, grid, out_indices=() if two_passes else out_indices)
        if not two_passes:
            return TopDownOutput(bottom_up)
        mask = token_mask(bottom_up.tokens, self.prior(prior, len(images)))
        signals = self.feedback(self._scale(alpha, mask) * mask * bottom_up.tokens)
        top_down = self.trunk.run(tokens, grid, top_down=signals, out_indices=out_indices,
                                  trace=reconstruction)
        errors = self.feedback.reconstruction_errors(top_down.traces) if reconstruction else None
        return TopDownOutput(bottom_up, top_down._replace(traces=()), mask, signals, errors)

    def logits(self, output: TrunkOutput) -> Tensor:
        """Class scores ``(B, num_classes)`` of a pass; see :meth:`Trunk.logits`."""
        return self.trunk.logits(output)

    def _scale(self, alpha: float | Tensor | None, mask: Tensor) -> float | Tensor:
        if alpha is None:
            return self.alpha
        if not isinstance(alpha, Tensor) or alpha.ndim == 0:
            return alpha
        if alpha.shape != (len(mask),):
            raise InputError(f'alpha must be a number or have shape ({len(mask)},), got '
                             f'{tuple(alpha.shape)}')
        return alpha.reshape(-1, 1, 1)
