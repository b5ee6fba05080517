"""The plain vision transformer (ViT, DeiT): keys and numbers as in timm."""

import math

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from mmvars.errors import InputError, check_number
from mmvars.layers import (Block, PatchEmbed, SelfAttention, TokenGrid, grid_of_image, mlp,
                           resample_positions, square_grid)
from mmvars.networks.trunk import Trunk, TrunkOutput

__all__ = ['POOLINGS', 'VisionTransformer']

POOLINGS = ('token', 'avg')
_NORM_EPS = 1e-6


class VisionTransformer(Trunk):
    """ViT with learned absolute positions that follow the input's grid.

    Differs from the released segmentation models: positions are resampled whenever the *grid*
    ``(h, w)`` differs from the trained one, not only when the number of tokens does.

    Args:
        img_size: Pixels the positions are made for: side, or (height, width).
        patch_size: Side P of a patch in pixels.
        in_chans: Image channels.
        num_classes: Classes of ``head``; 0 for none.
        embed_dim: Token width C.
        depth: Number of blocks L.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the channel mixer over C.
        global_pool: ``'token'``: final norm, class token. ``'avg'``: no final norm, mean of the
            patch tokens, then ``fc_norm``; the class token stays in the sequence.
        qkv_bias: Whether the query-key-value projection has a bias.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0.
        num_prompt_tokens: Learned prompt tokens T between class token and patches; they carry no
            position.
        deep_prompts: Overwrite the prompt tokens with new ones before every block but the first.
        prompt_dropout: Dropout on prompt tokens.
        grad_checkpointing: See :class:`~mmvars.networks.Trunk`.

    Raises:
        InputError: On a size that cannot be built.
    """

    def __init__(self, img_size: int | tuple[int, int] = 224, patch_size: int = 16,
                 in_chans: int = 3, num_classes: int = 1000, embed_dim: int = 768, depth: int = 12,
                 num_heads: int = 12, mlp_ratio: float = 4., global_pool: str = 'token',
                 qkv_bias: bool = True, drop_path_rate: float = 0., num_prompt_tokens: int = 0,
                 deep_prompts: bool = True, prompt_dropout: float = 0.,
                 grad_checkpointing: bool = False) -> None:
        if global_pool not in POOLINGS:
            raise InputError(f'global_pool must be one of {POOLINGS}, got {global_pool!r}')
        for name, number in dict(patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim,
                                 depth=depth, num_heads=num_heads).items():
            check_number(name, number, 1, whole=True)
        for name, number in dict(num_classes=num_classes,
                                 num_prompt_tokens=num_prompt_tokens).items():
            check_number(name, number, 0, whole=True)
        check_number('mlp_ratio', mlp_ratio, 0)
        check_number('prompt_dropout', prompt_dropout, 0, 1)
        check_number('drop_path_rate', drop_path_rate, 0, 1)
        if drop_path_rate == 1:
            raise InputError('drop_path_rate must be below 1, or nothing is left of a block')
        blocks = nn.ModuleList(
            Block(norm1=nn.LayerNorm(embed_dim, eps=_NORM_EPS),
                  attn=SelfAttention(embed_dim, num_heads, qkv_bias=qkv_bias),
                  norm2=nn.LayerNorm(embed_dim, eps=_NORM_EPS),
                  mlp=mlp(embed_dim, mlp_ratio),
                  drop_path_rate=drop_path_rate * i / max(depth - 1, 1)) for i in range(depth))
        by_token = global_pool == 'token'
        norm = nn.LayerNorm(embed_dim, eps=_NORM_EPS) if by_token else nn.Identity()
        super().__init__(blocks, norm, grad_checkpointing)
        self.embed_dim = embed_dim
        self.global_pool = global_pool
        self.grid = grid_of_image(img_size, patch_size)
        self.num_prompt_tokens = num_prompt_tokens
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + math.prod(self.grid), embed_dim))
        if self.grid[0] != self.grid[1]:
            # A table's length does not tell 2x8 from 4x4, so a checkpoint says it. Square tables,
            # as all other sources have, need no entry.
            self.register_buffer('pos_grid', torch.tensor(self.grid))
        if num_prompt_tokens:
            self.prompt_embeddings = nn.Parameter(torch.empty(1, num_prompt_tokens, embed_dim))
            if deep_prompts and depth > 1:
                self.deep_prompt_embeddings = nn.Parameter(
                    torch.empty(depth - 1, num_prompt_tokens, embed_dim))
        self.prompt_dropout = nn.Dropout(prompt_dropout)
        self.fc_norm = nn.Identity() if by_token else nn.LayerNorm(embed_dim, eps=_NORM_EPS)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal (std 0.02) projections and positions, zero biases, a class token near 0.

        The patch embedding keeps torch's default; prompts are uniform with Glorot's bound for a
        layer of ``3 P^2`` inputs and C outputs.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        trunc_normal_(self.pos_embed, std=.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        bound = math.sqrt(6 / (3 * self.patch_embed.patch_size**2 + self.embed_dim))
        for name in ('prompt_embeddings', 'deep_prompt_embeddings'):
            if hasattr(self, name):
                nn.init.uniform_(getattr(self, name), -bound, bound)

    def embed(self, images: Tensor) -> tuple[Tensor, TokenGrid]:
        """``(B, in_chans, H, W)`` to tokens ``(B, 1 + T + h * w, C)``: class, prompts, patches.

        Raises:
            InputError: If the image is smaller than a patch.
        """
        patches, (height, width) = self.patch_embed(images)
        batch = len(patches)
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1), patches], dim=1)
        tokens = tokens + resample_positions(self.pos_embed, self.grid, (height, width))
        if self.num_prompt_tokens:
            tokens = self._with_prompts(tokens, self.prompt_embeddings, num_replaced=0)
        return tokens, TokenGrid(height, width, 1 + self.num_prompt_tokens)

    def before_block(self, index: int, tokens: Tensor) -> Tensor:
        if index == 0 or not hasattr(self, 'deep_prompt_embeddings'):
            return tokens
        prompts = self.deep_prompt_embeddings[index - 1:index]
        return self._with_prompts(tokens, prompts, num_replaced=self.num_prompt_tokens)

    def pool(self, output: TrunkOutput) -> Tensor:
        """Class token, or mean of the patch tokens and ``fc_norm``: ``(B, C)``."""
        if self.global_pool == 'token':
            return output.tokens[:, 0]
        return self.fc_norm(output.grid.patch_tokens(output.tokens).mean(dim=1))

    def no_weight_decay(self) -> set[str]:
        """Parameters that are never decayed, beside all one-dimensional ones."""
        return {'pos_embed', 'cls_token'}

    def _with_prompts(self, tokens: Tensor, prompts: Tensor, num_replaced: int) -> Tensor:
        prompts = self.prompt_dropout(prompts.expand(len(tokens), -1, -1))
        return torch.cat([tokens[:, :1], prompts, tokens[:, 1 + num_replaced:]], dim=1)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # A table made for another image size is resampled here, so that every way of loading
        # (init_cfg, load_from, resume, load_state_dict) gives the same positions.
        table = state_dict.get(prefix + 'pos_embed')
        if table is not None and table.ndim == 3:
            source_grid = state_dict.pop(prefix + 'pos_grid', None)
            if source_grid is None:
                source_grid = square_grid(table.shape[1] - 1, prefix + 'pos_embed')
            from_grid = tuple(int(side) for side in source_grid)
            state_dict[prefix + 'pos_embed'] = resample_positions(table, from_grid, self.grid)
            if hasattr(self, 'pos_grid'):
                state_dict[prefix + 'pos_grid'] = torch.tensor(self.grid)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
