"""AbSViT on one page: the whole method in plain PyTorch, written from its equations.

"Top-Down Visual Attention from Analysis by Synthesis" (CVPR 2023); equations, figures and sections
are numbered as in the thesis. One inference has four steps (Section 2.5, Figure 2.3 a):

1. A vision transformer runs: z = norm(T(E(x))).
2. Each token is weighted by its similarity to a prior xi: w = clamp(cos(z, xi), 0, 1).
3. alpha * w * z goes down through one decoder a block: each block gets one top-down tensor.
4. The same transformer runs again on the same embedding; each block adds its top-down tensor to the
   input of the value, and leaves query and key alone (Equations 2.3 and 2.10, Figure 2.3 b).

The package computes the same from parts that also make RVT, FAN and VARS; the counterpart of this
file is `mmvars/networks/top_down.py`. The tests hold the package to this file, and this file to
recorded outputs of the released models. Left out: prompts, a way to fine-tune.

Shapes: B images, N = 1 + h * w tokens (the class token first), C channels, H heads, L blocks,
K classes, P x P pixels a patch.
"""

from typing import NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Self-attention with a top-down input to the value (Figure 2.3 b)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, top_down: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, N, C) each
        if top_down is not None:
            # V <- V + (W_v t + b_v). The thesis writes V + t; the released models send t through
            # the value projection, bias included, so that the bias counts twice.
            v = v + self.qkv(top_down).chunk(3, dim=-1)[2]
        q, k, v = (y.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for y in (q, k, v))
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, H, N, N)
        mixed = scores.softmax(dim=-1) @ v  # (B, H, N, C / H)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # (B, N, C)


class Block(nn.Module):
    """A pre-norm transformer block. The top-down input is not normalized."""

    def __init__(self, dim: int, num_heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.ModuleDict(dict(fc1=nn.Linear(dim, 4 * dim), fc2=nn.Linear(4 * dim, dim)))
        self.drop_path = DropPath(drop_path)  # stochastic depth, in training

    def forward(self, x: Tensor, top_down: Tensor | None = None) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), top_down))
        return x + self.drop_path(self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x)))))


class Decoder(nn.Module):
    """The decoder g of one block: ``to_below`` to the block below, ``to_value`` to this one.

    The thesis writes one linear map a block; the released models have these two.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_below = nn.Linear(dim, dim, bias=False)
        self.to_value = nn.Linear(dim, dim, bias=False)


class Output(NamedTuple):
    """What one inference computes."""

    tokens: Tensor  # of the second pass, after the norm: (B, N, C)
    first_tokens: Tensor  # of the first pass, after the norm: (B, N, C)
    token_weights: Tensor  # w: (B, N, 1)
    top_down: list[Tensor]  # top-down input of each block: L times (B, N, C)
    hidden_states: list[Tensor]  # z_0, ..., z_L of the second pass, no norm: L + 1 times (B, N, C)


class AbSViT(nn.Module):
    """A vision transformer with top-down attention; the defaults make AbSViT-Ti.

    Args:
        img_size: Side, or (height, width), of the images whose positions are stored. Images of any
            size work.
        global_pool: 'token' classifies the class token, after the norm; 'avg' the mean of the
            patch tokens, with the norm after the mean alone.
        alpha: Scale of the top-down signal.
        drop_path: Rate of stochastic depth in the last block, rising from 0 in the first.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'token',
        alpha: float = 1.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch_size, self.global_pool, self.alpha = patch_size, global_pool, alpha
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid = (height // patch_size, width // patch_size)
        self.patch_embed = nn.ModuleDict(dict(proj=nn.Conv2d(3, dim, patch_size, patch_size)))
        self.cls_token = nn.Parameter(1e-6 * torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + self.grid[0] * self.grid[1], dim))
        self.prior = nn.Parameter(torch.randn(dim))  # xi, a learned query
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, rate) for rate in torch.linspace(0, drop_path, depth).tolist()
        )
        self.decoders = nn.ModuleList(Decoder(dim) for _ in range(depth))
        norm = nn.LayerNorm(dim, eps=1e-6)
        self.norm = norm if global_pool == 'token' else nn.Identity()
        self.fc_norm = norm if global_pool == 'avg' else nn.Identity()
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, images: Tensor, prior: Tensor | None = None, alpha: float | None = None
    ) -> Output:
        """The four steps for ``images`` (B, 3, height, width).

        ``prior``, (C,) or (B, C), and ``alpha`` take the place of the model's own.
        """
        alpha = self.alpha if alpha is None else alpha
        prior = self.prior if prior is None else prior
        x = self.embed(images)
        z = self.norm(self.run_blocks(x)[-1])  # step 1
        cosine = F.cosine_similarity(z, prior.reshape(-1, 1, z.shape[-1]), dim=-1)  # (B, N)
        weights = cosine.clamp(0, 1).unsqueeze(-1)  # step 2
        top_down = self.decode(alpha * weights * z)  # step 3
        hidden_states = self.run_blocks(x, top_down)  # step 4
        return Output(self.norm(hidden_states[-1]), z, weights, top_down, hidden_states)

    def embed(self, images: Tensor) -> Tensor:
        """E(x): the class token and one token for each patch, plus positions, (B, N, C)."""
        bottom, right = (-side % self.patch_size for side in images.shape[-2:])
        patches = self.patch_embed.proj(F.pad(images, (0, right, 0, bottom)))  # (B, C, h, w)
        pos_embed = self.pos_embed
        if patches.shape[-2:] != self.grid:  # another grid: resample the positions of the patches
            stored = pos_embed[:, 1:].transpose(1, 2).unflatten(2, self.grid)
            resampled = F.interpolate(stored, size=patches.shape[-2:], mode='bicubic')
            pos_embed = torch.cat([pos_embed[:, :1], resampled.flatten(2).transpose(1, 2)], dim=1)
        class_token = self.cls_token.expand(len(images), -1, -1)
        return torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1) + pos_embed

    def run_blocks(self, x: Tensor, top_down: list[Tensor] | None = None) -> list[Tensor]:
        """The hidden states z_0, ..., z_L of one pass."""
        hidden_states = [x]
        for i, block in enumerate(self.blocks):
            x = block(x, None if top_down is None else top_down[i])
            hidden_states.append(x)
        return hidden_states

    def decode(self, z: Tensor) -> list[Tensor]:
        """The top-down input of each block, from the weighted output tokens (B, N, C)."""
        top_down = []
        for decoder in reversed(self.decoders):
            z = decoder.to_below(z)
            top_down.append(decoder.to_value(z))
        return top_down[::-1]

    def classify(self, tokens: Tensor) -> Tensor:
        """Class scores (B, K) of the tokens of a pass."""
        pooled = tokens[:, 0] if self.global_pool == 'token' else tokens[:, 1:].mean(dim=1)
        return self.head(self.fc_norm(pooled))

    def reconstruction_loss(self, hidden_states: list[Tensor]) -> Tensor:
        """Equation 2.13: the sum over l of |sg(z_l) - g_l(sg(z_l+1))|^2; sg stops the gradient.

        The released models take the mean over (B, N, C) where the thesis has half of the sum.
        """
        pairs = zip(self.decoders, hidden_states, hidden_states[1:], strict=False)
        return torch.stack(
            [
                F.mse_loss(decoder.to_below(after.detach()), before.detach())
                for decoder, before, after in pairs
            ]
        ).sum()

    def loss(self, images: Tensor, targets: Tensor, reconstruction_weight: float = 0.1) -> Tensor:
        """Equation 2.14 for ``targets``, class ids (B,) or probabilities (B, K).

        The released models supervise both passes alike. Nothing is learned from the prior term in
        classification (Section 2.5).
        """
        out = self(images)
        first, second = (
            F.cross_entropy(self.classify(tokens), targets)
            for tokens in (out.first_tokens, out.tokens)
        )
        return (first + second) / 2 + reconstruction_weight * self.reconstruction_loss(
            out.hidden_states
        )


def rename_weights(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the released AbSViT, or of the package's, under the names of this file."""
    renamed = {}
    for key, tensor in state_dict.items():
        for old, new in (
            ('trunk.', ''),
            ('feedback.', ''),
            ('prior.query', 'prior'),
            ('prompt', 'prior'),
            ('.linear.', '.to_below.'),
            ('.linear2.', '.to_value.'),
        ):
            key = key.replace(old, new)
        renamed[key] = tensor
    renamed.pop('trained_grid', None)  # the package also stores which grid its positions are for
    return renamed
