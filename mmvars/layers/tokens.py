"""What a sequence of tokens is, and what mixes it."""

from typing import NamedTuple, Protocol

from torch import Tensor

__all__ = ['TokenGrid', 'TokenMixer']


class TokenGrid(NamedTuple):
    """Layout of a token sequence: prefix tokens first, then the patches row by row.

    ``num_prefix`` counts the class token and any prompt tokens. A sequence laid out like this has
    ``num_prefix + height * width`` tokens.
    """

    height: int
    width: int
    num_prefix: int = 0

    @property
    def num_patches(self) -> int:
        return self.height * self.width

    def patch_tokens(self, tokens: Tensor) -> Tensor:
        """``(B, N, C)`` without its prefix: ``(B, height * width, C)``."""
        return tokens[:, self.num_prefix:]

    def to_map(self, tokens: Tensor) -> Tensor:
        """The patch tokens of ``(B, N, C)`` as a map ``(B, C, height, width)``."""
        patches = self.patch_tokens(tokens)
        return patches.transpose(1, 2).unflatten(2, (self.height, self.width))


class TokenMixer(Protocol):
    """The contract of everything that may stand in a block's ``attn`` place.

    ``takes_top_down`` says whether the mixer has a value path that a top-down signal can enter;
    :class:`mmvars.networks.TopDown` refuses a trunk with a mixer that has none.
    """

    takes_top_down: bool

    def __call__(self, x: Tensor, grid: TokenGrid, top_down: Tensor | None = None) -> Tensor:
        """Mix ``x`` of shape ``(B, N, C)``; ``top_down`` has the same shape."""
        ...
