"""Train variants of one config with several seeds each: `mmvars compare`, or run this file.

Every cell of variants x seeds is one ordinary training, in a process and a folder of its own, of a
config that differs from the others in its variant's options and its seed alone.
"""

import sys

from mmvars.cli import run_tool

if __name__ == '__main__':  # before the imports that take seconds
    sys.exit(run_tool('compare'))


import argparse
import contextlib
import json
import math
import os
import re
import shlex
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.registry import MODELS, init_default_scope

from mmvars import __version__
from mmvars.datasets import check_data_roots
from mmvars.engine.errors import user_errors
from mmvars.engine.options import parse_cfg_options
from mmvars.engine.processes import PARENT
from mmvars.engine.runner import load_config
from mmvars.errors import InputError
from mmvars.parsers.compare import parse_args
from mmvars.resources import config_path, resource_root
from mmvars.write import write_text

try:
    import fcntl
except ImportError:  # Windows: no guard against two comparisons in one folder
    fcntl = None

_NAME = re.compile(r'[A-Za-z0-9][\w.+-]*', re.ASCII)  # it becomes a folder
_SECTIONS = ('variants', 'cfg_options', 'columns', 'published')
_NOT_AN_OPTION = ('randomness', 'work_dir', 'resume', 'launcher')
_SIGNALS = (signal.SIGINT, signal.SIGTERM, *filter(None, [getattr(signal, 'SIGHUP', None)]))
_NOT_A_METRIC = {'data_time', 'time', 'step', 'iter', 'epoch', 'memory'}


def main(argv: list[str] | None = None) -> int:
    """Train what is left of the table, and write it.

    Args:
        argv: Arguments; ``None`` for the command line's.

    Returns:
        Exit status: 0 if the table is complete, 130, 143 or 129 if a signal stopped it.

    Raises:
        InputError: If arguments, variants or data cannot be used, or runs in the work dir were
            trained with other options; nothing has been changed on disk then. Also if a training
            fails; finished runs stay.
    """
    args = read_arguments(argv)
    runs = plan_runs(args)
    model = runs[0].cfg.model
    args.metric = args.metric or (
        'mIoU' if 'decode_head' in model.get('module', model) else 'accuracy/top1'
    )
    check_variants([run for run in runs if not run.finished])
    with one_at_a_time(args.work_dir) as lock:
        for number, run in enumerate(runs, start=1):
            title = f'[{number}/{len(runs)}] {run.variant}, seed {run.seed}'
            if not run.finished:
                print(
                    f'{title}: {"resumed" if run.resumes else "started"}, log in {run.log}',
                    flush=True,
                )
            signum = 0 if run.finished else run.train(lock)
            if args.test_best and run.finished and not signum and not run.tested:
                signum = run.test(lock)
            if signum:
                print(f'{title}: stopped; the same command line goes on from here', flush=True)
                return 128 + signum
            print(
                f'{title}: {args.metric} {run.value(args.metric, args.test_best):.4g}, '
                f'{run.record["seconds"]:.0f} s',
                flush=True,
            )
            summary = summarize(runs, args)
            write_text(
                args.work_dir / 'comparison.json',
                json.dumps(summary, indent=1) + '\n',
                overwrite=True,
            )
            write_text(args.work_dir / 'comparison.md', render(summary), overwrite=True)
    print(f'\n{render(summary)}\nwritten to {args.work_dir}/comparison.md and comparison.json')
    return 0


def read_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command, with ``common`` options and the ``table`` of variants."""
    args = parse_args(argv)
    if len(set(args.seeds)) < len(args.seeds) or min(args.seeds) < 0:
        raise InputError(f'--seeds must be different whole numbers from 0 on, got {args.seeds}')
    path = config_path(args.config)
    args.config_name = path.name
    args.work_dir = args.work_dir or Path('work_dirs') / f'{path.stem}_compare'
    if args.work_dir.exists() and not args.work_dir.is_dir():
        raise InputError(f'--work-dir {str(args.work_dir)!r} is a file: give a folder')
    options = parse_cfg_options(args.cfg_options)
    args.common, args.table = read_variants(args.variants, args.variant, options)
    args.rows = list(args.table)
    columns, args.published = read_columns(args.variants, args.table, options)
    args.columns = list(columns)
    if columns:
        args.table = {
            f'{variant}/{column}': {**args.table[variant], **columns[column]}
            for variant in args.rows
            for column in columns
        }
    return args


# Variants


def read_variants(
    file: str | None,
    written: Sequence[str],
    cfg_options: Mapping[str, Any],
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
    content = _read_file(file)
    common, table = content.get('cfg_options') or {}, dict(content.get('variants', {}))
    for name, options in map(_parse_variant, written):
        if name in table:
            raise InputError(f'variant {name!r} is given twice: each needs a name of its own')
        table[name] = options
    if not table:
        raise InputError(
            'there are no variants to compare: give --variants FILE, or --variant '
            "'NAME: KEY=VALUE ...' once for each"
        )
    for name, options in table.items():
        _check_entry('variant', name, options, cfg_options, '--cfg-options')
    common = {**common, **cfg_options}
    _check_keys('options of all runs', common)
    return common, {name: dict(options) for name, options in table.items()}


def read_columns(
    file: str | None, variants: Mapping[str, Mapping], cfg_options: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, float]]]:
    """What every variant is trained with in turn, and published numbers to stand beside.

    Args:
        file: Config file, perhaps with ``columns`` and ``published``; ``None`` for none.
        variants: Their options.
        cfg_options: From the command line.

    Returns:
        Options of each column; published row -> column -> number. Empty if there are none.

    Raises:
        InputError: If a column cannot be read, or sets what a variant or ``cfg_options`` set; or if
            published numbers are of other columns.
    """
    content = _read_file(file)
    columns, published = content.get('columns') or {}, content.get('published') or {}
    for name, options in columns.items():
        _check_entry('column', name, options, cfg_options, '--cfg-options')
        for variant, others in variants.items():
            _check_entry('column', name, options, others, f'variant {variant!r}')
    for row, numbers in published.items():
        if not isinstance(numbers, Mapping) or not numbers.keys() <= columns.keys():
            raise InputError(
                f'published row {row!r} must be numbers for the columns {", ".join(columns)}, got '
                f'{numbers!r}'
            )
    return columns, published


def _check_entry(kind: str, name: Any, options: Any, others: Mapping, whose: str) -> None:
    """Refuse a name that is no folder's, and options that are none or that others set too."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f'{kind} {name!r}: a name starts with a letter or digit and holds '
            'only letters, digits and _.+- (it becomes a folder)'
        )
    if not isinstance(options, Mapping):
        raise InputError(f'{kind} {name!r} must be a dict of options, got {options!r}')
    _check_keys(name, options)
    for key in options:
        if any(
            f'{key}.'.startswith(f'{other}.') or f'{other}.'.startswith(f'{key}.')
            for other in others
        ):
            raise InputError(f'{kind} {name!r} and {whose} both set {key}: leave it to one of them')


def _check_keys(where: str, options: Mapping[str, Any]) -> None:
    for key in options:
        if key.partition('.')[0] in _NOT_AN_OPTION:
            raise InputError(
                f'{where}: {key} is not for options here: every run gets its own '
                'from --seeds and --work-dir'
            )


def _read_file(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    path = config_path(name)
    try:
        content = Config.fromfile(str(path)).to_dict()
    except (Exception, SystemExit) as error:  # a text config is Python: it can fail in any way
        raise InputError(
            f'--variants {path} cannot be read: {type(error).__name__}: {error}'
        ) from error
    if not isinstance(content.get('variants'), Mapping):
        raise InputError(f'--variants {path} must hold variants = {{NAME: {{KEY: VALUE}}}}')
    if unknown := sorted(content.keys() - set(_SECTIONS)):
        raise InputError(
            f'--variants {path} holds {", ".join(unknown)}: it takes {", ".join(_SECTIONS)}'
        )
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


# Runs


class Run:
    """One variant, or ``VARIANT/COLUMN``, with one seed, in a folder of its own.

    The folder is an ordinary work dir; ``run.json`` in it holds the config and the state.

    Args:
        variant: Its name.
        seed: Random seed.
        cfg: Complete config, seed included.
        notes: Lines for the log.
        work_dir: Of the comparison.

    Raises:
        InputError: If the folder holds a run with another config or environment, or anything else.
    """

    def __init__(
        self, variant: str, seed: int, cfg: Config, notes: list[str], work_dir: Path
    ) -> None:
        self.variant, self.seed, self.cfg, self.notes = variant, seed, cfg, notes
        self.folder = work_dir / variant / f'seed_{seed}'
        self.config_file = work_dir / 'configs' / f'{variant}_seed_{seed}.py'
        self.log = self.folder / 'train.log'
        self.record: dict[str, Any] = dict(
            status='new',
            environment=environment(),
            sessions=0,
            seconds=0.0,
            metrics=None,
            tested=None,
            config=_plain(cfg.to_dict()),
        )
        if self.folder.exists() and any(self.folder.iterdir()):
            self._take_up()

    @property
    def resumes(self) -> bool:
        """Whether :meth:`train` would go on from a checkpoint."""
        return (self.folder / 'last_checkpoint').is_file()

    @property
    def finished(self) -> bool:
        return self.record['status'] == 'finished'

    @property
    def tested(self) -> bool:
        return self.record.get('tested') is not None  # older records have no such entry

    def value(self, metric: str, test: bool) -> float:
        """One metric of the last validation, or of the test.

        Raises:
            InputError: If there is none of that name; lists those that are.
        """
        metrics = self.record['tested' if test else 'metrics']
        metrics = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
        if metric not in metrics:
            raise InputError(
                f'--metric {metric!r} is not among those of the '
                f'{"test" if test else "last validation"}: {", ".join(metrics)}'
            )
        return metrics[metric]

    def train(self, lock: int | None) -> int:
        """Train, or go on, to the end, and read the result.

        Args:
            lock: File descriptor that tells others this folder is in use; the training holds it
                too.

        Returns:
            0, or the signal that stopped it, sent to either process.

        Raises:
            InputError: If the training fails; it may be tried again.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config_file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.config_file, self.cfg.dump(), overwrite=True)
        resumes = self.resumes
        if not resumes:  # what an earlier try took is not part of this run
            self.record |= dict(sessions=0, seconds=0.0)
        self._save(status='running', sessions=self.record['sessions'] + 1)
        arguments = [str(self.config_file), '--work-dir', str(self.folder)]
        start = time.monotonic()
        status, signum = self._start('train', [*arguments, *(['--resume'] * resumes)], lock)
        self.record['seconds'] += time.monotonic() - start
        if status == 0:
            self._save(status='finished', metrics=self._last_validation())
        else:
            self._save(status='stopped')
        return self._ended('training', status, signum)

    def test(self, lock: int | None) -> int:
        """Test the checkpoint that validated best.

        Args:
            lock: As for :meth:`train`.

        Returns:
            0, or the signal that stopped it.

        Raises:
            InputError: If there is no such checkpoint, or the test fails.
        """
        checkpoints = sorted(self.folder.glob('best_*.pth'))
        if len(checkpoints) != 1:
            raise InputError(
                f'--test-best needs one checkpoint best_*.pth in {self.folder}, and there are '
                f'{len(checkpoints)}: set default_hooks.checkpoint.save_best to one metric, and '
                'choose another --work-dir'
            )
        out = self.folder / 'test' / 'metrics.json'
        arguments = [str(self.config_file), str(checkpoints[0]), '--work-dir', str(out.parent)]
        status, signum = self._start(
            'test', [*arguments, '--out', str(out), '--out-item', 'metrics'], lock
        )
        if status == 0:
            self._save(tested=json.loads(out.read_text(encoding='utf-8')))
        return self._ended('test', status, signum)

    def _start(self, tool: str, arguments: list[str], lock: int | None) -> tuple[int, int]:
        command = [sys.executable, str(resource_root() / 'tools' / f'{tool}.py'), *arguments]
        with open(self.log, 'a', encoding='utf-8') as log:
            log.write(''.join(f'{note}\n' for note in self.notes))
            log.flush()
            return _run(command, log, lock)

    def _ended(self, what: str, status: int, signum: int) -> int:
        """The signal that ended a process, or 0 for a good end."""
        if status != 0:
            signum = signum or (-status if status < 0 else status - 128)
        if signum in _SIGNALS:
            return signum
        if status != 0:
            lines = [line.strip() for line in self.log.read_text('utf-8', 'replace').splitlines()]
            last = next((line for line in reversed(lines) if line), 'it wrote nothing')
            raise InputError(
                f'the {what} of variant {self.variant!r}, seed {self.seed} failed '
                f'({_ending(status)}): {last}\nIts log is {self.log}; the same '
                'command line tries it again'
            )
        return 0

    def _take_up(self) -> None:
        try:
            record = json.loads((self.folder / 'run.json').read_text(encoding='utf-8'))
            old = dict(config=record['config'], environment=record['environment'])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                f'{self.folder} holds something else than a run of this command: '
                'choose another --work-dir'
            ) from None
        changes = [change for key in old for change in _differences(old[key], self.record[key])]
        if changes:
            more = f' and {len(changes) - 4} more' if len(changes) > 4 else ''
            raise InputError(
                f'{self.folder} was trained with other settings: '
                f'{"; ".join(changes[:4])}{more}. Results are not mixed: use the old '
                'settings, or choose another --work-dir'
            )
        self.record = record

    def _save(self, **changes: Any) -> None:
        self.record |= changes
        write_text(
            self.folder / 'run.json', json.dumps(self.record, indent=1) + '\n', overwrite=True
        )

    def _last_validation(self) -> dict[str, float]:
        # The newest log: the last validation is in the session that ends the training.
        logs = sorted(self.folder.glob('*/vis_data/scalars.json'))
        lines = logs[-1].read_text(encoding='utf-8').splitlines() if logs else []
        rows = [row for row in map(json.loads, lines) if 'lr' not in row]
        if not rows:
            raise InputError(
                f'the training in {self.folder} ended without a validation: see '
                'train_cfg.val_begin and val_interval'
            )
        return {key: value for key, value in rows[-1].items() if key not in _NOT_A_METRIC}


def plan_runs(args: argparse.Namespace) -> list[Run]:
    """All runs, seed by seed, so that a table that is stopped early is a fair one.

    Raises:
        InputError: If a config does not load with its options, is not validated, or its run was
            begun with others.
    """
    runs = []
    for name, options in args.table.items():
        try:
            cfg, notes = load_config(args.config, {**args.common, **options})
        except InputError as error:
            raise InputError(f'variant {name!r}: {error}') from error
        if any(cfg.get(key) is None for key in ('train_cfg', 'val_cfg', 'val_dataloader')):
            raise InputError(
                'the config must train and validate (train_cfg, val_cfg, '
                'val_dataloader): its last validation is what is compared'
            )
        backends = (cfg.get('visualizer') or {}).get('vis_backends') or [
            dict(type='LocalVisBackend')
        ]
        if not any('LocalVisBackend' in str(backend.get('type')) for backend in backends):
            raise InputError(
                'visualizer.vis_backends has no LocalVisBackend, which writes the '
                'scalars.json that results are read from: add dict(type='
                "'LocalVisBackend')"
            )
        if args.test_best and (
            cfg.get('test_cfg') is None
            or not cfg.get('default_hooks', {}).get('checkpoint', {}).get('save_best')
        ):
            raise InputError(
                '--test-best needs a config that tests (test_cfg) and keeps the checkpoint that '
                'validates best: add --cfg-options default_hooks.checkpoint.save_best=auto'
            )
        cfg.resume = False
        cfg.pop('work_dir', None)
        for seed in args.seeds:
            seeded = deepcopy(cfg)
            seeded.merge_from_dict({'randomness.seed': seed})
            runs.append(Run(name, seed, seeded, notes, args.work_dir))
    return sorted(runs, key=lambda run: args.seeds.index(run.seed))


def check_variants(runs: Sequence[Run]) -> None:
    """Build each model once, so that the last variant does not fail after hours."""
    for run in {run.variant: run for run in runs}.values():
        try:
            with user_errors():
                check_data_roots(run.cfg)
                init_default_scope(run.cfg.get('default_scope', 'mmengine'))
                MODELS.build(deepcopy(run.cfg.model))
        except InputError as error:
            raise InputError(f'variant {run.variant!r}: {error}') from error


def environment() -> dict[str, str]:
    """What decides results besides the config. Runs of one table share it."""
    device = get_device()
    name = torch.cuda.get_device_name() if device == 'cuda' else device
    return dict(mmvars=__version__, torch=torch.__version__, device=name)


@contextlib.contextmanager
def one_at_a_time(work_dir: Path) -> Iterator[int | None]:
    """Hold the folder's lock; gives its file descriptor.

    Raises:
        InputError: If another process holds it, such as a training whose parent was killed.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield None
        return
    with open(work_dir / '.compare.lock', 'w', encoding='utf-8') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f'--work-dir {str(work_dir)!r}: another comparison, or a training that'
                ' one left behind, is at work there: wait for it, or end it'
            ) from None
        yield file.fileno()


def _run(command: list[str], log: Any, lock: int | None) -> tuple[int, int]:
    """Run to the end, passing signals on; returns Popen's status and the signal, or 0.

    In a session of its own, so that a terminal's Ctrl-C arrives once, and from here: training takes
    a second one for the wish to stop at once, without saving.
    """
    child = None
    received = []

    def pass_on(signum: int, frame: Any) -> None:
        received.append(signum)
        if child is not None:
            child.send_signal(signum)

    previous = {
        signum: signal.signal(signum, pass_on)
        for signum in _SIGNALS
        if signal.getsignal(signum) is not signal.SIG_IGN  # as nohup wants it
    }
    try:
        # The modules of this process, wherever it was started.
        env = dict(
            os.environ,
            PYTHONPATH=os.pathsep.join(path for path in sys.path if path),
            **{PARENT: str(os.getpid())},
        )
        child = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=() if lock is None else (lock,),
        )
        if received:  # while it was being started
            child.send_signal(received[-1])
        status = child.wait()
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    return status, received[0] if received else 0


def _ending(status: int) -> str:
    if status >= 0:
        return f'exit status {status}'
    hint = ', as when memory runs out' if status == -signal.SIGKILL else ''
    return f'killed by {signal.Signals(-status).name}{hint}'


def _plain(value: Any) -> Any:
    """``value`` as it comes back from a JSON file."""
    return json.loads(json.dumps(value, default=str))


def _differences(old: Any, new: Any, path: str = '') -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            below = f'{path}.{key}' if path else key
            yield from _differences(old.get(key, 'unset'), new.get(key, 'unset'), below)
    elif old != new:
        shown = [text if len(text) < 60 else f'{text[:57]}...' for text in (f'{old}', f'{new}')]
        yield f'{path} {shown[0]} there, {shown[1]} now'


# Results


def mean_and_spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (divisor n - 1).

    Returns:
        ``None`` for what there is not: the mean of nothing, the spread of less than two values,
        and both if a value is not finite.
    """
    if not values or not all(map(math.isfinite, values)):
        return None, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def summarize(runs: Sequence[Run], args: argparse.Namespace) -> dict[str, Any]:
    """The finished runs as one record, ready for JSON.

    Raises:
        InputError: If the last validation has no such metric.
    """
    cfg, rows = runs[0].cfg, []
    for name, options in args.table.items():
        done = [run for run in runs if run.variant == name and run.finished]
        done = [run for run in done if run.tested or not args.test_best]
        values = [run.value(args.metric, args.test_best) for run in done]
        mean, spread = mean_and_spread(values)
        rows.append(
            dict(
                name=name,
                options=_plain(options),
                n=len(done),
                mean=mean,
                standard_deviation=spread,
                seconds_per_run=statistics.fmean(r.record['seconds'] for r in done)
                if done
                else None,
                runs=[
                    dict(
                        seed=run.seed,
                        value=value if math.isfinite(value) else None,
                        seconds=run.record['seconds'],
                        sessions=run.record['sessions'],
                    )
                    for run, value in zip(done, values, strict=True)
                ],
            )
        )
    length = {k: cfg.train_cfg[k] for k in ('max_iters', 'max_epochs') if k in cfg.train_cfg}
    return dict(
        measured=True,
        complete=sum(row['n'] for row in rows) == len(runs),
        metric=args.metric,
        of='test data, by the checkpoint that validates best'
        if args.test_best
        else 'validation set after training',
        config=args.config_name,
        cfg_options=_plain(args.common),
        **length,
        batch_size=cfg.train_dataloader.get('batch_size'),
        seeds=args.seeds,
        environment=runs[0].record['environment'],
        resumed=sum(run.record['sessions'] > 1 for run in runs if run.finished),
        variants=rows,
        columns=args.columns,
        rows=[_grid_row(name, rows, args) for name in args.rows] if args.columns else [],
        published=args.published,
    )


def _grid_row(name: str, cells: Sequence[Mapping], args: argparse.Namespace) -> dict[str, Any]:
    """One variant in all columns, and the mean of these, seed by seed where all are there."""
    names = [f'{name}/{column}' for column in args.columns]
    row = [next(cell for cell in cells if cell['name'] == each) for each in names]
    values = [{run['seed']: run['value'] for run in cell['runs']} for cell in row]
    seeds = [seed for seed in args.seeds if all(seed in each for each in values)]
    by_seed = [[each[seed] for each in values] for seed in seeds]
    averages = [math.nan if None in each else statistics.fmean(each) for each in by_seed]
    mean, spread = mean_and_spread(averages)
    return dict(
        name=name,
        cells=[{key: cell[key] for key in ('n', 'mean', 'standard_deviation')} for cell in row],
        average=dict(n=len(seeds), mean=mean, standard_deviation=spread),
    )


def render(summary: Mapping[str, Any]) -> str:
    """The table, and below it what it was measured with, as Markdown."""
    rows, metric, seeds = summary['variants'], summary['metric'], summary['seeds']
    lines = [f'# {metric} on the {summary["of"]}, as measured', '']
    if not summary['complete']:
        lines += [
            f'**Not complete: {sum(row["n"] for row in rows)} of {len(rows) * len(seeds)} runs.**',
            '',
        ]
    lines += _grid(summary)
    lines += [
        f'| variant | {metric}: mean ± sd | n | seeds {", ".join(map(str, seeds))} | '
        'seconds per run |',
        '|---|---|---|---|---|',
    ]
    for row in rows:
        by_seed = {run['seed']: run['value'] for run in row['runs']}
        each = ', '.join(_number(by_seed[s]) if s in by_seed else '-' for s in seeds)
        seconds = '-' if row['seconds_per_run'] is None else f'{row["seconds_per_run"]:.0f}'
        lines.append(f'| {row["name"]} | {_mean(row)} | {row["n"]} | {each} | {seconds} |')
    lines += [
        '',
        'sd: sample standard deviation over n seeds, one training each, '
        f'{"a test" if summary["of"].startswith("test") else "the last validation"}. '
        'Seconds include start-up and validation.',
        '',
        f'- config: {summary["config"]}',
        f'- options of all: {_options(summary["cfg_options"])}',
    ]
    lines += [f'- options of {row["name"]}: {_options(row["options"])}' for row in rows]
    lines += [
        f'- {key}: {summary[key]}'
        for key in ('max_iters', 'max_epochs', 'batch_size')
        if key in summary
    ]
    lines += [f'- {key}: {value}' for key, value in summary['environment'].items()]
    if summary['resumed']:
        lines.append(f'- runs that were interrupted and resumed: {summary["resumed"]}')
    return '\n'.join(lines) + '\n'


def _grid(summary: Mapping[str, Any]) -> list[str]:
    """The table of variants x columns, and below it what others published."""
    columns = summary['columns']
    if not columns:
        return []
    table = [[f'{summary["metric"]}: mean ± sd', *columns, 'average'], ['---'] * (len(columns) + 2)]
    table += [
        [row['name'], *map(_mean, [*row['cells'], row['average']])] for row in summary['rows']
    ]
    for name, numbers in summary['published'].items():
        shown = [_number(numbers[column]) if column in numbers else '-' for column in columns]
        table.append([f'*published: {name}*', *shown, '-'])
    return [*(f'| {" | ".join(row)} |' for row in table), '']


def _mean(row: Mapping[str, Any]) -> str:
    mean = _number(row['mean']) if row['n'] else '-'
    spread = '-' if row['standard_deviation'] is None else _number(row['standard_deviation'])
    return f'{mean} ± {spread}'


def _options(options: Mapping[str, Any]) -> str:
    return ', '.join(f'`{key}={value}`' for key, value in options.items()) or 'none'


def _number(value: float | None) -> str:
    return 'nan' if value is None else f'{value:.2f}'
