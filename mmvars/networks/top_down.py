"""TopDown: a trunk, a prior and a way back, run in two or more passes (Figure 2.3 a)."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError, check_number
from mmvars.layers.signals import FoldedSignal, SharedInput, TopDownSignal
from mmvars.networks.feedback import Feedback, MaskFeedback
from mmvars.networks.passes import FirstPass, TopDownOutput
from mmvars.networks.plain_path import is_plain_path
from mmvars.networks.prior import Prior, token_mask
from mmvars.networks.shortcuts import Shortcuts, resample_tokens
from mmvars.networks.trunk import Trunk, TrunkOutput

__all__ = ['TopDown']


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
        shortcuts: What to leave out, at the cost of other outputs.

    Raises:
        InputError: If a block's mixer has no value path for the signal, ``num_passes`` is below 2,
            or a shortcut does not suit the parts.
    """

    def __init__(self, trunk: Trunk, prior: Prior | None = None,
                 feedback: Feedback | MaskFeedback | None = None, alpha: float = 1.,
                 num_passes: int = 2, shortcuts: Shortcuts | None = None) -> None:
        super().__init__()
        check_number('num_passes', num_passes, 2, whole=True)
        shortcuts = (shortcuts or Shortcuts()).check(trunk.depth, trunk.widths)
        if shortcuts != Shortcuts() and not isinstance(feedback, Feedback):
            raise InputError('shortcuts leave out parts of the feedback through decoders, which '
                             'this design does not have')
        if shortcuts.share_query_key and feedback.injection != 'value':
            raise InputError('share_query_key needs a signal on the value alone; this design puts '
                             'it on query and key too')
        if prior is None and isinstance(feedback, MaskFeedback):
            raise InputError('MaskFeedback sends back the mask of a prior: give a prior')
        if feedback is not None:
            for index, block in enumerate(trunk.blocks):
                if not block.attn.takes_top_down:
                    raise InputError(f'block {index} mixes tokens with '
                                     f'{type(block.attn).__name__}, which has no value path for a '
                                     f'top-down signal; take another mixer, such as vars_d')
        self.trunk = trunk
        self.prior = prior
        self.feedback = feedback
        self.alpha = alpha
        self.num_passes = num_passes
        self.shortcuts = shortcuts

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
                reconstruction: bool = False, feedback: bool = True,
                pooled_only: bool = False) -> TopDownOutput:
        """Run all passes.

        Args:
            images: ``(B, in_chans, H, W)``.
            prior: Prior for this call, see :meth:`Prior.forward`; ``None`` for the network's own.
            alpha: Scale for this call, a number or ``(B,)``; ``None`` for the network's own.
            out_indices: Blocks whose tokens are wanted, of the final pass only.
            reconstruction: Whether to compute the reconstruction errors of the last pass.
            feedback: ``False`` runs pass 1 only: exactly the plain trunk.
            pooled_only: Compute only those tokens of the last output that the classifier reads
                (``Trunk.num_pooled``), where there are others.

        Raises:
            InputError: If a prior, a scale or the reconstruction is asked of a network (or a call)
                that has no use for it, or does not fit.
        """
        top_down = feedback and not self.is_plain
        self._check_call(top_down, feedback, prior, alpha, reconstruction)
        pooled_only = pooled_only and not (reconstruction or is_plain_path())
        if top_down and self.feedback is not None:
            return self.attend(self.look(images, out_indices), prior, alpha, out_indices,
                               reconstruction, pooled_only)
        first = self.trunk.run(*self.trunk.embed(images), out_indices=out_indices,
                               pooled_only=pooled_only)
        if not top_down:
            return TopDownOutput(first)
        mask = self._mask(first.tokens, self._vector(prior, images.shape[0]))
        reweighted = self._scale(alpha, mask) * mask * first.tokens
        return TopDownOutput(first, first._replace(tokens=reweighted), mask)

    def look(self, images: Tensor, out_indices: Sequence[int] = (),
             previous: TrunkOutput | None = None) -> FirstPass:
        """Pass 1, which no prior has a part in; :meth:`attend` does the rest, once a prior.

        Args:
            images: ``(B, in_chans, H, W)``.
            out_indices: As :meth:`attend` will be given them; with ``restart_block``, whose lower
                blocks run here alone, they must be the same.
            previous: An output for other images, as of the frame before, to stand in for pass 1:
                half the cost, and another function. Tokens of another grid are resampled.

        Raises:
            InputError: If this network has no second pass, or ``previous`` does not fit.
        """
        if self.feedback is None:
            raise InputError('look and attend need feedback, which this network does not have')
        tokens, grid = self.trunk.embed(images)
        grids = self.trunk.block_grids(grid)
        start, scale = self.shortcuts.restart_block, self.shortcuts.first_pass_scale
        shared: list[SharedInput | None] = [None] * self.trunk.depth
        if previous is not None:
            self._check_previous(previous, len(images))
            return FirstPass(previous, tokens, grids, tuple(shared))
        if scale < 1:
            if min(images.shape[-2:]) * scale < self.trunk.patch_embed.patch_size:
                raise InputError(f'first_pass_scale={scale:g} makes images of {images.shape[-2]}x'
                                 f'{images.shape[-1]} pixels smaller than one patch: give larger '
                                 f'images, or build the network with a scale nearer to 1')
            small = F.interpolate(images, scale_factor=scale, mode='bilinear', align_corners=False)
            return FirstPass(self.trunk.run(*self.trunk.embed(small)), tokens, grids,
                             tuple(shared))
        if self._can_share():
            shared[start] = SharedInput()
        if self.shortcuts.share_query_key:
            shared = [keep or SharedInput(same_value=False) for keep in shared]
        inputs: list[Tensor] = []
        output = self.trunk.run(
            tokens, grid, shared, [index for index in out_indices if index < start],
            visit=(lambda index, x, _: inputs.append(x) if index == start else None)
            if start else None)
        return FirstPass(output, inputs[0] if start else tokens, grids, tuple(shared))

    def attend(self, first: FirstPass, prior: Tensor | None = None,
               alpha: float | Tensor | None = None, out_indices: Sequence[int] = (),
               reconstruction: bool = False, pooled_only: bool = False) -> TopDownOutput:
        """All passes after the first: where to look again, given a prior.

        Args:
            first: Of :meth:`look`; it can be used any number of times.
            prior, alpha, out_indices, reconstruction, pooled_only: As in :meth:`forward`.

        Raises:
            InputError: As :meth:`forward`, or if blocks are wanted that ``first`` lacks.
        """
        self._check_call(True, True, prior, alpha, reconstruction)
        vector, start = self._vector(prior, first.tokens.shape[0]), self.shortcuts.restart_block
        if start and sum(i < start for i in out_indices) != len(first.output.intermediates):
            raise InputError(f'out_indices below restart_block ({start}) are outputs of pass 1: '
                             f'give look the same out_indices, {tuple(out_indices)}')
        grids, last = first.grids, first.output
        for number in range(2, self.num_passes + 1):
            # A class token that the blocks never saw stays behind.
            returned = last.tokens[:, last.grid.num_prefix - grids[-1].num_prefix:]
            layout = last.grid._replace(num_prefix=grids[-1].num_prefix)
            returned = resample_tokens(returned, layout, grids[-1])
            mask = self._mask(returned, vector)
            signals = self.feedback(self._scale(alpha, mask) * mask * returned, mask, grids)
            signals = tuple(map(_with_shared, signals, first.shared))
            is_last, errors = number == self.num_passes, []
            visit = None
            if reconstruction and is_last:
                visit = _collect(self.feedback.reconstruction_error, errors)
            last = self.trunk.run(first.tokens, grids[start], signals,
                                  out_indices if is_last else (), visit, start,
                                  pooled_only and is_last)
        if start:
            last = last._replace(intermediates=first.output.intermediates + last.intermediates,
                                 grids=first.output.grids + last.grids)
        return TopDownOutput(first.output, last, mask, signals,
                             torch.stack(errors) if errors else None)

    def logits(self, output: TrunkOutput) -> Tensor:
        """Class scores ``(B, num_classes)`` of a pass; see :meth:`Trunk.logits`."""
        return self.trunk.logits(output)

    def _scale(self, alpha: float | Tensor | None, mask: Tensor) -> float | Tensor:
        if alpha is None:
            return self.alpha
        if not isinstance(alpha, Tensor) or alpha.ndim == 0:
            return alpha
        if alpha.shape != mask.shape[:1]:
            raise InputError(f'alpha must be a number or have shape ({mask.shape[0]},), got '
                             f'{tuple(alpha.shape)}')
        return alpha.reshape(-1, 1, 1).to(mask.dtype)  # of any precision, as a prior

    def _vector(self, prior: Tensor | None, batch_size: int) -> Tensor | None:
        return None if self.prior is None else self.prior(prior, batch_size)

    def _can_share(self) -> bool:
        """Whether pass 2 may take over what pass 1 projected where their inputs are the same."""
        recomputes = self.training and self.trunk.grad_checkpointing
        return (isinstance(self.feedback, Feedback) and self.feedback.injection == 'value'
                and not recomputes and not is_plain_path())

    def _check_previous(self, previous: TrunkOutput, batch_size: int) -> None:
        if self.shortcuts.restart_block or self.shortcuts.share_query_key:
            raise InputError('previous stands in for pass 1, of which restart_block and '
                             'share_query_key need the tokens inside: build the network without')
        if not isinstance(previous, TrunkOutput):
            raise InputError(f'previous must be a TrunkOutput, such as output.final of the frame '
                             f'before (of a backbone: the second of what forward_frame returns), '
                             f'got {type(previous).__name__}')
        expected = batch_size, self.trunk.embed_dim
        found = previous.tokens.shape[0], previous.tokens.shape[-1]
        if found != expected:
            raise InputError(f'previous must be an output for {expected[0]} images with '
                             f'{expected[1]} channels, got {found[0]} and {found[1]}')

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
        if not isinstance(alpha, Tensor | float | int | None):
            raise InputError(f'alpha must be a number or a tensor, got {alpha!r}')
        if alpha is not None and isinstance(self.feedback, MaskFeedback):
            raise InputError('alpha changes nothing here: it scales the tokens that are sent back, '
                             'and MaskFeedback sends the mask alone; leave it out')
        if reconstruction and not self.reconstructs:
            raise InputError('reconstruction needs feedback through decoders, which this network '
                             'does not have')


def _with_shared(signal: TopDownSignal | None, shared: SharedInput | None) -> TopDownSignal | None:
    if shared is None or signal is None:
        return signal
    if isinstance(signal, Tensor):
        return FoldedSignal(signal, (), shared=shared)
    return replace(signal, shared=shared)


def _collect(error: Callable[[int, Tensor, Tensor], Tensor],
             errors: list[Tensor]) -> Callable[[int, Tensor, Tensor], None]:
    return lambda *arguments: errors.append(error(*arguments))
