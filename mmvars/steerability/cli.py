"""``mmvars steerability``: measure how well models follow their priors."""

import argparse
import json
import os
import re
import time
from collections.abc import Sequence

import numpy as np
from mmengine.config import Config
from mmengine.utils import ProgressBar

from mmvars.engine.options import parse_cfg_options
from mmvars.errors import InputError, check_number
from mmvars.parsers.steerability import parse_args
from mmvars.predictor import Predictor
from mmvars.priors import find_class
from mmvars.steerability.asking import Subject
from mmvars.steerability.photos import Photos
from mmvars.steerability.protocol import Plan, can_ask, measure, num_steps
from mmvars.steerability.report import (
    Report,
    alpha_figure,
    comparison,
    example_figure,
    sweep_figure,
)
from mmvars.visualization.draw import norms_name
from mmvars.visualization.figure import save_figure
from mmvars.visualization.model import model_files, model_names, read_config
from mmvars.write import check_destination, write_text

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
    if any('=' in word for word in args.classes) != (args.text is not None):
        raise InputError(
            '--classes CLASS=WORDS and --text FOLDER, a sentence encoder, need each other'
        )
    models = [model_files(each) for each in ((args.model, args.checkpoint), *args.against)]
    prototypes = args.prototypes or [None]
    if len(prototypes) not in (1, len(models)):
        raise InputError(
            f'--prototypes takes one file for all models, or one for each of the {len(models)}; '
            f'got {len(prototypes)}'
        )
    prototypes = prototypes * (len(models) // len(prototypes))
    loaded = []
    for number, ((config, checkpoint), file) in enumerate(zip(models, prototypes, strict=True), 1):
        print(f'[{number}/{len(models)}] loading {config} {checkpoint or ""}', flush=True)
        loaded.append(_load(config, checkpoint, file, args))
    if len({subject.segments for subject, _, _ in loaded}) > 1:
        raise InputError(
            'some of these models are segmentors and some classifiers, which are asked different '
            'questions: compare models of one kind'
        )
    _make_folder(args.out)
    reports: list[Report] = []
    for name, (subject, photos, plan) in zip(model_names(models), loaded, strict=True):
        print(f'[{len(reports) + 1}/{len(models)}] measuring {name}', flush=True)
        reports.append(_measure(name, subject, photos, plan, args.classes))
        text = _write_numbers(args, models, reports)
    print(f'\n{text}')
    _draw(args.out, reports)
    print(f'written to {args.out}')
    return 0


def _make_folder(out: str) -> None:
    """Before anything is measured.

    Raises:
        InputError: If it cannot be made or written.
    """
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as error:
        raise InputError(
            f'--out {out} cannot be made a folder ({error.strerror}): give another'
        ) from None
    check_destination(os.path.join(out, 'steerability.json'), overwrite=True, suffixes=())


def _write_numbers(
    args: argparse.Namespace, models: Sequence[tuple[str, str | None]], reports: Sequence[Report]
) -> str:
    """Write the models measured so far, in place of older results; returns the text."""
    text = '\n'.join([comparison(reports), *(report.render() for report in reports)])
    write_text(os.path.join(args.out, 'steerability.txt'), text, overwrite=True)
    settings = {key: value for key, value in vars(args).items() if key != 'out'}
    entries = [
        dict(config=config, checkpoint=checkpoint) | report.as_json()
        for (config, checkpoint), report in zip(models, reports, strict=False)
    ]
    content = json.dumps(dict(settings=settings, models=entries), indent=1) + '\n'
    write_text(os.path.join(args.out, 'steerability.json'), content, overwrite=True)
    for name in os.listdir(args.out):
        if re.fullmatch(r'alpha\.png|example_\d+(_alpha)?\.png', name):
            os.remove(os.path.join(args.out, name))
    return text


def _draw(out: str, reports: Sequence[Report]) -> None:
    """Write the pictures."""
    if (figure := alpha_figure(reports)) is not None:
        save_figure(figure, os.path.join(out, 'alpha.png'))
    for index in range(min(len(report.results.examples) for report in reports)):
        stem = os.path.join(out, f'example_{index + 1}')
        save_figure(example_figure(reports, index), f'{stem}.png')
        if (figure := sweep_figure(reports, index)) is not None:
            save_figure(figure, f'{stem}_alpha.png')


def _load(
    config: str, checkpoint: str | None, prototypes: str | None, args: argparse.Namespace
) -> tuple[Subject, Photos, Plan]:
    """Load a model and its test data.

    Raises:
        InputError: If it cannot be asked for anything on these images.
    """
    options = parse_cfg_options(args.cfg_options)
    cfg = read_config(config, dict(options or {}))
    if not _segments(cfg):
        # Photographs are prepared before they are put side by side.
        steps = [dict(type='mmvars.LoadImageFromFile'), dict(type='mmpretrain.PackInputs')]
        options = {**(options or {}), 'test_dataloader.dataset.pipeline': steps}
    predictor = Predictor(
        config,
        checkpoint,
        device=args.device,
        prototypes=prototypes,
        text=args.text,
        cfg_options=options,
    )
    texts = {}
    for word in args.classes:
        name, _, text = word.partition('=')
        texts[find_class(name, predictor.classes)] = text or None
    subject = Subject(predictor, texts or None)
    photos = Photos(cfg, predictor.model, subject.num_classes, subject.segments)
    order = np.random.default_rng(args.seed).permutation(len(photos)).tolist()
    alphas = None if args.alpha is None else tuple(dict.fromkeys(args.alpha))
    plan = Plan(
        order[: args.images], args.seed, args.min_share, args.pair_layout, alphas, args.examples
    )
    if not can_ask(subject, photos, plan):
        if not subject.segments:
            raise InputError(
                f'the images that are drawn ({len(plan.indices)}) hold no two classes of which one '
                'has a prior, so that there is no pair to ask about: measure more --images'
            )
        raise InputError(
            f'--min-share {args.min_share:g}: no class that could be asked for has that share of '
            f'the pixels in any of {len(plan.indices)} images: lower it, or measure more --images'
        )
    return subject, photos, plan


def _measure(
    name: str, subject: Subject, photos: Photos, plan: Plan, asked: Sequence[str]
) -> Report:
    bar = ProgressBar(num_steps(len(plan.indices), subject.segments))
    start = time.time()
    results = measure(subject, photos, plan, bar.update)
    print(f'\n{time.time() - start:.0f} s')
    predictor = subject.predictor
    return Report(
        name,
        results,
        subject.has_head,
        subject.takes_prior,
        subject.own_alpha,
        norms_name(predictor.model),
        photos.class_names or predictor.classes,
        predictor.palette,
        plan.seed,
        asked,
    )


def _segments(cfg: Config) -> bool:
    return 'decode_head' in cfg.model
