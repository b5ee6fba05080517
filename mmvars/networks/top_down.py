"""Top-down attention: a trunk, a prior and a feedback path, run in two passes (Figure 2.3 a)."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from mmvars.errors import InputError, check_choice, check_number
from mmvars.layers import TokenGrid, fuse, unfuse
from mmvars.networks.feedback import (
    MODULATIONS,
    Feedback,
    MaskFeedback,
    Prior,
    project_tokens,
    resample_tokens,
    token_weights,
)
from mmvars.networks.old_keys import rename_entries
from mmvars.networks.trunk import Trunk, TrunkOutput

__all__ = ['FirstPassOutput', 'PerceiverIO', 'TopDown', 'TopDownOutput']


class FirstPassOutput(NamedTuple):
    """The part of a forward that does not depend on the prior.

    Attributes:
        output: Of the first pass.
        embedded: ``(B, N, C)``, the embedded images: where a second pass starts.
        grid: Layout of ``embedded``.
    """

    output: TrunkOutput
    embedded: Tensor
    grid: TokenGrid

    def repeat(self, times: int) -> 'FirstPassOutput':
        """Each image ``times`` times, one after the other: for as many priors of each."""
        return self._replace(
            output=self.output.repeat(times),
            embedded=self.embedded.repeat_interleave(times, dim=0),
        )


class TopDownOutput(NamedTuple):
    """All passes of one forward.

    Attributes:
        second: The last pass: what a head should read.
        first: The first pass.
        token_weights: ``(B, N, 1)``, clamped cosine similarity of the output tokens of the pass
            before the last with the prior; ones where the network has no prior, and where one that
            multiplies by them is asked for nothing. A class token that the blocks do not see has
            none.
        top_down: One tensor a block, its top-down input in the last pass.
        reconstruction: ``(L,)`` reconstruction errors of the last pass, where requested.
    """

    second: TrunkOutput
    first: TrunkOutput
    token_weights: Tensor
    top_down: tuple[Tensor, ...] = ()
    reconstruction: Tensor | None = None


class TopDown(nn.Module):
    """Analysis by synthesis around a trunk (Section 2.5), and two of its rivals (Table 2.3).

    1. The first pass of the trunk gives tokens z. 2. Their weights are their clamped cosine
    similarity with the prior, times ``alpha``. 3. The feedback turns the weighted tokens into one
    top-down input a block. 4. The second pass runs the same blocks on the same embedded images,
    each with its top-down input.

    ===========  =====  =====================  ==============================
    design       prior  feedback               ``injection`` of the mixers
    ===========  =====  =====================  ==============================
    AbSViT       yes    :class:`Feedback`      ``'value'``
    AbSViT-QKV   yes    :class:`Feedback`      ``'qkv'`` (Table 2.5)
    Feedback     none   :class:`Feedback`      ``'value'``
    MaskAtt      yes    :class:`MaskFeedback`  ``'mask'``
    ===========  =====  =====================  ==============================

    Args:
        trunk: The bottom-up network.
        prior: What to look for; ``None``: all output tokens are fed back alike.
        feedback: From output tokens to top-down inputs.
        alpha: Scale of the weighted tokens.
        num_passes: Passes through the trunk, 2 in the thesis. Each one more repeats steps 2 to 4.
        first_pass_scale: Scale of the images in the first pass (0 to 1, bilinear), whose tokens are
            then resampled to the grid of the second. Below 1 this is another, cheaper function,
            which the thesis does not have.
        code_sparsity: lambda of Eq. 2.12: the reconstruction errors gain ``lambda ||u||_1``, with
            the factor that makes half a sum of squares their mean; u is the code of the block's
            mixer, which must be VARS. The thesis has 0, since self-attention has no such code. It
            trains the network, and runs each mixer once more.
        modulation: What the weighted tokens carry back, one of
            :data:`~mmvars.networks.feedback.MODULATIONS`.

    Raises:
        InputError: If a mixer takes no top-down input or has no code, or a number cannot be used.
    """

    def __init__(
        self,
        trunk: Trunk,
        prior: Prior | None,
        feedback: Feedback | MaskFeedback,
        alpha: float = 1.0,
        num_passes: int = 2,
        first_pass_scale: float = 1.0,
        code_sparsity: float = 0.0,
        modulation: str = 'weight',
    ) -> None:
        super().__init__()
        check_choice('modulation', modulation, MODULATIONS)
        check_number('num_passes', num_passes, 2, 100, whole=True)
        check_number('first_pass_scale', first_pass_scale, 1e-3, 1)
        check_number('code_sparsity', code_sparsity, 0)
        if prior is None and isinstance(feedback, MaskFeedback):
            raise InputError('MaskFeedback feeds the weights of a prior back: pass a prior')
        if modulation == 'project' and (prior is None or isinstance(feedback, MaskFeedback)):
            raise InputError(
                "modulation='project' projects the tokens that are fed back on the prior, and this "
                'network has no prior, or feeds no tokens back: leave modulation out'
            )
        for index, block in enumerate(trunk.blocks):
            if not getattr(block.attn, 'takes_top_down', True):
                raise InputError(
                    f'block {index} mixes tokens with {type(block.attn).__name__}, '
                    f'which has no value path for a top-down input; use another '
                    f'mixer, such as vars_d'
                )
            if code_sparsity and not hasattr(block.attn, 'trace'):
                raise InputError(
                    f'code_sparsity={code_sparsity:g} needs sparse codes, and block {index} mixes '
                    f'tokens with {type(block.attn).__name__}, which has none: leave it at 0, or '
                    f'use a mixer of VARS, such as vars_d'
                )
        self.trunk = trunk
        self.prior = prior
        self.feedback = feedback
        self.alpha = alpha
        self.num_passes = num_passes
        self.first_pass_scale = first_pass_scale
        self.code_sparsity = code_sparsity
        self.modulation = modulation

    def forward(
        self,
        images: Tensor,
        prior: Tensor | None = None,
        alpha: float | Tensor | None = None,
        out_indices: Sequence[int] = (),
        reconstruction: bool = False,
        pooled_only: bool = False,
    ) -> TopDownOutput:
        """Run all passes.

        Args:
            images: ``(B, in_chans, H, W)``.
            prior: Prior for this call, see :meth:`Prior.forward`; ``None`` for the network's own.
            alpha: Scale for this call, a number or ``(B,)``; ``None`` for the network's own.
            out_indices: Blocks of the last pass whose output is returned.
            reconstruction: Whether to compute the reconstruction errors of the last pass.
            pooled_only: See :meth:`Trunk.forward_blocks`.

        Raises:
            InputError: If the network has no use for an argument, or its shape does not fit.
        """
        first = self.forward_first_pass(images)
        return self.forward_second_pass(
            first, prior, alpha, out_indices, reconstruction, pooled_only
        )

    def forward_first_pass(
        self, images: Tensor, previous: TrunkOutput | None = None
    ) -> FirstPassOutput:
        """The first pass, which many second passes with other priors can share.

        Args:
            images: ``(B, in_chans, H, W)``.
            previous: An output for other images, such as the frame before, to use in place of the
                first pass: half the cost, and another function.

        Raises:
            InputError: If ``previous`` does not fit the images, or these are too small.
        """
        embedded, grid = self.trunk.forward_embed(images)
        if previous is not None:
            self._check_previous(previous, images.shape[0])
            output = previous
        elif self.first_pass_scale < 1:
            output = self.trunk(self._scaled(images))
        else:
            output = self.trunk.forward_blocks(embedded, grid)
        return FirstPassOutput(output, embedded, grid)

    def forward_second_pass(
        self,
        first: FirstPassOutput,
        prior: Tensor | None = None,
        alpha: float | Tensor | None = None,
        out_indices: Sequence[int] = (),
        reconstruction: bool = False,
        pooled_only: bool = False,
    ) -> TopDownOutput:
        """The second pass, and further ones where ``num_passes`` is above 2.

        Args:
            first: Of :meth:`forward_first_pass`; it can be used any number of times.
            prior, alpha, out_indices, reconstruction, pooled_only: See :meth:`forward`.

        Raises:
            InputError: As :meth:`forward`.
        """
        if prior is not None and self.prior is None:
            raise InputError('this network feeds back without a prior: leave prior out')
        if reconstruction and not isinstance(self.feedback, Feedback):
            raise InputError(
                'reconstruction needs feedback through decoders, which this network does not have'
            )
        scale = self.alpha if alpha is None else self._scale(alpha, first.embedded)
        grids = self.trunk.block_grids(first.grid)
        second = first.output
        for number in range(2, self.num_passes + 1):
            last = number == self.num_passes
            tokens = second.tokens
            if second.grid.num_prefix != grids[-1].num_prefix:
                # A class token that the blocks do not see is not fed back.
                tokens = tokens[:, second.grid.num_prefix - grids[-1].num_prefix :]
            if second.grid[:2] != grids[-1][:2]:  # a first pass at another scale
                layout = second.grid._replace(num_prefix=grids[-1].num_prefix)
                tokens = resample_tokens(tokens, layout, grids[-1])
            if self.prior is None:
                weights = tokens.new_ones(*tokens.shape[:2], 1)
            else:
                center = self.prior.center
                compared = tokens if center is None else tokens - center
                asked = self.prior(prior, tokens.shape[0])
                weights = token_weights(compared, asked)
                if self.modulation == 'project':
                    tokens = project_tokens(compared, asked)
                if isinstance(self.feedback, MaskFeedback):
                    weights = weights + _is_zero(asked)
            top_down = self.feedback(tokens, scale * weights, grids)
            second = self.trunk.forward_blocks(
                first.embedded,
                first.grid,
                top_down,
                out_indices if last else (),
                keep_block_io=reconstruction and last,
                pooled_only=pooled_only and last and not reconstruction,
            )
        errors = None
        if reconstruction and isinstance(self.feedback, Feedback):
            errors = self.feedback.reconstruction_errors(second.block_io)
            if self.code_sparsity:
                norms = _code_norms(self.trunk.blocks, second.block_io, grids, top_down)
                errors = errors + self.code_sparsity * norms
        last_pass = TrunkOutput(second.tokens, second.grid, second.intermediates, second.grids)
        return TopDownOutput(last_pass, first.output, weights, top_down, errors)

    def forward_head(self, output: TrunkOutput) -> Tensor:
        """Class scores ``(B, num_classes)`` of a pass, see :meth:`Trunk.forward_head`."""
        return self.trunk.forward_head(output)

    def fuse(self) -> Self:
        """Multiply weights out for inference, see :class:`mmvars.layers.Fusible`."""
        fuse(self)
        return self

    def unfuse(self) -> Self:
        """Undo :meth:`fuse`."""
        unfuse(self)
        return self

    def _scale(self, alpha: float | Tensor, tokens: Tensor) -> float | Tensor:
        if isinstance(self.feedback, MaskFeedback):
            raise InputError(
                'alpha scales the tokens that are fed back, and MaskFeedback feeds '
                'back their weights alone: leave alpha out'
            )
        return _per_image(alpha, tokens)

    def _scaled(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if min(height, width) * self.first_pass_scale < self.trunk.strides[0]:
            raise InputError(
                f'first_pass_scale={self.first_pass_scale:g} makes images of {height}x'
                f'{width} pixels smaller than one patch: use larger images, or build '
                f'the network with a scale nearer to 1'
            )
        return F.interpolate(
            images, scale_factor=self.first_pass_scale, mode='bilinear', align_corners=False
        )

    def _check_previous(self, previous: TrunkOutput, batch_size: int) -> None:
        if not isinstance(previous, TrunkOutput):
            raise InputError(
                f'previous must be a TrunkOutput, such as output.second of the frame '
                f'before (of a backbone: the second of what forward_frame returns), '
                f'got {type(previous).__name__}'
            )
        expected = batch_size, self.trunk.embed_dim
        shape = previous.tokens.shape[0], previous.tokens.shape[-1]
        if shape != expected:
            raise InputError(
                f'previous must be an output for {expected[0]} images with '
                f'{expected[1]} channels, got {shape[0]} and {shape[1]}'
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        rename_entries(state_dict, prefix, plain=False)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class PerceiverIO(nn.Module):
    """The rival without feedback (Table 2.3): one pass, and its output tokens weighted.

    Args:
        trunk: The bottom-up network.
        prior: What to look for.
        alpha: Scale of the weighted tokens.
    """

    def __init__(self, trunk: Trunk, prior: Prior, alpha: float = 1.0) -> None:
        super().__init__()
        self.trunk = trunk
        self.prior = prior
        self.alpha = alpha

    def forward(
        self,
        images: Tensor,
        prior: Tensor | None = None,
        alpha: float | Tensor | None = None,
        out_indices: Sequence[int] = (),
        reconstruction: bool = False,
        pooled_only: bool = False,
    ) -> TopDownOutput:
        """One pass, see :meth:`TopDown.forward`; ``second`` has the weighted tokens.

        Raises:
            InputError: If prior or alpha do not fit, or ``reconstruction`` is requested.
        """
        if reconstruction:
            raise InputError(
                'reconstruction needs feedback through decoders, which this network does not have'
            )
        first = self.forward_first_pass(images, out_indices, pooled_only)
        return self.forward_second_pass(first, prior, alpha)

    def forward_first_pass(
        self, images: Tensor, out_indices: Sequence[int] = (), pooled_only: bool = False
    ) -> TrunkOutput:
        """The only pass, whose output many priors can share."""
        return self.trunk(images, out_indices, pooled_only)

    def forward_second_pass(
        self, first: TrunkOutput, prior: Tensor | None = None, alpha: float | Tensor | None = None
    ) -> TopDownOutput:
        """Weight the tokens of :meth:`forward_first_pass`."""
        scale = self.alpha if alpha is None else _per_image(alpha, first.tokens)
        center = self.prior.center
        compared = first.tokens if center is None else first.tokens - center
        asked = self.prior(prior, first.tokens.shape[0])
        weights = token_weights(compared, asked) + _is_zero(asked)
        second = first._replace(tokens=scale * weights * first.tokens)
        return TopDownOutput(second, first, weights)

    def forward_head(self, output: TrunkOutput) -> Tensor:
        """Class scores ``(B, num_classes)`` of a pass, see :meth:`Trunk.forward_head`."""
        return self.trunk.forward_head(output)

    def fuse(self) -> Self:
        """Multiply weights of the trunk out for inference."""
        fuse(self)
        return self

    def unfuse(self) -> Self:
        """Undo :meth:`fuse`."""
        unfuse(self)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        rename_entries(state_dict, prefix, plain=False)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _code_norms(
    blocks: Iterable[Any],
    block_io: Sequence[tuple[Tensor, Tensor]],
    grids: Sequence[TokenGrid],
    top_down: Sequence[Tensor],
) -> Tensor:
    """``2 / (B N C) ||u||_1`` of the last code of each block's mixer: ``(L,)``.

    The factor is that between the mean of squares and half their sum in Eq. 2.12.
    """
    norms = []
    for block, (x, _), grid, signal in zip(blocks, block_io, grids, top_down, strict=True):
        code = block.attn.trace(block.norm1(x), grid, signal).codes[-1]
        norms.append(2 * code.abs().sum() / x.numel())
    return torch.stack(norms)


def _is_zero(prior: Tensor) -> Tensor:
    """``(B, 1, 1)``: whether a prior ``(B, C)`` asks for nothing.

    The designs that multiply by the weights then leave all as it is; as those that add feed nothing
    back.
    """
    return (prior == 0).all(dim=-1).view(-1, 1, 1)


def _per_image(alpha: float | Tensor, tokens: Tensor) -> float | Tensor:
    """``alpha``, a number or ``(B,)``, as it multiplies ``tokens (B, N, C)``.

    Raises:
        InputError: If it is something else.
    """
    if not isinstance(alpha, (Tensor, float, int)):  # a union does not compile in torch 2.4
        raise InputError(f'alpha must be a number or a tensor, got {alpha!r}')
    if not isinstance(alpha, Tensor):
        if not torch.compiler.is_compiling() and not math.isfinite(alpha):
            raise InputError(f'alpha must be a finite number, got {alpha!r}')
        return alpha
    if alpha.ndim == 0:
        return alpha
    if alpha.shape != tokens.shape[:1]:
        raise InputError(
            f'alpha must be a number or have shape ({len(tokens)},), got {tuple(alpha.shape)}'
        )
    return alpha.reshape(-1, 1, 1).to(tokens.dtype)
