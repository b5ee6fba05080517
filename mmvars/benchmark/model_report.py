"""Measurements of whole networks as Markdown."""

from typing import Any

from mmvars.benchmark.markdown import markdown_table

__all__ = ['conditions', 'render_models', 'span']

_HEADER = ['contender', 'ms', '+-%', 'ratio', '5-95 %', 'peak MiB', 'saved MiB', 'GMAC']


def render_models(result: dict[str, Any]) -> str:
    """One table a case, that also reads as plain text."""
    settings = result['settings']
    parts = [f'{conditions(settings)} ms: median, and half the middle half of the samples in %; '
             f'ratio to {settings["reference"]}, round by round, with its bootstrap interval. '
             f'GMAC: 10^9 multiply-adds of one call.']
    training = settings['mode'] == 'training'
    for case in result['cases']:
        rows = [_row(row) for row in case['contenders']]
        keep = [title != 'saved MiB' or training for title in _HEADER]
        table = markdown_table(_kept(_HEADER, keep), [_kept(row, keep) for row in rows])
        parts.append(f'## {case["group"]}: {case["task"]}\n\n{table}')
    source = settings['memory_source']
    parts.append(f'Peak memory: {source}.' if source else
                 'Peak memory: not measured, this system does not tell it.')
    return '\n\n'.join(parts)


def conditions(settings: dict[str, Any]) -> str:
    """How and where it was measured, in one sentence or two."""
    treatment = [name for name, key in (('compiled', 'compiled'), ('CUDA graph', 'cuda_graph'))
                 if settings[key]]
    loads = [settings.get('load_before'), settings.get('load_after')]
    load = '' if None in loads else f'; load {loads[0]} before, {loads[1]} after'
    return (f'{", ".join([settings["mode"], *treatment])} on {settings["device_name"]}, '
            f'{settings["dtype"]}, {settings["threads"]} thread(s), torch {settings["torch"]}; '
            f'{settings["rounds"]} interleaved rounds, {settings["clock"]} time{load}.')


def span(ratio: dict[str, float]) -> str:
    """A bootstrap interval in few digits."""
    return f'{ratio["low"]:.2f} to {ratio["high"]:.2f}'


def _row(row: dict[str, Any]) -> list[str]:
    time, ratio = row['time'], row['ratio']
    width = (time['high'] - time['low']) / max(time['median'], 1e-12) * 50
    return [row['name'], f'{time["median"] * 1e3:.1f}', f'{width:.0f}', f'{ratio["median"]:.3f}',
            span(ratio), _mebibytes(row['peak_bytes']), _mebibytes(row['saved_bytes']),
            f'{(row["multiply_adds"]["all"] + row["multiply_adds"]["fourier"]) / 1e9:.3f}']


def _mebibytes(count: int | None) -> str:
    return '-' if count is None else f'{count / 2**20:.1f}'


def _kept(cells: list[str], keep: list[bool]) -> list[str]:
    return [cell for cell, kept in zip(cells, keep, strict=True) if kept]
