"""The residual block of vision transformers, and the channel mixers and norms in it."""

from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.layers.embed import TokenGrid

__all__ = [
    'CHANNEL_MIXERS',
    'Block',
    'ConvMlp',
    'Mlp',
    'SingleResidualBlock',
    'TokenBatchNorm',
    'build_block',
    'is_block',
]


class Mlp(nn.Module):
    """The two-layer perceptron with the exact (erf) GELU.

    Args:
        embed_dim: Channels C.
        mlp_ratio: Hidden width over C.
    """

    def __init__(self, embed_dim: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden_dim = int(embed_dim * mlp_ratio)
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor, grid: TokenGrid | None = None) -> Tensor:
        """Map ``x (B, N, C)`` to ``(B, N, C)``, token by token; the grid is not used."""
        return self.fc2(F.gelu(self.fc1(x)))


class ConvMlp(nn.Module):
    """RVT's channel mixer on the map of patches.

    1x1 convolution, batch norm, GELU; 3x3 depthwise convolution, batch norm, GELU; 1x1 convolution,
    batch norm.

    Args:
        embed_dim: Channels C.
        mlp_ratio: Hidden width over C.
    """

    def __init__(self, embed_dim: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden_dim = int(embed_dim * mlp_ratio)
        self.fc1 = nn.Conv2d(embed_dim, hidden_dim, 1)
        self.bn1 = nn.BatchNorm2d(hidden_dim)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.bn2 = nn.BatchNorm2d(hidden_dim)
        self.fc2 = nn.Conv2d(hidden_dim, embed_dim, 1)
        self.bn3 = nn.BatchNorm2d(embed_dim)

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        """Map ``x (B, N, C)`` to ``(B, N, C)``.

        Raises:
            InputError: If there are prefix tokens, which have no place in the map.
        """
        if grid.num_prefix:
            raise InputError(
                f'ConvMlp convolves the map of patches and takes no class or prompt '
                f'tokens, got {grid.num_prefix}'
            )
        maps = F.gelu(self.bn1(self.fc1(grid.to_map(x))))
        maps = F.gelu(self.bn2(self.dwconv(maps)))
        return self.bn3(self.fc2(maps)).flatten(2).transpose(1, 2)


CHANNEL_MIXERS: dict[str, type[nn.Module]] = {'linear': Mlp, 'conv': ConvMlp}
"""Name -> class, each ``(embed_dim, mlp_ratio)``."""


class TokenBatchNorm(nn.Module):
    """Batch norm over all tokens of all images, channel by channel.

    The released VARS-S has it where the blocks of the other mixers have layer norm.

    Args:
        embed_dim: Channels C.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        # A child on (B N, C), so that torch and mmengine can convert it to SyncBatchNorm.
        self.bn = nn.BatchNorm1d(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x (B, N, C)``."""
        return self.bn(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Block(nn.Module):
    """``x + dp(attn(norm1 x, t))``, then ``x + dp(mlp(norm2 x))``; dp is stochastic depth.

    The top-down input t goes to the token mixer without normalization, as in the released models.

    Args:
        norm1, attn, norm2, mlp: The parts; ``attn`` follows :class:`~mmvars.layers.TokenMixer`,
            ``mlp`` takes tokens and grid.
        drop_path_rate: Probability that a residual branch is dropped, per sample and branch.
    """

    def __init__(
        self,
        norm1: nn.Module,
        attn: nn.Module,
        norm2: nn.Module,
        mlp: nn.Module,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = norm1
        self.attn = attn
        self.norm2 = norm2
        self.mlp = mlp
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(
        self,
        x: Tensor,
        grid: TokenGrid,
        top_down: Tensor | None = None,
        num_queries: int | None = None,
    ) -> Tensor:
        """Map ``x (B, N, C)`` to ``(B, N, C)``; ``top_down`` is ``(B, N, C)`` or ``None``.

        With ``num_queries`` the result has that many first tokens alone, with the same values. The
        channel mixer must then work token by token.
        """
        if num_queries is not None and getattr(self.attn, 'takes_num_queries', False):
            mixed = self.attn(self.norm1(x), grid, top_down, num_queries)
        else:
            mixed = self.attn(self.norm1(x), grid, top_down)[:, :num_queries]
        x = x[:, :num_queries] + self.drop_path(mixed)
        return x + self.drop_path(self.mlp(self.norm2(x), grid))


class SingleResidualBlock(Block):
    """GFNet's block, one skip around both mixers: ``x + dp(mlp(norm2 attn(norm1 x, t)))``."""

    def forward(
        self,
        x: Tensor,
        grid: TokenGrid,
        top_down: Tensor | None = None,
        num_queries: int | None = None,
    ) -> Tensor:
        """As :meth:`Block.forward`."""
        mixed = self.attn(self.norm1(x), grid, top_down)[:, :num_queries]
        return x[:, :num_queries] + self.drop_path(self.mlp(self.norm2(mixed), grid))


def build_block(
    attn: nn.Module,
    embed_dim: int,
    mlp_ratio: float,
    mlp: str = 'linear',
    drop_path_rate: float = 0.0,
    single_residual: bool = False,
    norm_eps: float = 1e-6,
) -> Block:
    """A block around a mixer, with its norms.

    Args:
        attn: The mixer. One with ``replaces_block_norms`` (the released VARS-S) gets no norm before
            it and a batch norm before the channel mixer; all others get layer norms.
        embed_dim: Channels C.
        mlp_ratio: Hidden width of the channel mixer over C.
        mlp: One of :data:`CHANNEL_MIXERS`.
        drop_path_rate: See :class:`Block`.
        single_residual: Build a :class:`SingleResidualBlock`.
        norm_eps: Of the layer norms.
    """
    norm1: nn.Module = nn.LayerNorm(embed_dim, eps=norm_eps)
    norm2: nn.Module = nn.LayerNorm(embed_dim, eps=norm_eps)
    if getattr(attn, 'replaces_block_norms', False):
        norm1, norm2 = nn.Identity(), TokenBatchNorm(embed_dim)
    block = SingleResidualBlock if single_residual else Block
    return block(norm1, attn, norm2, CHANNEL_MIXERS[mlp](embed_dim, mlp_ratio), drop_path_rate)


def is_block(module: nn.Module, recurse: bool = False, nonwrapped_numel: int = 0) -> bool:
    """Whether a module is a block of ours or of timm's, the unit for FSDP and checkpointing.

    In the signature of torch's ``auto_wrap_policy``, where ``recurse`` asks whether to look inside,
    and of its ``check_fn``; in configs ``'mmvars.layers.is_block'``.
    """
    return recurse or isinstance(module, Block) or getattr(module, 'is_trunk_block', False)
