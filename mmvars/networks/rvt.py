"""RVT: stages of blocks with convolutional channel mixers; no class token, no positions."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmvars.errors import InputError, check_choice, check_number
from mmvars.layers import (
    CHANNEL_MIXERS,
    STEMS,
    TokenGrid,
    build_block,
    build_mixer,
    patch_grid,
    resolve_mixer_cfg,
)
from mmvars.networks.checks import check_trunk
from mmvars.networks.trunk import Trunk, TrunkOutput

__all__ = ['RVT']

_NORM_EPS = 1e-6
_STRIDE = 16


class Stage(nn.Module):
    """Blocks of one width and one grid."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


class TokenPooling(nn.Module):
    """From one stage to the next: a 3x3 depthwise convolution of stride 2, more channels.

    Args:
        in_dim: Channels before.
        out_dim: Channels after; a multiple of ``in_dim``.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, 3, stride=2, padding=1, groups=in_dim)

    def forward(self, tokens: Tensor, grid: TokenGrid) -> tuple[Tensor, TokenGrid]:
        """``(B, h * w, C)`` to ``(B, ceil(h / 2) * ceil(w / 2), C')``, and the new grid."""
        maps = self.conv(grid.to_map(tokens))
        return maps.flatten(2).transpose(1, 2), TokenGrid(maps.shape[-2], maps.shape[-1])


class RVT(Trunk):
    """The robust vision transformer, with any token mixer (Table 1.2).

    A stem of stride 16, stages of blocks whose grids halve, mean pooling, then layer norm
    (``fc_norm``) and classifier. The grid is passed on explicitly, so any image size runs.

    Differs from the released code, which runs on square images only.

    Args:
        img_size: Pixels that mixers tied to a grid are made for: side, or (height, width).
        patch_size: Stride of the stem; 16.
        in_chans: Image channels.
        num_classes: Classes of ``head``; 0 for none.
        embed_dim, depth, num_heads: One number a stage; a single number is one stage.
        mlp_ratio: Hidden width of the channel mixer over C.
        mlp: ``'conv'``, or ``'linear'`` as in the released base size.
        mixer: Token mixer of all blocks, one of :data:`mmvars.layers.MIXERS`.
        mixer_cfg: Its ``preset`` and options, see :func:`mmvars.layers.resolve_mixer_cfg`.
        injection, double_value_bias: See :class:`~mmvars.networks.VisionTransformer`.
        num_masked_blocks: That many first blocks of the first stage have RVT's position-aware
            mask (the "plus" models); for ``mixer='self_attention'`` only.
        qkv_bias: Whether projections of a mixer's input have a bias.
        drop_path_rate: Stochastic depth r: block j of n has ``r j / n``.
        grad_checkpointing: See :class:`~mmvars.networks.Trunk`.

    Raises:
        InputError: On sizes that cannot be built.
    """

    stages: Any  # a ModuleList of Stage

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = _STRIDE,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int | Sequence[int] = (192, 384),
        depth: int | Sequence[int] = (10, 2),
        num_heads: int | Sequence[int] = (6, 12),
        mlp_ratio: float = 4.0,
        mlp: str = 'conv',
        mixer: str = 'self_attention',
        mixer_cfg: dict | None = None,
        injection: str = 'value',
        double_value_bias: bool = True,
        num_masked_blocks: int = 0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        grad_checkpointing: bool = False,
    ) -> None:
        stages = _by_stage(embed_dim, depth, num_heads)
        for width, blocks, heads in stages:
            check_trunk(
                in_chans=in_chans,
                patch_size=patch_size,
                num_classes=num_classes,
                embed_dim=width,
                depth=blocks,
                num_heads=heads,
                mlp_ratio=mlp_ratio,
                drop_path_rate=drop_path_rate,
            )
        check_choice('mlp', mlp, CHANNEL_MIXERS)
        check_number('num_masked_blocks', num_masked_blocks, 0, stages[0][1], whole=True)
        if num_masked_blocks and mixer != 'self_attention':
            raise InputError(
                f"the position-aware mask of the plus models multiplies softmax's "
                f'logits, which mixer={mixer!r} does not have; use '
                f"mixer='self_attention' or a size without plus"
            )
        super().__init__(nn.Identity(), grad_checkpointing)
        self.mixer, self.mixer_cfg = mixer, resolve_mixer_cfg(mixer, **mixer_cfg or {})
        self.patch_embed = STEMS['conv'](patch_size, in_chans, stages[0][0])
        self.grid = grid = patch_grid(img_size, patch_size)
        self._stage_ids = [
            stage for stage, (_, blocks, _) in enumerate(stages) for _ in range(blocks)
        ]
        blocks_by_stage: list[list[nn.Module]] = [[] for _ in stages]
        for index, stage in enumerate(self._stage_ids):
            width, _, heads = stages[stage]
            if index and stage != self._stage_ids[index - 1]:
                grid = (-(-grid[0] // 2), -(-grid[1] // 2))
            masked = index < num_masked_blocks
            attn = build_mixer(
                'masked_attention' if masked else mixer,
                width,
                heads,
                grid,
                0,
                qkv_bias,
                injection,
                double_value_bias,
                **{} if masked else self.mixer_cfg,
            )
            blocks_by_stage[stage].append(
                build_block(
                    attn,
                    width,
                    mlp_ratio,
                    mlp,
                    drop_path_rate * index / len(self._stage_ids),
                    norm_eps=_NORM_EPS,
                )
            )
        self.stages = nn.ModuleList(map(Stage, blocks_by_stage))
        widths = [width for width, _, _ in stages]
        self.pools = nn.ModuleList(map(TokenPooling, widths, widths[1:]))
        self._widths = widths
        self.embed_dim = widths[-1]
        self.num_masked_blocks = num_masked_blocks
        self.fc_norm = nn.LayerNorm(self.embed_dim, eps=_NORM_EPS)
        self.head = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks of all stages, in order."""
        return [block for stage in self.stages for block in stage.blocks]

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self._widths[stage] for stage in self._stage_ids)

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(self.patch_embed.patch_size * 2**stage for stage in self._stage_ids)

    def block_grids(self, grid: TokenGrid) -> tuple[TokenGrid, ...]:
        grids = [grid]
        for _ in self.pools:
            # No negative numbers: ONNX divides these towards zero.
            grids.append(TokenGrid((grids[-1].height + 1) // 2, (grids[-1].width + 1) // 2))
        return tuple(grids[stage] for stage in self._stage_ids)

    def stage_modules(self, index: int) -> list[nn.Module]:
        stage = self._stage_ids[index]
        first = index == self._stage_ids.index(stage)
        return [self.pools[stage - 1]] * (first and stage > 0) + [self.blocks[index]]

    def layer_id(self, name: str) -> int | None:
        part, number, *rest = name.split('.')
        if part == 'pools':
            return self._stage_ids.index(int(number) + 1)
        return self._stage_ids.index(int(number)) + int(rest[1]) if part == 'stages' else None

    def forward_embed(self, images: Tensor) -> tuple[Tensor, TokenGrid]:
        """``(B, in_chans, H, W)`` to tokens ``(B, h * w, C)``; there are no positions to add.

        Raises:
            InputError: If the image is smaller than a patch.
        """
        tokens, grid = self.patch_embed(images)
        return tokens, TokenGrid(*grid)

    def pre_block(self, index: int, tokens: Tensor, grid: TokenGrid) -> tuple[Tensor, TokenGrid]:
        stage = self._stage_ids[index]
        if index == 0 or stage == self._stage_ids[index - 1]:
            return tokens, grid
        return self.pools[stage - 1](tokens, grid)

    def pool(self, output: TrunkOutput) -> Tensor:
        """Mean of the tokens, then ``fc_norm``: ``(B, C)``."""
        return self.fc_norm(output.tokens.mean(dim=1))


def _by_stage(*sizes: int | Sequence[int]) -> list[tuple[int, ...]]:
    embed_dim, depth, num_heads = (
        list(size) if isinstance(size, list | tuple) else [size] for size in sizes
    )
    if not embed_dim or not len(embed_dim) == len(depth) == len(num_heads):
        raise InputError(
            f'embed_dim, depth and num_heads must have one number for each stage, got '
            f'{embed_dim}, {depth} and {num_heads}'
        )
    for width in embed_dim:
        check_number('embed_dim', width, 1, whole=True)
    for before, after in zip(embed_dim, embed_dim[1:], strict=False):
        if after % before:
            raise InputError(
                f'embed_dim of a stage must be a multiple of that of the stage '
                f'before, got {embed_dim}'
            )
    return list(zip(embed_dim, depth, num_heads, strict=True))
