"""Channel mixers: the two-layer perceptron, and RVT's with convolutions."""

from timm.layers import Mlp as _Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.layers.tokens import TokenGrid

__all__ = ['CHANNEL_MIXERS', 'ConvMlp', 'Mlp']


class Mlp(_Mlp):
    """timm's two-layer perceptron with the exact (erf) GELU; keys ``fc1`` and ``fc2``.

    Args:
        embed_dim: Channels C.
        mlp_ratio: Hidden width over C.
    """

    def __init__(self, embed_dim: int, mlp_ratio: float) -> None:
        super().__init__(embed_dim, hidden_features=int(embed_dim * mlp_ratio), act_layer=nn.GELU)

    def forward(self, x: Tensor, grid: TokenGrid | None = None) -> Tensor:
        """Map ``x (B, N, C)`` to ``(B, N, C)``; token by token, so the grid does not matter."""
        del grid
        return super().forward(x)


class ConvMlp(nn.Module):
    """RVT's locally enhanced channel mixer, on the map of patches.

    1x1 convolution, batch norm, GELU; 3x3 depthwise convolution, batch norm, GELU; 1x1 convolution,
    batch norm.

    Args:
        embed_dim: Channels C.
        mlp_ratio: Hidden width over C.
    """

    def __init__(self, embed_dim: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(embed_dim * mlp_ratio)
        self.fc1 = nn.Conv2d(embed_dim, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.fc2 = nn.Conv2d(hidden, embed_dim, 1)
        self.bn3 = nn.BatchNorm2d(embed_dim)

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        """Map ``x (B, N, C)`` to ``(B, N, C)``.

        Raises:
            InputError: If there are prefix tokens, which have no place in the map.
        """
        if grid.num_prefix:
            raise InputError(f'ConvMlp convolves the map of patches and takes no class or prompt '
                             f'tokens, got {grid.num_prefix}')
        maps = F.gelu(self.bn1(self.fc1(grid.to_map(x))))
        maps = F.gelu(self.bn2(self.dwconv(maps)))
        return self.bn3(self.fc2(maps)).flatten(2).transpose(1, 2)


CHANNEL_MIXERS: dict[str, type[nn.Module]] = {'linear': Mlp, 'conv': ConvMlp}
"""Name -> class, each ``(embed_dim, mlp_ratio)``."""
