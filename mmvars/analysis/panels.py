"""What stands in the cells of an attention figure: pictures, heat maps, label maps, bar charts."""

from colorsys import hsv_to_rgb
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mmvars.analysis.classes import short_name

__all__ = ['Blank', 'HeatMap', 'LabelMap', 'Panel', 'Picture', 'TopClasses', 'blend',
           'default_palette']

SMALL, TINY = 7.5, 6.5  # points
GREY = '0.35'
MAX_NAME = 20  # letters
BAR_HEIGHT = 0.19  # inches, of one class with its name


class Panel(Protocol):
    """One cell. ``draw`` fills ``axes``; ``below`` is the strip under it (colour bar, legend)."""

    title: str
    note: str

    def draw(self, axes, below) -> None:
        ...


def blend(top: np.ndarray, image: np.ndarray, strength: float, grey: bool = True) -> np.ndarray:
    """``strength`` parts of the colours ``top (H, W, 3)``, 0..1, on an image ``(H, W, 3)``, uint8.

    The image goes grey first, so that its colours are not mistaken for the map's.
    """
    under = image.astype(np.float32) / 255
    if grey:
        under = np.repeat(under @ np.float32([0.299, 0.587, 0.114])[:, None], 3, axis=2)
    return np.clip(strength * top + (1 - strength) * under, 0, 1)


def default_palette(num_classes: int) -> list[list[int]]:
    """``num_classes`` well-spread RGB colours (0..255), for data sets without a palette."""
    golden = (5**0.5 - 1) / 2  # steps of the golden ratio never come back to a hue
    return [[round(255 * channel) for channel in
             hsv_to_rgb(i * golden % 1, 0.75 if i % 2 else 0.5, 0.95 if i % 3 else 0.7)]
            for i in range(num_classes)]


@dataclass
class Picture:
    """The image ``(H, W, 3)`` itself, uint8, RGB."""

    image: np.ndarray
    title: str = 'Input'
    note: str = ''

    def draw(self, axes, below) -> None:
        _show(axes, self.image)


@dataclass
class Blank:
    """An empty cell, where a row has fewer panels than the others."""

    title: str = ''
    note: str = ''

    def draw(self, axes, below) -> None:
        axes.axis('off')


@dataclass
class HeatMap:
    """A map ``(H, W)`` in colours over the grey image, with its range as a colour bar.

    Args:
        values: The map, as large as the image.
        image: ``(H, W, 3)`` uint8, RGB; ``None``: the map lies on no image, and may have any size.
        limits: Values at the two ends of the colour bar; ``None``: the map's own.
        strength: Share of the colours in the overlay, 0 to 1.
    """

    values: np.ndarray
    image: np.ndarray | None
    title: str
    note: str = ''
    limits: tuple[float, float] | None = None
    strength: float = 0.7
    colour_map: str = 'inferno'

    def draw(self, axes, below) -> None:
        from matplotlib import colormaps
        low, high = self.limits or (float(self.values.min()), float(self.values.max()))
        span = max(high - low, 1e-12)  # a constant map is drawn in the lowest colour
        colours = colormaps[self.colour_map](np.clip((self.values - low) / span, 0, 1))[..., :3]
        _show(axes, colours if self.image is None else blend(colours, self.image, self.strength))
        bar = below.inset_axes((0, 0.72, 1, 0.28))
        bar.imshow(np.linspace(0, 1, 256)[None], aspect='auto', cmap=self.colour_map,
                   extent=(0, 1, 0, 1))
        bar.set_yticks([])
        bar.set_xticks([])
        for spine in bar.spines.values():
            spine.set_visible(False)
        for x, value, align in ((0, low, 'left'), (1, high, 'right')):
            below.text(x, 0.6, f'{value:.3g}', ha=align, va='top', fontsize=SMALL, color=GREY)


@dataclass
class LabelMap:
    """A segmentation ``(H, W)`` in the data set's palette, with a legend of its largest classes."""

    labels: np.ndarray
    image: np.ndarray
    classes: tuple[str, ...]
    palette: list
    title: str = 'Segmentation'
    note: str = ''
    strength: float = 0.65

    def draw(self, axes, below) -> None:
        colours = np.asarray(self.palette, np.float32)[self.labels] / 255
        _show(axes, blend(colours, self.image, self.strength))

    def legend(self) -> list[tuple[str, tuple[float, ...]]]:
        """Names and colours of the classes in the picture, largest area first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        order = [int(i) for i in np.argsort(-counts, kind='stable') if counts[i]]
        share = counts / counts.sum()
        return [(f'{_elided(self.classes[i])} {_percent(share[i])}',
                 tuple(channel / 255 for channel in self.palette[i])) for i in order]


@dataclass
class TopClasses:
    """The likeliest classes of a classifier as bars: ``scores (K,)`` are probabilities.

    Args:
        highlight: A class drawn in another colour; where it is none of the likeliest, it takes the
            last place and its rank is said.
        others: More classes to draw in any case, in a third colour.
    """

    scores: np.ndarray
    classes: tuple[str, ...]
    title: str = 'Classes'
    note: str = ''
    count: int = 5
    highlight: int | None = None
    others: tuple[int, ...] = ()

    def draw(self, axes, below) -> None:
        height = axes.get_window_extent().height / axes.figure.dpi  # inches
        shown = self.shown(min(self.count, int(height / BAR_HEIGHT)))
        count = len(shown)
        for row, (index, rank) in enumerate(shown):
            y = count - 1 - row
            colour = '#4c78a8'
            if index in (self.highlight, *self.others):
                colour = '#d95f02' if index == self.highlight else '#7a8f3a'
            axes.barh(y - 0.18, self.scores[index], height=0.3, color=colour)
            name = _elided(self.classes[index])
            axes.text(0.0, y + 0.08, name if rank == row + 1 else f'{rank}. {name}', va='bottom',
                      ha='left', fontsize=SMALL)
            axes.text(1.0, y + 0.08, f'{self.scores[index]:.1%}', va='bottom', ha='right',
                      fontsize=SMALL, color=GREY)
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.45, count - 0.35)
        axes.axis('off')

    def shown(self, count: int | None = None) -> list[tuple[int, int]]:
        """Index and rank (1 is likeliest) of the classes drawn, where there is room for ``count``.

        Those that are to be drawn in any case are, even in too little room.
        """
        count = self.count if count is None else count
        order = np.argsort(-self.scores, kind='stable').tolist()
        ranks = {order.index(c) for c in (self.highlight, *self.others) if c is not None}
        for rank in range(len(order)):
            if len(ranks) < count:
                ranks.add(rank)
        return [(order[rank], rank + 1) for rank in sorted(ranks)]


def _percent(share: float) -> str:
    return f'{share:.0%}' if share >= 0.005 else '<1%'


def _elided(name: str) -> str:
    name = short_name(name)
    return name if len(name) <= MAX_NAME else name[:MAX_NAME - 1].rstrip() + '…'


def _show(axes, image: np.ndarray) -> None:
    axes.imshow(image, interpolation='nearest' if min(image.shape[:2]) < 64 else 'antialiased',
                aspect='auto')
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)
        spine.set_color('0.7')
