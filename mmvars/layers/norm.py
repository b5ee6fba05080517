"""Batch normalisation of tokens."""

from torch import Tensor, nn

__all__ = ['TokenBatchNorm']


class TokenBatchNorm(nn.Module):
    """Batch norm over all tokens of all images, channel by channel: ``(B, N, C)`` both ways.

    The released VARS-S has it where the other mixers' blocks have layer norm.

    Args:
        embed_dim: Channels C.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        # A child, on (B N, C): torch's and mmengine's conversions to SyncBatchNorm then work.
        self.bn = nn.BatchNorm1d(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x (B, N, C)``."""
        return self.bn(x.flatten(0, 1)).unflatten(0, x.shape[:2])
