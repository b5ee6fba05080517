"""AbSViT as its equations stand, line by line: what the benchmark measures our network against.

No cleverness, on purpose: softmax attention with its matrix, the whole query-key-value projection
of the top-down signal, decoders layer after layer. Only plain patch-16 models with a class token;
the package itself uses none of this.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ['TextbookAbSViT', 'textbook_weights']

_EPS = 1e-6
_SHORTEST = 1e-12  # no vector is divided by less than this length


class TextbookAbSViT(nn.Module):
    """AbSViT for images of one size, with the names of the released weights.

    Args:
        image_size: Height and width in pixels, multiples of the patch size.
        embed_dim: Width C.
        depth: Blocks L.
        num_heads: Heads.
        num_classes: Classes; 0 for none.
        patch_size: Side of a patch.
    """

    def __init__(self, image_size: tuple[int, int], embed_dim: int, depth: int, num_heads: int,
                 num_classes: int, patch_size: int = 16) -> None:
        super().__init__()
        self.grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        num_tokens = 1 + self.grid[0] * self.grid[1]
        self.patch_embed = nn.ModuleDict(dict(
            proj=nn.Conv2d(3, embed_dim, patch_size, stride=patch_size)))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, embed_dim))
        self.prompt = nn.Parameter(torch.zeros(embed_dim))
        self.blocks = nn.ModuleList(_Block(embed_dim, num_heads) for _ in range(depth))
        self.decoders = nn.ModuleList(nn.ModuleDict(dict(
            linear=nn.Linear(embed_dim, embed_dim, bias=False),
            linear2=nn.Linear(embed_dim, embed_dim, bias=False))) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=_EPS)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()

    def logits(self, images: Tensor) -> Tensor:
        """Class scores ``(B, K)`` of pass 2. Computes the reconstruction loss, as released."""
        return self._classify(images)[1]

    def losses(self, images: Tensor, classes: Tensor) -> Tensor:
        """Mean cross entropy of both passes, and 0.1 of the reconstruction loss."""
        first, second, reconstruction = self._classify(images)
        cross_entropy = (F.cross_entropy(first, classes) + F.cross_entropy(second, classes)) / 2
        return cross_entropy + .1 * reconstruction

    def features(self, images: Tensor, out_indices: tuple[int, ...]) -> list[Tensor]:
        """Maps ``(B, C, h, w)`` of pass 2 after some blocks, the last block's normalised.

        As in the released segmentation models: one embedding for both passes, no reconstruction.
        """
        start = self._embed(images)
        first, _ = self._run(start, None)
        second, states = self._run(start, self._feed_back(self._modulate(first)))
        maps = [second if index == len(self.blocks) - 1 else states[index + 1]
                for index in out_indices]
        return [tokens[:, 1:].transpose(1, 2).unflatten(2, self.grid) for tokens in maps]

    def _classify(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, _ = self._run(self._embed(images), None)
        signals = self._feed_back(self._modulate(first))
        second, states = self._run(self._embed(images), signals)
        return self.head(first[:, 0]), self.head(second[:, 0]), self._reconstruction(states)

    def _embed(self, images: Tensor) -> Tensor:
        """E(x): class token and patches, plus positions: ``(B, N, C)``."""
        patches = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(images), -1, -1), patches], 1) + self.pos_embed

    def _run(self, z: Tensor, signals: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """norm(T(z, signals)), and z before the first and after each block."""
        states = [z]
        for index, block in enumerate(self.blocks):
            z = block(z, None if signals is None else signals[index])
            states.append(z)
        return self.norm(z), states

    def _modulate(self, z: Tensor) -> Tensor:
        """zt = clamp(cos(z, xi), 0, 1) z."""
        directions = z / z.norm(dim=-1, keepdim=True).clamp(min=_SHORTEST)
        prior = self.prompt / self.prompt.norm().clamp(min=_SHORTEST)
        cosine = (directions * prior).sum(dim=-1, keepdim=True)
        return cosine.clamp(0, 1) * z

    def _feed_back(self, s: Tensor) -> list[Tensor]:
        """s <- s A_i', td_i = s B_i', from the last layer to the first."""
        signals = []
        for decoder in reversed(self.decoders):
            s = decoder.linear(s)
            signals.append(decoder.linear2(s))
        return signals[::-1]

    def _reconstruction(self, states: list[Tensor]) -> Tensor:
        """sum_i mean((sg(z_out[i]) A_i' - sg(z_in[i]))^2)."""
        errors = [(decoder.linear(after.detach()) - before.detach()).square().mean()
                  for decoder, (before, after) in zip(self.decoders, pairwise(states), strict=True)]
        return torch.stack(errors).sum()


class _Block(nn.Module):

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=_EPS)
        self.attn = _Attention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=_EPS)
        self.mlp = nn.ModuleDict(dict(fc1=nn.Linear(embed_dim, 4 * embed_dim),
                                      fc2=nn.Linear(4 * embed_dim, embed_dim)))

    def forward(self, z: Tensor, signal: Tensor | None) -> Tensor:
        z = z + self.attn(self.norm1(z), signal)
        return z + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(z))))


class _Attention(nn.Module):

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, y: Tensor, signal: Tensor | None) -> Tensor:
        q, k, v = self._project(y)
        if signal is not None:
            _, _, value_of_signal = self._project(signal)
            v = v + value_of_signal
        scores = q @ k.transpose(-2, -1) / q.shape[-1]**.5
        mixed = scores.softmax(dim=-1) @ v
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def _project(self, y: Tensor) -> tuple[Tensor, ...]:
        """q, k, v, each ``(B, heads, N, D)``."""
        parts = self.qkv(y).unflatten(2, (3, self.num_heads, -1))
        return parts.permute(2, 0, 3, 1, 4).unbind(0)


_NAMES = (('trunk.', ''), ('prior.query', 'prompt'), ('feedback.', ''), ('.chain.', '.linear.'),
          ('.readout.', '.linear2.'))


def textbook_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of our network (``absvit_*_patch16``) under the names of the textbook's."""
    renamed = {}
    for name, tensor in state.items():
        for ours, theirs in _NAMES:
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    renamed.pop('trained_grid', None)
    return renamed
