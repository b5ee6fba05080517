"""The report as one page without anything from the network."""

from collections.abc import Mapping, Sequence
from html import escape

__all__ = ['render_page']

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }
table { border-collapse: collapse; margin: .5em 0 1.5em; }
td, th { padding: .2em .7em; text-align: right; font-variant-numeric: tabular-nums; }
td:first-child, th:first-child { text-align: left; font-weight: normal; }
th { border-bottom: 1px solid #999; }
dt { float: left; clear: left; width: 13em; color: #666; }
dd { margin-left: 13.5em; overflow-wrap: anywhere; }
img { max-width: 100%; border: 1px solid #ddd; }
"""


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
            that of the scores, whose cells have the color of what is left of the clean score.
        clean: That score, in percent.
        pictures: A line of text, and the source of an image.
    """
    lines = [f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in about.items()]
    body = [f'<h1>{escape(title)}</h1>', '<dl>', *lines, '</dl>']
    for index, (name, (head, *rows)) in enumerate(parts):
        body += [f'<h2>{escape(name)}</h2>', '<table>', _row(head, 'th')]
        colored = 0 if index else sum(column.isdigit() for column in head) + 1  # and the mean
        body += [_row(row, 'td', clean, colored) for row in rows] + ['</table>']
    if pictures:
        body.append('<h2>Where most is lost</h2>')
    for text, source in pictures:
        body += [f'<p>{escape(text)}</p>', f'<img src="{source}" alt="{escape(text)}">']
    return (
        f'<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<style>{_STYLE}</style>\n' + '\n'.join(body) + '\n</html>\n'
    )


def _row(cells: Sequence[str], tag: str, clean: float = 0, colored: int = 0) -> str:
    texts = []
    for index, cell in enumerate(cells):
        style = ''
        if 0 < index <= colored and cell and clean > 0:
            left = min(max(float(cell) / clean, 0), 1)
            style = f' style="background:hsl({120 * left:.0f} 60% 80%)"'  # green to red
        texts.append(f'<{tag}{style}>{escape(cell)}</{tag}>')
    return f'<tr>{"".join(texts)}</tr>'
