"""``mmvars robustness``: a segmentor or classifier of any config under corruptions."""

import argparse
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.runner import Runner

from mmvars.datasets import check_data_roots
from mmvars.engine.errors import user_errors
from mmvars.engine.options import parse_cfg_options
from mmvars.engine.runner import (
    build_runner,
    closing_process_group,
    load_config,
    set_for_test,
    set_work_dir,
)
from mmvars.errors import InputError, check_choice, check_number, first_of
from mmvars.parsers.robustness import parse_args
from mmvars.predictor import run_files
from mmvars.robustness.attacks import ATTACKS, SEGMENTATION_LOSSES
from mmvars.robustness.corruptions import CORRUPTIONS, check_corruption
from mmvars.robustness.guard import (
    check_classes,
    check_score,
    check_values,
    compare,
    is_same_data,
    preparation,
    shown,
)
from mmvars.robustness.pictures import worst_pictures
from mmvars.robustness.protocols import CLEAN, PROTOCOLS, Protocol, Setting
from mmvars.robustness.published import find_published
from mmvars.robustness.report import (
    Result,
    check_comparable,
    check_own_report,
    read_result,
    write_report,
)
from mmvars.robustness.rows import Rows
from mmvars.robustness.runner import Evaluation, run_settings
from mmvars.robustness.scores import Scores
from mmvars.robustness.shifts import SHIFTS, ShiftedData
from mmvars.robustness.store import store_images
from mmvars.robustness.training import Training, read_training
from mmvars.robustness.twins import find_runs, write_twins
from mmvars.visualization.model import refuse_text

__all__ = ['main']

_LOOKED_AT = 8  # images whose values are checked


def main(argv: Sequence[str] | None = None) -> int:
    """Measure as the command line says; returns the exit status 0.

    Raises:
        InputError: On arguments, a config or files that cannot be used, and where the config
            prepares images in another way than the training did.
    """
    args = parse_args(argv)
    for name in ('data', 'against', 'write', 'out'):
        if getattr(args, name) == '':
            raise InputError(f"--{name} '' names no folder: give one, or leave it out")
    protocol = _protocol(args)
    if args.twins:
        return _twins(args, protocol)
    if args.write:
        return _write(args, protocol)
    against = read_result(args.against) if args.against else None
    with closing_process_group():
        _measure(args, protocol, against)
    return 0


def _measure(args: argparse.Namespace, protocol: Protocol, against: Result | None) -> Result:
    """Measure one model, and write its report."""
    args.config, checkpoint = run_files(args.config, args.checkpoint)
    cfg, notes = load_config(args.config, parse_cfg_options(args.cfg_options))
    refuse_text(cfg)
    if checkpoint is None:
        raise InputError(f'{args.config} is a config: give its CHECKPOINT too')
    args.checkpoint = str(checkpoint)
    out = args.out or Path('work_dirs', Path(args.config).stem, 'robustness')
    _check_writable('--out', out)
    args.work_dir, args.brief = str(Path(out, 'log')), True
    set_work_dir(cfg, args)
    set_for_test(cfg, args)
    segmentation = 'decode_head' in cfg.model
    _check_kind(args, segmentation)
    of_pixels = [name for name in protocol.changes if name in SEGMENTATION_LOSSES]
    if of_pixels and not segmentation:
        raise InputError(
            f'attacks of segmentors alone: {first_of(of_pixels)}; {args.config} is a '
            'classifier: take --protocol attacks, or --attacks fgsm pgd pgd20'
        )
    if args.reliability:
        _add_reliability(cfg, segmentation)
    read = deepcopy(cfg)  # the Runner adapts its own
    with user_errors():
        shifted, absent = None, ''
        if args.data:
            shifted = ShiftedData(args.protocol, args.data, cfg, args.ignore_mismatch)
            protocol, absent = _use_shifted(cfg, protocol, shifted)
        else:
            check_data_roots(cfg)
        training = read_training(args.checkpoint, args.config)
        problems = compare(preparation(cfg), preparation(training.cfg), training.source)
        if problems and not args.ignore_mismatch:
            raise _mismatch(problems)
        runner = build_runner(cfg, args, notes)
        _silence(runner)
        evaluation = Evaluation(runner, protocol, shifted)
        wrong_classes = shifted.check_classes if shifted else check_classes
        problems += wrong_classes(evaluation.num_classes, evaluation.classes, training.classes)
        images = evaluation.images(protocol.settings[0])
        looked_at = images.indices[:: -(-len(images.indices) // _LOOKED_AT)]
        problems += check_values(evaluation.model, images.dataset, looked_at)
        if problems and not args.ignore_mismatch:
            raise _mismatch(problems)
        result = Result(
            protocol,
            Rows.of(out, evaluation.identities(read)),
            tuple(evaluation.classes or map(str, range(evaluation.num_classes))),
            'mIoU' if evaluation.segmentation else 'top-1',
            _about(args, evaluation, read),
        )
        check_own_report(result, out)
        if against is not None:
            check_comparable(result, against, '--twins' if args.twins else '--against')
        say = _start(evaluation, result)
        clean = absent
        if protocol.clean:
            run_settings(evaluation, result.rows, say, [CLEAN])
            wrong, clean = _check_clean(evaluation, result, read, training)
            problems += wrong
        if problems and not args.ignore_mismatch:
            raise _mismatch(problems)
        check = dict(preprocessing=_describe_check(preparation(read), training, problems))
        result = replace(result, about={**result.about, **check, 'clean score': clean})
        run_settings(evaluation, result.rows, say)
        if is_main_process():
            pictures = worst_pictures(evaluation, result, against)
            published = find_published(args.config, read.model, evaluation.num_classes)
            print('\n' + write_report(result, out, against, pictures, published))
            print(f'Written: {out}/robustness.txt, .json, .csv, .md, .html')
    return result


def _twins(args: argparse.Namespace, protocol: Protocol) -> int:
    """Measure all seeds of two designs, and compare them."""
    if args.checkpoint or args.against or args.write:
        raise InputError(
            '--twins measures the runs below a folder: leave out CHECKPOINT, --against and --write'
        )
    names = tuple(args.twins)
    if names[0] == names[1]:
        raise InputError(f'--twins {names[0]} {names[1]}: give two designs')
    ours, theirs = (find_runs(args.config, name) for name in names)
    kinds = [_kind(run_files(runs[0])[0], args.cfg_options) for runs in (ours, theirs)]
    if kinds[0] != kinds[1]:
        raise InputError(
            f'--twins: {names[0]} is a {kinds[0]} and {names[1]} a {kinds[1]}: give two of one kind'
        )
    out = Path(args.out or Path(args.config, 'robustness'))

    def measure(folder: Path, against: Result | None) -> Result:
        place = folder.relative_to(args.config)
        if is_main_process():
            print(f'\n{place}', flush=True)
        one = argparse.Namespace(**{**vars(args), 'config': str(folder), 'out': out / place})
        return _measure(one, protocol, against)

    with closing_process_group():
        plain = [measure(folder, None) for folder in theirs]
        results = [
            measure(folder, plain[min(seed, len(plain) - 1)]) for seed, folder in enumerate(ours)
        ]
        if is_main_process():
            print('\n' + write_twins(names, results, plain, out))
            print(f'Written: {out}/twins.txt, .json, .md')
    return 0


def _kind(config: str, cfg_options: list[str] | None) -> str:
    cfg, _ = load_config(config, parse_cfg_options(cfg_options))
    return 'segmentor' if 'decode_head' in cfg.model else 'classifier'


def _check_writable(option: str, folder: str | Path) -> None:
    """Refuse a folder that cannot be made or written, before anything is measured."""
    path = Path(folder).absolute()
    there = next(each for each in (path, *path.parents) if os.path.exists(each))
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(
            f'{option} {str(folder)!r}: {there} is no folder that can be written; give another'
        )


def _check_kind(args: argparse.Namespace, segmentation: bool) -> None:
    shift = SHIFTS.get(args.protocol)
    if shift and segmentation == shift.of_classifiers:
        kind = 'classifiers' if shift.of_classifiers else 'segmentors'
        raise InputError(f'--protocol {args.protocol} is for {kind}, and {args.config} is none')


def _write(args: argparse.Namespace, protocol: Protocol) -> int:
    """Store corrupted images, for which no model is needed."""
    if args.checkpoint or args.against or args.reliability or protocol.is_attack:
        raise InputError(
            '--write stores the images of CONFIG, and tests nothing: leave out CHECKPOINT, '
            '--against and --reliability, and take a protocol of corruptions, as segmentation'
        )
    _check_writable('--write', args.write)
    cfg, _ = load_config(args.config, parse_cfg_options(args.cfg_options))
    _check_kind(args, 'decode_head' in cfg.model)
    if cfg.get('test_dataloader') is None:
        raise InputError(f'config {args.config!r} has no test_dataloader')
    count = len(protocol.settings) - 1
    done: list[str] = []

    def say(name: str, images: int) -> None:
        done.append(name)
        print(f'[{len(done)}/{count}] {name}: {images} images', flush=True)

    with user_errors():
        check_data_roots(cfg, ('test_dataloader',))
        store_images(cfg, protocol, args.write, say)
    return 0


def _add_reliability(cfg: Config, segmentation: bool) -> None:
    """Let ``mmvars.ReliabilityMetric`` judge beside the evaluator of a config."""
    if not segmentation:
        raise InputError(
            '--reliability is of pixels, but this config is of a classifier; leave it out'
        )
    evaluator = cfg.test_evaluator
    metrics = list(evaluator) if isinstance(evaluator, (list, tuple)) else [evaluator]
    cfg.test_evaluator = [*metrics, dict(type='mmvars.ReliabilityMetric')]


def _protocol(args: argparse.Namespace) -> Protocol:
    """The protocol that the arguments name, with their changes."""
    check_choice('--protocol', args.protocol, PROTOCOLS)
    protocol, changes = PROTOCOLS[args.protocol], {}
    _check_data(args, protocol)
    _check_options(args, protocol)
    if args.images is not None:
        check_number('--images', args.images, 1, whole=True)
        changes['images'] = args.images
    if args.seed is not None:
        check_number('--seed', args.seed, 0, whole=True)
        changes['seed'] = args.seed
    names, levels = args.corruptions, args.severities
    known: Collection[str] = CORRUPTIONS
    if protocol.is_attack:
        names, levels, known = args.attacks, args.epsilons, ATTACKS
    elif protocol.stored:
        known = protocol.changes
    option = '--attacks' if protocol.is_attack else '--corruptions'
    for name in names or ():
        if protocol.stored or not args.data:  # else any folder
            check_choice(option, name, known)
    for level in args.epsilons or ():
        check_number('--epsilons', level, 0.001, 255)
    if names:
        changes['changes'] = tuple(dict.fromkeys(names))
    if levels:
        changes['levels'] = tuple(sorted({type(level)(f'{level:g}') for level in levels}))
    if changes:
        protocol = replace(protocol, name=f'{protocol.name}, changed', **changes)
    if not args.data and not protocol.is_attack:
        for name in protocol.changes:
            for level in protocol.levels:
                check_corruption(name, int(level), protocol.seed)
    return protocol


def _check_options(args: argparse.Namespace, protocol: Protocol) -> None:
    """Refuse options of corruptions for attacks, and the other way around."""
    wrong, right = ('corruptions', 'attacks') if protocol.is_attack else ('attacks', 'corruptions')
    names = ('corruptions', 'severities') if protocol.is_attack else ('attacks', 'epsilons')
    for name in names:
        if getattr(args, name):
            protocols = 'attacks or segmentation-attacks' if right != 'attacks' else 'quick'
            raise InputError(
                f'--{name} is for protocols of {wrong}, and --protocol {args.protocol} is one of '
                f'{right}: leave it out, or take --protocol {protocols}'
            )


def _check_data(args: argparse.Namespace, protocol: Protocol) -> None:
    """Refuse --data where it does nothing, and options that do nothing with it."""
    name = args.protocol
    if args.data and name not in SHIFTS:
        raise InputError(
            f'--data is for the protocols {", ".join(SHIFTS)}; {name} changes the test images of '
            'the config: leave it out'
        )
    if args.write and (args.data or protocol.stored):
        raise InputError(
            '--write stores corruptions that are made here: leave --data out, and take a protocol '
            'of them'
        )
    if protocol.stored and not args.data:
        raise InputError(f'--protocol {name} needs the folder of its images: add --data FOLDER')
    if protocol.stored and args.severities:
        raise InputError(f'--severities: --protocol {name} has none; leave it out')
    if args.data and args.seed is not None:
        raise InputError('--seed: the images of --data are as they are; leave it out')


def _use_shifted(cfg: Config, protocol: Protocol, shifted: ShiftedData) -> tuple[Protocol, str]:
    """The protocol, with clean images if those of the config are there; and why they are not."""
    shifted.check_folders([setting for setting in protocol.settings if setting != CLEAN])
    try:
        check_data_roots(cfg)
    except InputError as error:
        protocol = replace(protocol, clean=False)
        cfg.test_dataloader.dataset = shifted.config(protocol.settings[0])
        return protocol, f'not measured: {str(error).splitlines()[0]}'
    return protocol, ''


def _mismatch(problems: Sequence[str]) -> InputError:
    listed = '\n  '.join(problems)
    return InputError(
        f'this is not the test of the training:\n  {listed}\nCorrect the config '
        '(or --cfg-options); if it is meant so, --ignore-mismatch goes on and says so in the report'
    )


def _silence(runner: Runner) -> None:
    """The console has a line a setting; the log file has all."""
    for handler in runner.logger.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setLevel(logging.WARNING)


def _start(evaluation: Evaluation, result: Result) -> Callable[[Setting, dict, str], None]:
    """Say what is to be done; returns what says each row that is done."""
    settings = result.protocol.settings
    found = len(settings) - len(result.rows.missing(settings))
    if is_main_process():
        sizes = ', '.join(dict.fromkeys(str(len(names)) for names in evaluation.names.values()))
        print(
            f'{len(settings)} settings of {sizes} images'
            f'{f", {found} of them made earlier" * bool(found)} ({result.rows.folder})',
            flush=True,
        )

    def say(setting: Setting, row: dict, time: str) -> None:
        whole = np.ones((1, len(evaluation.names[setting])))
        score = float(Scores.from_row(row, len(result.classes)).value(whole)[0])
        shown = f'{result.score} {100 * score:.2f}'
        if setting.change in ATTACKS:
            shown = 'done'  # no number before it is known whether the attack worked
        count = len(settings) - len(result.rows.missing(settings))
        print(f'[{count}/{len(settings)}] {setting.name}: {shown}  ({time})', flush=True)

    return say


def _check_clean(
    evaluation: Evaluation, result: Result, cfg: Config, training: Training
) -> tuple[list[str], str]:
    """What is wrong with the clean score, and a line on it, in all processes."""
    shared: list = [None]
    if is_main_process():
        images = evaluation.images(CLEAN)
        is_all = len(images.indices) == len(images.dataset)
        same = is_same_data(cfg, training.cfg) and evaluation.class_ids is None
        covered = is_all if same else None
        shared = [check_score(result.scores(CLEAN), covered, training)]
        print(f'    clean score {shared[0][1]}', flush=True)
    broadcast_object_list(shared)
    return shared[0]


def _describe_check(
    prepared: Mapping[str, Any], training: Training, problems: Sequence[str]
) -> str:
    """Whether images are prepared as in training, for the report."""
    if problems:
        return 'DIFFERS from training (--ignore-mismatch): ' + '; '.join(problems)
    recorded = preparation(training.cfg)
    if not recorded:
        return 'not compared: neither the checkpoint nor files beside it say how it was trained'
    names = [*prepared, 'classes']
    missing = [name for name in prepared if name not in recorded]
    missing += ['classes'] * (training.classes is None)
    compared = ', '.join(name for name in names if name not in missing)
    others = f'; not compared: {", ".join(missing)}' if missing else ''
    return f'as in training, by {training.source} ({compared}){others}'


def _about(args: argparse.Namespace, evaluation: Evaluation, cfg: Config) -> dict[str, str]:
    """The head of the report."""
    protocol = evaluation.protocol
    moving = [c for c in protocol.changes if c in CORRUPTIONS and CORRUPTIONS[c].moves_geometry]
    note = f'{", ".join(moving)} moves things by some pixels; the labels stay where they are'
    return {
        'config': args.config,
        'checkpoint': f'{args.checkpoint} (weights {evaluation.weights})',
        'protocol': f'{protocol.name}, version {protocol.version}: {protocol.purpose}',
        **({'data': args.data} if args.data else {}),
        'images': _images_text(evaluation),
        'seed': str(protocol.seed),
        **{name: shown(value) for name, value in preparation(cfg).items()},
        **evaluation.own_steps,
        **({'note': note} if moving and evaluation.segmentation else {}),
    }


def _images_text(evaluation: Evaluation) -> str:
    """How many images there are, once for all settings of the same ones."""
    counts: dict[str, str] = {}
    published = evaluation.shifted.shift.published if evaluation.shifted else {}
    for setting, names in evaluation.names.items():
        total = evaluation.totals[setting]
        text = f'{len(names)} of {total}, evenly spaced'
        if (there := published.get(str(setting.change), total)) != total:
            text += f' (the published set has {there})'
        counts.setdefault(text, setting.change or 'clean')
    if len(counts) == 1:
        return next(iter(counts))
    return '; '.join(f'{name}: {text}' for text, name in counts.items())
