"""Mean and spread of a comparison's runs, as a dict for JSON and as Markdown."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mmvars.engine.compare_run import Run, plain

__all__ = ['as_markdown', 'mean_and_spread', 'summarise']


def mean_and_spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (divisor n - 1).

    Returns:
        ``None`` for what there is not: the mean of nothing, the spread of less than two values,
        and both if a value is not finite.
    """
    if not values or not all(map(math.isfinite, values)):
        return None, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def summarise(runs: Sequence[Run], metric: str, config: str, cfg_options: Mapping[str, Any],
              variants: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """The finished runs as one record, ready for JSON.

    Args:
        runs: All runs of the comparison.
        metric: What is compared.
        config: Name of the config.
        cfg_options: Options of all runs.
        variants: Name -> options of its own.
        seeds: Random seeds.

    Raises:
        InputError: If the last validation has no such metric.
    """
    rows = []
    for name, options in variants.items():
        done = [run for run in runs if run.variant == name and run.finished]
        values = [run.value(metric) for run in done]
        mean, spread = mean_and_spread(values)
        times = {f'{key}_per_run': statistics.fmean(run.record[key] for run in done) if done else
                 None for key in ('seconds', 'cpu_seconds')}
        cells = [dict(seed=run.seed, value=value if math.isfinite(value) else None,
                      **{key: run.record[key] for key in ('seconds', 'cpu_seconds', 'sessions')})
                 for run, value in zip(done, values, strict=True)]
        rows.append(dict(name=name, options=plain(options), n=len(done), mean=mean,
                         standard_deviation=spread, **times, runs=cells))
    cfg = runs[0].cfg
    length = {k: cfg.train_cfg[k] for k in ('max_iters', 'max_epochs') if k in cfg.train_cfg}
    return dict(
        measured=True, complete=all(run.finished for run in runs), metric=metric, config=config,
        cfg_options=plain(cfg_options), **length,
        batch_size=cfg.train_dataloader.get('batch_size'), seeds=list(seeds),
        environment=runs[0].record['environment'],
        resumed=sum(run.record['sessions'] > 1 for run in runs if run.finished), variants=rows)


def as_markdown(summary: Mapping[str, Any]) -> str:
    """The table, and below it what it was measured with."""
    rows, metric = summary['variants'], summary['metric']
    done, wanted = sum(row['n'] for row in rows), len(rows) * len(summary['seeds'])
    lines = [f'# {metric} on the validation set after training, as measured', '']
    if not summary['complete']:
        lines += [f'**Not complete: {done} of {wanted} runs.**', '']
    seeds = ', '.join(map(str, summary['seeds']))
    lines += [f'| variant | {metric}: mean ± sd | n | seeds {seeds} | seconds per run | of CPU |',
              '|---|---|---|---|---|---|']
    for row in rows:
        by_seed = {run['seed']: run['value'] for run in row['runs']}
        each = ', '.join(_number(by_seed[s]) if s in by_seed else '-' for s in summary['seeds'])
        times = ' | '.join('-' if row[key] is None else f'{row[key]:.0f}'
                           for key in ('seconds_per_run', 'cpu_seconds_per_run'))
        mean = _number(row['mean']) if row['n'] else '-'
        spread = '-' if row['standard_deviation'] is None else _number(row['standard_deviation'])
        lines.append(f'| {row["name"]} | {mean} ± {spread} | {row["n"]} | {each} | {times} |')
    lines += ['', 'sd: sample standard deviation over n seeds, one training each, the last '
              'validation. Seconds are those of the clock, and those of all processors together; '
              'start-up and validation are included.', '']
    lines += [f'- {name}: {value}' for name, value in _circumstances(summary)]
    return '\n'.join(lines) + '\n'


def _circumstances(summary: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows = [('config', summary['config']), ('options of all', _options(summary['cfg_options']))]
    rows += [(f'options of {row["name"]}', _options(row['options'])) for row in summary['variants']]
    rows += [(name, summary[key]) for name, key in (
        ('iterations', 'max_iters'), ('epochs', 'max_epochs'), ('batch size', 'batch_size'))
        if key in summary]
    rows += list(summary['environment'].items())
    if summary['resumed']:
        rows.append(('runs that were interrupted and resumed (their random augmentations differ '
                     'from an uninterrupted run)', summary['resumed']))
    return rows


def _options(options: Mapping[str, Any]) -> str:
    return ', '.join(f'`{key}={value}`' for key, value in options.items()) or 'none'


def _number(value: float | None) -> str:
    return 'nan' if value is None else f'{value:.2f}'
