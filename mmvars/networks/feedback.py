"""From the output tokens of one pass to the top-down inputs of the next.

A :class:`Prior` says what to look for (Section 2.5), :func:`token_weights` how well each token fits
it, and :class:`Feedback` turns the weighted tokens into one top-down input a block.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError, check_choice, check_flag, check_number
from mmvars.layers import Fusible, TokenGrid
from mmvars.layers.attention import is_plain_linear
from mmvars.layers.compile_utils import can_read_values, crop_to
from mmvars.layers.precision import upcast_to_float32

__all__ = [
    'PRIORS',
    'RECONSTRUCTION_LOSSES',
    'ClassPrototype',
    'ExternalPrior',
    'Feedback',
    'LayerDecoder',
    'LearnedClasses',
    'LearnedQuery',
    'LearnedText',
    'MODULATIONS',
    'MaskFeedback',
    'PHRASINGS',
    'Prior',
    'StageUpsample',
    'project_tokens',
    'resample_tokens',
    'token_weights',
]

_EPS = 1e-12


def token_weights(tokens: Tensor, prior: Tensor) -> Tensor:
    """Cosine similarity of every token with the prior, clamped to [0, 1] (Section 2.5).

    Args:
        tokens: ``(B, N, C)``.
        prior: ``(B, C)`` or ``(1, C)``, of any floating dtype.

    Returns:
        ``(B, N, 1)`` in the dtype of the tokens. Differentiable in both arguments.
    """
    # (x . p) / |x| needs no normalized copy of the tokens.
    direction = prior / torch.linalg.vector_norm(prior, dim=-1, keepdim=True).clamp_min(_EPS)
    dot = (tokens * direction.unsqueeze(1)).sum(dim=-1, keepdim=True)
    length = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True).clamp_min(_EPS)
    return (dot / length).clamp(0, 1).to(tokens.dtype)


MODULATIONS = ('weight', 'project')
"""What output tokens z with weights w carry back: ``alpha w z`` (Section 2.5), or, with the prior
xi, ``alpha w (z xi') xi``, the released vision-language models' form, where alpha is 5 and each
token becomes a multiple of the prior."""


def project_tokens(tokens: Tensor, prior: Tensor) -> Tensor:
    """``(z xi') xi`` for each token z: its part along the prior, times the prior's squared length.

    Args:
        tokens: ``(B, N, C)``.
        prior: ``(B, C)`` or ``(1, C)``, of any floating dtype.

    Returns:
        ``(B, N, C)`` in the dtype of the tokens. Differentiable in both arguments.
    """
    prior = prior.unsqueeze(1)
    return ((tokens * prior).sum(dim=-1, keepdim=True) * prior).to(tokens.dtype)


class Prior(nn.Module):
    """A source of prior vectors. A prior passed to the call always takes precedence.

    Args:
        embed_dim: Width C of the priors.
        has_center: Whether tokens are compared with the prior after ``center`` was subtracted, as
            on pretrained trunks.

    Attributes:
        num_classes: K, of the classes that a call can name by their ids; 0: none.
        center: Buffer ``(C,)``, zeros at first, or ``None``. ``mmvars pretune`` fills it with the
            mean output token: a large part that all tokens of a pretrained network share would
            make their cosines alike. The priors are then differences from it, too. The thesis,
            which trains the network together with its prior, does without.
        whitening: Buffer ``(C, C)``, the identity at first, or ``None`` where ``center`` is. The
            difference of a region in a picture from the center, times this, is a prior that tells
            the region from others; filled by ``mmvars prototypes``, whose vectors are such priors.
    """

    center: Tensor | None
    whitening: Tensor | None

    def __init__(self, embed_dim: int, has_center: bool = False) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.num_classes = 0
        self.register_buffer('center', torch.zeros(embed_dim) if has_center else None)
        self.register_buffer('whitening', torch.eye(embed_dim) if has_center else None)

    @property
    def requested_dim(self) -> int:
        """Width of the float vectors that a call passes: C, or that of a text vector."""
        return self.embed_dim

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if self.whitening is not None and f'{prefix}center' in state_dict:  # older files have none
            state_dict.setdefault(f'{prefix}whitening', torch.eye(self.embed_dim))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, requested: Tensor | None, batch_size: int) -> Tensor:
        """The prior of each image.

        Args:
            requested: ``None`` for the module's default; a float tensor ``(C,)`` or ``(B, C)``, of
                the width of text vectors for :class:`LearnedText`; or, where there are classes,
                integer class ids of shape ``()`` or ``(B,)``, -1 for the default.
            batch_size: B.

        Returns:
            ``(1, C)``, one prior for the batch, or ``(B, C)``.

        Raises:
            InputError: If type or shape do not fit, or there is no default and none was passed.
        """
        if requested is None:
            return self.default()
        if (
            not isinstance(requested, Tensor)
            or requested.dtype == torch.bool
            or (requested.is_complex())
        ):
            kind = requested.dtype if isinstance(requested, Tensor) else type(requested).__name__
            raise InputError(
                f'prior must be a tensor, a float vector of width {self.requested_dim} or '
                f'integer class ids, such as torch.tensor(3); got {kind}'
            )
        if not requested.is_floating_point():
            return self.from_class_ids(
                requested.reshape(-1) if requested.ndim == 0 else requested, batch_size
            )
        vectors = requested.unsqueeze(0) if requested.ndim == 1 else requested
        width = self.requested_dim
        if vectors.shape not in ((batch_size, width), (1, width)):
            raise InputError(
                f'prior must have shape ({width},) or ({batch_size}, {width}), '
                f'got {tuple(requested.shape)}'
            )
        return self.from_vectors(vectors)

    def from_vectors(self, vectors: Tensor) -> Tensor:
        """The priors ``(1 or B, C)`` of float vectors ``(1 or B, requested_dim)``."""
        return vectors

    def default(self) -> Tensor:
        """The prior ``(1, C)`` where none is passed."""
        raise InputError(
            f'{type(self).__name__} has no prior of its own; pass one: prior=<tensor '
            f'of width {self.embed_dim}>, or data_samples[i].prior in OpenMMLab'
        )

    def class_priors(self) -> Tensor:
        """The priors ``(K, C)`` of the classes; zeros for one that cannot be asked for."""
        raise InputError(
            f'{type(self).__name__} knows no classes; pass a float vector of width '
            f'{self.requested_dim}, or build the network with prior=dict('
            "type='class_prototype', num_classes=K)"
        )

    def from_class_ids(self, class_ids: Tensor, batch_size: int) -> Tensor:
        """The priors ``(1 or B, C)`` of integer ids."""
        priors = self.class_priors()
        if class_ids.shape not in ((batch_size,), (1,)):
            raise InputError(
                f'prior must be one class id or {batch_size} of them, got shape '
                f'{tuple(class_ids.shape)}'
            )
        # Where values cannot be read, index_select itself refuses an id that is out of range.
        if can_read_values(class_ids) and (class_ids.min() < -1 or class_ids.max() >= len(priors)):
            raise InputError(
                f'prior names class {class_ids.tolist()}; the classes are 0 to '
                f'{len(priors) - 1}, and -1 asks for none'
            )
        return torch.cat([self.default(), priors]).index_select(0, class_ids.long() + 1)


class LearnedQuery(Prior):
    """One vector, learned with the network: the prior of the released classifiers (xi)."""

    def __init__(self, embed_dim: int, has_center: bool = False) -> None:
        super().__init__(embed_dim, has_center)
        self.query = nn.Parameter(torch.empty(embed_dim))
        nn.init.normal_(self.query)

    def default(self) -> Tensor:
        # Not a view of the parameter, which torch's FLOP counter cannot take without gradients.
        return torch.stack([self.query])


class ClassPrototype(Prior):
    """One vector a class: "look for class k" (Sections 2.5 and 2.6).

    The default asks for nothing: it is the zero vector, no token is like it, and nothing is fed
    back.

    Args:
        embed_dim: Width C.
        num_classes: Rows K of the table.
        has_center: See :class:`Prior`.

    Attributes:
        prototypes: Buffer ``(K, C)``, zeros at first: copied from a classifier, or loaded from a
            file of ``mmvars prototypes``.
    """

    prototypes: Tensor

    def __init__(self, embed_dim: int, num_classes: int, has_center: bool = False) -> None:
        super().__init__(embed_dim, has_center)
        check_number('num_classes of the class prototypes', num_classes, 1, 1_000_000, whole=True)
        self.num_classes = num_classes
        self.register_buffer('prototypes', torch.zeros(num_classes, embed_dim))

    @classmethod
    def from_classifier(cls, classifier: nn.Linear, has_center: bool = False) -> 'ClassPrototype':
        """A copy of the weight ``(K, C)`` of a linear classifier."""
        prior = cls(classifier.in_features, classifier.out_features, has_center)
        prior.prototypes.copy_(classifier.weight.detach())
        return prior

    def default(self) -> Tensor:
        return torch.zeros_like(self.prototypes[:1])

    def class_priors(self) -> Tensor:
        return self.prototypes


class LearnedClasses(ClassPrototype):
    """:class:`ClassPrototype` whose rows are parameters, learned with the network.

    A row that is unlike all tokens gets no gradient through the clamped cosine: train it with the
    loss that aligns it with the tokens of its class, ``prior_loss_weight`` of
    ``mmvars.EncoderDecoder``, or load a file of ``mmvars prototypes`` to start from.
    """

    def __init__(self, embed_dim: int, num_classes: int, has_center: bool = False) -> None:
        super().__init__(embed_dim, num_classes, has_center)
        del self.prototypes
        self.prototypes = nn.Parameter(torch.empty(num_classes, embed_dim))
        # Their direction alone counts. At length 1 they turn at the pace of the learning rate.
        nn.init.normal_(self.prototypes, std=embed_dim**-0.5)


class ExternalPrior(Prior):
    """No default: every call passes a prior, such as a text embedding."""


PHRASINGS = ('{}', 'the {}', 'a photo of a {}', 'there is a {}')
"""Of the name of a class, as CLIP has them; the first is the name alone."""


class LearnedText(Prior):
    """A linear map from a text vector to a prior, learned with the network (Section 2.6).

    A float prior of a call is a text vector here. The default asks for nothing, as that of
    :class:`ClassPrototype`. With ``num_classes`` it can also be asked for a class, by the text
    vector of its name. All names share one map, so that it takes others, too.

    A prior that is unlike all tokens gets no gradient through the clamped cosine, as one of
    :class:`LearnedClasses`.

    Args:
        embed_dim: Width C of the priors.
        text_dim: Width D of the text vectors.
        num_classes: Rows K of the table of names; 0: there is none.
        has_center: See :class:`Prior`.

    Attributes:
        takes_text: Whether a float prior of a call is a text vector, or the prior itself, as where
            a place in an image asks.
        texts: Buffer ``(K, T, D)``: the text vectors of each name in the T :data:`PHRASINGS`, zeros
            at first, loaded from a file of ``mmvars prototypes --text``; ``None`` without classes.
    """

    nothing: Tensor
    texts: Tensor | None

    def __init__(
        self, embed_dim: int, text_dim: int, num_classes: int = 0, has_center: bool = False
    ) -> None:
        super().__init__(embed_dim, has_center)
        check_number('text_dim of the text prior', text_dim, 1, 1_000_000, whole=True)
        check_number('num_classes of the text prior', num_classes, 0, 1_000_000, whole=True)
        self.text_dim = text_dim
        self.takes_text = True
        self.num_classes = num_classes
        self.projection = nn.Linear(text_dim, embed_dim)
        self.register_buffer('nothing', torch.zeros(1, embed_dim), persistent=False)
        texts = torch.zeros(num_classes, len(PHRASINGS), text_dim) if num_classes else None
        self.register_buffer('texts', texts)

    @property
    def requested_dim(self) -> int:
        return self.text_dim if self.takes_text else self.embed_dim

    def default(self) -> Tensor:
        return self.nothing

    def class_priors(self) -> Tensor:
        """The priors ``(K, C)`` of the names; in training of one phrasing each, drawn anew."""
        if self.texts is None:
            return super().class_priors()
        texts = self.texts[:, 0]
        if self.training:
            drawn = torch.randint(len(PHRASINGS), (self.num_classes, 1, 1)).to(texts.device)
            texts = self.texts.take_along_dim(drawn, dim=1)[:, 0]
        return torch.where(texts.any(dim=1, keepdim=True), self.projection(texts), self.nothing)

    def from_vectors(self, vectors: Tensor) -> Tensor:
        return self.projection(vectors.to(self.nothing.dtype)) if self.takes_text else vectors


PRIORS: dict[str, type[Prior]] = {
    'learned_query': LearnedQuery,
    'class_prototype': ClassPrototype,
    'learned_classes': LearnedClasses,
    'text': LearnedText,
    'given': ExternalPrior,
}


RECONSTRUCTION_LOSSES = ('l2', 'cosine')
"""How a decoded block output is compared with the block's input: the mean of the squared
differences of their elements (Eq. 2.13), or of one minus the cosine of their tokens (the remark
below it)."""


class LayerDecoder(nn.Module):
    """The decoder g of one block (Figure 2.3): two linear maps without bias.

    ``to_below`` carries the signal to the block below and is trained by the reconstruction loss;
    ``to_value`` turns it into the block's top-down input.

    Differs from the thesis, which writes one linear transform a layer; the released models have
    these two.

    Args:
        embed_dim: Channels C.
        gated: Whether it has a ``gate`` ``(1,)``, which starts at zero, and a ``to_value`` that
            starts as the identity, see :class:`Feedback`.
    """

    def __init__(self, embed_dim: int, gated: bool = False) -> None:
        super().__init__()
        self.to_below = nn.Linear(embed_dim, embed_dim, bias=False)
        self.to_value = nn.Linear(embed_dim, embed_dim, bias=False)
        trunc_normal_(self.to_below.weight, std=0.02)
        if gated:
            nn.init.eye_(self.to_value.weight)
            self.gate = nn.Parameter(torch.zeros(1))
        else:
            trunc_normal_(self.to_value.weight, std=0.02)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """From the signal ``(B, N, C)`` of the block above to that of this block, and its top-down
        input, both ``(B, N, C)``."""
        below = self.to_below(tokens)
        return below, self.to_value(below)


class StageUpsample(nn.Module):
    """From a stage of half the grid to the stage before it: the mirror of its pooling.

    A 3x3 transposed convolution of stride 2. No code of AbS on RVT was released; of the simple
    choices only this one has the published size of 11 M parameters and 2.7 GFLOPs (Table 2.2).
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_dim, out_dim, 3, stride=2, padding=1, output_padding=1)

    def forward(self, tokens: Tensor, grid: TokenGrid, to_grid: TokenGrid) -> Tensor:
        """``(B, N, C)`` of ``grid`` to ``(B, N', C')`` of ``to_grid``."""
        maps = crop_to(self.conv(grid.to_map(tokens)), to_grid.height, to_grid.width)
        return maps.flatten(2).transpose(1, 2).contiguous()


class Feedback(Fusible):
    """A chain of decoders from the last block to the first.

    With s_L the weighted output tokens: ``s_l = s_{l+1} A_l'`` and top-down input
    ``t_l = s_l B_l'``, where A is ``to_below`` and B is ``to_value`` of block l.

    With ``gated``, for trunks that were trained without feedback,
    ``t_l = tanh(g_l) w LN(s_l B_l')``: s_L are the output tokens as they are, w their weights times
    alpha, LN a layer norm without weights of its own, and g one gate a block. The gates start at
    zero, so that the network starts as its trunk, and with ``alpha=0`` it is its trunk. The norm
    gives the signal the size of the tokens that it is added to. The weights multiply its result,
    since it would take their size away again. The thesis has neither gate nor norm: its networks
    learn with the feedback on.

    ``fuse()`` multiplies the linear maps out: ``t_l = s_L (B_l A_l ... A_{L-1})'`` costs one
    product of the tokens a block instead of two.

    Args:
        widths: Channels of each block.
        strides: Stride of each block; where it changes, a transposed convolution leads across.
        gated: See above; for blocks of one stride.
        reconstruction_loss: One of :data:`RECONSTRUCTION_LOSSES`.
        stop_gradient: Whether the reconstruction loss trains the decoders alone. Without, it makes
            the network generative, too, at a cost in accuracy (Section 2.5, "Trade-off").
    """

    decoders: Any  # a ModuleList of LayerDecoder

    def __init__(
        self,
        widths: Sequence[int],
        strides: Sequence[int],
        gated: bool = False,
        reconstruction_loss: str = 'l2',
        stop_gradient: bool = True,
    ) -> None:
        super().__init__()
        check_choice('reconstruction_loss', reconstruction_loss, RECONSTRUCTION_LOSSES)
        check_flag('stop_gradient', stop_gradient)
        self.gated = gated
        self.reconstruction_loss = reconstruction_loss
        self.stop_gradient = stop_gradient
        self.decoders = nn.ModuleList(LayerDecoder(width, gated) for width in widths)
        # Entry i leads from block i + 1 to block i.
        self.upsamples = nn.ModuleDict(
            {
                str(i): StageUpsample(widths[i + 1], widths[i])
                for i in range(len(widths) - 1)
                if strides[i] != strides[i + 1]
            }
        )

    def forward(
        self, tokens: Tensor, weights: Tensor, grids: Sequence[TokenGrid]
    ) -> tuple[Tensor, ...]:
        """Decode the weighted output tokens.

        Args:
            tokens: ``(B, N, C)``, laid out as in the last block.
            weights: ``(B, N, 1)``, scaled by alpha.
            grids: Layout of each block.

        Returns:
            L top-down inputs in the order of the blocks, ``(B, N, C)`` of each block.
        """
        if not self.gated:
            tokens = weights * tokens
        signals: list[Tensor] = []
        if self.is_fused and self.can_use_fused():
            signals = self._forward_fused(tokens, grids)
        else:
            for index in reversed(range(len(self.decoders))):
                if str(index) in self.upsamples:
                    tokens = self.upsamples[str(index)](tokens, grids[index + 1], grids[index])
                tokens, signal = self.decoders[index](tokens)
                signals.insert(0, signal)
        if not self.gated:
            return tuple(signals)
        return tuple(
            decoder.gate.tanh() * weights * F.layer_norm(signal, signal.shape[-1:])
            for decoder, signal in zip(self.decoders, signals, strict=True)
        )

    def reconstruction_errors(self, block_io: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Layer-wise reconstruction loss (Eq. 2.13, first term) of each block: ``(L,)``.

        ``mean((sg(output) A_l' - sg(input))^2)`` over all elements, with sg the stop-gradient: it
        trains ``to_below`` of its own block and nothing else. The constructor's arguments choose
        the cosine, which leaves the length of the tokens free, and no stop-gradient.

        Differs from the thesis (half the sum of squares): the mean, as in the released models.

        Args:
            block_io: Input and output ``(B, N, C)`` of each block, before any norm.
        """
        errors = []
        for decoder, (block_input, output) in zip(self.decoders, block_io, strict=True):
            if self.stop_gradient:
                block_input, output = block_input.detach(), output.detach()
            decoded = decoder.to_below(output)
            if self.reconstruction_loss == 'l2':
                errors.append(F.mse_loss(decoded, block_input))
            else:
                errors.append((1 - F.cosine_similarity(decoded, block_input, dim=-1)).mean())
        return torch.stack(errors)

    def fusible_weights(self) -> list[Tensor] | None:
        layers = [
            layer for decoder in self.decoders for layer in (decoder.to_below, decoder.to_value)
        ]
        called = any(
            type(decoder) is not LayerDecoder
            or 'forward' in vars(decoder)
            or decoder._forward_hooks
            or decoder._forward_pre_hooks
            for decoder in self.decoders
        )
        if called or not all(map(is_plain_linear, layers)):
            return None
        return [layer.weight for layer in layers]

    def products(self) -> dict[str, Tensor]:
        """``value_l``: the product up to the top-down input of block l; ``chain_l``: that to block
        l itself, where an upsampling follows; both since the upsampling before it."""
        products = {}
        chain: Tensor | None = None
        for index in reversed(range(len(self.decoders))):
            decoder = self.decoders[index]
            to_below = upcast_to_float32(decoder.to_below.weight)
            if chain is None or str(index) in self.upsamples:
                chain = to_below
            else:
                chain = to_below @ chain
            products[f'value_{index}'] = upcast_to_float32(decoder.to_value.weight) @ chain
            if str(index - 1) in self.upsamples:
                products[f'chain_{index}'] = chain
        return products

    def _forward_fused(self, tokens: Tensor, grids: Sequence[TokenGrid]) -> list[Tensor]:
        signals: list[Tensor] = []
        for index in reversed(range(len(self.decoders))):
            if str(index) in self.upsamples:
                tokens = F.linear(tokens, self.fused[f'chain_{index + 1}'])
                tokens = self.upsamples[str(index)](tokens, grids[index + 1], grids[index])
            signals.insert(0, F.linear(tokens, self.fused[f'value_{index}']))
        return signals


class MaskFeedback(nn.Module):
    """MaskAtt of Table 2.3: the weights of the tokens, which multiply the values of every block.

    For a grid that is finer than the last block's they are interpolated (bilinear).
    """

    def forward(
        self, tokens: Tensor, weights: Tensor, grids: Sequence[TokenGrid]
    ) -> tuple[Tensor, ...]:
        """``weights (B, N, 1)`` of the last block as they are for each block; no ``tokens``."""
        return tuple(resample_tokens(weights, grids[-1], grid) for grid in grids)


def resample_tokens(tokens: Tensor, grid: TokenGrid, to_grid: TokenGrid) -> Tensor:
    """Tokens ``(B, N, C)`` at another grid: bilinear for patches; prefix tokens stay."""
    if grid == to_grid:
        return tokens
    maps = F.interpolate(
        grid.to_map(tokens),
        size=(to_grid.height, to_grid.width),
        mode='bilinear',
        align_corners=False,
    )
    return torch.cat([tokens[:, : grid.num_prefix], maps.flatten(2).transpose(1, 2)], dim=1)
