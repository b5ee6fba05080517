"""Cheaper second passes that are no longer the same function."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmvars.errors import InputError, check_flag, check_number
from mmvars.layers import TokenGrid

__all__ = ['Shortcuts', 'resample_tokens']


class Shortcuts(NamedTuple):
    """What may be left out of the two passes, at the cost of other outputs. Default: nothing.

    None of this is in the thesis; what it does to accuracy is not known. They apply in training
    too, so a network can be trained with them.

    Attributes:
        restart_block: The second pass starts at this block, from the tokens which the first pass
            had there; blocks below get no feedback, and give what they gave in the first pass.
        first_pass_scale: The first pass sees the images at this scale (0 to 1, bilinear); its
            tokens are resampled to the grid of the second.
        share_query_key: The second pass attends with the queries and keys of the first; only its
            values are new.
        feedback_rank: Rank of each readout of the feedback. Weights of a full one are cut to their
            largest singular values on loading.
    """

    restart_block: int = 0
    first_pass_scale: float = 1.
    share_query_key: bool = False
    feedback_rank: int | None = None

    def check(self, depth: int, widths: tuple[int, ...]) -> 'Shortcuts':
        """Itself, if it suits a trunk of so many blocks and these widths.

        Raises:
            InputError: If not, or if two of them contradict one another.
        """
        check_number('restart_block', self.restart_block, 0, depth - 1, whole=True)
        check_number('first_pass_scale', self.first_pass_scale, 0, 1)
        check_flag('share_query_key', self.share_query_key)
        if self.first_pass_scale == 0:
            raise InputError('first_pass_scale must be above 0, got 0')
        if self.feedback_rank is not None:
            check_number('feedback_rank', self.feedback_rank, 1, min(widths), whole=True)
        if self.first_pass_scale != 1 and (self.restart_block or self.share_query_key):
            raise InputError('first_pass_scale below 1 leaves no tokens of the first pass at the '
                             'grid of the second, which restart_block and share_query_key need: '
                             'give one or the others')
        return self


def resample_tokens(tokens: Tensor, grid: TokenGrid, to_grid: TokenGrid) -> Tensor:
    """Tokens ``(B, N, C)`` at another grid: bilinear for patches, prefix tokens as they are."""
    if (grid.height, grid.width) == (to_grid.height, to_grid.width):
        return tokens
    maps = F.interpolate(grid.to_map(tokens), size=(to_grid.height, to_grid.width),
                         mode='bilinear', align_corners=False)
    return torch.cat([tokens[:, :grid.num_prefix], maps.flatten(2).transpose(1, 2)], dim=1)
