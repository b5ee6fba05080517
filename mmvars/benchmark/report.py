"""From measurements to a tree of plain values, and from there to a table."""

from collections.abc import Sequence
from typing import Any

from mmvars.benchmark.contenders import Case
from mmvars.benchmark.markdown import markdown_table
from mmvars.benchmark.statistics import crossing, growth_exponent, paired_ratio, spread
from mmvars.benchmark.timing import Measurement

__all__ = ['FIT_RANGE', 'case_entry', 'group_entries', 'render']

FIT_RANGE = (1024, 8192)
"""Sizes between which growth is fitted: below, fixed costs hide it."""


def case_entry(case: Case, measurements: Sequence[Measurement], reference: str,
               seed: int) -> dict[str, Any]:
    """One case: ``group``, ``size``, its details, and for each contender its numbers."""
    by_name = {measurement.name: measurement for measurement in measurements}
    contenders = []
    for found in measurements:
        contenders.append(dict(
            name=found.name, seconds=found.seconds, repeats=found.repeats,
            time=spread(found.seconds)._asdict(),
            ratio=paired_ratio(found.seconds, by_name[reference].seconds, seed)._asdict(),
            peak_bytes=found.peak_bytes, multiply_adds=found.macs.to_dict(),
            saved_bytes=found.saved_bytes, output_rms=found.output_rms))
    return dict(group=case.group, size=case.size, **case.details, contenders=contenders)


def group_entries(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each group and contender: growth of time and memory, and where it overtakes."""
    entries = []
    for group in dict.fromkeys(case['group'] for case in cases):
        members = sorted((case for case in cases if case['group'] == group),
                         key=lambda case: case['size'])
        sizes = [case['size'] for case in members]
        for rows in zip(*(case['contenders'] for case in members), strict=True):
            peaks = [row['peak_bytes'] or 0 for row in rows]
            entries.append(dict(
                group=group, name=rows[0]['name'],
                time_exponent=growth_exponent(sizes, [row['time']['median'] for row in rows],
                                              *FIT_RANGE),
                memory_exponent=growth_exponent(sizes, peaks, *FIT_RANGE),
                overtakes_at=crossing(sizes, [row['ratio']['median'] for row in rows])))
    return entries


def render(result: dict[str, Any]) -> str:
    """The whole result as Markdown that also reads as plain text."""
    settings, reference = result['settings'], result['settings']['reference']
    parts = [f'{settings["mode"]} on {settings["device_name"]}, {settings["dtype"]}, '
             f'{settings["threads"]} thread(s), batch {settings["batch_size"]}, torch '
             f'{settings["torch"]}; {settings["rounds"]} interleaved rounds, {settings["clock"]} '
             f'time. Each cell: median in ms (middle half of the samples in %), ratio to '
             f'{reference} [5-95 % bootstrap], peak MiB.']
    for group in dict.fromkeys(case['group'] for case in result['cases']):
        cases = [case for case in result['cases'] if case['group'] == group]
        growth = [entry for entry in result['growth'] if entry['group'] == group]
        names = [entry['name'] for entry in growth]
        rows = [[str(case['size']), *map(_cell, case['contenders'])] for case in cases]
        table = markdown_table([result['size_name'], *names], rows)
        low, high = FIT_RANGE
        summary = markdown_table(
            ['contender', f'time ~ N^p, {low} to {high}', 'memory ~ N^p',
             f'overtakes {reference} at'],
            [[entry['name'], _number(entry['time_exponent']), _number(entry['memory_exponent']),
              _place(entry, reference, cases[0]['size'])] for entry in growth])
        parts.append(f'## {group}\n\n{table}\n\n{summary}')
    source = settings['memory_source']
    parts.append(f'Peak memory: {source}.' if source else
                 'Peak memory: not measured, this system does not tell it.')
    return '\n\n'.join(parts)


def _cell(row: dict[str, Any]) -> str:
    time, ratio = row['time'], row['ratio']
    width = (time['high'] - time['low']) / time['median'] * 50
    peak = '-' if row['peak_bytes'] is None else f'{row["peak_bytes"] / 2**20:.1f}'
    return (f'{time["median"] * 1e3:.2f} (+-{width:.0f}), {ratio["median"]:.2f} '
            f'[{ratio["low"]:.2f} {ratio["high"]:.2f}], {peak}')


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.2f}'


def _place(entry: dict[str, Any], reference: str, smallest: int) -> str:
    if entry['name'] == reference:
        return '-'
    if entry['overtakes_at'] is None:
        return 'nowhere here'
    return f'{entry["overtakes_at"]:.0f}' if entry['overtakes_at'] else f'below {smallest}'
