"""The tables of a run, and of one against another: text, JSON, CSV, Markdown."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmvars.errors import InputError, first_of
from mmvars.robustness.checks import check_attack, failed_checks
from mmvars.robustness.page import render_page
from mmvars.robustness.protocols import (
    ALEXNET_ERRORS,
    CLEAN,
    WORST_CASE,
    Protocol,
    Setting,
    corruption_errors,
    corruption_means,
    summarize,
)
from mmvars.robustness.published import Published
from mmvars.robustness.rows import Rows
from mmvars.robustness.scores import NUM_DRAWS, Scores, draw_weights
from mmvars.write import write_text

__all__ = [
    'Estimate',
    'Result',
    'aligned_table',
    'check_comparable',
    'check_own_report',
    'check_replaceable',
    'compare',
    'markdown_table',
    'number_draws',
    'read_result',
    'write_report',
]

FILE = 'robustness'
_MOST_CLASSES = 30
_SAME = ('images', 'content', 'seed', 'imagenet_c', 'corruptions_version', 'attacks_version')


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

    def scores(self, setting: Setting, top: int = 1) -> Scores:
        if setting.change == WORST_CASE:
            names = self.protocol.changes
            return Scores.worst([self.scores(Setting(name, setting.level)) for name in names])
        return Scores.from_row(self.rows.read(setting), len(self.classes), top)

    def draws(self, top: int = 1) -> dict[Setting, np.ndarray]:
        """The score of each setting in each draw ``(1001,)``.

        The same images are drawn in all settings that have them, others independently.
        """
        values, names, weights, seed = {}, None, np.empty(0), -1
        for setting in self.protocol.settings:  # those of the same images follow one another
            if (images := self.rows.identity(setting)['images']) != names:
                names, seed = images, seed + 1
                weights = draw_weights(len(images), seed)
            values[setting] = self.scores(setting, top).value(weights)
        for setting in self.protocol.worst:  # of the last images
            values[setting] = self.scores(setting).value(weights)
        return values

    def checks(self, values: Mapping[Setting, np.ndarray]) -> list[tuple[str, str, bool]]:
        """Whether the attacks worked, of the :meth:`draws`; nothing of other protocols."""
        is_attack = self.protocol.is_attack
        return check_attack(self.protocol, self.rows, values) if is_attack else []

    def by_class(self) -> dict[Setting, np.ndarray]:
        """The score of each class ``(K,)`` in each setting."""
        return {
            setting: self.scores(setting).by_class(len(self.classes))
            for setting in self.protocol.settings + self.protocol.worst
        }

    def numbers(self, values: Mapping[Setting, np.ndarray]) -> dict[str, np.ndarray]:
        """The numbers of the protocol, in each draw, of the :meth:`draws`."""
        if self.protocol.is_attack:
            shown = [*self.protocol.grid, *self.protocol.worst]
            found = {f'{s.change}, {s.level:g}/255': values[s] for s in shown}
            return {'clean': values[CLEAN], **found}
        numbers = summarize(values)
        if 'top-5' in self.protocol.numbers:
            numbers['top-5'] = summarize(self.draws(top=5))['shifted']
        return {name: numbers[name] for name in self.protocol.numbers if name in numbers}


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
    if 'rows' not in content:
        raise InputError(
            f'{path} is of an earlier version of mmvars: run its command again, which makes no row '
            'anew'
        )
    return Result(
        Protocol(**fields),
        Rows(Path(folder, 'rows'), content['rows']),
        tuple(content['classes']),
        content['score'],
        content['about'],
    )


def check_own_report(result: Result, folder: str | Path) -> None:
    """Refuse to replace the report of another model.

    Raises:
        InputError: If one is in the folder.
    """
    identity = {key: result.about[key] for key in ('config', 'checkpoint')}
    check_replaceable(Path(folder, f'{FILE}.json'), identity)


def check_replaceable(path: Path, identity: Mapping[str, str]) -> None:
    """Refuse to replace a report of something else.

    Args:
        path: Of the JSON file, which may be there.
        identity: What the report is of, as its ``'about'`` says it.

    Raises:
        InputError: If the file is there, and is not of this.
    """
    if not path.is_file():
        return
    about = json.loads(path.read_text(encoding='utf-8'))['about']
    other = {key: about.get(key, text) for key, text in identity.items()}  # or of before there was
    if other != identity:
        raise InputError(
            f'--out: {path} is the report of {" ".join(other.values())}: give another folder, or '
            'remove it'
        )


def check_comparable(ours: Result, theirs: Result, option: str = '--against') -> None:
    """Refuse two results that are not answers to the same questions.

    Args:
        ours, theirs: The results.
        option: That asks for the comparison, for the message.

    Raises:
        InputError: Saying in what they differ.
    """
    shown = []
    if ours.score != theirs.score:
        shown.append(f'score ({ours.score} and {theirs.score})')
    shown += _other_classes(ours.classes, theirs.classes)
    if (settings := ours.protocol.settings) != theirs.protocol.settings:
        shown.append(f'settings ({len(settings)} and {len(theirs.protocol.settings)}, or others)')
        settings = [setting for setting in settings if setting in theirs.protocol.settings]
    for setting in settings:
        one, other = ours.rows.identity(setting), theirs.rows.identity(setting)
        shown += [
            f'{name} ({len(one[name])} and {len(other[name])}, or others)'
            if name == 'images'
            else f'{name} ({one.get(name)} and {other.get(name)})'
            for name in _SAME
            if one.get(name) != other.get(name)  # rows of before have no content
        ]
    shown = list(dict.fromkeys(shown))
    if shown:
        raise InputError(
            f'{option}: this run and that one differ in {", ".join(shown)}: run both with one '
            '--protocol, the same data and classes, --images and --seed'
        )


def _other_classes(ours: Sequence[str], theirs: Sequence[str]) -> list[str]:
    """In what the classes differ; data without names have numbers, which fit any names."""
    if len(ours) != len(theirs):
        return [f'number of classes ({len(ours)} and {len(theirs)})']
    if list(map(str, range(len(ours)))) in (list(ours), list(theirs)):
        return []
    others = [f'{a} and {b}' for a, b in zip(ours, theirs, strict=True) if a != b]
    return [f'classes ({first_of(others, 3)})'] * bool(others)


def compare(ours: Result, theirs: Result) -> dict[str, Estimate]:
    """Differences, ours less theirs, paired over the images: of each number and corruption."""
    one, other = number_draws(ours), number_draws(theirs)
    return {name: Estimate.of(one[name] - other[name]) for name in one}


def number_draws(result: Result) -> dict[str, np.ndarray]:
    """Each number of the protocol, and the mean of each corruption, in each draw ``(1001,)``."""
    values = result.draws()
    means = {} if result.protocol.is_attack else corruption_means(values)
    return {**result.numbers(values), **means}


def write_report(
    result: Result,
    folder: str | Path,
    against: Result | None = None,
    pictures: Sequence[tuple[str, str]] = (),
    published: Published | None = None,
) -> str:
    """Write ``robustness.txt``, ``.json``, ``.csv``, ``.md`` and ``.html``; returns the text.

    Nothing in them depends on when, where or in how many pieces the rows were made.

    Args:
        result: What they are of.
        folder: Where they stand.
        against: Another result, for differences.
        pictures: For the page: lines of text, and sources of images.
        published: What is published for this model, in a table of its own.
    """
    values, by_class = result.draws(), result.by_class()
    estimates = {setting: Estimate.of(draws) for setting, draws in values.items()}
    numbers = {name: Estimate.of(draws) for name, draws in result.numbers(values).items()}
    difference = compare(result, against) if against else None
    table = _table(result, values)
    about, checks = dict(result.about), []
    if result.protocol.is_attack:
        checks = result.checks(values)
        about['believed'] = _verdict(checks)
        if against is not None:
            about['believed of the other'] = _verdict(against.checks(against.draws()))
    head = [f'{name}: {text}' for name, text in about.items()]
    unit = ', by epsilon in 1/255 of pixels' * result.protocol.is_attack
    parts: list[tuple[str, list[list[str]]]] = [
        (f'{result.score}, %{unit}', table),
        (
            f'95 % intervals: bootstrap over the images, {NUM_DRAWS} draws',
            [['', '%'], *([name, str(each)] for name, each in numbers.items())],
        ),
        _class_table(result, by_class),
        _metric_table(result),
    ]
    if difference is not None and against is not None:
        parts.append(
            (
                f'less that of {against.about["config"]} {against.about["checkpoint"]}, paired '
                'over the images',
                [['', 'points'], *([name, str(each)] for name, each in difference.items())],
            )
        )
    if checks:
        cells = [[name, found, 'yes' if holds else 'NO'] for name, found, holds in checks]
        parts.append(('whether the attacks worked', [['', 'found', 'holds'], *cells]))
    if published is not None:
        parts.append(
            (
                f'PUBLISHED by {published.source} for {published.name}: other weights and '
                'training, not measured here',
                [
                    ['', 'metric', 'published'],
                    *([data, metric, str(value)] for data, metric, value in published.results),
                ],
            )
        )
    title = f'Robustness of {result.about["config"]}'
    text = (
        '\n'.join([title, *head, *(f'\n{name}\n{aligned_table(rows)}' for name, rows in parts)])
        + '\n'
    )
    markdown = [f'# {title}', '', *(f'- {line}' for line in head)]
    for name, rows in parts:
        markdown += ['', f'## {name}', '', *markdown_table(rows)]
    content = dict(
        rows=result.rows.keys,
        protocol=asdict(result.protocol),
        score=result.score,
        classes=result.classes,
        about=about,
        numbers={name: each.entry for name, each in numbers.items()},
        settings={setting.name: each.entry for setting, each in estimates.items()},
        by_class={
            setting.name: [_finite(value) for value in by_class[setting]] for setting in values
        },
        published=published and asdict(published),
        against=difference and {name: delta.entry for name, delta in difference.items()},
    )
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator='\n')
    writer.writerow(['change', 'level', result.score, 'low', 'high'])
    for setting, each in estimates.items():
        writer.writerow([setting.change or 'clean', f'{setting.level:g}', *each.entry.values()])
    clean = 100 * estimates[CLEAN].value if CLEAN in estimates else np.nan
    for suffix, body in (
        ('txt', text),
        ('json', json.dumps(content, indent=1) + '\n'),
        ('csv', lines.getvalue()),
        ('md', '\n'.join(markdown) + '\n'),
        ('html', render_page(title, about, parts, clean, pictures)),
    ):
        write_text(Path(folder, f'{FILE}.{suffix}'), body, overwrite=True)
    return text


def _verdict(checks: list[tuple[str, str, bool]]) -> str:
    failed = failed_checks(checks)
    return (
        f'NOT TO BE BELIEVED, for this does not hold: {failed}'
        if failed
        else 'all four checks hold'
    )


def _finite(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _table(result: Result, values: Mapping[Setting, np.ndarray]) -> list[list[str]]:
    """Changes by levels, with the mean and, for mCE, the error over AlexNet's."""
    shown = _shown(result.protocol)
    scores = {setting: float(values[setting][0]) for setting in shown}
    means = corruption_means(scores)
    with_errors = (
        'mCE' in result.protocol.numbers
        and means.keys() <= ALEXNET_ERRORS.keys()
        and result.protocol.levels == (1, 2, 3, 4, 5)  # AlexNet's errors are means over these
    )
    errors = corruption_errors(means) if with_errors else {}
    levels = [level for level in result.protocol.levels if level]
    lines = [['', *(f'{level:g}' for level in levels), 'mean' if levels else '%']]
    clean = scores.get(CLEAN)
    if clean is not None:
        lines.append(['clean', *[''] * len(levels), f'{100 * clean:.2f}'])
    for name, mean in means.items():
        row = [f'{100 * scores[Setting(name, level)]:.2f}' for level in levels]
        lines.append([name, *row, f'{100 * mean:.2f}'])
    if clean is not None:
        drops = [f'{100 * (clean - mean):.2f}' for mean in means.values()]
        lines = _with_column(lines, ['drop', '', *drops])
    if with_errors:
        cells = [f'{100 * error:.1f}' for error in errors.values()]
        lines = _with_column(lines, ['CE', *[''] * (clean is not None), *cells])
    return lines


def _shown(protocol: Protocol) -> list[Setting]:
    """The settings of the table."""
    return [*[CLEAN] * protocol.clean, *protocol.grid, *protocol.worst]


def _with_column(lines: Sequence[list[str]], cells: Sequence[str]) -> list[list[str]]:
    return [[*line, cell] for line, cell in zip(lines, cells, strict=True)]


def _class_table(
    result: Result, by_class: Mapping[Setting, np.ndarray]
) -> tuple[str, list[list[str]]]:
    """Each class clean, in the mean over the changes, and the difference; the worst first.

    Under attacks, in the worst case at the greatest epsilon.
    """
    over = result.protocol.worst[-1:] or result.protocol.grid
    means = corruption_means({setting: by_class[setting] for setting in over})
    masked = np.ma.masked_invalid(list(means.values()))
    changed = masked.mean(axis=0).filled(np.nan)  # some conditions may lack a class
    columns = {_word(result): changed}
    if CLEAN in by_class:
        columns = {'clean': by_class[CLEAN], **columns, 'drop': by_class[CLEAN] - changed}
    worst = -columns['drop'] if 'drop' in columns else changed
    order = [k for k in np.argsort(worst, kind='stable') if not np.isnan(worst[k])]
    unit = 'IoU' if result.score == 'mIoU' else 'accuracy'
    more = f', the worst {_MOST_CLASSES}' if len(order) > _MOST_CLASSES else ''
    rows = [
        [result.classes[k], *(f'{100 * each[k]:.2f}' for each in columns.values())]
        for k in order[:_MOST_CLASSES]
    ]
    return f'{unit} of each class, %{more}', [['', *columns], *rows]


def _metric_table(result: Result) -> tuple[str, list[list[str]]]:
    """What the config's own evaluator says: clean, and in the mean over the changes."""
    settings = [*[CLEAN] * result.protocol.clean, *result.protocol.grid]
    metrics = {setting: result.rows.read(setting)['metrics'] for setting in settings}
    rows = [['', *['clean'] * result.protocol.clean, _word(result)]]
    left_out = sorted({name for each in metrics.values() for name in each if each[name] is None})
    for name in next(iter(metrics.values())):
        if name in left_out:
            continue
        values = {setting: each.get(name, np.nan) for setting, each in metrics.items()}
        changed = np.mean(list(corruption_means(values).values()))
        numbers = [values[CLEAN], changed] if CLEAN in values else [changed]
        rows.append([name, *(f'{number:.2f}' for number in numbers)])
    more = f' (left out, as not one number: {", ".join(left_out)})' if left_out else ''
    return f'metrics of the evaluator{more}', rows


def _word(result: Result) -> str:
    """What the images are that are not clean."""
    if result.protocol.is_attack:
        return 'attacked'
    return 'shifted' if 'shifted' in result.protocol.numbers else 'corrupted'


def aligned_table(rows: Sequence[Sequence[str]]) -> str:
    """A table as text; all columns but the first are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Its lines in Markdown; the first row is the head."""
    head, *body = (f'| {" | ".join(row)} |' for row in rows)
    return [head, f'|---|{"---:|" * (len(rows[0]) - 1)}', *body]
