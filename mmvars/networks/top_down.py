"""TopDown: a trunk, a prior and a way back, run in two or more passes (Figure 2.3 a)."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from mmvars.errors import InputError, check_number
from mmvars.layers.projections import TopDownSignal
from mmvars.networks.feedback import Feedback, MaskFeedback
from mmvars.networks.prior import Prior, token_mask
from mmvars.networks.trunk import Trunk, TrunkOutput

__all__ = ['TopDown', 'TopDownOutput']


class TopDownOutput(NamedTuple):
    """All passes of one forward.

    Attributes:
        bottom_up: Pass 1.
        top_down: The last pass; ``None`` where no feedback ran. Of a network that reweights its
            output and has no second pass: pass 1 with reweighted tokens.
        token_mask: ``(B, N, 1)``, clamped cosine of the tokens of the pass before with the prior
            (ones where there is no prior), or ``None``. For the tokens that go back: a FAN's class
            token does not.
        top_down_signals: One signal a block, the top-down input of the last pass, or ``None``.
        reconstruction: ``(L,)`` reconstruction errors of the last pass where asked for, else
            ``None``.
    """

    bottom_up: TrunkOutput
    top_down: TrunkOutput | None = None
    token_mask: Tensor | None = None
    top_down_signals: tuple[TopDownSignal, ...] | None = None
    reconstruction: Tensor | None = None

    @property
    def final(self) -> TrunkOutput:
        """The last pass: what a head should read."""
        return self.bottom_up if self.top_down is None else self.top_down


class TopDown(nn.Module):
    """Analysis by synthesis around a trunk (Section 2.5), and its rivals (Tables 2.3 and 2.5).

    1. Pass 1 of the trunk gives tokens z. 2. z is reweighted by its clamped cosine similarity with
    the prior, times ``alpha``. 3. The feedback decoders turn it into one signal a block. 4. Pass 2
    runs the same blocks on the same embedding, each with its signal on the value path. Steps 2 to 4
    repeat for more than two passes, from the tokens of the pass before.

    Without ``prior`` and ``feedback`` this is the plain trunk: one pass. A rival is another choice
    of these parts:

    ================  ==========  ==================================
    design            prior       feedback
    ================  ==========  ==================================
    AbS               yes         :class:`Feedback`
    AbS-QKV           yes         ``Feedback(injection='qkv')``
    Feedback          none        :class:`Feedback`
    MaskAtt           yes         :class:`MaskFeedback`
    PerceiverIO       yes         none: reweighted tokens are put out
    ================  ==========  ==================================

    Args:
        trunk: The bottom-up network.
        prior: What to look for.
        feedback: The way back.
        alpha: Scale of the modulated tokens.
        num_passes: Passes through the trunk, 2 or more; 2 in the thesis.

    Raises:
        InputError: If a block's mixer has no value path for the signal, or ``num_passes`` is below
            2.
    """

    def __init__(self, trunk: Trunk, prior: Prior | None = None,
                 feedback: Feedback | MaskFeedback | None = None, alpha: float = 1.,
                 num_passes: int = 2) -> None:
        super().__init__()
        check_number('num_passes', num_passes, 2, whole=True)
        if prior is None and isinstance(feedback, MaskFeedback):
            raise InputError('MaskFeedback sends back the mask of a prior: give a prior')
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
        self.num_passes = num_passes

    @property
    def is_plain(self) -> bool:
        """Whether this is the bottom-up network alone."""
        return self.prior is None and self.feedback is None

    @property
    def reconstructs(self) -> bool:
        """Whether there are decoders that a reconstruction loss can train."""
        return isinstance(self.feedback, Feedback)

    def forward(self, images: Tensor, prior: Tensor | None = None,
                alpha: float | Tensor | None = None, out_indices: Sequence[int] = (),
                reconstruction: bool = False, feedback: bool = True) -> TopDownOutput:
        """Run all passes.

        Args:
            images: ``(B, in_chans, H, W)``.
            prior: Prior for this call, see :meth:`Prior.forward`; ``None`` for the network's own.
            alpha: Scale for this call, a number or ``(B,)``; ``None`` for the network's own.
            out_indices: Blocks whose tokens are wanted, of the final pass only.
            reconstruction: Whether to compute the reconstruction errors of the last pass.
            feedback: ``False`` runs pass 1 only: exactly the plain trunk.

        Raises:
            InputError: If a prior, a scale or the reconstruction is asked of a network (or a call)
                that has no use for it, or does not fit.
        """
        top_down = feedback and not self.is_plain
        self._check_call(top_down, feedback, prior, alpha, reconstruction)
        back = self.feedback if top_down else None
        tokens, grid = self.trunk.embed(images)
        first = self.trunk.run(tokens, grid, out_indices=out_indices if back is None else ())
        if not top_down:
            return TopDownOutput(first)
        vector = None if self.prior is None else self.prior(prior, len(images))
        if back is None:
            mask = self._mask(first.tokens, vector)
            reweighted = self._scale(alpha, mask) * mask * first.tokens
            return TopDownOutput(first, first._replace(tokens=reweighted), mask)
        grids, last = self.trunk.block_grids(grid), first
        for number in range(2, self.num_passes + 1):
            # A class token that the blocks never saw stays behind.
            returned = last.tokens[:, last.grid.num_prefix - grids[-1].num_prefix:]
            mask = self._mask(returned, vector)
            signals = back(self._scale(alpha, mask) * mask * returned, mask, grids)
            is_last = number == self.num_passes
            last = self.trunk.run(tokens, grid, top_down=signals,
                                  out_indices=out_indices if is_last else (),
                                  trace=reconstruction and is_last)
        errors = back.reconstruction_errors(last.traces) if reconstruction else None
        return TopDownOutput(first, last._replace(traces=()), mask, signals, errors)

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

    def _mask(self, tokens: Tensor, vector: Tensor | None) -> Tensor:
        if vector is None:
            return tokens.new_ones(*tokens.shape[:2], 1)
        return token_mask(tokens, vector)

    def _check_call(self, top_down: bool, wanted: bool, prior: Tensor | None,
                    alpha: float | Tensor | None, reconstruction: bool) -> None:
        asked = prior is not None or alpha is not None or reconstruction
        if asked and not top_down:
            raise InputError('prior, alpha and reconstruction need feedback; this network has none'
                             if wanted else
                             'prior, alpha and reconstruction need feedback, but feedback=False')
        if prior is not None and self.prior is None:
            raise InputError('this network feeds back without a prior, so it takes none')
        if reconstruction and not self.reconstructs:
            raise InputError('reconstruction needs feedback through decoders, which this network '
                             'does not have')
