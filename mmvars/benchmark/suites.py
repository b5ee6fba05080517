"""What the benchmark can measure: from arguments to cases, and from cases to a result."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from mmvars.benchmark.contenders import Case, mixer_cases, parse_tokens
from mmvars.benchmark.model_report import render_models
from mmvars.benchmark.models import model_cases, parse_model
from mmvars.benchmark.report import case_entry, group_entries, render
from mmvars.benchmark.setting import load_average, settings_entry
from mmvars.benchmark.timing import Settings, measure_case
from mmvars.errors import InputError, check_choice

__all__ = ['SUITES', 'Job']

Job = Callable[[], tuple[dict[str, Any], str]]
"""Measures; gives a tree of plain values, and the same as Markdown."""


def _mixers(args: argparse.Namespace, settings: Settings) -> Job:
    grids = [parse_tokens(text) for text in args.tokens]
    refuse_repeated('--tokens', [height * width for height, width in grids])
    refuse_repeated('--mixers', args.mixers)
    widths = [_width(text) for text in args.widths]
    refuse_repeated('--widths', widths)
    if len(args.batch_sizes) > 1:
        raise InputError('--suite mixers measures one batch size; --suite models takes several')
    cases = mixer_cases(args.mixers, widths, grids, args.batch_sizes[0], args.num_steps,
                        args.preset)
    return _cases_job(args, settings, 'tokens', cases, render)


def _models(args: argparse.Namespace, settings: Settings) -> Job:
    refuse_repeated('--models', args.models)
    sizes = [_size(text) for text in args.sizes]
    refuse_repeated('--sizes', sizes)
    refuse_repeated('--batch-sizes', args.batch_sizes)
    cases = model_cases([parse_model(text) for text in args.models], sizes, args.batch_sizes,
                        args.task, settings.mode == 'training')
    return _cases_job(args, settings, 'pixels', cases, render_models)


SUITES: dict[str, Callable[[argparse.Namespace, Settings], Job]] = {
    'mixers': _mixers,
    'models': _models,
}
"""Name -> function that checks the arguments and gives what is then run."""


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


def refuse_repeated(option: str, values: Sequence[Any]) -> None:
    """Refuse a list of an option that names something twice.

    Raises:
        InputError: Naming it.
    """
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise InputError(f'{option} names {", ".join(repeated)} more than once; once is enough')
