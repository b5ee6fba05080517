"""From tallies to numbers, a text, a JSON file and pictures."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmvars.steerability.asking import ABSENT, PLAIN, PRIOR, RANDOM, ROWS, SHUFFLED, Maps
from mmvars.steerability.estimates import Estimate, Resamples, Tally
from mmvars.steerability.protocol import Example, Results, Section
from mmvars.visualization.figure import (
    DPI,
    Half,
    HeatMap,
    LabelMap,
    Panel,
    Picture,
    Row,
    SideBySide,
    TopClasses,
    draw_figure,
    short_name,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['Report', 'alpha_figure', 'comparison', 'example_figure', 'sweep_figure']

Numbers = dict[str, dict[str, dict[str, Estimate]]]
"""Table -> row -> column -> number."""

TITLES = {
    'flip': 'Flip accuracy: of pairs (A, B), the map follows both priors',
    'iou': 'IoU with the named class, mean over classes',
    'marked': 'Pixels marked, mean share',
    'auc': 'AUC of the map inside the named region',
    'share': 'Share of the map inside the named region',
    'probability': 'Probability of the named class',
    'sweep': 'Alpha: gain of the named class against loss without',
}
SECTIONS = {
    'images': 'Images as they are; regions are the masks of their classes',
    'pairs': 'Two images side by side; regions are the images',
    'squares': 'Four images in a square; regions are the images',
}


@dataclass
class Report:
    """The numbers of one model.

    Attributes:
        name: Of the model, for tables and pictures.
        results: What was measured.
        has_head: Whether the answer is that of a prompt head.
        takes_prior: Whether the model takes a prior.
        own_alpha: Its scale.
        attention: What its attention is, see ``norms_name``.
        seed: Of the bootstrap.
        asked: The classes that alone were asked for, as the user named them; all, if empty.
    """

    name: str
    results: Results
    has_head: bool
    takes_prior: bool
    own_alpha: float | None
    attention: str
    classes: tuple[str, ...]
    palette: list
    seed: int
    asked: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.thresholds: dict[str, float] = {}
        self.numbers: dict[str, Numbers] = {
            name: self._numbers(section) for name, section in self.results.sections.items()
        }

    def _numbers(self, section: Section) -> Numbers:
        resamples = Resamples(section.num_units, self.seed)
        numbers: Numbers = {}

        def put(
            table: str, row: str, column: str, tally: Tally, minus: Tally | None = None
        ) -> None:
            estimate = resamples.estimate(tally, minus)
            numbers.setdefault(table, {}).setdefault(row, {})[column] = estimate

        for (table, row, column), tally in section.tallies.items():
            put(table, row, column, tally)
        for table, column in (('share', 'attention'), ('probability', 'named class')):
            if (without := section.tallies.get((table, PLAIN, column))) is not None:
                for row in (PRIOR, RANDOM):
                    if (table, row, column) in section.tallies:
                        tally = section.tallies[table, row, column]
                        put(table, f'{row} less none', column, tally, without)
        for name in ('answer', 'weights'):
            if ('iou ' + name, PRIOR) in section.curves:
                self.thresholds[name] = section.curves[f'iou {name}', PRIOR].best_threshold()
        for (table, row), curve in section.curves.items():
            kind, _, name = table.partition(' ')
            name = name or 'answer'
            if self.has_head and name == 'answer':
                put(kind, row, f'{name} at 0.5', curve.at(0.5))
            put(kind, row, f'{name} at best', curve.at(self.thresholds[name]))
        plain = {
            column: section.tallies['sweep', PLAIN, column]
            for column in ('named', 'shuffled', 'random', 'miou', 'top-1')
            if ('sweep', PLAIN, column) in section.tallies
        }
        for row in list(numbers.get('sweep', {})):
            for column, tally in plain.items():
                other = section.tallies.get(('sweep', row, column))
                if row != PLAIN and other is not None:
                    kind = 'loss' if column in ('miou', 'top-1') else 'gain'
                    pair = (other, tally) if kind == 'gain' else (tally, other)
                    put('sweep', row, f'{kind} {column}', *pair)
        return numbers

    def render(self) -> str:
        """All numbers as tables, in percent, each with its interval."""
        answer = 'the prompt head' if self.has_head else 'the token weights (no prompt head)'
        lines = [f'# {self.name}', '', f'The answer is the map of {answer}.']
        lines.append(f'Attention: {self.attention}.')
        for name, threshold in self.thresholds.items():
            lines.append(f'Best threshold of the {name}, over all images: {threshold:.2f}')
        if self.asked:
            lines.append(f'Asked for alone: {", ".join(self.asked)}')
        if self.results.left_out and self.takes_prior:
            names = ', '.join(short_name(self.classes[k]) for k in self.results.left_out)
            lines.append(f'Not asked for, since their prior is zero: {names}')
        lines += self._notes()
        for section, numbers in self.numbers.items():
            count = self.results.sections[section].num_units
            lines += ['', f'## {SECTIONS[section]} ({count})', *self._section_notes(section)]
            for table, rows in numbers.items():
                lines += ['', TITLES[table], *_table(rows)]
        return '\n'.join(lines) + '\n'

    def _notes(self) -> list[str]:
        if not self.takes_prior:
            return [
                'This model takes no prior: it answers every question alike, so that its flip '
                'accuracy is 0 by construction.'
            ]
        return [] if self.results.alphas else ['No sweep: this model has no alpha.']

    def _section_notes(self, section: str) -> list[str]:
        """Why something is missing."""
        if not self.numbers[section]:
            return ['No half or quarter has a class of its own that could name it.']
        rows = {row for rows in self.numbers[section].values() for row in rows}
        notes = {
            SHUFFLED: 'No control by shuffled priors: no image has two regions to ask for.',
            ABSENT: 'No control by an absent class: no image lacks a class that can be asked for.',
        }
        return [note for row, note in notes.items() if row not in rows]

    def as_json(self) -> dict[str, Any]:
        """Every number as ``{value, low, high, count}``; ``null`` where there is none."""
        return dict(
            name=self.name,
            answer='prompt head' if self.has_head else 'token weights',
            attention=self.attention,
            takes_prior=self.takes_prior,
            alpha=self.own_alpha,
            alphas=list(self.results.alphas),
            thresholds=self.thresholds,
            notes=self._notes(),
            not_asked_for=[self.classes[k] for k in self.results.left_out],
            sections={
                section: dict(
                    count=self.results.sections[section].num_units,
                    notes=self._section_notes(section),
                    **{
                        table: {
                            row: {column: _entry(each) for column, each in columns.items()}
                            for row, columns in rows.items()
                        }
                        for table, rows in numbers.items()
                    },
                )
                for section, numbers in self.numbers.items()
            },
        )


def _entry(estimate: Estimate) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in asdict(estimate).items()
    }


def _table(rows: Mapping[str, Mapping[str, Estimate]]) -> list[str]:
    """Lines of a table in percent, ``value [low, high]``, and how many questions they are of."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    order = sorted(rows, key=lambda row: (ROWS + (row,)).index(row))
    cells = [['', *columns, 'n']]
    for row in order:
        counts = sorted({each.count for each in rows[row].values()})
        numbers = [_cell(rows[row].get(column)) for column in columns]
        cells.append([row, *numbers, '/'.join(map(str, counts))])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _cell(estimate: Estimate | None) -> str:
    if estimate is None or math.isnan(estimate.value):
        return '-'
    return f'{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]'


HEADLINES = (
    ('images', 'flip', PRIOR, 'answer'),
    ('images', 'flip', PRIOR, 'attention'),
    ('images', 'flip', 'random prior', 'answer'),
    ('images', 'iou', PRIOR, 'answer at 0.5'),
    ('images', 'iou', PRIOR, 'answer at best'),
    ('images', 'iou', 'shuffled priors', 'answer at best'),
    ('images', 'iou', 'random prior', 'answer at best'),
    ('images', 'iou', 'absent class', 'answer at best'),
    ('images', 'iou', PRIOR, 'weights at best'),
    ('images', 'iou', PLAIN, 'labels'),
    ('images', 'auc', PRIOR, 'answer'),
    ('images', 'auc', 'random prior', 'answer'),
    ('images', 'auc', PRIOR, 'attention'),
    ('images', 'auc', PLAIN, 'attention'),
    ('images', 'marked', 'absent class', 'answer at 0.5'),
    ('images', 'marked', 'true', 'share'),
    ('images', 'sweep', PLAIN, 'miou'),
    ('images', 'sweep', 'own alpha', 'loss miou'),
    ('images', 'sweep', 'own alpha', 'gain named'),
    ('images', 'sweep', 'own alpha', 'gain shuffled'),
    ('images', 'sweep', 'own alpha', 'gain random'),
    ('pairs', 'flip', PRIOR, 'answer'),
    ('pairs', 'flip', PRIOR, 'score'),
    ('pairs', 'flip', 'random prior', 'score'),
    ('pairs', 'share', PRIOR, 'attention'),
    ('pairs', 'share', 'random prior', 'attention'),
    ('pairs', 'share', PLAIN, 'attention'),
    ('pairs', 'share', 'its prior less none', 'attention'),
    ('pairs', 'probability', 'its prior less none', 'named class'),
    ('squares', 'auc', PRIOR, 'answer'),
    ('squares', 'auc', PRIOR, 'attention'),
    ('squares', 'auc', 'random prior', 'attention'),
)


def comparison(reports: Sequence[Report]) -> str:
    """The main numbers of several models side by side."""
    rows: dict[str, dict[str, Estimate]] = {}
    for section, table, row, column in HEADLINES:
        for report in reports:
            known = f'{report.own_alpha:g}' if report.own_alpha is not None else PLAIN
            number = (
                report.numbers.get(section, {})
                .get(table, {})
                .get(known if row == 'own alpha' else row, {})
                .get(column)
            )
            if number is not None:
                rows.setdefault(f'{section}: {table}, {column}, {row}', {})[report.name] = number
    return '\n'.join(['# The main numbers', '', *_table(rows)]) + '\n'


def alpha_figure(reports: Sequence[Report]) -> 'Figure | None':
    """Gain against loss, one curve a model, and its controls; ``None`` where none has a sweep."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), dpi=DPI, facecolor='white', layout='constrained')
    axes = figure.subplots()
    segments = 'images' in reports[0].numbers
    section, gain, loss = (
        ('images', 'gain{}', 'loss miou') if segments else ('pairs', 'flip{}', 'loss top-1')
    )
    for number, report in enumerate(reports):
        sweep = report.numbers[section].get('sweep', {})
        for style, control in (('o-', ''), ('--', ' random'), (':', ' shuffled')):
            column = gain.format(control or ' named' * segments)
            points = [
                (100 * sweep[row][loss].value, 100 * sweep[row][column].value, row)
                for row in (f'{alpha:g}' for alpha in report.results.alphas)
                if row in sweep and {column, loss} <= set(sweep[row])
            ]
            if not points:
                continue
            x, y, names = zip(*points, strict=True)
            label = f'{report.name},{control} priors' if control else report.name
            axes.plot(x, y, style, color=f'C{number}', label=label)
            for place in zip(x, y, names, strict=True) if not control else ():
                axes.annotate(
                    f'α={place[2]}',
                    place[:2],
                    xytext=(4, 4),
                    textcoords='offset points',
                    fontsize=7,
                )
    if not axes.lines:
        return None
    axes.axhline(0, color='0.8', zorder=0)
    axes.axvline(0, color='0.8', zorder=0)
    axes.set(
        xlabel=f'loss of {"mIoU" if segments else "top-1 under the prior of an absent class"} '
        'against no prior, points',
        ylabel='gain of the named class in the labels, IoU points'
        if segments
        else 'flip accuracy of the scores, %',
    )
    axes.legend(fontsize=8)
    return figure


def example_figure(reports: Sequence[Report], number: int) -> 'Figure':
    """An image and both priors, a row for each model and prior (Fig. 2.4, 2.5, A.7, A.8)."""
    rows = []
    for report in reports:
        example = report.results.examples[number]
        for index, maps in zip(example.classes, example.answers, strict=True):
            name = short_name(report.classes[index])
            label = f'prior: {name}' if report.takes_prior else f'{name}, no prior taken'
            label = f'{report.name}\n{label}' if len(reports) > 1 else label
            rows.append(Row(_panels(report, example, index, maps), label))
    return draw_figure(rows, example.photo.labels.shape, _footer(example, reports))


def sweep_figure(reports: Sequence[Report], number: int) -> 'Figure | None':
    """Top-down attention to one class of an image at each alpha, a row a model (Fig. 2.8).

    ``None`` where no model has a sweep.
    """
    rows, most = [], max(len(report.results.alphas) for report in reports)
    for report in reports:
        example = report.results.examples[number]
        if not example.sweep or len(example.sweep) < most:
            continue
        image, norms = example.photo.image, [_over_mean(maps.attention) for maps in example.sweep]
        limits = float(np.min(norms)), float(np.max(norms))
        halves = _halves(example, example.classes[0])
        panels: list[Panel] = [Picture(image, halves=halves(None))]
        for alpha, values, maps in zip(report.results.alphas, norms, example.sweep, strict=True):
            title = f'α = {alpha:g}'
            panels.append(
                HeatMap(values, image, limits, title=title, halves=halves(maps.attention))
            )
        label = f'prior: {short_name(report.classes[example.classes[0]])}'
        rows.append(Row(panels, f'{report.name}\n{label}' if len(reports) > 1 else label))
    if not rows:
        return None
    return draw_figure(rows, example.photo.labels.shape, _footer(example, reports))


def _footer(example: Example, reports: Sequence[Report]) -> str:
    names = ' + '.join(map(os.path.basename, example.photo.name.split(' + ')))
    shares = ' · on each half its share of the sum' if example.is_pair else ''
    kinds = ' or '.join(dict.fromkeys(report.attention for report in reports))
    return f'{names} · attention: {kinds}, over their mean, one range a row{shares}'


def _over_mean(values: np.ndarray) -> np.ndarray:
    return values / max(float(values.mean()), 1e-12)


def _halves(example: Example, index: int) -> Callable[[np.ndarray | None], SideBySide | None]:
    """What stands on the halves of a pair: the shares of a map."""
    half: Half = 'left' if index == example.classes[0] else 'right'

    def halves(values: np.ndarray | None) -> SideBySide | None:
        if not example.is_pair:
            return None
        columns = example.photo.labels.shape[1]
        texts: tuple[str, ...] = ()
        if values is not None and values.any():
            share = values[:, : columns // 2].sum() / values.sum()
            texts = f'{share:.1%}', f'{1 - share:.1%}'
        return SideBySide(0.5, texts, half)

    return halves


def _panels(report: Report, example: Example, index: int, maps: Maps) -> list[Panel]:
    image, halves = example.photo.image, _halves(example, index)
    norms = [_over_mean(values) for values in (maps.bottom_up, maps.attention)]
    limits = float(np.min(norms)), float(np.max(norms))

    def heat_map(
        values: np.ndarray | None, title: str, note: str, limits: tuple[float, float] = (0, 1)
    ) -> Panel:
        if values is None:
            return Panel(title=title, note='none')
        return HeatMap(values, image, limits, title=title, note=note, halves=halves(values))

    panels: list[Panel] = [
        Picture(image, halves=halves(None)),
        heat_map(norms[0], 'Bottom-up attention', 'first pass', limits),
        heat_map(maps.weights, 'Token weights', 'cosine with the prior'),
        heat_map(norms[1], 'Top-down attention', 'last pass', limits),
    ]
    if report.has_head:
        panels.append(heat_map(maps.answer, 'Answer', 'of the prompt head'))
    if maps.scores is None:
        # Pixels without a label lie beyond the classes, where a label map shows the image.
        truth = np.where(example.photo.labels < 0, len(report.classes), example.photo.labels)
        labels = np.asarray(maps.labels)
        return [
            *panels,
            LabelMap(truth, image, report.classes, report.palette, title='Ground truth'),
            LabelMap(labels, image, report.classes, report.palette),
        ]
    others = tuple(k for k in example.classes if k != index)
    return [*panels, TopClasses(maps.scores, report.classes, highlight=index, others=others)]
