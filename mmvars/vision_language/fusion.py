"""Co-attention of two streams, text and image: the fusion module of METER."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError, check_number

__all__ = ['CoAttentionFusion', 'CoAttentionLayer', 'FusionOutput']


class FusionOutput(NamedTuple):
    """What :class:`CoAttentionFusion` returns for P pairs of a text and an image.

    Attributes:
        features: ``(P, 2 * hidden_dim)``, the pooled text beside the pooled image.
        text: ``(P, L, hidden_dim)``, the tokens of the text after the last layer.
        image: ``(P, N, hidden_dim)``, those of the image.
    """

    features: Tensor
    text: Tensor
    image: Tensor


class Attention(nn.Module):
    """Multi-head attention of one sequence to another, with dropout of its weights.

    Args:
        dim: Channels C.
        num_heads: Heads.
        dropout: Share of the weights that is dropped in training.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """What tokens ``x (P, N, C)`` read from ``context (P, M, C)``.

        Args:
            x: The queries.
            context: The keys and values.
            mask: ``(P, M)``, true where there is a token to read; ``None``: everywhere.
        """
        query, key, value = (
            layer(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.query, x), (self.key, context), (self.value, context))
        )
        read = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask[:, None, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.proj(read.transpose(1, 2).flatten(2))


class CoAttentionLayer(nn.Module):
    """A layer of BERT with cross-attention: self-attention, cross-attention, MLP, each with a norm
    after the sum.

    Args:
        dim: Channels C.
        num_heads: Heads of both attentions.
        mlp_ratio: Width of the MLP, as a multiple of C.
        dropout: Share that is dropped in training: of attention weights, and of what is added.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float = 4.0, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads, dropout)
        self.norm1 = nn.LayerNorm(dim, eps=1e-12)
        self.cross_attn = Attention(dim, num_heads, dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-12)
        self.fc1 = nn.Linear(dim, int(dim * mlp_ratio))
        self.fc2 = nn.Linear(int(dim * mlp_ratio), dim)
        self.norm3 = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Tokens ``(P, N, C)`` after the layer.

        Args:
            x: ``(P, N, C)``.
            context: ``(P, M, C)``, the tokens of the other stream before its own layer.
            mask: ``(P, N)``, true where ``x`` has a token; ``None``: everywhere.
            context_mask: ``(P, M)``, likewise of ``context``.
        """
        x = self.norm1(x + self.dropout(self.self_attn(x, x, mask)))
        x = self.norm2(x + self.dropout(self.cross_attn(x, context, context_mask)))
        return self.norm3(x + self.dropout(self.fc2(F.gelu(self.fc1(x)))))


class CoAttentionFusion(nn.Module):
    """The fusion of METER: a stack of layers for the text and one for the image.

    Tokens of both are mapped to ``hidden_dim`` and marked by a vector of their kind. A layer of
    one stream reads what the other had before its own layer of that depth. The first token of each
    is pooled by a linear map and a tanh.

    Args:
        text_dim: Channels of the text tokens.
        image_dim: Channels of the image tokens.
        hidden_dim: Channels of the layers.
        num_layers: Layers of each stream.
        num_heads: See :class:`CoAttentionLayer`.
        mlp_ratio: See :class:`CoAttentionLayer`.
        dropout: See :class:`CoAttentionLayer`.

    Raises:
        InputError: If a number cannot be used.
    """

    def __init__(
        self,
        text_dim: int,
        image_dim: int,
        hidden_dim: int = 768,
        num_layers: int = 6,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_number('num_layers of the fusion', num_layers, 1, 1000, whole=True)
        check_number('num_heads of the fusion', num_heads, 1, hidden_dim, whole=True)
        check_number('mlp_ratio of the fusion', mlp_ratio, 0, 1000)
        check_number('dropout of the fusion', dropout, 0, 1)
        if hidden_dim % num_heads:
            raise InputError(
                f'hidden_dim ({hidden_dim}) of the fusion must be a multiple of num_heads '
                f'({num_heads})'
            )
        if int(hidden_dim * mlp_ratio) < 1:
            raise InputError(
                f'mlp_ratio ({mlp_ratio}) of the fusion gives MLPs of width 0, as hidden_dim is '
                f'{hidden_dim}: METER has mlp_ratio=4'
            )
        self.hidden_dim = hidden_dim
        self.text_projection = nn.Linear(text_dim, hidden_dim)
        self.image_projection = nn.Linear(image_dim, hidden_dim)
        self.token_types = nn.Embedding(2, hidden_dim)
        self.text_layers, self.image_layers = (
            nn.ModuleList(
                CoAttentionLayer(hidden_dim, num_heads, mlp_ratio, dropout)
                for _ in range(num_layers)
            )
            for _ in range(2)
        )
        self.text_pooler = nn.Linear(hidden_dim, hidden_dim)
        self.image_pooler = nn.Linear(hidden_dim, hidden_dim)
        self.apply(init_like_bert)

    def forward(self, text: Tensor, mask: Tensor, image: Tensor) -> FusionOutput:
        """Fuse P pairs.

        Args:
            text: ``(P, L, text_dim)``.
            mask: ``(P, L)``, true where a text has a token.
            image: ``(P, N, image_dim)``, or ``(B, N, image_dim)`` where each image has ``P / B``
                texts side by side.
        """
        text_type, image_type = self.token_types.weight
        x = self.text_projection(text) + text_type
        y = self.image_projection(image) + image_type
        y = y.repeat_interleave(len(x) // len(y), dim=0)
        for text_layer, image_layer in zip(self.text_layers, self.image_layers, strict=True):
            x, y = text_layer(x, y, mask), image_layer(y, x, context_mask=mask)
        pooled = self.text_pooler(x[:, 0]).tanh(), self.image_pooler(y[:, 0]).tanh()
        return FusionOutput(torch.cat(pooled, dim=1), x, y)


def init_like_bert(module: nn.Module) -> None:
    """Weights of a linear map or a table are normal with a deviation of 0.02, biases zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
