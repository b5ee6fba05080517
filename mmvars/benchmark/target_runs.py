"""Measuring targets: what each came to, and whether that is reached."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from mmvars.benchmark.import_time import IMPORTS, import_seconds
from mmvars.benchmark.report import FIT_RANGE, case_entry
from mmvars.benchmark.setting import load_average, settings_entry
from mmvars.benchmark.statistics import Spread, growth_interval, paired_ratio, spread
from mmvars.benchmark.targets import EXPERIMENTS, Experiment, Target
from mmvars.benchmark.timing import Settings, measure_case
from mmvars.errors import InputError

__all__ = ['measure_targets', 'select_targets']

Selection = list[tuple[Experiment, list[Target]]]


def select_targets(patterns: Sequence[str],
                   experiments: Sequence[Experiment] = EXPERIMENTS) -> Selection:
    """The targets whose text contains one of the patterns; all without patterns.

    Raises:
        InputError: On a pattern that is in no target.
    """
    texts = [target.text for experiment in experiments for target in experiment.targets]
    for pattern in patterns:
        if not any(_fits(pattern, text) for text in texts):
            raise InputError(f'--rows {pattern!r} is in no target; name a part of a row, such as '
                             f'inference, VARS-S or import')
    found = [(experiment, [target for target in experiment.targets
                           if not patterns or any(_fits(part, target.text) for part in patterns)])
             for experiment in experiments]
    return [(experiment, targets) for experiment, targets in found if targets]


def measure_targets(selection: Selection, settings: Settings, threads: int,
                    done: Callable[[list[dict[str, Any]]], None]) -> list[dict[str, Any]]:
    """Measure experiment by experiment.

    Args:
        selection: Of :func:`select_targets`.
        settings: Common to all but for what an experiment sets.
        threads: Of the CPU, for the report.
        done: Called with all rows so far after each experiment: the whole takes long.

    Returns:
        A row for each target: ``target``, ``limit``, ``at_least``, ``measured`` (low, median, high;
        or ``None``), ``reached`` (or ``None``), ``why_not`` (measured), ``contenders``, settings.
    """
    rows: list[dict[str, Any]] = []
    for experiment, targets in selection:
        print(f'measuring: {"; ".join(target.text for target in targets)}', file=sys.stderr,
              flush=True)
        rows += _measure(experiment, targets, settings, threads)
        done(rows)
    return rows


def _measure(experiment: Experiment, targets: Sequence[Target], settings: Settings,
             threads: int) -> list[dict[str, Any]]:
    changes = dict(experiment.settings)
    device = torch.device(changes.pop('device', settings.device))
    if device.type == 'cuda' and not torch.cuda.is_available():
        return [_row(target, None, why_not='torch sees no CUDA device here') for target in targets]
    settings = replace(settings, device=device, **changes)
    load, start = load_average(), time.perf_counter()
    if experiment.cases is None:
        entries, values = [], _import_times(targets, settings.rounds)
    else:
        entries = [case_entry(case, measure_case(case, settings), case.contenders[0].name,
                              settings.seed)
                   for case in experiment.cases()
                   if any(target.reads(case.group, case.size) for target in targets)]
        values = [_value(target, _read(target, entries), settings.seed) for target in targets]
    how = settings_entry(settings, threads) | dict(
        load_before=load, load_after=load_average(), measured_at=time.strftime('%Y-%m-%d %H:%M'),
        wall_seconds=round(time.perf_counter() - start, 1))
    return [_row(target, value, settings=how, cases=_read(target, entries))
            for target, value in zip(targets, values, strict=True)]


def _row(target: Target, value: Spread | None, why_not: str | None = None,
         settings: dict[str, Any] | None = None,
         cases: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    reached = None
    if value is not None:
        reached = (value.median >= target.limit if target.at_least
                   else value.median <= target.limit)
    return dict(target=target.text, limit=target.limit, at_least=target.at_least,
                quantity=target.quantity, measured=None if value is None else value._asdict(),
                reached=reached, why_not=why_not, settings=settings, cases=list(cases))


def _value(target: Target, entries: Sequence[dict[str, Any]], seed: int) -> Spread:
    rows = [{row['name']: row for row in entry['contenders']} for entry in entries]
    own = [row[target.contender] for row in rows]
    if target.quantity == 'growth':
        return growth_interval([entry['size'] for entry in entries],
                               [row['seconds'] for row in own], *FIT_RANGE, seed)
    unit = rows[0][target.reference]
    if target.quantity == 'saved':
        return Spread(*(own[0]['saved_bytes'] / unit['saved_bytes'], ) * 3)
    return paired_ratio(own[0]['seconds'], unit['seconds'], seed)


def _import_times(targets: Sequence[Target], rounds: int) -> list[Spread]:
    samples = import_seconds(IMPORTS, rounds)
    return [spread(samples[target.contender]) for target in targets]


def _read(target: Target, entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in entries if target.reads(entry['group'], entry['size'])]


def _fits(pattern: str, text: str) -> bool:
    return pattern.lower() in text.lower()
