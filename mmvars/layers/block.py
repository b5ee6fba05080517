"""The pre-norm residual block, and GFNet's with a single residual."""

from timm.layers import DropPath
from torch import Tensor, nn

from mmvars.layers.mlp import CHANNEL_MIXERS
from mmvars.layers.norm import TokenBatchNorm
from mmvars.layers.signals import TopDownSignal
from mmvars.layers.tokens import TokenGrid

__all__ = ['Block', 'SingleResidualBlock', 'make_block']


class Block(nn.Module):
    """``z + dp(attn(norm1 z, t))``, then ``z + dp(mlp(norm2 z))``; dp is stochastic depth.

    The block receives finished parts. The top-down signal goes to the token mixer as it is, without
    normalisation, as in the released models: normalising it gives a different function.

    Args:
        norm1, attn, norm2, mlp: The parts; ``attn`` follows :class:`~mmvars.layers.TokenMixer`,
            ``mlp`` takes tokens and grid.
        drop_path_rate: Probability that a residual branch is dropped, per sample and branch.
    """

    def __init__(self, norm1: nn.Module, attn: nn.Module, norm2: nn.Module, mlp: nn.Module,
                 drop_path_rate: float = 0.) -> None:
        super().__init__()
        self.norm1 = norm1
        self.attn = attn
        self.norm2 = norm2
        self.mlp = mlp
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, x: Tensor, grid: TokenGrid, top_down: TopDownSignal | None = None,
                num_kept: int | None = None) -> Tensor:
        """Map ``x (B, N, C)`` to ``(B, N, C)``; ``top_down`` is ``(B, N, C)`` or ``None``.

        With ``num_kept`` the result has that many first tokens alone. They are the same as
        without, so channel mixers must work token by token.
        """
        mixed = self._mixed(x, grid, top_down, num_kept)
        x = x[:, :num_kept] + self.drop_path(mixed)
        return x + self.drop_path(self.mlp(self.norm2(x), grid))

    def _mixed(self, x: Tensor, grid: TokenGrid, top_down: TopDownSignal | None,
               num_kept: int | None) -> Tensor:
        if num_kept is not None and getattr(self.attn, 'takes_num_queries', False):
            return self.attn(self.norm1(x), grid, top_down, num_kept)
        return self.attn(self.norm1(x), grid, top_down)[:, :num_kept]


class SingleResidualBlock(Block):
    """GFNet's block: ``z + dp(mlp(norm2 attn(norm1 z, t)))``, one skip around both mixers."""

    def forward(self, x: Tensor, grid: TokenGrid, top_down: TopDownSignal | None = None,
                num_kept: int | None = None) -> Tensor:
        """As :meth:`Block.forward`."""
        mixed = self._mixed(x, grid, top_down, num_kept)
        return x[:, :num_kept] + self.drop_path(self.mlp(self.norm2(mixed), grid))


def make_block(attn: nn.Module, embed_dim: int, mlp_ratio: float, mlp: str = 'linear',
               drop_path_rate: float = 0., single_residual: bool = False,
               norm_eps: float = 1e-6) -> Block:
    """A block around a mixer, with the norms that go with it.

    Args:
        attn: The mixer. One that ``replaces_block_norms`` (the released VARS-S) gets no norm before
            it and a batch norm before the channel mixer; all others get layer norms.
        embed_dim: Channels C.
        mlp_ratio: Hidden width of the channel mixer over C.
        mlp: One of ``CHANNEL_MIXERS``.
        drop_path_rate: See :class:`Block`.
        single_residual: Make a :class:`SingleResidualBlock`.
        norm_eps: Of the layer norms.
    """
    if getattr(attn, 'replaces_block_norms', False):
        norm1, norm2 = nn.Identity(), TokenBatchNorm(embed_dim)
    else:
        norm1, norm2 = (nn.LayerNorm(embed_dim, eps=norm_eps) for _ in range(2))
    block = SingleResidualBlock if single_residual else Block
    return block(norm1, attn, norm2, CHANNEL_MIXERS[mlp](embed_dim, mlp_ratio), drop_path_rate)
