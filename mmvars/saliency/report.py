"""From the measures of single images to tables: text, JSON, CSV, Markdown."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmvars.robustness.report import aligned_table
from mmvars.saliency.measures import FIXATION_SCORES, OBJECT_SCORES
from mmvars.saliency.objects import Overlap
from mmvars.steerability.estimates import Estimate, Resamples, Tally
from mmvars.write import write_text

__all__ = ['Table', 'fixation_table', 'object_tables', 'write_report']


class Table(NamedTuple):
    """Numbers of several maps.

    Attributes:
        title: For the report.
        columns: Names of the numbers.
        rows: Map -> a number each.
        decimals: To print.
    """

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Estimate]]
    decimals: int = 3


def fixation_table(images: Sequence[Mapping[str, Any]], seed: int) -> Table:
    """Means over the images of :data:`FIXATION_SCORES`, from what ``fixation_scores`` gave."""
    draws = Resamples(len(images), seed)
    rows = {
        name: [
            draws.estimate(_tally((i, image[name][k]) for i, image in enumerate(images)))
            for k in range(len(FIXATION_SCORES))
        ]
        for name in images[0]
    }
    return Table('where people look', FIXATION_SCORES, rows)


def object_tables(images: Sequence[Mapping[str, Any]], seed: int) -> list[Table]:
    """Table 1.4, and the means over all objects.

    Args:
        images: ``'foreground'``: counts of each map, see ``Overlap``; ``'objects'``: for each
            object the :data:`OBJECT_SCORES` of each map.
        seed: Of the bootstrap.
    """
    draws = Resamples(len(images), seed)
    foreground: dict[str, list[Estimate]] = {}
    for name in images[0]['foreground']:
        counts = [Overlap(*image['foreground'][name]) for image in images]
        pooled = Tally()
        for i, each in enumerate(counts):
            pooled.add(i, each.both, each.both + each.false_positives + each.false_negatives)
        tallies = [
            _tally((i, each.iou) for i, each in enumerate(counts) if not np.isnan(each.iou)),
            _tally((i, each.false_positive_share) for i, each in enumerate(counts)),
            _tally((i, each.false_negative_share) for i, each in enumerate(counts)),
            pooled,
        ]
        foreground[name] = [draws.estimate(tally) for tally in tallies]
    objects: dict[str, list[Estimate]] = {}
    scored = [(i, each) for i, image in enumerate(images) for each in image['objects']]
    for name in dict.fromkeys(name for _, each in scored for name in each):
        objects[name] = [
            draws.estimate(_tally((i, each[name][k]) for i, each in scored if name in each))
            for k in range(len(OBJECT_SCORES))
        ]
    return [
        Table('foreground (Table 1.4)', ('IoU', 'FP', 'FN', 'IoU of all'), foreground, 4),
        Table('objects', OBJECT_SCORES, objects),
    ]


def _tally(values: Any) -> Tally:
    tally = Tally()
    for image, value in values:
        tally.add(image, value)
    return tally


def write_report(
    folder: str | Path,
    about: Mapping[str, str],
    tables: Sequence[Table],
    settings: Mapping,
    stem: str = 'attention',
) -> str:
    """Write ``attention.txt``, ``.json``, ``.csv`` and ``.md``, or of another stem; returns the
    text."""
    title = f'{stem.capitalize()} of {about["model"]}'
    head = [f'{name}: {text}' for name, text in about.items()]
    note = '95 % intervals: bootstrap over the images; value and half of the interval'
    text, markdown = [title, *head, note], [f'# {title}', '', *(f'- {line}' for line in head)]
    markdown += [f'- {note}']
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator='\n')
    writer.writerow(['table', 'map', 'score', 'value', 'low', 'high', 'count'])
    for table in tables:
        cells = [['', *table.columns]]
        for name, estimates in table.rows.items():
            cells.append([name, *(_shown(each, table.decimals) for each in estimates)])
            for column, each in zip(table.columns, estimates, strict=True):
                writer.writerow([table.title, name, column, *_entry(each).values()])
        text += ['', table.title, aligned_table(cells)]
        top, *body = (f'| {" | ".join(row)} |' for row in cells)
        markdown += ['', f'## {table.title}', '', top, f'|---|{"---:|" * len(table.columns)}']
        markdown += body
    content = dict(
        about=about,
        settings=settings,
        tables={
            table.title: {
                name: {c: _entry(e) for c, e in zip(table.columns, estimates, strict=True)}
                for name, estimates in table.rows.items()
            }
            for table in tables
        },
    )
    for suffix, body in (
        ('txt', '\n'.join(text) + '\n'),
        ('json', json.dumps(content, indent=1) + '\n'),
        ('csv', lines.getvalue()),
        ('md', '\n'.join(markdown) + '\n'),
    ):
        write_text(Path(folder, f'{stem}.{suffix}'), body, overwrite=True)
    return '\n'.join(text)


def _entry(estimate: Estimate) -> dict[str, float | int | None]:
    values = dict(value=estimate.value, low=estimate.low, high=estimate.high)
    finite = {key: float(v) if np.isfinite(v) else None for key, v in values.items()}
    return finite | dict(count=estimate.count)


def _shown(estimate: Estimate, decimals: int) -> str:
    if np.isnan(estimate.value):
        return '-'
    half = (estimate.high - estimate.low) / 2
    return f'{estimate.value:.{decimals}f} ±{half:.{decimals}f}'
