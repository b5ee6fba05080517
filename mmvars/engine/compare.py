"""``mmvars compare``, the same as ``tools/compare.py``: variants of one config, several seeds each.

Every cell of variants x seeds is one ordinary training (:mod:`mmvars.engine.compare_run`) of a
config that differs from the others in its variant's options and its seed alone.
"""

import argparse
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.registry import MODELS, init_default_scope

from mmvars.checkpoints.files import write_text
from mmvars.datasets import check_data_roots
from mmvars.engine.compare_report import as_markdown, summarise
from mmvars.engine.compare_run import Run, Stopped, environment, one_at_a_time, plain
from mmvars.engine.launch import add_cfg_options, clear_errors, is_segmentation, load_config
from mmvars.errors import InputError
from mmvars.resources import config_path

__all__ = ['main', 'parse_args', 'plan_runs', 'read_variants']

_EPILOG = """\
examples:
  mmvars compare vit-ti16_upernet_1xb8-400iter_mini-cityscapes-128x256 \\
      --variants configs/absvit/top-down-designs.yml --work-dir work_dirs/designs
  mmvars compare CONFIG --seeds 0 1 2 3 4 --variant plain \\
      --variant 'mild: model.backbone.alpha=0.5' --variant 'strong: model.backbone.alpha=10'

Stop it with Ctrl-C (or SIGTERM) at any time: the run at work saves a checkpoint. The same command
line goes on: finished runs are kept, the stopped one is resumed. Variants and seeds may be added.
The table is in DIR/comparison.md and DIR/comparison.json, written anew after every run."""

_NAME = re.compile(r'[A-Za-z0-9][\w.+-]*', re.ASCII)  # it becomes a folder
_OURS = ('randomness', 'work_dir', 'resume', 'launcher')


def main(argv: list[str] | None = None) -> int:
    """Train what is left of the table, and write it.

    Args:
        argv: Arguments; ``None`` for the command line's.

    Returns:
        Exit status: 0 if the table is complete, 130 or 143 if a signal stopped it.

    Raises:
        InputError: If arguments, variants or data cannot be used, or runs in the work dir were
            trained with other options; nothing has been changed on disk then. Also if a training
            fails; finished runs are kept.
    """
    args = parse_args(argv)
    runs = plan_runs(args)
    metric = args.metric or ('mIoU' if is_segmentation(runs[0].cfg) else 'accuracy/top1')
    what = dict(metric=metric, config=args.shown_config, cfg_options=plain(args.common),
                variants=plain(args.table), seeds=args.seeds)
    _check_variants([run for run in runs if not run.finished])
    with one_at_a_time(args.work_dir) as lock:
        for number, run in enumerate(runs, start=1):
            title = f'[{number}/{len(runs)}] {run.variant}, seed {run.seed}'
            if not run.finished:
                print(f'{title}: {"resumed" if run.resumes else "started"}, log in {run.log}',
                      flush=True)
                try:
                    run.train(lock)
                except Stopped as stop:
                    print(f'{title}: stopped; the same command line goes on from here', flush=True)
                    return stop.status
            print(f'{title}: {metric} {run.value(metric):.4g}, {run.record["seconds"]:.0f} s',
                  flush=True)
            _write(args.work_dir, summarise(runs, **what))
    print(f'\n{as_markdown(summarise(runs, **what))}\nwritten to {args.work_dir}/comparison.md and '
          'comparison.json')
    return 0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command, with ``common`` options and the ``table`` of variants."""
    parser = argparse.ArgumentParser(
        description='Train variants of one config with several seeds each, and put mean and spread '
        'of the last validation side by side.', epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or the name of one that mmvars ships')
    parser.add_argument('--variants', metavar='FILE', help='Python, YAML or JSON config file with '
                        'variants = {NAME: {KEY: VALUE}}, and optionally cfg_options for all')
    parser.add_argument('--variant', action='append', default=[], metavar="'NAME: KEY=VALUE ...'",
                        help='one variant (repeat it for more); NAME alone is the config as it is')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], metavar='N',
                        help='random seeds, one run each (default: 0 1 2)')
    parser.add_argument('--metric', help='of the last validation, as it stands in the log (default:'
                        ' mIoU for segmentation, accuracy/top1 for classification)')
    parser.add_argument('--work-dir', type=Path, metavar='DIR', help='folder for runs and table '
                        '(default: work_dirs/<config name>_compare)')
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if len(set(args.seeds)) < len(args.seeds) or min(args.seeds) < 0:
        raise InputError(f'--seeds must be different whole numbers from 0 on, got {args.seeds}')
    path = config_path(args.config)
    args.shown_config = path.name
    args.work_dir = args.work_dir or Path('work_dirs') / f'{path.stem}_compare'
    if args.work_dir.exists() and not args.work_dir.is_dir():
        raise InputError(f'--work-dir {str(args.work_dir)!r} is a file: give a folder')
    args.common, args.table = read_variants(args.variants, args.variant, args.cfg_options or {})
    return args


def read_variants(file: str | None, written: Sequence[str], cfg_options: Mapping[str, Any],
                  ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Options of all runs, and of each variant.

    Args:
        file: Config file with ``variants`` and perhaps ``cfg_options``; ``None`` for none.
        written: Variants from the command line, ``'NAME: KEY=VALUE ...'``.
        cfg_options: From the command line; they win over the file's ``cfg_options``.

    Returns:
        Options of all runs; variant's name -> its own options.

    Raises:
        InputError: If there are no variants, or one cannot be read, is there twice, or sets what
            ``cfg_options`` sets too.
    """
    common, table = {}, {}
    if file is not None:
        content = _read_file(file)
        common, table = content.get('cfg_options') or {}, dict(content['variants'])
    for text in written:
        name, options = _parse_variant(text)
        if name in table:
            raise InputError(f'variant {name!r} is given twice: each needs a name of its own')
        table[name] = options
    if not table:
        raise InputError('there are no variants to compare: give --variants FILE, or --variant '
                         "'NAME: KEY=VALUE ...' once for each")
    for name, options in table.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(f'variant {name!r}: a name starts with a letter or digit and holds '
                             'only letters, digits and _.+- (it becomes a folder)')
        if not isinstance(options, Mapping):
            raise InputError(f'variant {name!r} must be a dict of options, got {options!r}')
        for key in options:
            if any(_overlap(key, other) for other in cfg_options):
                raise InputError(f'variant {name!r} and --cfg-options both set {key}: leave it to '
                                 'one of them')
    common = {**common, **cfg_options}
    for where, options in (('options of all runs', common), *table.items()):
        for key in options:
            if key.partition('.')[0] in _OURS:
                raise InputError(f'{where}: {key} is not for options here: every run gets its own '
                                 'from --seeds and --work-dir')
    return common, {name: dict(options) for name, options in table.items()}


def _overlap(key: str, other: str) -> bool:
    return f'{key}.'.startswith(f'{other}.') or f'{other}.'.startswith(f'{key}.')


def _read_file(name: str) -> dict[str, Any]:
    path = config_path(name)
    try:
        content = Config.fromfile(str(path)).to_dict()
    except (Exception, SystemExit) as error:  # a text config is Python: it can fail in any way
        raise InputError(f'--variants {path} cannot be read: {type(error).__name__}: '
                         f'{error}') from error
    if not isinstance(content.get('variants'), Mapping):
        raise InputError(f'--variants {path} must hold variants = {{NAME: {{KEY: VALUE}}}}')
    unknown = sorted(content.keys() - {'variants', 'cfg_options'})
    if unknown:
        raise InputError(f'--variants {path} holds {", ".join(unknown)}: it takes variants and '
                         'cfg_options')
    return content


def _parse_variant(text: str) -> tuple[str, dict[str, Any]]:
    name, _, rest = text.partition(':')
    options = {}
    try:
        for item in shlex.split(rest):
            key, equals, value = item.partition('=')
            if not key or not equals:
                raise InputError(f'{item!r} is not of the form KEY=VALUE')
            options[key] = DictAction._parse_iterable(value)
    except (AssertionError, ValueError) as error:  # brackets or quotes that do not close
        raise InputError(f'--variant {text!r}: {error}') from None
    return name.strip(), options


def plan_runs(args: argparse.Namespace) -> list[Run]:
    """All runs, seed by seed, so that a table that is stopped early is a fair one.

    Args:
        args: As :func:`parse_args` gives them.

    Raises:
        InputError: If a config does not load with its options, is not validated, or its run was
            begun with others.
    """
    runs, here = [], environment()
    for name, options in args.table.items():
        given = argparse.Namespace(config=args.config, launcher='none', local_rank=0,
                                   cfg_options={**args.common, **options})
        try:
            cfg, notes = load_config(given)
        except InputError as error:
            raise InputError(f'variant {name!r}: {error}') from error
        _check_validates(cfg)
        cfg.resume = False
        cfg.pop('work_dir', None)
        for seed in args.seeds:
            mine = deepcopy(cfg)
            mine.merge_from_dict({'randomness.seed': seed})
            runs.append(Run(name, seed, mine, notes, args.work_dir, here))
    return sorted(runs, key=lambda run: args.seeds.index(run.seed))


def _check_validates(cfg: Config) -> None:
    if any(cfg.get(key) is None for key in ('train_cfg', 'val_cfg', 'val_dataloader')):
        raise InputError('the config must train and validate (train_cfg, val_cfg, val_dataloader): '
                         'its last validation is what is compared')
    backends = (cfg.get('visualizer') or {}).get('vis_backends')
    if backends is not None and all('LocalVisBackend' not in str(b.get('type')) for b in backends):
        raise InputError('visualizer.vis_backends has no LocalVisBackend, which writes the '
                         'scalars.json that results are read from: add dict(type='
                         "'LocalVisBackend')")


def _check_variants(runs: Sequence[Run]) -> None:
    """Build each model once, so that the last variant does not fail after hours."""
    for run in {run.variant: run for run in runs}.values():
        try:
            with clear_errors():
                check_data_roots(run.cfg)
                init_default_scope(run.cfg.get('default_scope', 'mmengine'))
                MODELS.build(deepcopy(run.cfg.model))
        except InputError as error:
            raise InputError(f'variant {run.variant!r}: {error}') from error


def _write(folder: Path, summary: dict) -> None:
    write_text(folder / 'comparison.json', json.dumps(summary, indent=1) + '\n', overwrite=True)
    write_text(folder / 'comparison.md', as_markdown(summary), overwrite=True)
