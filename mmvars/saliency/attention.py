"""What the attentions of any vision transformer look at, computed from q and k beside its forward.

Nothing is hooked or replaced: a mode of torch sees the arguments of each call of
``scaled_dot_product_attention``, and the fused kernel then runs as it always does. Rotary
embeddings, normalized queries, registers and relative positions are in these arguments already.
``nn.MultiheadAttention``, which MMSegmentation's ViT has, projects within; it is asked for its
weights by a second call.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mmvars.errors import InputError
from mmvars.layers import TokenGrid
from mmvars.layers.attention import mean_row

__all__ = ['LayerAttention', 'attention_of']


class LayerAttention(NamedTuple):
    """What one attention layer looks at.

    Attributes:
        first: ``(B, h, N)``: the row of the first token, which is the class token where there is
            one.
        mean: ``(B, h, N)``: the mean of all rows, what the average token looks at.
        grid: Layout of the N tokens.
    """

    first: Tensor
    mean: Tensor
    grid: TokenGrid


@torch.no_grad()
def attention_of(
    model: nn.Module, images: Tensor, layers: Collection[int] | None = None
) -> list[LayerAttention | None]:
    """What each attention of a vision transformer of timm, MMPretrain or MMSegmentation looks at.

    ::

        maps = mmvars.saliency.attention.attention_of(timm.create_model('vit_small_patch16_224'), x)
        maps[-1].grid.to_map(maps[-1].first.transpose(1, 2))  # (B, h, height, width)

    Any model that calls torch's ``scaled_dot_product_attention`` or ``nn.MultiheadAttention`` in
    its forward and embeds patches by a convolution will do. Attention with a single query, or with
    others than its keys, as in poolings, does not count.

    Args:
        model: Called as ``model(images)``; for its usual values in eval mode.
        images: ``(B, c, H, W)``.
        layers: Of which it is computed, from 0; ``None``: all.

    Returns:
        One for each layer; ``None`` where it is not computed.

    Raises:
        InputError: If the model has no such attention, or one within windows.
    """
    watch = _Watch(len(images), layers)
    with watch:
        model(images)
    if not watch.layers:
        raise InputError(
            f'{type(model).__name__} never called torch.nn.functional.scaled_dot_product_attention '
            'or nn.MultiheadAttention '
            'with as many queries as keys: it is no vision transformer with softmax attention, or '
            'the fused kernel is switched off (TIMM_FUSED_ATTN=0 in the environment): unset it'
        )
    return watch.layers


class _Watch(TorchFunctionMode):
    def __init__(self, batch_size: int, wanted: Collection[int] | None) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.wanted = wanted
        self.layers: list[LayerAttention | None] = []
        self.patches: tuple[int, int] = (0, 0)  # height and width

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self._see(*args, **(kwargs or {}))
        output = func(*args, **(kwargs or {}))
        if func is F.multi_head_attention_forward:
            self._see_weights(args, kwargs or {})
        if func is torch.conv2d and not self.layers:  # the last one before is the embedding
            self.patches = output.shape[-2], output.shape[-1]
        return output

    def _see(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        if query.shape[-2] != key.shape[-2]:
            return
        grid = self._grid_of(len(query), query.shape[-2], is_causal)
        if not self._is_wanted():
            return
        if enable_gqa:
            key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        bias = attn_mask
        if bias is not None and bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill(~bias, -torch.inf)
        first_bias = None if bias is None else bias[..., :1, :]
        first = mean_row(query[..., :1, :], key, first_bias, scale)
        self.layers.append(LayerAttention(first, mean_row(query, key, bias, scale), grid))

    def _see_weights(self, args: tuple, kwargs: dict) -> None:
        query, key = args[:2]  # (N, B, C)
        if query.shape[0] != key.shape[0]:
            return
        size = query.shape[1] if query.ndim == 3 else 0
        grid = self._grid_of(size, len(query), kwargs.get('is_causal', False))
        if self._is_wanted():
            kwargs = kwargs | dict(need_weights=True, average_attn_weights=False)
            weights = F.multi_head_attention_forward(*args, **kwargs)[1]
            assert weights is not None
            self.layers.append(LayerAttention(weights[:, :, 0], weights.mean(dim=2), grid))

    def _grid_of(self, size: int, num_tokens: int, is_causal: bool) -> TokenGrid:
        height, width = self.patches
        num_prefix = num_tokens - height * width
        if size != self.batch_size or num_prefix < 0 or not height or is_causal:
            raise InputError(
                f'attention of {size} x {num_tokens} tokens in an image of {height}x{width} '
                'patches: only attention among all patches of an image has a map, not that within '
                'windows, among patches that were joined, or to the left'
            )
        return TokenGrid(height, width, num_prefix)

    def _is_wanted(self) -> bool:
        """Whether the layer that is next is to be computed; if not, it counts as passed."""
        if self.wanted is None or len(self.layers) in self.wanted:
            return True
        self.layers.append(None)
        return False
