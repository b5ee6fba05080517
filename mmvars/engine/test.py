"""``tools/test.py`` and ``mmvars test``: test a checkpoint of a segmentor or a classifier."""

import argparse
import os
from copy import deepcopy
from typing import Any

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults
from mmengine.registry import METRICS

from mmvars.datasets import check_data_roots
from mmvars.datasets.checks import dataset_entries
from mmvars.engine.errors import user_errors
from mmvars.engine.hooks import AnswersHook, FuseHook, LabelMapHook
from mmvars.engine.options import parse_cfg_options
from mmvars.engine.runner import (
    build_runner,
    closing_process_group,
    load_config,
    set_for_test,
    set_work_dir,
)
from mmvars.engine.shorthands import class_name
from mmvars.errors import InputError, check_number
from mmvars.parsers.test import parse_args
from mmvars.write import write_bytes

__all__ = ['main']


def main(argv: list[str] | None = None) -> int:
    """Test as the command line says; metrics go to the log. Returns the exit status 0.

    Raises:
        InputError: On arguments, a config or files that cannot be used.
    """
    args = parse_args(argv)
    check_number('--interval', args.interval, 1, whole=True)
    cfg, notes = load_config(args.config, parse_cfg_options(args.cfg_options))
    set_work_dir(cfg, args)
    set_for_test(cfg, args)
    segmentation = 'decode_head' in cfg.model.get('module', cfg.model)
    _set_output(cfg, args, segmentation)
    if args.show or args.show_dir:
        _set_pictures(cfg, args, segmentation)
    if args.tta:
        notes += _set_tta(cfg, segmentation)
    with closing_process_group(), user_errors():
        check_data_roots(cfg)
        runner = build_runner(cfg, args, notes)
        runner.register_hook(FuseHook())
        if class_name(cfg.model.get('type')) == 'METER':
            runner.register_hook(AnswersHook())
        if args.out and segmentation and args.out_item != 'metrics':
            runner.register_hook(LabelMapHook(args.out))
        metrics = runner.test()
        if args.out and args.out_item == 'metrics' and is_main_process():
            _dump(metrics, args.out)
    return 0


def _dump(content: Any, path: str) -> None:
    """``mmengine.dump`` of a whole file or none."""
    text = mmengine.dump(content, file_format=os.path.splitext(path)[1][1:])
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    write_bytes(path, text if isinstance(text, bytes) else text.encode(), overwrite=True)


@METRICS.register_module()
class WholeDumpResults(DumpResults):
    """mmengine's, but a file of results is written whole or not at all."""

    def compute_metrics(self, results: list) -> dict:
        _dump(results, self.out_file_path)
        return {}


def _set_output(cfg: Config, args: argparse.Namespace, segmentation: bool) -> None:
    """Arrange for ``--out``: the metrics write predictions."""
    evaluator = cfg.get('test_evaluator') or []
    metrics = evaluator if isinstance(evaluator, list) else [evaluator]
    if args.out is None:
        if args.out_item:
            raise InputError('--out-item says what --out FILE holds: give --out too')
        if any(metric.get('format_only') and not metric.get('output_dir') for metric in metrics):
            raise InputError(
                'test_evaluator has format_only=True, to write predictions and nothing else: say '
                'where with --out FOLDER'
            )
        return
    if args.out_item == 'metrics':
        if not args.out.endswith(('.json', '.pkl', '.yml', '.yaml')):
            raise InputError(
                f'--out {args.out!r}: metrics are written to a .json, .pkl or .yml file'
            )
        return
    if segmentation:
        if os.path.isfile(args.out) or args.out.endswith(('.pkl', '.json')):
            raise InputError(
                f'--out {args.out!r} is a file: give a folder for the label maps (the '
                'metrics alone go to a file with --out-item metrics)'
            )
        for metric in metrics:
            metric['output_dir'] = args.out
    elif answers := [metric for metric in metrics if class_name(metric['type']) == 'VQAMetric']:
        if not args.out.endswith('.json'):
            raise InputError(f'--out {args.out!r}: answers to questions go to a .json file')
        for metric in answers:
            metric['out_file'] = args.out
    elif args.out.endswith(('.pkl', '.pickle')):
        dump = dict(type='mmengine.WholeDumpResults', out_file_path=args.out)
        cfg.test_evaluator = [*metrics, dump]
    else:
        raise InputError(
            f'--out {args.out!r}: predictions of this model are written to a .pkl file (the '
            'metrics alone go to other files with --out-item metrics)'
        )


def _set_pictures(cfg: Config, args: argparse.Namespace, segmentation: bool) -> None:
    if class_name(cfg.model.get('type')) == 'METER':
        raise InputError('--show and --show-dir draw no texts: use `mmvars ask` for pictures')
    has_screen = os.name != 'posix' or {'DISPLAY', 'WAYLAND_DISPLAY'} & os.environ.keys()
    if args.show and not args.show_dir and not has_screen:
        raise InputError('--show needs a screen, and there is none: use --show-dir FOLDER')
    if args.tta and not segmentation:
        raise InputError(
            '--tta with --show or --show-dir: pictures of a classifier cannot be '
            'drawn from augmented images; leave one of them out'
        )
    backends = [dict(type='LocalVisBackend')]
    if segmentation:
        hook = dict(type='mmseg.SegVisualizationHook')
        # Every image: the interval is for validation, yet the official mmseg heeds it in tests too.
        options = dict(draw=True, interval=1)
        cfg.setdefault('visualizer', dict(type='mmseg.SegLocalVisualizer', name='visualizer'))
        if args.show_dir:
            cfg.visualizer.update(save_dir=args.show_dir, vis_backends=backends)
    else:
        hook = dict(type='mmpretrain.VisualizationHook')
        options = dict(enable=True, out_dir=args.show_dir, interval=args.interval)
        cfg.setdefault(
            'visualizer', dict(type='mmpretrain.UniversalVisualizer', vis_backends=backends)
        )
    hooks = dict(cfg.get('default_hooks') or {})
    hooks['visualization'] = dict(
        hooks.get('visualization') or hook, **options, show=args.show, wait_time=args.wait_time
    )
    cfg.default_hooks = hooks


def _set_tta(cfg: Config, segmentation: bool) -> list[str]:
    """Arrange for ``--tta``; returns what to note in the log."""
    augmented, wrapper = cfg.get('tta_pipeline'), cfg.get('tta_model')
    if class_name(cfg.model.get('type')) == 'METER':
        raise InputError('--tta: a mirror image turns what a text says of left and right')
    if segmentation:
        if not augmented:
            raise InputError(
                '--tta needs tta_pipeline in the config, the scales and flips to average over: '
                "tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', "
                "transforms=[[dict(type='Resize', scale_factor=s, keep_ratio=True) for s in (0.75, "
                "1.0, 1.25)], [dict(type='RandomFlip', prob=p) for p in (0.0, 1.0)], "
                "[dict(type='LoadAnnotations')], [dict(type='PackSegInputs')]])]"
            )
        wrapper = wrapper or dict(type='mmvars.SegTTAModel')
        if (cfg.model.get('test_cfg') or {}).get('keep_logits') is False:
            raise InputError(
                '--tta averages logits, and model.test_cfg.keep_logits is False: leave it out'
            )
    else:
        wrapper = wrapper or dict(type='mmpretrain.AverageClsScoreTTA')
    notes = []
    for key, dataset in dataset_entries(cfg.test_dataloader.dataset, 'test_dataloader.dataset'):
        tested = dataset['pipeline']
        dataset['pipeline'] = _as_tested(augmented, tested) if augmented else _with_flips(tested)
        if augmented and dataset['pipeline'] != list(augmented):
            notes.append(
                f'--tta: images and labels are loaded and prepared as {key}.pipeline says, where '
                'tta_pipeline says otherwise'
            )
    cfg.model = ConfigDict(**wrapper, module=cfg.model)
    return notes


def _as_tested(augmented: list, pipeline: list) -> list:
    """``tta_pipeline`` with the steps of the test pipeline that load and prepare.

    A config with data of its own changes its test pipeline, and inherits a ``tta_pipeline`` for
    those of its base: other labels, other sizes. What is augmented stays: scales, flips.
    """
    labels = [step for step in pipeline if class_name(step['type']) == 'LoadAnnotations']
    *steps, last = deepcopy(list(augmented))
    names, tested = [[class_name(step['type']) for step in part] for part in (steps, pipeline)]
    # The first step loads the image, whatever its class.
    if names[1:] == tested[1 : len(names)] and tested[0].startswith('Load'):
        steps = list(pipeline[: len(names)])
    if class_name(last['type']) == 'TestTimeAug':
        branches = []
        for branch in last['transforms']:
            is_labels = class_name(branch[0]['type']) == 'LoadAnnotations'
            branches += [[step] for step in labels] if is_labels else [branch]
        last['transforms'] = branches
    return [*steps, last]


def _with_flips(pipeline: list) -> list:
    """A classification pipeline whose last step packs the image and its mirror image."""
    *steps, pack = deepcopy(list(pipeline))
    flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
    return [*steps, dict(type='TestTimeAug', transforms=[flips, [pack]])]
