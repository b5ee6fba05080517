"""Panels (pictures, heat maps, label maps, bars) and the figure that they stand in."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import TYPE_CHECKING, Literal

import numpy as np

from mmvars.errors import InputError
from mmvars.pictures import COLOR_MAP
from mmvars.write import whole_or_nothing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    'Half',
    'HeatMap',
    'LabelMap',
    'Panel',
    'Picture',
    'Row',
    'SideBySide',
    'TopClasses',
    'blend',
    'default_palette',
    'draw_figure',
    'draw_panel',
    'figure_to_array',
    'save_figure',
    'short_name',
]

Half = Literal['left', 'right']

TITLE_SIZE, SMALL, TINY = 9.5, 7.5, 6.5  # points
# Inches.
PANEL_AREA = 4.6
MIN_WIDTH, MAX_WIDTH = 1.75, 4.2
MAX_ROW = 17.0  # of many columns, as far as the least width allows
GAP, MARGIN = 0.1, 0.08
TITLE, STRIP, FOOTER = 0.42, 0.3, 0.2
LABEL_LINE, LABEL_LETTER = 0.135, 0.063  # of row labels: one line's height, one letter's width
LEGEND_LINE, LEGEND_WIDTH = 0.155, 1.62
FOOTER_LINE, FOOTER_LETTER = 0.11, 0.056
TITLE_LETTER = 0.075
BAR_HEIGHT = 0.19  # of one class with its name
DPI = 150
MAX_NAME = 20  # letters
GRAY = '0.35'
POINT = '#35e0ff'
ASKED, OTHER, PLAIN = '#d95f02', '#7a8f3a', '#4c78a8'  # bars of classes


@dataclass
class SideBySide:
    """Two photos in one panel: the seam between them, and a text on each half (Figure 2.4)."""

    seam: float  # fraction of the width
    texts: tuple[str, ...] = ()
    half: Half | None = None  # that the prior stands for; its text is in bold

    def draw(self, axes: 'Axes') -> None:
        first, last = axes.get_xlim()
        axes.axvline(first + self.seam * (last - first), color='white', linewidth=1)
        centers = self.seam / 2, (1 + self.seam) / 2
        for side, center, text in zip(('left', 'right'), centers, self.texts, strict=False):
            bold = self.half in (None, side)
            axes.text(
                center,
                0.03,
                text,
                transform=axes.transAxes,
                ha='center',
                va='bottom',
                fontsize=SMALL,
                color='white',
                weight='bold' if bold else 'normal',
                bbox=dict(
                    facecolor='black', edgecolor='none', pad=1.5, alpha=0.8 if bold else 0.55
                ),
            )


@dataclass(kw_only=True)
class Panel:
    """One cell of a figure, with a title over it; this class itself is an empty one."""

    title: str = ''
    note: str = ''  # small print under the title
    caption: str = ''  # small print under it, in the place of the range of a heat map
    halves: SideBySide | None = None
    steered: bool = False  # whether it depends on the prior or its scale

    def draw(self, axes: 'Axes') -> None:
        """Fill ``axes``, which has the shape of the image; a strip under it is free too."""
        axes.axis('off')


@dataclass
class Picture(Panel):
    """The image ``(H, W, 3)`` itself: uint8, or colors from 0 to 1; RGB."""

    image: np.ndarray
    title: str = field(default='Input', kw_only=True)
    points: np.ndarray | None = field(default=None, kw_only=True)  # (F, 2), x and y in pixels

    def draw(self, axes: 'Axes') -> None:
        _show(axes, self.image)
        if self.points is not None:
            axes.autoscale(False)
            x, y = self.points.T - 0.5  # the middle of the first pixel is drawn at 0
            axes.scatter(x, y, s=5, color=POINT, edgecolors='black', linewidths=0.4)


@dataclass
class HeatMap(Panel):
    """A map ``(H, W)`` in colors over the gray image, with its range as a color bar."""

    values: np.ndarray
    image: np.ndarray | None  # (H, W, 3) uint8, RGB; None: the map lies on none, and has any size
    limits: tuple[float, float] | None = None  # of the color bar; None: the map's own
    strength: float = 0.7  # share of the colors in the overlay, 0 to 1
    color_map: str = COLOR_MAP
    kind: str = field(default='', kw_only=True)  # maps of one kind can be drawn in one range

    def draw(self, axes: 'Axes') -> None:
        from matplotlib import colormaps

        low, high = self.limits or (float(self.values.min()), float(self.values.max()))
        # A map that is constant up to rounding is drawn in the lowest color.
        span = max(high - low, 1e-5 * max(abs(low), abs(high)), 1e-12)
        colors = colormaps[self.color_map](np.clip((self.values - low) / span, 0, 1))[..., :3]
        _show(axes, colors if self.image is None else blend(colors, self.image, self.strength))
        inch = axes.figure.dpi / axes.bbox.height  # in heights of the cell
        bar = axes.inset_axes((0, -0.1 * inch, 1, 0.06 * inch))
        bar.imshow(np.linspace(0, 1, 256)[None], aspect='auto', cmap=self.color_map)
        bar.axis('off')
        for x, value, align in ((0, low, 'left'), (1, high, 'right')) if not self.caption else ():
            axes.text(
                x,
                -0.125 * inch,
                f'{value:.3g}',
                transform=axes.transAxes,
                ha=align,
                va='top',
                fontsize=SMALL,
                color=GRAY,
            )


@dataclass
class LabelMap(Panel):
    """A segmentation ``(H, W)`` in the data set's palette, with a legend of its largest classes.

    Labels that are none of the classes (ignored pixels of a ground truth) show the gray image.
    """

    labels: np.ndarray
    image: np.ndarray
    classes: tuple[str, ...]
    palette: list
    title: str = field(default='Segmentation', kw_only=True)

    def draw(self, axes: 'Axes') -> None:
        from matplotlib.patches import Patch

        palette = np.asarray(self.palette, np.float32) / 255
        is_class = self.labels < len(self.classes)
        colors = palette[np.where(is_class, self.labels, 0)]
        _show(axes, blend(colors, self.image, np.where(is_class, 0.65, 0)[..., None]))
        counts = np.bincount(self.labels[is_class], minlength=len(self.classes))
        largest = [i for i in np.argsort(-counts, kind='stable') if counts[i]]
        room = max(int(axes.bbox.height / axes.figure.dpi / LEGEND_LINE), 1)
        entries = []
        for index in largest if len(largest) <= room else largest[: room - 1]:
            share = counts[index] / self.labels.size
            percent = f'{share:.0%}' if share >= 0.005 else '<1%'
            entries.append(
                Patch(
                    facecolor=palette[index],
                    edgecolor='0.6',
                    linewidth=0.4,
                    label=f'{_elided(self.classes[index])} {percent}',
                )
            )
        if len(entries) < len(largest):
            entries.append(Patch(alpha=0, label=f'and {len(largest) - len(entries)} more'))
        axes.legend(
            handles=entries,
            loc='upper left',
            bbox_to_anchor=(1, 1),
            fontsize=SMALL,
            frameon=False,
            borderpad=0,
            borderaxespad=0.6,
            labelspacing=0.45,
            handlelength=1.3,
            handletextpad=0.5,
        )


@dataclass
class TopClasses(Panel):
    """The likeliest classes of a classifier as bars.

    The class of the prior (``highlight``) is in another color, those of the ``others`` are in a
    third. Where one of them, or of the ``truth``, is none of the likeliest, it takes a last place
    and its rank is written.
    """

    scores: np.ndarray  # probabilities (K,)
    classes: tuple[str, ...]
    count: int = 5  # where there is room
    highlight: int | None = None
    others: tuple[int, ...] = ()
    truth: tuple[int, ...] = ()  # what the image shows, if it is known
    title: str = field(default='Classes', kw_only=True)

    def draw(self, axes: 'Axes') -> None:
        height = axes.bbox.height / axes.figure.dpi  # inches
        visible = self.visible(min(self.count, int(height / BAR_HEIGHT)))
        for row, (index, rank) in enumerate(visible):
            y = len(visible) - 1 - row
            color = ASKED if index == self.highlight else OTHER if index in self.others else PLAIN
            axes.barh(y - 0.18, self.scores[index], height=0.3, color=color)
            name = _elided(self.classes[index])
            rank_text = '' if rank == row + 1 else f'{rank}. '
            truth_text = ' (true)' if index in self.truth else ''
            text = f'{rank_text}{name}{truth_text} {self.scores[index]:.1%}'
            axes.text(0, y + 0.08, text, va='bottom', fontsize=SMALL)
        axes.set(xlim=(0, 1), ylim=(-0.45, len(visible) - 0.35))
        axes.axis('off')
        legend = [(ASKED, 'the prior')] if self.highlight is not None else []
        legend += [(OTHER, 'the other prior')] if set(self.others) - {self.highlight} else []
        for place, (color, text) in enumerate(legend):
            axes.text(
                place / 2,
                -0.14 / height,
                f'\N{BLACK SQUARE} class of {text}' if not place else f'\N{BLACK SQUARE} of {text}',
                transform=axes.transAxes,
                va='top',
                fontsize=TINY,
                color=color,
            )

    def visible(self, count: int) -> list[tuple[int, int]]:
        """Index and rank (1 is likeliest) of the classes drawn, where there is room for ``count``.

        ``highlight``, ``others`` and ``truth`` are always drawn, even in too little room.
        """
        order = np.argsort(-self.scores, kind='stable').tolist()
        marked = (self.highlight, *self.others, *self.truth)
        ranks = {order.index(index) for index in marked if index is not None}
        for rank in range(len(order)):
            if len(ranks) < count:
                ranks.add(rank)
        return [(order[rank], rank + 1) for rank in sorted(ranks)]


@dataclass
class Row:
    """One row of panels; ``label`` stands upright at its left (say, the prior and the scale)."""

    panels: Sequence[Panel]
    label: str = ''
    size: tuple[int, int] | None = None  # (H, W) of its images, if not that of all


def draw_figure(
    rows: Sequence[Row],
    image_size: tuple[int, int],
    footer: str = '',
    max_row: float = MAX_ROW,
) -> 'Figure':
    """Lay out rows of panels; every cell has the shape of the image.

    Titles stand over the first row, or over every row where the rows have different ones. Nothing
    of matplotlib's global state is touched (no pyplot), so this is safe inside a training process.

    Args:
        rows: Rows with the same number of panels each.
        image_size: ``(H, W)`` in pixels, for the shape of the cells.
        footer: A line of small print at the bottom.
        max_row: Inches that a row of many columns takes, if the least width of a cell allows.
    """
    from matplotlib.figure import Figure

    num_rows, num_columns = len(rows), len(rows[0].panels)
    # About the same area for every shape of image, if it fits.
    shapes = [height / width for height, width in (row.size or image_size for row in rows)]
    shape = sum(shapes) / num_rows
    cell_width = max(
        MIN_WIDTH, min((PANEL_AREA / shape) ** 0.5, MAX_WIDTH, max_row / num_columns - GAP)
    )
    heights = [cell_width * each for each in shapes]
    labels = [
        [
            part
            for line in row.label.splitlines()
            for part in wrap(line, max(int((height + STRIP - GAP) / LABEL_LETTER), 4))
        ]
        for row, height in zip(rows, heights, strict=True)
    ]
    titles = [[(panel.title, panel.note) for panel in row.panels] for row in rows]
    titled_rows = num_rows if any(titles[0] != other for other in titles) else 1
    label_width = LABEL_LINE * max(map(len, labels))
    left = MARGIN + label_width + (GAP if label_width else 0)
    right = left + num_columns * (cell_width + GAP) - GAP
    has_legend = any(isinstance(row.panels[-1], LabelMap) for row in rows)
    width = right + MARGIN + (LEGEND_WIDTH if has_legend else 0)
    lines = wrap(footer, int((width - left) / FOOTER_LETTER))
    footer_height = FOOTER + FOOTER_LINE * max(len(lines) - 1, 0)
    height = TITLE * titled_rows + sum(heights) + num_rows * STRIP + footer_height
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor='white')
    row_gap = STRIP + (TITLE if titled_rows > 1 else 0)
    grid = figure.subplots(
        num_rows,
        num_columns,
        squeeze=False,
        gridspec_kw=dict(
            left=left / width,
            right=right / width,
            top=1 - TITLE / height,
            bottom=(footer_height + STRIP) / height,
            wspace=GAP / cell_width,
            hspace=row_gap * num_rows / sum(heights),
            height_ratios=heights,
        ),
    )
    for r, (row, label) in enumerate(zip(rows, labels, strict=True)):
        for axes, panel in zip(grid[r], row.panels, strict=True):
            panel.draw(axes)
            if panel is not row.panels[-1] and (legend := axes.get_legend()):
                legend.remove()  # there is room at the right of a row alone
            if panel.halves is not None:
                panel.halves.draw(axes)
            if panel.caption:
                axes.text(
                    0.5,
                    -0.125 * figure.dpi / axes.bbox.height,
                    panel.caption,
                    transform=axes.transAxes,
                    ha='center',
                    va='top',
                    fontsize=SMALL,
                )
            if r < titled_rows:
                fits = cell_width / (TITLE_LETTER * max(len(panel.title), 1))
                axes.set_title(panel.title, fontsize=TITLE_SIZE * min(1, fits), pad=15.5)
                axes.annotate(
                    panel.note,
                    (0.5, 1),
                    xytext=(0, 4.5),
                    xycoords='axes fraction',
                    textcoords='offset points',
                    ha='center',
                    fontsize=TINY,
                    color=GRAY,
                )
        grid[r, 0].set_ylabel('\n'.join(label), fontsize=SMALL, labelpad=GAP * 72)
    figure.text(
        left / width, 0.05 / height, '\n'.join(lines), fontsize=TINY, color=GRAY, va='bottom'
    )
    return figure


def draw_panel(panel: Panel, image_size: tuple[int, int]) -> 'Figure':
    """One panel alone, without title, color bar and legend, in the pixels of the image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(image_size[1] / DPI, image_size[0] / DPI), dpi=DPI, facecolor='white')
    axes = figure.add_axes((0, 0, 1, 1))
    panel.draw(axes)
    if legend := axes.get_legend():
        legend.remove()
    axes.axis('off')
    return figure


def save_figure(figure: 'Figure', path: str) -> None:
    """Write a figure as PNG (or what the suffix says); an older file stays until this one is whole.

    Raises:
        InputError: If the folder cannot be written to.
    """
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    except OSError as error:
        raise InputError(f'cannot write the picture {path!r}: {error.strerror or error}') from error
    with whole_or_nothing(path, overwrite=True) as file:
        figure.savefig(file, format=os.path.splitext(path)[1][1:] or None)


def figure_to_array(figure: 'Figure') -> np.ndarray:
    """Render a figure to ``(H, W, 3)`` uint8, RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def blend(top: np.ndarray, image: np.ndarray, strength: float | np.ndarray) -> np.ndarray:
    """``strength`` parts of the colors ``top (H, W, 3)``, 0..1, on an image ``(H, W, 3)``, uint8.

    ``strength`` is one number, or one a pixel ``(H, W, 1)``.
    The image goes gray first, so that its colors are not mistaken for the map's.
    """
    gray = (image.astype(np.float32) / 255) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.clip(strength * top + (1 - strength) * gray[..., None], 0, 1)


def default_palette(num_classes: int) -> list[list[int]]:
    """``num_classes`` RGB colors (0..255): those of MMSegmentation for data sets without any."""
    return np.random.RandomState(42).randint(0, 255, size=(num_classes, 3)).tolist()


def short_name(name: str) -> str:
    """The first of the synonyms of an ImageNet class: ``'tench, Tinca tinca'`` -> ``'tench'``."""
    return name.split(',')[0].strip()


def _elided(name: str) -> str:
    name = short_name(name)
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1].rstrip() + '…'


def _show(axes: 'Axes', image: np.ndarray) -> None:
    axes.imshow(
        image,
        interpolation='nearest' if min(image.shape[:2]) < 64 else 'antialiased',
        aspect='auto',
    )
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(linewidth=0.5, color='0.7')
