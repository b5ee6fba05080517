"""timm's transformer blocks with an optional top-down input at their value projections.

:func:`add_top_down` turns the blocks of a built timm network into these classes in place; modules,
parameters and names stay. Each attention runs timm's own forward where there is no top-down input.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models import beit, eva
from timm.models import vision_transformer as vit
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.layers import TokenGrid
from mmvars.layers.attention import is_plain_linear, linear_slice, mean_row, split_heads

__all__ = ['RelativePositions', 'add_top_down', 'relative_positions']


class RelativePositions(NamedTuple):
    """What a BEiT block needs of the grid, for one class token and patches.

    Attributes:
        rows: ``(N, N)`` rows in a table of biases of the grid.
        resize: Matrices ``(2 h - 1, 2 h' - 1)`` and ``(2 w - 1, 2 w' - 1)`` that bring a table of
            the stored grid ``(h', w')`` to this one; ``None`` where it has it.
        shared: Bias ``(heads, N, N)`` of all blocks, where the network has one.
    """

    rows: Tensor
    resize: tuple[Tensor, Tensor] | None
    shared: Tensor | None = None

    def bias(self, table: Tensor) -> Tensor:
        """``(heads, N, N)`` from a table ``((2 h' - 1) (2 w' - 1) + 3, heads)``."""
        if self.resize is not None:
            along_y, along_x = (matrix.to(table.dtype) for matrix in self.resize)
            patches = table[:-3].unflatten(0, (along_y.shape[1], along_x.shape[1]))
            patches = torch.einsum('yi,xj,ijh->yxh', along_y, along_x, patches)
            table = torch.cat([patches.flatten(0, 1), table[-3:]])
        return table[self.rows].permute(2, 0, 1)


class _TopDownAttention(nn.Module):
    """Base of timm's attentions: ``softmax(q k' / sqrt(D)) v`` with ``v = Wv (x + t) + bv``.

    A ``position`` is what timm hands to the attention of its family: rotary embeddings, relative
    positions, or ``None``.
    """

    takes_top_down = True
    injection = 'value'
    num_heads: int
    qkv: Any  # None where the projections are apart
    q_proj: Any
    k_proj: Any
    v_proj: Any
    attn_drop: Any
    norm: Any
    proj: Any
    proj_drop: Any

    def forward(self, x: Tensor, position: Any = None, top_down: Tensor | None = None) -> Tensor:
        """Mix ``x (B, N, C)``; ``top_down`` as its injection says, or ``None``."""
        if top_down is None:
            return self.bottom_up(x, position)
        q, k, v = self.queries_keys_values(x, position, top_down)
        if v.shape[1] != q.shape[1]:  # grouped-query attention
            k, v = (each.repeat_interleave(q.shape[1] // v.shape[1], dim=1) for each in (k, v))
        dropout = self.attn_drop.p if self.training else 0.0
        mask = self.position_bias(position)
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout).transpose(1, 2).flatten(2)
        mixed = self.norm(mixed)
        if (gate := getattr(self, 'gate', None)) is not None:  # not in every version of timm
            mixed = mixed * gate(x).sigmoid()
        return self.proj_drop(self.proj(mixed))

    def bottom_up(self, x: Tensor, position: Any) -> Tensor:
        """timm's own forward."""
        raise NotImplementedError

    def position_bias(self, position: Any) -> Tensor | None:
        """What is added to the logits, ``(1, h, N, N)``."""
        return None

    def queries_keys_values(
        self, x: Tensor, position: Any, top_down: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``(B, h, N, D)`` each, normalized and rotated; grouped keys and values have fewer h."""
        others = x if top_down is None or self.injection != 'qkv' else x + top_down
        value_input = others if self.injection != 'value' or top_down is None else x + top_down
        if self.qkv is None:
            q, k, v = self.q_proj(others), self.k_proj(others), self.v_proj(value_input)
        elif others is value_input:
            q, k, v = self.qkv(others).chunk(3, dim=-1)
        elif is_plain_linear(self.qkv):  # its rows can be used apart
            width = self.qkv.out_features // 3
            q, k = linear_slice(self.qkv, others, slice(2 * width)).chunk(2, dim=-1)
            v = linear_slice(self.qkv, value_input, slice(-width, None))
        else:
            q, k, _ = self.qkv(others).chunk(3, dim=-1)
            v = self.qkv(value_input).chunk(3, dim=-1)[2]
        if getattr(self, 'q_bias', None) is not None:  # keys have none
            q, v = q + self.q_bias, v + self.v_bias
        if top_down is not None and self.injection == 'mask':
            v = v * top_down
        num_kv_heads: int = getattr(self, 'num_kv_heads', self.num_heads)  # type: ignore[assignment]
        q, k = split_heads(q, self.num_heads), split_heads(k, num_kv_heads)
        return q, k, split_heads(v, num_kv_heads)

    def attention_probabilities(
        self, x: Tensor, position: Any = None, top_down: Tensor | None = None
    ) -> Tensor:
        """``softmax(q k' / sqrt(D))``, ``(B, h, N, N)``, for figures: the forward is fused."""
        q, k, _ = self.queries_keys_values(x, position, top_down)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        bias = self.position_bias(position)
        return (logits if bias is None else logits + bias).softmax(dim=-1)

    def mean_attention(
        self, x: Tensor, position: Any = None, top_down: Tensor | None = None
    ) -> Tensor:
        """What the average token attends to, the mean over the queries: ``(B, h, N)``."""
        q, k, _ = self.queries_keys_values(x, position, top_down)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        return mean_row(q, k, self.position_bias(position))

    def keys_values(
        self, x: Tensor, position: Any = None, top_down: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values, ``(B, h, N, D)`` each: for figures."""
        q, k, v = self.queries_keys_values(x, position, top_down)
        k, v = (each.repeat_interleave(q.shape[1] // v.shape[1], dim=1) for each in (k, v))
        return k, v


class _VitAttention(_TopDownAttention, Attention):
    q_norm: Any
    k_norm: Any

    def bottom_up(self, x: Tensor, position: Any) -> Tensor:
        return Attention.forward(self, x)

    def queries_keys_values(
        self, x: Tensor, position: Any, top_down: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().queries_keys_values(x, position, top_down)
        return self.q_norm(q), self.k_norm(k), v


class _RotaryAttention(_TopDownAttention):
    """Of EVA-02, DINOv3 and others: patches are rotated by their place, prefix tokens are not."""

    q_norm: Any
    k_norm: Any
    num_prefix_tokens: int
    rotate_half: bool

    def queries_keys_values(
        self, x: Tensor, position: Any, top_down: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().queries_keys_values(x, position, top_down)
        return self._rotated(self.q_norm(q), position), self._rotated(self.k_norm(k), position), v

    def _rotated(self, x: Tensor, position: Any) -> Tensor:
        if position is None:
            return x
        prefix, patches = x.tensor_split([self.num_prefix_tokens], dim=2)
        patches = apply_rot_embed_cat(patches, position, half=self.rotate_half)
        return torch.cat([prefix, patches], dim=2).type_as(x)


class _EvaAttention(_RotaryAttention, eva.EvaAttention):
    def bottom_up(self, x: Tensor, position: Any) -> Tensor:
        return eva.EvaAttention.forward(self, x, rope=position)


class _RopeAttention(_RotaryAttention, AttentionRope):
    def bottom_up(self, x: Tensor, position: Any) -> Tensor:
        return AttentionRope.forward(self, x, rope=position)


class _BeitAttention(_TopDownAttention, beit.Attention):
    """Its table of relative positions follows the grid, which timm's own forward cannot."""

    relative_position_bias_table: Any

    def forward(self, x: Tensor, position: Any = None, top_down: Tensor | None = None) -> Tensor:
        q, k, v = self.queries_keys_values(x, position, top_down)
        dropout = self.attn_drop.p if self.training else 0.0
        mask = self.position_bias(position)
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))

    def position_bias(self, position: RelativePositions) -> Tensor | None:
        table = self.relative_position_bias_table
        if table is None:
            return position.shared
        bias = position.bias(table)
        return (bias if position.shared is None else bias + position.shared).unsqueeze(0)


class _Block(nn.Module):
    """Base of timm's blocks: ``(x, position, top_down)``, ``(B, N, C)`` to ``(B, N, C)``."""

    is_trunk_block = True
    norm1: Any
    attn: Any
    drop_path1: Any
    norm2: Any
    mlp: Any
    drop_path2: Any


class _VitBlock(_Block, vit.Block):
    ls1: Any
    ls2: Any

    def forward(self, x: Tensor, position: Any = None, top_down: Tensor | None = None) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), position, top_down)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class _PostNormBlock(_Block):
    def forward(self, x: Tensor, position: Any = None, top_down: Tensor | None = None) -> Tensor:
        x = x + self.drop_path1(self.norm1(self.attn(x, position, top_down)))
        return x + self.drop_path2(self.norm2(self.mlp(x)))


class _VitPostNormBlock(_PostNormBlock, vit.ResPostBlock):
    pass


class _EvaPostNormBlock(_PostNormBlock, eva.EvaBlockPostNorm):
    pass


class _ScaledBlock(_Block):
    gamma_1: Tensor | None
    gamma_2: Tensor | None

    def forward(self, x: Tensor, position: Any = None, top_down: Tensor | None = None) -> Tensor:
        mixed = self.attn(self.norm1(x), position, top_down)
        x = x + self.drop_path1(mixed if self.gamma_1 is None else self.gamma_1 * mixed)
        mixed = self.mlp(self.norm2(x))
        return x + self.drop_path2(mixed if self.gamma_2 is None else self.gamma_2 * mixed)


class _EvaBlock(_ScaledBlock, eva.EvaBlock):
    pass


class _BeitBlock(_ScaledBlock, beit.Block):
    pass


_BLOCKS: dict[type[nn.Module], type[nn.Module]] = {
    vit.Block: _VitBlock,
    vit.ResPostBlock: _VitPostNormBlock,
    eva.EvaBlock: _EvaBlock,
    eva.EvaBlockPostNorm: _EvaPostNormBlock,
    beit.Block: _BeitBlock,
}
_ATTENTIONS: dict[type[nn.Module], type[nn.Module]] = {
    Attention: _VitAttention,
    eva.EvaAttention: _EvaAttention,
    AttentionRope: _RopeAttention,
    beit.Attention: _BeitAttention,
}


def add_top_down(block: nn.Module, injection: str, title: str) -> None:
    """Make a block of timm, and its attention, take a top-down input, in place.

    Args:
        block: A block of timm.
        injection: One of :data:`mmvars.layers.INJECTIONS`.
        title: Name of the network, for errors.

    Raises:
        InputError: If the class of the block or of its attention is not known.
    """
    attention: Any = getattr(block, 'attn', None)
    if type(block) not in _BLOCKS or type(attention) not in _ATTENTIONS:
        known = [f'{block.__name__}' for block in (*_BLOCKS, *_ATTENTIONS)]
        raise InputError(
            f'arch={title!r} has blocks of class {type(block).__name__} with attention of class '
            f'{type(attention).__name__}, into which mmvars puts no top-down input; it knows '
            f'{", ".join(dict.fromkeys(known))}'
        )
    block.__class__ = _BLOCKS[type(block)]
    attention.__class__ = _ATTENTIONS[type(attention)]
    attention.injection = injection
    if hasattr(attention, 'qkv_bias_separate'):
        # timm otherwise reads the weight of `qkv`, and a wrapper around it (LoRA) would not count.
        attention.qkv_bias_separate = True


def relative_positions(
    grid: TokenGrid, stored: Sequence[int], device: torch.device
) -> RelativePositions:
    """Those of a grid, for tables of biases of the ``stored`` one ``(h', w')``."""
    rows = beit.gen_relative_position_index(grid[:2], device=device)
    if grid[:2] == tuple(stored):
        return RelativePositions(rows, None)
    along_y, along_x = (
        _interpolation(one, other, device) for one, other in zip(stored, grid[:2], strict=True)
    )
    return RelativePositions(rows, (along_y, along_x))


def _interpolation(stored: int, side: int, device: torch.device) -> Tensor:
    """``(2 side - 1, 2 stored - 1)``: biases of the offsets along one side from those of another.

    BEiT's rule, as in timm's ``resize_rel_pos_bias_table``, which goes head by head on the CPU: the
    stored offsets are taken for a geometric progression that ends where the new ones do, and
    between them it is linear.
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        reach = (1 - ratio ** (stored - 1)) / (1 - ratio)
        low, high = (low, ratio) if reach > side - 1 else (ratio, high)
    steps = [*itertools.accumulate(ratio**index for index in range(stored - 1))]
    places = torch.tensor([*(-step for step in reversed(steps)), 0.0, *steps], device=device)
    offsets = torch.arange(1 - side, side, device=device, dtype=places.dtype)
    right = torch.bucketize(offsets, places).clamp_max(len(places) - 1)
    left = (right - 1).clamp_min(0)
    to_left = (offsets - places[left]).clamp_min(0)
    to_right = (places[right] - offsets).clamp_min(0)
    share = torch.where(to_left + to_right > 0, to_left / (to_left + to_right), 1.0)
    of_right, of_left = (F.one_hot(index, len(places)) for index in (right, left))
    return share.unsqueeze(1) * of_right + (1 - share).unsqueeze(1) * of_left
