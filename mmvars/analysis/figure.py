"""A grid of panels of equal size on one figure."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np

from mmvars.analysis.panels import GREY, SMALL, TINY, LabelMap, Panel
from mmvars.errors import InputError

__all__ = ['Row', 'draw_figure', 'figure_to_array', 'save_figure']

# Inches.
PANEL_AREA = 4.6
MIN_WIDTH, MAX_WIDTH = 1.75, 4.2
MAX_ROW = 17.  # of many columns, as far as the least width allows
GAP, MARGIN = 0.1, 0.08
TITLE, STRIP, FOOTER = 0.42, 0.3, 0.2
LABEL_LINE, LABEL_LETTER = 0.135, 0.063  # of row labels: one line's height, one letter's width
LEGEND_LINE, LEGEND_WIDTH = 0.155, 1.62
DPI = 150


@dataclass
class Row:
    """One row of panels; ``label`` stands upright at its left (say, the prior and the scale)."""

    panels: Sequence[Panel]
    label: str = ''


def draw_figure(rows: Sequence[Row], image_size: tuple[int, int], footer: str = ''):
    """Lay out rows of panels; every cell has the shape of the image.

    Titles stand over the first row, or over every row where the rows have different ones. Nothing
    of matplotlib's global state is touched (no pyplot), so this is safe inside a training process.

    Args:
        rows: Rows with the same number of panels each.
        image_size: ``(H, W)`` in pixels, for the shape of the cells.
        footer: A line of small print at the bottom.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        InputError: If there are no panels, or the rows differ in length.
    """
    from matplotlib.figure import Figure
    columns = {len(row.panels) for row in rows}
    if len(columns) != 1 or 0 in columns:
        raise InputError(f'rows must have the same number of panels, at least one, got '
                         f'{[len(row.panels) for row in rows]}')
    num_columns = columns.pop()
    cell_width, cell_height = _cell(image_size, num_columns)
    labels = [_wrapped(row.label, cell_height + STRIP - GAP) for row in rows]
    label_width = LABEL_LINE * max(label.count('\n') + 1 if label else 0 for label in labels)
    left = MARGIN + label_width + (GAP if label_width else 0)
    with_legend = any(isinstance(panel, LabelMap) for row in rows for panel in row.panels)
    right = MARGIN + (LEGEND_WIDTH if with_legend else 0)
    width = left + num_columns * cell_width + (num_columns - 1) * GAP + right
    titles = [[(panel.title, panel.note) for panel in row.panels] for row in rows]
    titled = [r == 0 or any(titles[0] != other for other in titles) for r in range(len(rows))]
    height = TITLE * sum(titled) + len(rows) * (cell_height + STRIP) + FOOTER
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor='white')

    def place(x: float, top: float, w: float, h: float):
        return figure.add_axes((x / width, 1 - (top + h) / height, w / width, h / height))

    for r, row in enumerate(rows):
        top = TITLE * sum(titled[:r + 1]) + r * (cell_height + STRIP)
        if row.label:
            figure.text((MARGIN + label_width / 2) / width, 1 - (top + cell_height / 2) / height,
                        labels[r], rotation=90, ha='center', va='center', fontsize=SMALL,
                        linespacing=1.2)
        for c, panel in enumerate(row.panels):
            x = left + c * (cell_width + GAP)
            below = place(x, top + cell_height + 0.04, cell_width, STRIP - 0.08)
            below.axis('off')
            below.set(xlim=(0, 1), ylim=(0, 1))
            panel.draw(place(x, top, cell_width, cell_height), below)
            if isinstance(panel, LabelMap):
                end = left + num_columns * (cell_width + GAP) - GAP
                _draw_legend(place(end + 0.06, top, LEGEND_WIDTH - 0.06, cell_height), panel,
                             cell_height)
            if titled[r]:
                centre, above = (x + cell_width / 2) / width, top - TITLE
                figure.text(centre, 1 - (above + 0.19) / height, panel.title, ha='center',
                            va='bottom', fontsize=9.5)
                figure.text(centre, 1 - (above + 0.36) / height, panel.note, ha='center',
                            va='bottom', fontsize=TINY, color=GREY)
    figure.text(left / width, 0.05 / height, footer, ha='left', va='bottom', fontsize=TINY,
                color=GREY)
    return figure


def save_figure(figure, path: str) -> None:
    """Write a figure as PNG (or what the suffix says); an older file stays until this one is whole.

    Raises:
        InputError: If the folder cannot be written to.
    """
    stem, suffix = os.path.splitext(path)
    part = f'{stem}.part{suffix}'
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        figure.savefig(part)
        os.replace(part, path)
    except OSError as error:
        raise InputError(f'cannot write the picture {path!r}: {error.strerror or error}') from error


def figure_to_array(figure) -> np.ndarray:
    """Render a figure to ``(H, W, 3)`` uint8, RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _cell(image_size: tuple[int, int], num_columns: int) -> tuple[float, float]:
    """Width and height of a cell: about the same area for every shape of image, if it fits."""
    shape = image_size[0] / image_size[1]
    width = min((PANEL_AREA / shape)**0.5, MAX_WIDTH, MAX_ROW / num_columns - GAP)
    width = max(width, MIN_WIDTH)
    return width, width * shape


def _wrapped(label: str, length: float) -> str:
    """A row's label in lines of at most ``length`` inches."""
    letters = max(int(length / LABEL_LETTER), 4)
    return '\n'.join(part for line in label.splitlines() for part in wrap(line, letters))


def _draw_legend(axes, panel: LabelMap, height: float) -> None:
    from matplotlib.patches import Rectangle
    axes.axis('off')
    axes.set(xlim=(0, 1), ylim=(0, 1))
    entries = panel.legend()
    room = max(int(height / LEGEND_LINE), 1)
    shown = entries if len(entries) <= room else entries[:room - 1]
    line = LEGEND_LINE / height
    for i, (name, colour) in enumerate(shown):
        y = 1 - (i + 0.5) * line
        axes.add_patch(Rectangle((0, y - 0.32 * line), 0.09, 0.64 * line, facecolor=colour,
                                 edgecolor='0.6', linewidth=0.4))
        axes.text(0.13, y, name, va='center', ha='left', fontsize=SMALL)
    if len(shown) < len(entries):
        axes.text(0.13, 1 - (len(shown) + 0.5) * line, f'and {len(entries) - len(shown)} more',
                  va='center', ha='left', fontsize=SMALL, color=GREY)
