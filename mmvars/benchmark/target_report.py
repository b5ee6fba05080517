"""The table of targets: as Markdown, and in the section of a file between two comments."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmvars.benchmark.markdown import markdown_table
from mmvars.errors import InputError

__all__ = ['BEGIN', 'END', 'check_section', 'kept_rows', 'merge_rows', 'render_targets',
           'replace_section']

BEGIN, END = '<!-- speed: begin -->', '<!-- speed: end -->'
_HEADER = ['what', 'target', 'measured', '5-95 %', '']
_KEYS = {'target', 'limit', 'at_least', 'quantity', 'measured', 'reached', 'why_not', 'settings'}


def render_targets(rows: Sequence[dict[str, Any]]) -> str:
    """The conditions, and a row for each target."""
    measured = [row for row in rows if row['measured'] is not None]
    reached = sum(row['reached'] for row in measured)
    left = len(rows) - len(measured)
    summary = (f'Of {len(rows)} targets {reached} are reached, {len(measured) - reached} missed'
               f'{f", {left} not measured" if left else ""}.')
    table = markdown_table(_HEADER, [_cells(row) for row in rows])
    reasons = list(dict.fromkeys(row['why_not'] for row in rows if row['why_not']))
    parts = [_conditions([row['settings'] for row in measured]), table, summary]
    if reasons:
        parts.append(f'Not measured: {"; ".join(reasons)}.')
    return '\n\n'.join(part for part in parts if part)


def check_section(file: Path) -> None:
    """See that a file has one section to replace, before the work that fills it.

    Raises:
        InputError: If it is no such file.
    """
    _parts(file)


def replace_section(file: Path, text: str) -> str:
    """The file's content with what is between :data:`BEGIN` and :data:`END` replaced."""
    before, after = _parts(file)
    return f'{before}{BEGIN}\n{text}\n{END}{after}'


def kept_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of an earlier run from its JSON file.

    Raises:
        InputError: If the file is not one that ``--suite readme --json`` wrote.
    """
    try:
        rows = json.loads(file.read_text(encoding='utf-8'))['targets']
        complete = all(_KEYS <= set(row) for row in rows)
    except (ValueError, LookupError, TypeError):
        complete = False
    if not complete:
        raise InputError(f'--keep {file} is no file that `--suite readme --json` wrote')
    return rows


def merge_rows(order: Sequence[str], kept: Sequence[dict[str, Any]],
               new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of an earlier run with the new ones in their place.

    Args:
        order: All targets there are; a row for one that is gone is left out.
        kept: Earlier rows.
        new: Newer ones.
    """
    rows = {row['target']: row for row in (*kept, *new)}
    return [rows[target] for target in order if target in rows]


def _cells(row: dict[str, Any]) -> list[str]:
    digits = 3 if row['quantity'] in ('time', 'seconds') else 2
    limit = f'{">=" if row["at_least"] else "<="} {row["limit"]:g}'
    if (found := row['measured']) is None:
        return [row['target'], limit, '-', '-', 'not measured']
    interval = '-' if row['quantity'] == 'saved' else (
        f'{found["low"]:.{digits}f} to {found["high"]:.{digits}f}')
    return [row['target'], limit, f'{found["median"]:.{digits}f}', interval,
            'reached' if row['reached'] else 'missed']


def _conditions(settings: Sequence[dict[str, Any]]) -> str:
    if not settings:
        return ''
    of = {key: ', '.join(dict.fromkeys(str(one[key]) for one in settings))
          for key in ('torch', 'device_name', 'dtype', 'threads', 'clock', 'rounds')}
    times = sorted(one['measured_at'] for one in settings)
    loads = [one[key] for one in settings for key in ('load_before', 'load_after')
             if one[key] is not None]
    load = f', load of the machine {min(loads):g} to {max(loads):g}' if loads else ''
    return (f'Each row in one process, its contenders in turns: median of the ratios of '
            f'{of["rounds"]} rounds and its bootstrap interval. torch {of["torch"]}, '
            f'{of["device_name"]}, {of["dtype"]}, {of["threads"]} thread(s), {of["clock"]} time; '
            f'{times[0]} to {times[-1]}{load}.')


def _parts(file: Path) -> tuple[str, str]:
    text = file.read_text(encoding='utf-8')
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InputError(f'--update {file} needs one line {BEGIN} and after it one line {END}; '
                         f'what is between them is replaced')
    return text.partition(BEGIN)[0], text.partition(END)[2]
