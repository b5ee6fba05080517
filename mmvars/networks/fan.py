"""FAN: fully attentional networks, as a ViT or with a convolutional stem."""

from collections.abc import Sequence

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from mmvars.errors import check_choice, check_number
from mmvars.layers import TokenGrid, patch_grid, resolve_mixer_cfg
from mmvars.layers.fan import (
    ClassAttentionBlock,
    FANBlock,
    FourierPositions,
    fan_hybrid_stem,
    fan_stem,
)
from mmvars.networks.checks import check_trunk
from mmvars.networks.trunk import Trunk, TrunkOutput

__all__ = ['FAN']

_NORM_EPS = 1e-6


class FAN(Trunk):
    """The fully attentional network (Table 2.2), which no parameter ties to a grid.

    A convolutional stem, Fourier positions, blocks of attention and gated channel processing on the
    patch tokens alone; then a class token is put before them and class attention collects its
    contents. Final norm, class token, classifier.

    Args:
        img_size: Checked as in all trunks; nothing depends on it.
        patch_size: Stride of the stem; 16.
        in_chans: Image channels.
        num_classes: Classes of ``head``; 0 for none.
        embed_dim: Token width C.
        depth: Number of blocks L.
        num_heads: Heads of attention and of channel processing.
        mlp_ratio: Hidden width of the channel mixer over C.
        num_class_blocks: Class attention blocks.
        stem_widths: Channels of the ConvNeXt stages of the hybrid; ``None`` for the ViT form.
        stem_depths: Blocks of these stages.
        mixer: ``'self_attention'``, as in all trunks; FAN has no other.
        mixer_cfg: Its options: none.
        injection, double_value_bias: See :class:`~mmvars.networks.VisionTransformer`.
        qkv_bias: Whether projections of queries, keys and values have a bias.
        drop_path_rate: Stochastic depth, the same in all blocks; class attention has none.
        grad_checkpointing: See :class:`~mmvars.networks.Trunk`.

    Raises:
        InputError: On a size that cannot be built.
    """

    num_prefix = 1

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        num_class_blocks: int = 2,
        stem_widths: Sequence[int] | None = None,
        stem_depths: Sequence[int] = (3, 3),
        mixer: str = 'self_attention',
        mixer_cfg: dict | None = None,
        injection: str = 'value',
        double_value_bias: bool = True,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        grad_checkpointing: bool = False,
    ) -> None:
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
        patch_grid(img_size, patch_size)
        check_choice('mixer of FAN', mixer, ('self_attention',))
        check_number('num_class_blocks', num_class_blocks, 1, whole=True)
        super().__init__(nn.LayerNorm(embed_dim, eps=_NORM_EPS), grad_checkpointing)
        self.mixer, self.mixer_cfg = mixer, resolve_mixer_cfg(mixer, **mixer_cfg or {})
        self.embed_dim = embed_dim
        self.patch_embed = (
            fan_stem(patch_size, in_chans, embed_dim)
            if stem_widths is None
            else fan_hybrid_stem(patch_size, in_chans, embed_dim, stem_widths, stem_depths)
        )
        self.pos_embed = FourierPositions(embed_dim)
        self.blocks = nn.ModuleList(
            FANBlock(
                embed_dim,
                num_heads,
                mlp_ratio,
                qkv_bias,
                drop_path_rate,
                injection,
                double_value_bias,
            )
            for _ in range(depth)
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.cls_attn_blocks = nn.ModuleList(
            ClassAttentionBlock(embed_dim, num_heads, mlp_ratio, qkv_bias)
            for _ in range(num_class_blocks)
        )
        self.fc_norm = nn.Identity()
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal (std 0.02) projections and class token, zero biases.

        Depthwise convolutions of the channel mixers are normal with variance 2 / 9 (fan-out of a
        group); those of the stem keep torch's default.
        """
        self.init_linear_layers()
        for block in self.blocks:
            for conv in (block.mlp.mlp_v.dwconv.conv1, block.mlp.mlp_v.dwconv.conv2):
                nn.init.normal_(conv.weight, std=(2 / 9) ** 0.5)
                nn.init.zeros_(conv.bias)
        trunc_normal_(self.cls_token, std=0.02)

    def forward_embed(self, images: Tensor) -> tuple[Tensor, TokenGrid]:
        """``(B, in_chans, H, W)`` to patch tokens ``(B, h * w, C)`` with positions.

        Raises:
            InputError: If the image is smaller than a patch.
        """
        tokens, grid = self.patch_embed(images)
        return tokens + self.pos_embed(grid, tokens), TokenGrid(*grid)

    def forward_norm(self, tokens: Tensor, grid: TokenGrid) -> tuple[Tensor, TokenGrid]:
        """The class stage and the final norm: ``(B, 1 + h * w, C)``, class token first."""
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        for block in self.cls_attn_blocks:
            tokens = block(tokens)
        return self.norm(tokens), grid._replace(num_prefix=1)

    def pool(self, output: TrunkOutput) -> Tensor:
        """Class token: ``(B, C)``."""
        return output.tokens[:, 0]

    def no_weight_decay(self) -> set[str]:
        return {'cls_token'}
