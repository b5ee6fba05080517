"""Two photos side by side: how much of the attention lies on each (Figures 2.4, 2.5 and 2.8)."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mmvars.analysis.maps import kept_above
from mmvars.analysis.panels import SMALL, Panel
from mmvars.errors import InputError

__all__ = ['Half', 'HalfShares', 'Halved', 'half_shares']

Half = Literal['left', 'right']
DIM = 0.55  # opacity of the label that was not asked for


class HalfShares(NamedTuple):
    """Shares of the mass of a map on the two halves; they sum to 1."""

    left: float
    right: float


def half_shares(tokens: Tensor, stride: int, image_size: tuple[int, int], seam: int,
                threshold: float | None = None) -> HalfShares | None:
    """How the mass of a map of tokens is divided between left and right of a seam.

    A token's mass (its norm, for attention maps) is spread evenly over the pixels of its patch, so
    a patch that the seam or the border of the image cuts counts on each side by its area there, and
    padding counts nothing. A map that is the same everywhere gives the halves' areas.

    Args:
        tokens: ``(h, w)``, not negative.
        stride: Pixels from one token to the next.
        image_size: ``(H, W)`` in pixels, without padding.
        seam: Column where the right half begins, in pixels.
        threshold: Count only tokens of at least ``min + threshold * (max - min)`` of the map within
            the image, as :func:`~mmvars.analysis.suppress_below` draws them; ``None``: count all.

    Returns:
        The shares, or ``None`` where the map has no mass at all.

    Raises:
        InputError: If the seam is not inside of the image, or the threshold outside of 0..1.
    """
    height, width = image_size
    if not 0 < seam < width:
        raise InputError(f'seam must be a column inside of the image, from 1 to {width - 1}, got '
                         f'{seam}')
    tokens = tokens.double().cpu()
    rows = _overlap(tokens.shape[0], stride, 0, height)
    left, right = (_overlap(tokens.shape[1], stride, *side) for side in ((0, seam), (seam, width)))
    if threshold is not None:
        visible = (rows > 0)[:, None] & (left + right > 0)
        inside = tokens[visible][None, None]
        tokens = tokens.clone()
        tokens[visible] = inside.where(kept_above(inside, threshold), 0).flatten()
    columns = rows @ tokens
    masses = float(columns @ left), float(columns @ right)
    total = sum(masses)
    return HalfShares(masses[0] / total, masses[1] / total) if total > 0 else None


def _overlap(count: int, stride: int, low: int, high: int) -> Tensor:
    """Pixels that each of ``count`` patches in a row has in ``low`` to ``high``: ``(count, )``."""
    starts = torch.arange(count, dtype=torch.float64) * stride
    return ((starts + stride).clamp(max=high) - starts.clamp(min=low)).clamp(min=0)


@dataclass
class Halved:
    """A panel with its seam drawn, and a word on each half: the share, or what is there.

    Args:
        panel: What is drawn, of ``width`` columns.
        seam: Column where the right half begins.
        width: Columns W of the image.
        words: For the left and the right half.
        asked: The half that was asked for; its word stands out.
    """

    panel: Panel
    seam: int
    width: int
    words: tuple[str, str] = ('', '')
    asked: Half | None = None

    @property
    def title(self) -> str:
        return self.panel.title

    @property
    def note(self) -> str:
        return self.panel.note

    def draw(self, axes, below) -> None:
        self.panel.draw(axes, below)
        middle = self.seam / self.width
        axes.plot([middle, middle], [0, 1], transform=axes.transAxes, color='white', linewidth=1,
                  solid_capstyle='butt', scalex=False, scaley=False)
        for side, x, word in (('left', middle / 2, self.words[0]),
                              ('right', (1 + middle) / 2, self.words[1])):
            if word:
                stands_out = self.asked in (None, side)
                axes.text(x, 0.03, word, transform=axes.transAxes, ha='center', va='bottom',
                          fontsize=SMALL, color='white', weight='bold' if stands_out else 'normal',
                          bbox=dict(facecolor='black', edgecolor='none', pad=1.5,
                                    alpha=0.8 if stands_out else DIM))
