"""``mmvars steerability``: measure how well models follow their priors."""

import argparse
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.utils import ProgressBar

from mmvars.engine.options import parse_cfg_options
from mmvars.errors import InputError, check_number
from mmvars.parsers.steerability import parse_args
from mmvars.predictor import Predictor, run_files
from mmvars.steerability.asking import PRIOR, Subject
from mmvars.steerability.photos import Photos
from mmvars.steerability.protocol import Plan, measure, num_steps
from mmvars.steerability.report import (
    Report,
    alpha_figure,
    comparison,
    example_figure,
    sweep_figure,
)
from mmvars.visualization.figure import save_figure
from mmvars.visualization.model import read_config
from mmvars.write import write_text

__all__ = ['main']


def main(argv: Sequence[str] | None = None) -> int:
    """Measure as the command line says; returns the exit status 0.

    Raises:
        InputError: On arguments, a config or files that cannot be used.
    """
    args = parse_args(argv)
    for name, low in (('images', 1), ('seed', 0), ('examples', 0)):
        if getattr(args, name) is not None:
            check_number(f'--{name}', getattr(args, name), low, whole=True)
    check_number('--min-share', args.min_share, 0, 1)
    for alpha in args.alpha or ():
        check_number('--alpha', alpha, 0)
    models = [_files(each) for each in ((args.model, args.checkpoint), *args.against)]
    prototypes = args.prototypes or [None]
    if len(prototypes) not in (1, len(models)):
        raise InputError(
            f'--prototypes takes one file for all models, or one for each of the {len(models)}; '
            f'got {len(prototypes)}'
        )
    prototypes = prototypes * (len(models) // len(prototypes))
    reports, names = [], _names(models)
    for number, ((config, checkpoint), file) in enumerate(zip(models, prototypes, strict=True), 1):
        print(f'[{number}/{len(models)}] {config} {checkpoint or ""}', flush=True)
        reports.append(_measure(config, checkpoint, file, names[number - 1], args))
    text = '\n'.join([comparison(reports), *(report.render() for report in reports)])
    print(f'\n{text}')
    os.makedirs(args.out, exist_ok=True)
    write_text(os.path.join(args.out, 'steerability.txt'), text, overwrite=True)
    settings = {key: value for key, value in vars(args).items() if key != 'out'}
    files = [dict(zip(('config', 'checkpoint'), each, strict=True)) for each in models]
    entries = [each | report.as_json() for each, report in zip(files, reports, strict=True)]
    content = dict(settings=settings, models=entries)
    write_text(
        os.path.join(args.out, 'steerability.json'),
        json.dumps(content, indent=1) + '\n',
        overwrite=True,
    )
    for name in os.listdir(args.out):
        if re.fullmatch(r'alpha\.png|example_\d+(_alpha)?\.png', name):
            os.remove(os.path.join(args.out, name))
    if (figure := alpha_figure(reports)) is not None:
        save_figure(figure, os.path.join(args.out, 'alpha.png'))
    for index in range(min(len(report.results.examples) for report in reports)):
        stem = os.path.join(args.out, f'example_{index + 1}')
        save_figure(example_figure(reports, index), f'{stem}.png')
        if (figure := sweep_figure(reports, index)) is not None:
            save_figure(figure, f'{stem}_alpha.png')
    print(f'written to {args.out}')
    return 0


def _files(words: Sequence[str | None]) -> tuple[str, str | None]:
    """Config and checkpoint of a model."""
    if len(words) > 2:
        raise InputError(f'--against takes a run folder, or CONFIG CHECKPOINT; got {len(words)}')
    config, checkpoint = run_files(*words)  # type: ignore[arg-type]
    return config, None if checkpoint is None else str(checkpoint)


def _names(models: Sequence[tuple[str, str | None]]) -> list[str]:
    """A short name for each model, all different: the last parts of its config or checkpoint.

    Raises:
        InputError: If a model is given twice.
    """
    if len(set(models)) < len(models):
        raise InputError('a config with its checkpoint is given twice: leave one out of --against')
    configs, checkpoints = zip(*models, strict=True)
    paths = configs if len(set(configs)) == len(models) else tuple(map(str, checkpoints))
    if len(set(paths)) < len(models):
        paths = tuple(f'{config}+{checkpoint}' for config, checkpoint in models)
    parts = [Path(os.path.splitext(path)[0]).parts for path in paths]
    longest = max(map(len, parts))
    tails = (['/'.join(each[-count:]) for each in parts] for count in range(1, longest + 1))
    return next((names for names in tails if len(set(names)) == len(models)), list(paths))


def _measure(
    config: str, checkpoint: str | None, prototypes: str | None, name: str, args: argparse.Namespace
) -> Report:
    """Load one model and measure it."""
    options = parse_cfg_options(args.cfg_options)
    cfg = read_config(config, dict(options or {}))
    if not _segments(cfg):
        # Photographs are prepared before they are put side by side.
        steps = [dict(type='mmvars.LoadImageFromFile'), dict(type='mmpretrain.PackInputs')]
        options = {**(options or {}), 'test_dataloader.dataset.pipeline': steps}
    predictor = Predictor(
        config, checkpoint, device=args.device, prototypes=prototypes, cfg_options=options
    )
    subject = Subject(predictor)
    photos = Photos(cfg, predictor.model, subject.num_classes, subject.segments)
    order = np.random.default_rng(args.seed).permutation(len(photos)).tolist()
    alphas = None if args.alpha is None else tuple(dict.fromkeys(args.alpha))
    plan = Plan(
        order[: args.images], args.seed, args.min_share, args.pair_layout, alphas, args.examples
    )
    bar = ProgressBar(num_steps(len(plan.indices), subject.segments))
    start = time.time()
    results = measure(subject, photos, plan, bar.update)
    print(f'\n{time.time() - start:.0f} s')
    first = next(iter(results.sections.values()))
    if not any(row == PRIOR for _, row, _ in first.tallies):
        raise InputError(
            f'--min-share {args.min_share:g}: no class that could be asked for has that share of '
            f'the pixels in any of {len(plan.indices)} images: lower it, or measure more --images'
        )
    return Report(
        name,
        results,
        subject.has_head,
        subject.takes_prior,
        subject.own_alpha,
        photos.class_names or predictor.classes,
        predictor.palette,
        args.seed,
    )


def _segments(cfg: Config) -> bool:
    return 'decode_head' in cfg.model
