"""The published tables beside what the built models come to."""

import fnmatch
from collections.abc import Iterable
from typing import Any

import torch

from mmvars.benchmark.markdown import escaped, markdown_table
from mmvars.benchmark.multiply_adds import CONVENTION, MultiplyAdds
from mmvars.benchmark.published import TABLES
from mmvars.benchmark.rows import PublishedRow
from mmvars.benchmark.sizes import IMAGE_SIZE, ReadingSize, measure_reading
from mmvars.errors import InputError, check_choice

__all__ = ['agreements', 'model_table', 'render', 'select_rows']

_Column = tuple[str, str, str]  # header, part of a reading's entry, number in it
_HERE: tuple[_Column, ...] = (('G lin+conv', 'multiply_adds', 'linear'),
                              ('G all', 'multiply_adds', 'all'))
_COLUMNS: dict[str, tuple[_Column, ...]] = {
    '1.2': (('params M: all', 'parameters', 'all'), ('trainable', 'parameters', 'trainable'),
            *_HERE, ('G FFT', 'multiply_adds', 'fourier'),
            ('release: G all', 'released_multiply_adds', 'all'),
            ('G FFT', 'released_multiply_adds', 'fourier')),
    **dict.fromkeys(('2.2', '2.3'), (
        ('params M', 'parameters', 'all'), *_HERE,
        ('release: G lin+conv', 'released_multiply_adds', 'linear'),
        ('G all', 'released_multiply_adds', 'all'))),
}
_READING = """\
Parameters and the first columns of G are counted from the built models as this package runs them
step by step (the fast path of AbSViT, which inference takes, needs fewer: `mmvars benchmark`);
"release" is the arithmetic of the released code for the same function, where it has that
configuration; PUBLISHED is what the thesis prints. "agrees": what rounds to the published digit."""
_TWO_PASSES = """\
With two passes, "release" is the design of the released AbSViT, on RVT and FAN too, for which no
such code was released: both passes embed the patches and classify, and the top-down signal goes
through the whole projection of queries, keys and values, of which the values are used. Here the
patches are embedded once, only the last pass classifies, and the signal joins the input before the
projection, so that it costs nothing there. The outputs are the same. The JSON has each of these
parts ("second_pass"). The reconstructions that the released code makes for its loss in inference
too are in no column."""


def select_rows(table: str | None = None,
                patterns: Iterable[str] = ()) -> list[tuple[str, PublishedRow]]:
    """Pairs of table and row.

    Args:
        table: A key of ``TABLES``; ``None`` for all.
        patterns: Rows wanted, each a name; or, where that is nobody's, a part of names or a
            pattern with ``*``. Small and capital letters are the same. None given: all rows.

    Raises:
        InputError: If the table is unknown, or a pattern fits no row.
    """
    if table is not None:
        check_choice('--table', table, TABLES)
    rows = [(number, row) for number, rows in TABLES.items() if table in (None, number)
            for row in rows]
    patterns = list(patterns)
    wanted = set()
    for pattern in patterns:
        # The names themselves hold stars, and some are the beginning of others.
        found = {i for i, (_, row) in enumerate(rows) if row.name.lower() == pattern.lower()}
        found = found or {i for i, (_, row) in enumerate(rows) if _fits(row.name, pattern)}
        if not found:
            raise InputError(f'--rows {pattern!r} fits no row; the rows are '
                             f'{", ".join(row.name for _, row in rows)}')
        wanted |= found
    return [pair for i, pair in enumerate(rows) if i in wanted or not patterns]


def model_table(rows: Iterable[tuple[str, PublishedRow]]) -> dict[str, Any]:
    """Build every reading of the rows and count.

    Returns:
        A tree of plain values, as ``--json`` writes it: ``convention``, ``image_size``, ``torch``,
        and ``rows``; each row with ``table``, ``name``, ``published``, ``remark`` and
        ``readings``. Counts are whole numbers, published values millions and thousands of millions.
    """
    return dict(convention=CONVENTION, image_size=IMAGE_SIZE, torch=torch.__version__,
                rows=[_row_entry(table, row) for table, row in rows])


def agreements(row: PublishedRow, size: ReadingSize) -> list[str]:
    """Which counts round to what the row prints, by name; see :func:`render`."""
    params = {'params all': size.parameters, 'params trainable': size.trainable}
    if size.parameters == size.trainable:
        params = {'params': size.parameters}
    costs = _costs('', size.executed)
    if size.released is not None:
        ours = set(costs.values())
        costs |= {name: count for name, count in _costs('release ', size.released).items()
                  if count not in ours}
    found = [name for name, count in params.items()
             if _rounds(count / 1e6, row.params, row.digits)]
    return found + [name for name, count in costs.items() if _rounds(count / 1e9, row.gflops, 1)]


def render(result: dict[str, Any]) -> str:
    """A result of :func:`model_table` as Markdown that also reads as plain text."""
    parts = []
    for table in dict.fromkeys(row['table'] for row in result['rows']):
        rows = [row for row in result['rows'] if row['table'] == table]
        columns = _COLUMNS[table]
        cells = [line for row in rows for line in _lines(row, columns)]
        remarks = '\n'.join(f'- {escaped(row["name"])}: {escaped(row["remark"])}' for row in rows)
        header = ('row', 'built as', *(name for name, *_ in columns), 'PUBLISHED: M', 'G', 'agrees')
        parts.append(f'## Table {table}\n\n{markdown_table(header, cells)}\n\n{remarks}')
    parts.append(_READING)
    if any(reading['second_pass'] for row in result['rows'] for reading in row['readings']):
        parts.append(_TWO_PASSES)
    size = result['image_size']
    return '\n\n'.join([*parts, f'One image of {size} x {size} pixels, classifier of '
                        f'1000 classes. {result["convention"]}'])


def _fits(name: str, pattern: str) -> bool:
    name, pattern = name.lower(), pattern.lower()
    return pattern in name or fnmatch.fnmatchcase(name, pattern)


def _costs(prefix: str, macs: MultiplyAdds) -> dict[str, int]:
    costs = {'lin+conv': macs.linear, 'all': macs.all, 'all + FFT': macs.all + macs.fourier}
    if not macs.products:
        del costs['lin+conv']  # the same as all
    if not macs.fourier:
        del costs['all + FFT']
    return {prefix + name: count for name, count in costs.items()}


def _rounds(count: float, published: float | None, digits: int) -> bool:
    return published is not None and abs(count - published) <= .5 * 10**-digits


def _row_entry(table: str, row: PublishedRow) -> dict[str, Any]:
    readings = []
    for reading in row.readings:
        size = measure_reading(reading)
        readings.append(dict(
            label=reading.label, library=reading.library, network=reading.network,
            top_down=reading.top_down, mixer=reading.mixer, options=dict(reading.options),
            overrides=dict(reading.overrides),
            parameters=dict(all=size.parameters, trainable=size.trainable),
            multiply_adds=size.executed.to_dict(),
            released_multiply_adds=None if size.released is None else size.released.to_dict(),
            second_pass=None if size.second_pass is None else size.second_pass._asdict(),
            agrees=agreements(row, size)))
    return dict(table=table, name=row.name, remark=row.remark, readings=readings,
                published=dict(params_m=row.params, gflops=row.gflops, params_digits=row.digits))


def _lines(row: dict[str, Any], columns: tuple[_Column, ...]) -> list[list[str]]:
    published = row['published']
    printed = ['-' if published[kind] is None else f'{published[kind]:.{digits}f}'
               for kind, digits in (('params_m', published['params_digits']), ('gflops', 1))]
    if not row['readings']:
        return [[row['name'], 'not ours, not counted', *('-' for _ in columns), *printed, '-']]
    lines = []
    for number, reading in enumerate(row['readings']):
        numbers = ['-' if reading[part] is None else
                   f'{reading[part][key] / (1e6 if part == "parameters" else 1e9):.3f}'
                   for _, part, key in columns]
        lines.append([row['name'] if number == 0 else '', reading['label'], *numbers,
                      *(printed if number == 0 else ('', '')), ', '.join(reading['agrees']) or '-'])
    return lines
