"""ViT and DeiT, with timm's keys and numbers; with a few arguments changed, DeiT* and GFNet."""

import math

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from mmvars.errors import InputError, check_choice, check_number
from mmvars.layers import (
    STEMS,
    GridResizeMixin,
    TokenGrid,
    build_block,
    build_mixer,
    infer_square_grid,
    patch_grid,
    resample_pos_embed,
    resolve_mixer_cfg,
)
from mmvars.networks.checks import check_trunk
from mmvars.networks.trunk import Trunk, TrunkOutput

__all__ = ['POOLINGS', 'VisionTransformer']

POOLINGS = ('token', 'avg', 'norm_avg')
_NORM_EPS = 1e-6


class VisionTransformer(Trunk, GridResizeMixin):
    """ViT with learned absolute positions that follow the input's grid, and any token mixer.

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
            patch tokens, then ``fc_norm``; the class token stays in the sequence. ``'norm_avg'``:
            final norm, then the mean of the patch tokens (GFNet).
        class_token: Whether there is one; average pooling does without.
        stem: ``'patch'``, or ``'conv'``: the convolutional patch embedding of DeiT* (Table 1.2).
        mixer: Token mixer of all blocks, one of :data:`mmvars.layers.MIXERS`.
        mixer_cfg: Its ``preset`` and options, see :func:`mmvars.layers.resolve_mixer_cfg`.
        injection: Where a top-down input enters the mixers, one of
            :data:`mmvars.layers.INJECTIONS`.
        double_value_bias: Whether a top-down input brings the bias of the value projection along,
            as in the released models.
        single_residual: One skip connection around both mixers of a block (GFNet).
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

    grid_tensors = ('pos_embed',)

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        global_pool: str = 'token',
        class_token: bool = True,
        stem: str = 'patch',
        mixer: str = 'self_attention',
        mixer_cfg: dict | None = None,
        injection: str = 'value',
        double_value_bias: bool = True,
        single_residual: bool = False,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        num_prompt_tokens: int = 0,
        deep_prompts: bool = True,
        prompt_dropout: float = 0.0,
        grad_checkpointing: bool = False,
    ) -> None:
        check_choice('global_pool', global_pool, POOLINGS)
        check_choice('stem', stem, STEMS)
        check_trunk(
            in_chans=in_chans,
            patch_size=patch_size,
            num_classes=num_classes,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path_rate,
        )
        check_number('num_prompt_tokens', num_prompt_tokens, 0, whole=True)
        check_number('prompt_dropout', prompt_dropout, 0, 1)
        if global_pool == 'token' and not class_token:
            raise InputError(
                "class_token=False needs global_pool='avg' or 'norm_avg': there is no "
                'class token to pool by'
            )
        norm_late = global_pool == 'avg'
        super().__init__(
            nn.Identity() if norm_late else nn.LayerNorm(embed_dim, eps=_NORM_EPS),
            grad_checkpointing,
        )
        self.set_grid(patch_grid(img_size, patch_size))
        self.mixer, self.mixer_cfg = mixer, resolve_mixer_cfg(mixer, **mixer_cfg or {})
        self.num_prefix = self.num_block_prefix = class_token + num_prompt_tokens
        self.num_pooled = 1 if global_pool == 'token' else None
        self.blocks = nn.ModuleList(
            build_block(
                build_mixer(
                    mixer,
                    embed_dim,
                    num_heads,
                    self.grid,
                    self.num_prefix,
                    qkv_bias,
                    injection,
                    double_value_bias,
                    **self.mixer_cfg,
                ),
                embed_dim,
                mlp_ratio,
                drop_path_rate=drop_path_rate * i / max(depth - 1, 1),
                single_residual=single_residual,
                norm_eps=_NORM_EPS,
            )
            for i in range(depth)
        )
        self.embed_dim = embed_dim
        self.global_pool = global_pool
        self.num_prompt_tokens = num_prompt_tokens
        self.patch_embed = STEMS[stem](patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim)) if class_token else None
        positions = class_token + math.prod(self.grid)
        self.pos_embed = nn.Parameter(torch.empty(1, positions, embed_dim))
        if num_prompt_tokens:
            self.prompt_embeddings = nn.Parameter(torch.empty(1, num_prompt_tokens, embed_dim))
            if deep_prompts and depth > 1:
                self.deep_prompt_embeddings = nn.Parameter(
                    torch.empty(depth - 1, num_prompt_tokens, embed_dim)
                )
        self.prompt_dropout = nn.Dropout(prompt_dropout)
        self.fc_norm = nn.LayerNorm(embed_dim, eps=_NORM_EPS) if norm_late else nn.Identity()
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal (std 0.02) projections and positions, zero biases, a class token near 0.

        The patch embedding keeps torch's default; prompts are uniform with Glorot's bound for a
        layer of ``3 P^2`` inputs and C outputs.
        """
        self.init_linear_layers()
        trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)
        bound = math.sqrt(6 / (3 * self.patch_embed.patch_size**2 + self.embed_dim))
        for name in ('prompt_embeddings', 'deep_prompt_embeddings'):
            if hasattr(self, name):
                nn.init.uniform_(getattr(self, name), -bound, bound)

    def forward_embed(self, images: Tensor) -> tuple[Tensor, TokenGrid]:
        """``(B, in_chans, H, W)`` to tokens ``(B, 1 + T + h * w, C)``: class, prompts, patches.

        Raises:
            InputError: If the image is smaller than a patch.
        """
        patches, (height, width) = self.patch_embed(images)
        tokens = patches
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        tokens = tokens + self.resized('pos_embed', (height, width))
        if self.num_prompt_tokens:
            tokens = self._with_prompts(tokens, self.prompt_embeddings, num_replaced=0)
        return tokens, TokenGrid(height, width, self.num_prefix)

    def pre_block(self, index: int, tokens: Tensor, grid: TokenGrid) -> tuple[Tensor, TokenGrid]:
        if index == 0 or not hasattr(self, 'deep_prompt_embeddings'):
            return tokens, grid
        prompts = self.deep_prompt_embeddings[index - 1 : index]
        return self._with_prompts(tokens, prompts, num_replaced=self.num_prompt_tokens), grid

    def pool(self, output: TrunkOutput) -> Tensor:
        """Class token, or mean of the patch tokens (and ``fc_norm``): ``(B, C)``."""
        if self.global_pool == 'token':
            return output.tokens[:, 0]
        return self.fc_norm(output.grid.patch_tokens(output.tokens).mean(dim=1))

    def no_weight_decay(self) -> set[str]:
        return {'pos_embed', 'cls_token'}

    def resample(
        self, name: str, tensor: Tensor, from_grid: tuple[int, int], to_grid: tuple[int, int]
    ) -> Tensor:
        return resample_pos_embed(tensor, from_grid, to_grid)

    def infer_grid(self, name: str, tensor: Tensor) -> tuple[int, int]:
        return infer_square_grid(tensor.shape[1] - int(self.cls_token is not None), name)

    def _with_prompts(self, tokens: Tensor, prompts: Tensor, num_replaced: int) -> Tensor:
        prompts = self.prompt_dropout(prompts.expand(tokens.shape[0], -1, -1))
        rest = int(self.cls_token is not None)
        return torch.cat([tokens[:, :rest], prompts, tokens[:, rest + num_replaced :]], dim=1)
