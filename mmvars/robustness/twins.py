"""Two designs that were trained alike, with one seed or more: which of them is more robust?"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmvars.errors import InputError
from mmvars.robustness.checks import failed_checks
from mmvars.robustness.report import (
    Estimate,
    Result,
    aligned_table,
    check_comparable,
    markdown_table,
    number_draws,
)
from mmvars.write import write_text

__all__ = ['find_runs', 'write_twins']

FILE = 'twins'


def find_runs(folder: str | Path, name: str) -> list[Path]:
    """The run folders of a design below a folder: ``NAME/seed_*``, or ``NAME`` itself.

    Raises:
        InputError: If there is none, or one whose training `mmvars compare` has not finished.
    """
    path = Path(folder, name)
    if not path.is_dir():
        there = ', '.join(sorted(p.name for p in Path(folder).glob('*') if p.is_dir()))
        raise InputError(
            f'--twins {name}: {folder} has no such folder; it has {there or "none"}. Give the work '
            'dir of `mmvars compare`, or a folder with the two run folders'
        )
    runs = sorted(path.glob('seed_*')) or [path]
    for run in runs:
        record = run / 'run.json'  # of `mmvars compare`
        if record.is_file() and '"status": "finished"' not in record.read_text(encoding='utf-8'):
            raise InputError(
                f'--twins {name}: the training in {run} is not finished: train it to its end with '
                'the same `mmvars compare`, or move the folder away'
            )
    return runs


def write_twins(
    names: tuple[str, str], ours: Sequence[Result], theirs: Sequence[Result], folder: str | Path
) -> str:
    """Write ``twins.txt``, ``.json`` and ``.md``; returns the text.

    Args:
        names: Of the two designs.
        ours, theirs: The results of each, one a seed, of the same images and settings.
        folder: Where they stand.
    """
    for other in (*ours, *theirs):
        check_comparable(ours[0], other, '--twins')
    one, other = ([number_draws(result) for result in results] for results in (ours, theirs))
    content: dict[str, dict] = {}
    rows = [['', *names, 'difference']]
    for key in one[0]:
        seeds = [np.array([draws[key][0] for draws in each]) for each in (one, other)]
        means = [np.mean([draws[key] for draws in each], axis=0) for each in (one, other)]
        difference = Estimate.of(means[0] - means[1])
        rows.append([key, *map(_spread, seeds), str(difference)])
        content[key] = dict(
            {name: values.tolist() for name, values in zip(names, seeds, strict=True)},
            difference=difference.entry,
        )
    counts = ' and '.join(f'{len(r)} of {n}' for n, r in zip(names, (ours, theirs), strict=True))
    title = f'Robustness of {names[0]} and {names[1]}'
    doubts = [
        f'NOT TO BE BELIEVED of {result.about["config"]}, for this does not hold: {failed}'
        for result in (*ours, *theirs)
        if (failed := failed_checks(result.checks(result.draws())))
    ]
    head = [
        f'protocol: {ours[0].about["protocol"]}',
        f'images: {ours[0].about["images"]}',
        f'seeds: {counts}; ± is their standard deviation',
        'difference: of the means over the seeds, with the 95 % interval of a bootstrap that is '
        'paired over the images; the spread over the seeds is not in it',
        *doubts,
        *_preprocessing([*ours, *theirs]),
    ]
    text = '\n'.join([title, *head, '', aligned_table(rows)]) + '\n'
    markdown = [f'# {title}', '', *(f'- {line}' for line in head), '', *markdown_table(rows)]
    for suffix, body in (
        ('txt', text),
        ('md', '\n'.join(markdown) + '\n'),
        ('json', json.dumps(dict(twins=names, doubts=doubts, numbers=content), indent=1) + '\n'),
    ):
        write_text(Path(folder, f'{FILE}.{suffix}'), body, overwrite=True)
    return text


def _preprocessing(results: Sequence[Result]) -> list[str]:
    """What the guard says of the runs, a line for each that is another."""
    configs: dict[str, list[str]] = {}
    for result in results:
        configs.setdefault(result.about['preprocessing'], []).append(result.about['config'])
    if len(configs) == 1:
        return [f'preprocessing: {next(iter(configs))}']
    return [f'preprocessing of {", ".join(files)}: {text}' for text, files in configs.items()]


def _spread(values: np.ndarray) -> str:
    """Mean and standard deviation over the seeds, in percent."""
    if len(values) == 1:
        return f'{100 * values[0]:.2f}'
    return f'{100 * values.mean():.2f} ± {100 * values.std(ddof=1):.2f}'
