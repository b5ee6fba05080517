"""What the benchmark can measure: from arguments to cases, and from cases to a result."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from mmvars.benchmark.contenders import Case, mixer_cases, parse_tokens
from mmvars.benchmark.import_time import (IMPORTS, import_seconds, imports_entry,
                                          render_imports)
from mmvars.benchmark.json_output import write_json
from mmvars.benchmark.model_report import render_models
from mmvars.benchmark.models import ModelSpec, model_cases, parse_model
from mmvars.benchmark.priors import prior_cases
from mmvars.benchmark.report import case_entry, group_entries, render
from mmvars.benchmark.setting import load_average, settings_entry
from mmvars.benchmark.target_report import (check_section, kept_rows, merge_rows,
                                            render_targets, replace_section)
from mmvars.benchmark.target_runs import measure_targets, select_targets
from mmvars.benchmark.targets import EXPERIMENTS
from mmvars.benchmark.timing import Settings, measure_case
from mmvars.checkpoints.files import write_text
from mmvars.errors import InputError, check_choice

__all__ = ['SUITES', 'Job']

Job = Callable[[], tuple[dict[str, Any], str]]
"""Measures; gives a tree of plain values, and the same as Markdown."""


def _mixers(args: argparse.Namespace, settings: Settings) -> Job:
    grids = [parse_tokens(text) for text in args.tokens]
    _refuse_repeated('--tokens', [height * width for height, width in grids])
    _refuse_repeated('--mixers', args.mixers)
    widths = [_width(text) for text in args.widths]
    _refuse_repeated('--widths', widths)
    if len(args.batch_sizes) > 1:
        raise InputError('--suite mixers measures one batch size; --suite models takes several')
    cases = mixer_cases(args.mixers, widths, grids, args.batch_sizes[0], args.num_steps,
                        args.preset)
    return _cases_job(args, settings, 'tokens', cases, render)


def _models(args: argparse.Namespace, settings: Settings) -> Job:
    sizes, models = _sizes_and_models(args)
    cases = model_cases(models, sizes, args.batch_sizes, args.task, settings.mode == 'training')
    return _cases_job(args, settings, 'pixels', cases, render_models)


def _priors(args: argparse.Namespace, settings: Settings) -> Job:
    if settings.mode != 'forward':
        raise InputError('--suite priors measures inference: leave --mode out')
    sizes, models = _sizes_and_models(args)
    cases = prior_cases(models, args.priors, sizes, args.batch_sizes, args.task)
    return _cases_job(args, settings, 'pixels', cases, render_models)


def _imports(args: argparse.Namespace, settings: Settings) -> Job:
    if settings.device.type != 'cpu':
        raise InputError('--suite imports takes no --device: imports run on the CPU')
    if find_spec('mmseg') is None:
        raise InputError('--suite imports needs mmseg: install it with `pip install '
                         '"mmvars[onedl]"`')

    def job() -> tuple[dict[str, Any], str]:
        entries = imports_entry(import_seconds(IMPORTS, args.rounds))
        return dict(suite=args.suite, imports=entries), render_imports(entries)

    return job


def _readme(args: argparse.Namespace, settings: Settings) -> Job:
    selection = select_targets(args.rows)
    if settings.device.type != 'cpu' or settings.compiled or settings.mode != 'forward' or (
            settings.dtype != 'float32'):
        raise InputError('--suite readme sets --device, --dtype, --mode and --compile row by row: '
                         'leave them out')
    kept = kept_rows(args.keep) if args.keep else []
    if args.update:
        check_section(args.update)
    order = [target.text for experiment in EXPERIMENTS for target in experiment.targets]

    def result(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return dict(suite=args.suite, targets=merge_rows(order, kept, rows))

    def job() -> tuple[dict[str, Any], str]:
        found = result(measure_targets(selection, settings, args.threads,
                                       lambda rows: write_json(args, result(rows), again=True)))
        text = render_targets(found['targets'])
        if args.update:
            write_text(args.update, replace_section(args.update, text), overwrite=True)
        return found, text

    return job


SUITES: dict[str, Callable[[argparse.Namespace, Settings], Job]] = {
    'mixers': _mixers,
    'models': _models,
    'priors': _priors,
    'imports': _imports,
    'readme': _readme,
}
"""Name -> function that checks the arguments and gives what is then run."""


def _sizes_and_models(
        args: argparse.Namespace) -> tuple[list[tuple[int, int]], list[ModelSpec]]:
    _refuse_repeated('--models', args.models)
    sizes = [_size(text) for text in args.sizes]
    _refuse_repeated('--sizes', sizes)
    _refuse_repeated('--batch-sizes', args.batch_sizes)
    return sizes, [parse_model(text) for text in args.models]


def _cases_job(args: argparse.Namespace, settings: Settings, size_name: str, cases: Sequence[Case],
               to_text: Callable[[dict[str, Any]], str]) -> Job:
    names = [contender.name for contender in cases[0].contenders]
    reference = args.reference or names[0]
    check_choice('--reference', reference, names)

    def job() -> tuple[dict[str, Any], str]:
        start, entries = load_average(), []
        for case in cases:
            print(f'measuring {case.group}, {case.size} {size_name}', file=sys.stderr, flush=True)
            entries.append(case_entry(case, measure_case(case, settings), reference, settings.seed))
        extra = dict(batch_size=args.batch_sizes[0], preset=args.preset, num_steps=args.num_steps,
                     reference=reference, load_before=start, load_after=load_average())
        result = dict(suite=args.suite, size_name=size_name,
                      settings=settings_entry(settings, args.threads) | extra, cases=entries,
                      growth=group_entries(entries))
        return result, to_text(result)

    return job


def _width(text: str) -> tuple[int, int]:
    found = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text.lower())
    if not found:
        raise InputError(f'--widths takes CHANNELSxHEADS, for instance 192x6, got {text!r}')
    return int(found[1]), int(found[2])


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r'([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?', text.lower())
    if not found:
        raise InputError(f'--sizes takes SIDE or HEIGHTxWIDTH in pixels, for instance 224 or '
                         f'512x1024, got {text!r}')
    height, width = int(found[1]), int(found[2] or found[1])
    if height % 32 or width % 32:
        raise InputError(f'--sizes {text}: sides must be multiples of 32 pixels, which all '
                         f'networks here take')
    return height, width


def _refuse_repeated(option: str, values: Sequence[Any]) -> None:
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise InputError(f'{option} names {", ".join(repeated)} more than once; once is enough')
