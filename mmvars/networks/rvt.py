"""RVT: stages of blocks with convolutional channel mixers; no class token, no positions."""

from collections.abc import Sequence

from torch import Tensor, nn

from mmvars.errors import InputError, check_choice, check_number
from mmvars.layers import (CHANNEL_MIXERS, ConvStem, TokenGrid, build_mixer, grid_of_image,
                           make_block)
from mmvars.layers import mixer_options as resolve_options
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
        mixer_options: Its ``preset`` and options, see :func:`mmvars.layers.mixer_options`.
        num_masked_blocks: That many first blocks of the first stage have RVT's position-aware
            mask (the "plus" models); for ``mixer='self_attention'`` only.
        qkv_bias: Whether projections of a mixer's input have a bias.
        drop_path_rate: Stochastic depth r: block j of n has ``r j / n``.
        grad_checkpointing: See :class:`~mmvars.networks.Trunk`.

    Raises:
        InputError: On sizes that cannot be built.
    """

    def __init__(self, img_size: int | tuple[int, int] = 224, patch_size: int = _STRIDE,
                 in_chans: int = 3, num_classes: int = 1000,
                 embed_dim: int | Sequence[int] = (192, 384),
                 depth: int | Sequence[int] = (10, 2),
                 num_heads: int | Sequence[int] = (6, 12), mlp_ratio: float = 4.,
                 mlp: str = 'conv', mixer: str = 'self_attention',
                 mixer_options: dict | None = None, num_masked_blocks: int = 0,
                 qkv_bias: bool = True, drop_path_rate: float = 0.,
                 grad_checkpointing: bool = False) -> None:
        stages = _by_stage(embed_dim, depth, num_heads)
        for width, blocks, heads in stages:
            check_trunk(in_chans=in_chans, patch_size=patch_size, num_classes=num_classes,
                        embed_dim=width, depth=blocks, num_heads=heads, mlp_ratio=mlp_ratio,
                        drop_path_rate=drop_path_rate)
        check_choice('mlp', mlp, CHANNEL_MIXERS)
        check_number('num_masked_blocks', num_masked_blocks, 0, stages[0][1], whole=True)
        if num_masked_blocks and mixer != 'self_attention':
            raise InputError(f"the position-aware mask of the plus models multiplies softmax's "
                             f"logits, which mixer={mixer!r} does not have; use "
                             f"mixer='self_attention' or a size without plus")
        super().__init__(nn.Identity(), grad_checkpointing)
        self.mixer, self.mixer_options = mixer, resolve_options(mixer, **mixer_options or {})
        self.patch_embed = ConvStem(patch_size, in_chans, stages[0][0])
        grid = grid_of_image(img_size, patch_size)
        self.grid = grid
        total, index, made = sum(blocks for _, blocks, _ in stages), 0, []
        for stage, (width, blocks, heads) in enumerate(stages):
            members = []
            for number in range(blocks):
                masked = stage == 0 and number < num_masked_blocks
                attn = build_mixer('masked_attention' if masked else mixer, width, heads, grid,
                                   qkv_bias=qkv_bias, **{} if masked else self.mixer_options)
                members.append(make_block(attn, width, mlp_ratio, mlp,
                                          drop_path_rate * index / total, norm_eps=_NORM_EPS))
                index += 1
            made.append(Stage(members))
            grid = tuple(-(-side // 2) for side in grid)
        self.stages = nn.ModuleList(made)
        widths = [width for width, _, _ in stages]
        self.pools = nn.ModuleList(map(TokenPooling, widths, widths[1:]))
        self._stage_of = [s for s, (_, blocks, _) in enumerate(stages) for _ in range(blocks)]
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
        return tuple(self._widths[stage] for stage in self._stage_of)

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(self.patch_embed.patch_size * 2**stage for stage in self._stage_of)

    def block_grids(self, grid: TokenGrid) -> tuple[TokenGrid, ...]:
        grids = [grid]
        for _ in self.pools:
            # No negative numbers: ONNX divides these towards zero.
            grids.append(TokenGrid((grids[-1].height + 1) // 2, (grids[-1].width + 1) // 2))
        return tuple(grids[stage] for stage in self._stage_of)

    def block_modules(self, index: int) -> list[nn.Module]:
        stage = self._stage_of[index]
        first = index == self._stage_of.index(stage)
        return [self.pools[stage - 1]] * (first and stage > 0) + [self.blocks[index]]

    def block_index(self, name: str) -> int | None:
        part, number, *rest = name.split('.')
        if part == 'pools':
            return self._stage_of.index(int(number) + 1)
        return self._stage_of.index(int(number)) + int(rest[1]) if part == 'stages' else None

    def embed(self, images: Tensor) -> tuple[Tensor, TokenGrid]:
        """``(B, in_chans, H, W)`` to tokens ``(B, h * w, C)``; there are no positions to add.

        Raises:
            InputError: If the image is smaller than a patch.
        """
        tokens, grid = self.patch_embed(images)
        return tokens, TokenGrid(*grid)

    def before_block(self, index: int, tokens: Tensor,
                     grid: TokenGrid) -> tuple[Tensor, TokenGrid]:
        stage = self._stage_of[index]
        if index == 0 or stage == self._stage_of[index - 1]:
            return tokens, grid
        return self.pools[stage - 1](tokens, grid)

    def pool(self, output: TrunkOutput) -> Tensor:
        """Mean of the tokens, then ``fc_norm``: ``(B, C)``."""
        return self.fc_norm(output.tokens.mean(dim=1))

    def no_weight_decay(self) -> set[str]:
        """Parameters that are never decayed, beside all one-dimensional ones: none."""
        return set()


def _by_stage(*sizes: int | Sequence[int]) -> list[tuple[int, ...]]:
    embed_dim, depth, num_heads = (
        list(size) if isinstance(size, list | tuple) else [size] for size in sizes)
    if not embed_dim or not len(embed_dim) == len(depth) == len(num_heads):
        raise InputError(f'embed_dim, depth and num_heads must have one number for each stage, got '
                         f'{embed_dim}, {depth} and {num_heads}')
    for width in embed_dim:
        check_number('embed_dim', width, 1, whole=True)
    for before, after in zip(embed_dim, embed_dim[1:], strict=False):
        if after % before:
            raise InputError(f'embed_dim of a stage must be a multiple of that of the stage '
                             f'before, got {embed_dim}')
    return list(zip(embed_dim, depth, num_heads, strict=True))
