"""The pre-norm residual block and its channel mixer."""

from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from mmvars.layers.tokens import TokenGrid

__all__ = ['Block', 'mlp']


def mlp(embed_dim: int, mlp_ratio: float) -> nn.Module:
    """timm's two-layer perceptron with the exact (erf) GELU; keys ``fc1`` and ``fc2``."""
    return Mlp(embed_dim, hidden_features=int(embed_dim * mlp_ratio), act_layer=nn.GELU)


class Block(nn.Module):
    """``z + dp(attn(norm1 z, t))``, then ``z + dp(mlp(norm2 z))``; dp is stochastic depth.

    The block receives finished parts. The top-down signal goes to the token mixer as it is, without
    normalisation, as in the released models: normalising it gives a different function.

    Args:
        norm1, attn, norm2, mlp: The parts; ``attn`` follows :class:`~mmvars.layers.TokenMixer`.
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

    def forward(self, x: Tensor, grid: TokenGrid, top_down: Tensor | None = None) -> Tensor:
        """Map ``x (B, N, C)`` to ``(B, N, C)``; ``top_down`` is ``(B, N, C)`` or ``None``."""
        x = x + self.drop_path(self.attn(self.norm1(x), grid, top_down))
        return x + self.drop_path(self.mlp(self.norm2(x)))
