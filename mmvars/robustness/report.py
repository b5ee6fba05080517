"""The tables of a run, and of one against another: text, JSON, CSV, Markdown."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmvars.errors import InputError
from mmvars.robustness.page import render_page
from mmvars.robustness.protocols import (
    ALEXNET_ERRORS,
    CLEAN,
    Protocol,
    Setting,
    corruption_errors,
    corruption_means,
    summarize,
)
from mmvars.robustness.rows import Rows
from mmvars.robustness.scores import NUM_DRAWS, Scores, draw_weights
from mmvars.write import write_text

__all__ = ['Estimate', 'Result', 'check_comparable', 'compare', 'read_result', 'write_report']

FILE = 'robustness'
_MOST_CLASSES = 30
_SAME = ('images', 'seed', 'imagenet_c', 'corruptions_version')


@dataclass(frozen=True)
class Estimate:
    """A number over all images, and the 95 % interval of its bootstrap over the images."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, draws: np.ndarray) -> 'Estimate':
        """From the number over all images and in each draw; those without a number do not count."""
        finite = draws[1:][np.isfinite(draws[1:])]
        low, high = np.quantile(finite, [0.025, 0.975]) if finite.size else (np.nan, np.nan)
        return cls(float(draws[0]), float(low), float(high))

    @property
    def entry(self) -> dict[str, float | None]:
        """As JSON, which knows no ``nan``."""
        return {key: _finite(value) for key, value in asdict(self).items()}

    def __str__(self) -> str:
        if np.isnan(self.value):
            return '-'
        return f'{100 * self.value:.2f} [{100 * self.low:.2f}, {100 * self.high:.2f}]'


@dataclass(frozen=True)
class Result:
    """What a complete table is made of.

    Attributes:
        protocol: What was measured.
        rows: Where the rows are.
        classes: Names of the K classes.
        score: What is measured: ``'mIoU'`` or ``'top-1'``.
        about: Lines of the head of the report, name -> text.
    """

    protocol: Protocol
    rows: Rows
    classes: tuple[str, ...]
    score: str
    about: Mapping[str, str]

    def scores(self, setting: Setting) -> Scores:
        return Scores.from_row(self.rows.read(setting), len(self.classes))

    def draws(self) -> tuple[dict[Setting, np.ndarray], dict[Setting, np.ndarray]]:
        """The score of each setting in each draw ``(1001,)``, and of each class ``(K,)``."""
        weights = draw_weights(len(self.rows.identity['images']))
        values, classes = {}, {}
        for setting in self.protocol.settings:
            scores = self.scores(setting)
            values[setting] = scores.value(weights)
            classes[setting] = scores.by_class(len(self.classes))
        return values, classes


def read_result(folder: str | Path) -> Result:
    """The result of an earlier run, from its folder.

    Raises:
        InputError: If there is none.
    """
    path = Path(folder, f'{FILE}.json')
    if not path.is_file():
        raise InputError(
            f'{path} does not exist: give the folder of a finished `mmvars robustness`'
        )
    content = json.loads(path.read_text(encoding='utf-8'))
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in content['protocol'].items()
    }
    return Result(
        Protocol(**fields),
        Rows(Path(folder, 'rows', content['key'])),
        tuple(content['classes']),
        content['score'],
        content['about'],
    )


def check_comparable(ours: Result, theirs: Result) -> None:
    """Refuse two results that are not answers to the same questions.

    Raises:
        InputError: Saying in what they differ.
    """
    one, other = ours.rows.identity, theirs.rows.identity
    differ = [name for name in _SAME if one[name] != other[name]]
    shown = [
        f'{name} ({len(one[name])} and {len(other[name])}, or others)'
        if name == 'images'
        else f'{name} ({one[name]} and {other[name]})'
        for name in differ
    ]
    if ours.score != theirs.score:
        shown.append(f'score ({ours.score} and {theirs.score})')
    if (settings := ours.protocol.settings) != theirs.protocol.settings:
        shown.append(f'settings ({len(settings)} and {len(theirs.protocol.settings)}, or others)')
    if shown:
        raise InputError(
            f'--against: this run and that one differ in {", ".join(shown)}: run both with one '
            '--protocol, the same data, --images and --seed'
        )


def compare(ours: Result, theirs: Result) -> dict[str, Estimate]:
    """Differences, ours less theirs, paired over the images: of each number and corruption."""
    (values, _), (others, _) = ours.draws(), theirs.draws()
    numbers, other_numbers = summarize(values), summarize(others)
    means, other_means = corruption_means(values), corruption_means(others)
    return {
        **{k: Estimate.of(numbers[k] - other_numbers[k]) for k in _numbers_of(ours, numbers)},
        **{name: Estimate.of(means[name] - other_means[name]) for name in means},
    }


def _numbers_of(result: Result, numbers: Mapping[str, Any]) -> list[str]:
    return [name for name in result.protocol.numbers if name in numbers]


def write_report(
    result: Result,
    folder: str | Path,
    against: Result | None = None,
    pictures: Sequence[tuple[str, str]] = (),
) -> str:
    """Write ``robustness.txt``, ``.json``, ``.csv``, ``.md`` and ``.html``; returns the text.

    Nothing in them depends on when, where or in how many pieces the rows were made.

    Args:
        result: What they are of.
        folder: Where they stand.
        against: Another result, for differences.
        pictures: For the page: lines of text, and sources of images.
    """
    values, by_class = result.draws()
    estimates = {setting: Estimate.of(draws) for setting, draws in values.items()}
    summary = summarize(values)
    numbers = {name: Estimate.of(summary[name]) for name in _numbers_of(result, summary)}
    difference = compare(result, against) if against else None
    table = _table(result, values)
    head = [f'{name}: {text}' for name, text in result.about.items()]
    parts: list[tuple[str, list[list[str]]]] = [
        (f'{result.score}, %', table),
        (
            f'95 % intervals: bootstrap over the images, {NUM_DRAWS} draws',
            [['', '%'], *([name, str(each)] for name, each in numbers.items())],
        ),
        _class_table(result, by_class),
        ('metrics of the evaluator', _metric_table(result)),
    ]
    if difference is not None and against is not None:
        parts.append(
            (
                f'less that of {against.about["config"]} {against.about["checkpoint"]}, paired '
                'over the images',
                [['', 'points'], *([name, str(each)] for name, each in difference.items())],
            )
        )
    title = f'Robustness of {result.about["config"]}'
    text = (
        '\n'.join([title, *head, *(f'\n{name}\n{_aligned(rows)}' for name, rows in parts)]) + '\n'
    )
    markdown = [f'# {title}', '', *(f'- {line}' for line in head)]
    for name, rows in parts:
        markdown += ['', f'## {name}', '', *_markdown(rows)]
    content = dict(
        key=result.rows.folder.name,
        protocol=asdict(result.protocol),
        score=result.score,
        classes=result.classes,
        about=dict(result.about),
        numbers={name: each.entry for name, each in numbers.items()},
        settings={setting.name: each.entry for setting, each in estimates.items()},
        by_class={
            setting.name: [_finite(value) for value in by_class[setting]] for setting in values
        },
        against=difference and {name: diff.entry for name, diff in difference.items()},
    )
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator='\n')
    writer.writerow(['corruption', 'severity', result.score, 'low', 'high'])
    for setting, each in estimates.items():
        writer.writerow([setting.change or 'clean', setting.level, *each.entry.values()])
    for suffix, body in (
        ('txt', text),
        ('json', json.dumps(content, indent=1) + '\n'),
        ('csv', lines.getvalue()),
        ('md', '\n'.join(markdown) + '\n'),
        ('html', render_page(title, result.about, parts, 100 * estimates[CLEAN].value, pictures)),
    ):
        write_text(Path(folder, f'{FILE}.{suffix}'), body, overwrite=True)
    return text


def _finite(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _table(result: Result, values: Mapping[Setting, np.ndarray]) -> list[list[str]]:
    """Corruptions by severities, with the mean and, for mCE, the error over AlexNet's."""
    scores = {setting: float(draws[0]) for setting, draws in values.items()}
    means = corruption_means(scores)
    with_errors = 'mCE' in result.protocol.numbers and means.keys() <= ALEXNET_ERRORS.keys()
    errors = corruption_errors(means) if with_errors else {}
    levels = result.protocol.levels
    lines = [['', *map(str, levels), 'mean', 'drop', *['CE'] * with_errors]]
    clean = scores[CLEAN]
    lines.append(['clean', *[''] * len(levels), f'{100 * clean:.2f}', '', *[''] * with_errors])
    for name, mean in means.items():
        row = [f'{100 * scores[Setting(name, level)]:.2f}' for level in levels]
        row += [f'{100 * mean:.2f}', f'{100 * (clean - mean):.2f}']
        lines.append([name, *row, *([f'{100 * errors[name]:.1f}'] if with_errors else [])])
    return lines


def _class_table(
    result: Result, by_class: Mapping[Setting, np.ndarray]
) -> tuple[str, list[list[str]]]:
    """Each class clean, in the mean over the corruptions, and the difference; the worst first."""
    clean = by_class[CLEAN]
    corrupted = np.mean(list(corruption_means(by_class).values()), axis=0)
    drop = clean - corrupted
    order = [k for k in np.argsort(-drop, kind='stable') if not np.isnan(drop[k])]
    unit = 'IoU' if result.score == 'mIoU' else 'accuracy'
    more = f', the {_MOST_CLASSES} with the largest drop' if len(order) > _MOST_CLASSES else ''
    rows = [
        [result.classes[k], *(f'{100 * each[k]:.2f}' for each in (clean, corrupted, drop))]
        for k in order[:_MOST_CLASSES]
    ]
    return f'{unit} of each class, %{more}', [['', 'clean', 'corrupted', 'drop'], *rows]


def _metric_table(result: Result) -> list[list[str]]:
    """What the config's own evaluator says: clean, and in the mean over the corruptions."""
    metrics = {s: result.rows.read(s)['metrics'] for s in result.protocol.settings}
    rows = [['', 'clean', 'corrupted']]
    for name in metrics[CLEAN]:
        values = {setting: each.get(name, np.nan) for setting, each in metrics.items()}
        corrupted = float(np.mean(list(corruption_means(values).values())))
        rows.append([name, f'{values[CLEAN]:.2f}', f'{corrupted:.2f}'])
    return rows


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = (f'| {" | ".join(row)} |' for row in rows)
    return [head, f'|---|{"---:|" * (len(rows[0]) - 1)}', *body]
