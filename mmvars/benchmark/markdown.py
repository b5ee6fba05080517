"""Tables that read the same as Markdown and as plain text."""

from collections.abc import Sequence

__all__ = ['escaped', 'markdown_table']


def escaped(text: str) -> str:
    """Text whose stars and bars are no Markdown."""
    return text.replace('*', r'\*').replace('|', r'\|')


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with padded cells; stars are escaped, and columns of numbers stand right.

    Args:
        header: Names of the columns.
        rows: Cells, as many a row as there are columns.
    """
    lines = [[escaped(cell) for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    numeric = [all(_is_number(cell) for cell in column)
               for column in zip(*lines[1:], strict=True)] or [False] * len(header)
    rule = ['-' * (width - 1) + (':' if right else '-')
            for width, right in zip(widths, numeric, strict=True)]
    padded = [[cell.rjust(width) if right else cell.ljust(width)
               for cell, width, right in zip(line, widths, numeric, strict=True)]
              for line in lines]
    return '\n'.join(f'| {" | ".join(line)} |' for line in (padded[0], rule, *padded[1:]))


def _is_number(cell: str) -> bool:
    return cell in ('', '-') or cell[0].isdigit()
