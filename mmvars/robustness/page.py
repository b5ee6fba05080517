"""The report as one page without anything from the network."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

__all__ = ['render_page']

_KEPT, _LOST, _GAINED = '#2b5c8a', '#e8a15b', '#7fb8a4'
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 80em; padding: 0 1em;
  print-color-adjust: exact; }
table { border-collapse: collapse; margin: .5em 0 .3em; }
td, th { padding: .2em .7em; text-align: right; font-variant-numeric: tabular-nums; }
td:first-child, th:first-child { text-align: left; font-weight: normal; }
th { border-bottom: 1px solid #999; }
td.heat { min-width: 3.2em; border: 1px solid #fff; }
td.bar { width: 24em; background-clip: content-box; }
dt { float: left; clear: left; width: 13em; color: #555; }
dd { margin-left: 13.5em; overflow-wrap: anywhere; }
.note { color: #555; margin: 0 0 1.5em; }
.key { display: inline-block; height: .8em; margin: 0 .3em 0 .8em; width: .8em; }
.scale { margin: 0 .5em; width: 12em; }
img { max-width: 100%; border: 1px solid #ddd; }
"""
_BARS = (
    f'<p class="note"><span class="key" style="background:{_KEPT}"></span>kept'
    f'<span class="key" style="background:{_LOST}"></span>lost'
    f'<span class="key" style="background:{_GAINED}"></span>gained</p>'
)


def render_page(
    title: str,
    about: Mapping[str, str],
    parts: Sequence[tuple[str, Sequence[Sequence[str]]]],
    clean: float,
    pictures: Sequence[tuple[str, str]],
) -> str:
    """A page of HTML.

    Args:
        title: Of the page.
        about: Name -> text.
        parts: Title and rows of each table, the first of a row being its name. The first table is
            that of the scores, whose cells before the column ``'drop'`` have the color of what is
            left of the clean score. Another one with such a column has a bar in each row. Where
            nothing was tested clean, there is no such column, no color and no bar.
        clean: That score, in percent.
        pictures: A line of text, and the source of an image.
    """
    lines = [f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in about.items()]
    body = [f'<h1>{escape(title)}</h1>', '<dl>', *lines, '</dl>']
    for index, (name, (head, *rows)) in enumerate(parts):
        has_drop = 'drop' in head
        body += [f'<h2>{escape(name)}</h2>', '<table>', _row(head, 'th')]
        if has_drop and not index:
            body += [_heat_row(row, head.index('drop'), clean) for row in rows]
            body += ['</table>', _scale()]
        elif has_drop:
            body += [_row(row, 'td', _bar(row)) for row in rows] + ['</table>', _BARS]
        else:
            body += [_row(row, 'td') for row in rows] + ['</table>']
    if pictures:
        body += [
            '<h2>Where most is lost</h2>',
            '<p class="note">For the changes that cost most, the image that loses most. Attention '
            'maps, where the model has any, are of one forward of the whole image, each over its '
            'own mean, all of a picture in one range of colors. They lie on the clean image, so '
            'that noise in them is their own (with hendrycks on the corrupted one, which is '
            'another cut of the photograph).</p>',
        ]
    for text, source in pictures:
        body += [f'<p>{escape(text)}</p>', f'<img src="{source}" alt="{escape(text)}">']
    return (
        f'<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<style>{_STYLE}</style>\n' + '\n'.join(body) + '\n</html>\n'
    )


def _row(cells: Sequence[str], tag: str, more: str = '') -> str:
    return f'<tr>{"".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)}{more}</tr>'


def _heat_row(cells: Sequence[str], end: int, clean: float) -> str:
    """A row whose cells from the second to ``end`` are colored by their share of ``clean``."""
    texts = []
    for index, cell in enumerate(cells):
        is_colored = 0 < index < end and cell and clean > 0
        style = f' class="heat" style="{_colors(float(cell) / clean)}"' if is_colored else ''
        texts.append(f'<td{style}>{escape(cell)}</td>')
    return f'<tr>{"".join(texts)}</tr>'


def _colors(left: float) -> str:
    """Style of a cell: light where all is left, dark where nothing is, to any kind of color vision.

    ColorBrewer's YlOrBr, whose lightness falls evenly.
    """
    from matplotlib import colormaps

    rgb = np.array(colormaps['YlOrBr'](1 - min(max(left, 0), 1), bytes=True)[:3])
    text = '#fff' if rgb @ [0.299, 0.587, 0.114] < 120 else '#000'
    return f'background:#{bytes(rgb.tolist()).hex()};color:{text}'


def _scale() -> str:
    """The legend of the colors."""
    stops = ','.join(
        _colors(left / 8).split(';')[0].removeprefix('background:') for left in range(9)
    )
    return (
        '<p class="note">of the clean score is left: 0 %<span class="key scale" '
        f'style="background:linear-gradient(90deg,{stops})"></span>100 %</p>'
    )


def _bar(row: Sequence[str]) -> str:
    """A cell with the clean score (2nd of a row) and the other (3rd), in percent."""
    clean, changed = map(float, row[1:3])
    low, high = sorted((clean, changed))
    change = _LOST if changed < clean else _GAINED
    stops = f'{_KEPT} {low}%,{change} {low}% {high}%,#eee {high}%'
    return f'<td class="bar" style="background-image:linear-gradient(90deg,{stops})"></td>'
