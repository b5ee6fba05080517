"""``mmvars faithfulness``: whether a model needs what its attention marks."""

import argparse
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from torch import Tensor

from mmvars.datasets import check_data_roots
from mmvars.datasets.files import image_name
from mmvars.engine.errors import user_errors
from mmvars.engine.options import parse_cfg_options
from mmvars.engine.runner import build_runner, load_config, set_for_test, set_work_dir
from mmvars.errors import InputError, check_number
from mmvars.models.base import Backbone
from mmvars.networks.timm_trunk import PREFIX
from mmvars.parsers.faithfulness import parse_args
from mmvars.predictor import run_files
from mmvars.priors import find_class
from mmvars.robustness.protocols import CLEAN, Protocol
from mmvars.robustness.report import check_replaceable
from mmvars.robustness.rows import Rows
from mmvars.robustness.runner import Evaluation
from mmvars.saliency.cli import parse_blocks
from mmvars.saliency.curves import (
    CLASS_MEASURES,
    MEASURES,
    RANDOM,
    SHIFTED,
    Curves,
    count_class,
    count_pixels,
    draw_curves,
)
from mmvars.saliency.removal import (
    Patches,
    at_stride,
    center_map,
    fill_of,
    kept_patches,
    order_of,
    shifted,
    steps_of,
)
from mmvars.saliency.report import write_report
from mmvars.saliency.subject import BOTTOM_UP, MapName, Subject, load_subject, subject_of
from mmvars.states import Frame
from mmvars.visualization.figure import save_figure
from mmvars.visualization.model import refuse_text
from mmvars.write import write_text

__all__ = ['main']

_VERSION = 1  # of the rows: raise it where a number changes
_RANDOM_DRAWS = 3
_BATCH_PIXELS = 2**20


@dataclass(frozen=True)
class _Image:
    """An image of the data set, and its row."""

    name: str
    index: int


def main(argv: Sequence[str] | None = None) -> int:
    """Measure as the command line says; returns the exit status 0.

    Raises:
        InputError: On arguments, a config or files that cannot be used.
    """
    args = parse_args(argv)
    fractions = _check(args)
    args.config, checkpoint = run_files(args.config, args.checkpoint)
    if checkpoint is None:
        raise InputError(f'{args.config} is a config: give its CHECKPOINT too')
    args.checkpoint = str(checkpoint)
    options = parse_cfg_options(args.cfg_options)
    cfg, notes = load_config(args.config, options)
    refuse_text(cfg)
    out = Path(args.out or Path('work_dirs', Path(args.config).stem, 'faithfulness'))
    args.work_dir, args.brief, args.launcher, args.local_rank = str(out / 'log'), True, 'none', 0
    set_work_dir(cfg, args)
    set_for_test(cfg, args)
    read = deepcopy(cfg)  # the Runner adapts its own
    protocol = Protocol('faithfulness', _VERSION, '', (), ('none',), (0,), args.images)
    with user_errors():
        check_data_roots(cfg)
        subject = load_subject(args.config, args.checkpoint, torch.device('cpu'), options)
        _check_maps(args, 'decode_head' in read.model, subject)
        evaluation = Evaluation(build_runner(cfg, args, notes), protocol)
        model = evaluation.model.eval()
        if getattr(model, 'head', '') is None:
            raise _no_head(args.config)
        if isinstance(model.backbone, Backbone):
            model.backbone.fuse()
        subject = subject_of(read, model, args.checkpoint)
        measurement = _Measurement(args, evaluation, subject, fractions)
        images = [_Image(f'image_{i:05d}', i) for i in evaluation.images(CLEAN).indices]
        ((identity, _),) = evaluation.identities(read)
        rows = Rows.of(out, [(identity | measurement.identity, images)])
        report = {
            'model': args.config,
            'checkpoint': f'{args.checkpoint} (weights {evaluation.weights})',
        }
        check_replaceable(out / 'faithfulness.json', report)
        _run(measurement, rows, images)
    made = [rows.read(image) for image in images]
    if not any(row['labels'] for row in made):
        raise InputError(
            f'none of the {len(made)} images has a label of a class: look at more --images, or at '
            'the masks and classes of the test data'
        )
    curves = Curves(made, fractions, evaluation.num_classes, args.seed)
    measures = [*MEASURES[evaluation.segmentation]]
    measures += CLASS_MEASURES if curves.class_names else ()
    tables = [curves.table(measure) for measure in measures]
    whole = next(curves.of(each, 'center', False)[0, 0] for each in measures if not each.needs_kept)
    about = report | _about(args, evaluation, measurement, made, whole)
    settings = {name: getattr(args, name) for name in ('config', 'checkpoint', *_SETTINGS)}
    print('\n' + write_report(out, about, tables, settings, 'faithfulness'))
    write_text(out / 'faithfulness_curves.csv', curves.csv(measures), overwrite=True)
    save_figure(draw_curves(curves, measures[:2]), str(out / 'faithfulness.png'))
    print(f'\nWritten: {out}/faithfulness.txt, .json, .csv, .md, .png, faithfulness_curves.csv')
    return 0


_SETTINGS = ('images', 'blocks', 'steps', 'classes', 'fractions', 'fill', 'seed', 'cfg_options')


def _check(args: argparse.Namespace) -> list[float]:
    """The fractions of the patches, from 0 to 1."""
    if args.config.startswith(PREFIX):
        raise _no_head(args.config)
    if args.images is not None:
        check_number('--images', args.images, 1, whole=True)
    check_number('--seed', args.seed, 0, whole=True)
    for each in args.fractions:
        if not 0 < each < 50:
            raise InputError(
                f'--fractions {each:g}: give percent of the patches, above 0 and below 50; 100 '
                'less each is measured too, which the inverse order needs'
            )
    first = [0.0, *(each / 100 for each in sorted(set(args.fractions)))]
    return first + [1 - each for each in reversed(first)]


def _check_maps(args: argparse.Namespace, segmentation: bool, subject: Subject) -> None:
    """Refuse what asks for maps that the model does not have, before the Runner makes a folder."""
    blocks = parse_blocks(args.blocks, subject.depth)
    if args.steps and not subject.has_steps(blocks):
        raise InputError('--steps is for VARS, and these blocks are of none: leave it out')
    if args.classes is None:
        return
    if not segmentation or not subject.priors:
        raise InputError('--classes is for segmentors with a prior for each class: leave it out')
    for name in args.classes:
        try:
            find_class(name, [*subject.priors])
        except InputError as error:
            raise InputError(f'--classes: {error}') from None


def _no_head(config: str) -> InputError:
    return InputError(
        f'{config} has no head, so it predicts nothing that could change: give the config and '
        'checkpoint of a segmentor or classifier, or the folder of its run'
    )


class _Measurement:
    """What is measured of one image.

    Args:
        args: Of the command line.
        evaluation: The model and its data.
        subject: The model's maps.
        fractions: From 0 to 1.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        evaluation: Evaluation,
        subject: Subject,
        fractions: Sequence[float],
    ) -> None:
        self.args = args
        self.model = evaluation.model
        self.segmentation = evaluation.segmentation
        self.scores = evaluation.scores
        self.dataset = evaluation.images(CLEAN).dataset
        self.subject = subject
        self.blocks = parse_blocks(args.blocks, subject.depth)
        self.fractions = fractions
        self.priors = self._priors(evaluation.classes or ())

    def _priors(self, classes: Sequence[str]) -> dict[int, Tensor]:
        """Class -> its prior, of those that are asked for."""
        priors = self.subject.priors if self.segmentation else {}
        known = {classes.index(name): prior for name, prior in priors.items()}
        if self.args.classes is None:
            return known
        numbers = [find_class(name, classes) for name in self.args.classes]
        return {number: known[number] for number in numbers}

    @property
    def identity(self) -> dict[str, Any]:
        """All that rows depend on, beside the model and its data."""
        return dict(
            faithfulness=_VERSION,
            blocks=self.blocks,
            steps=self.args.steps,
            priors=sorted(self.priors),
            fractions=list(self.fractions),
            fill=self.args.fill,
            faithfulness_seed=self.args.seed,
        )

    @torch.no_grad()
    def of(self, index: int, is_first: bool) -> dict[str, Any]:
        """The row of an image, see :class:`Curves`. Of the first it is said how long it will be."""
        data = pseudo_collate([self.dataset[index]])
        pixels, sample = data['inputs'][0].float().cpu(), data['data_samples'][0]
        labels = self._labels(sample, tuple(pixels.shape[-2:]))
        classes = np.unique(labels[labels >= 0]).tolist()
        blank = dict(inputs=[pixels], data_samples=[sample.new()])
        images = self.model.data_preprocessor(blank, False)['inputs']
        own = self.subject.unasked(self._maps(images))
        maps = {str(key): each for key, each in own.items()}
        grid = next(iter(maps.values())).shape[1:]
        patches = Patches.of(pixels.shape[-2:], self.subject.patch, grid)
        seed = zlib.crc32(f'{self.args.seed} {image_name(sample.img_path)}'.encode())
        rng = np.random.default_rng(seed)
        count = patches.shape[0] * patches.shape[1]
        kept = _Kept(steps_of(self.fractions[: len(self.fractions) // 2], count), count)
        orders = {'center': kept.add(order_of(center_map(patches.shape), rng))}
        for draw in range(_RANDOM_DRAWS):
            orders[f'{RANDOM} {draw + 1}'] = kept.add(rng.permutation(count))
        for name, each in maps.items():
            values = patches.values(each)
            orders[name] = kept.add(order_of(values, rng))
            orders[name + SHIFTED] = kept.add(order_of(shifted(values, rng), rng))
        of_classes: dict[str, dict[str, list]] = {}
        for number in self.priors.keys() & set(classes):
            for key, each in self._maps(images, self.priors[number]).items():
                if key.stage != BOTTOM_UP:
                    name, values = f'{key}, class prior', patches.values(each)
                    moved = shifted(values, rng)
                    for title, map_ in ((name, values), (name + SHIFTED, moved)):
                        order = kept.add(order_of(map_, rng))
                        of_classes.setdefault(title, {})[str(number)] = order
        if is_first:
            print(f'{len(kept.masks)} predictions for the first image', flush=True)
        results = self._predictions(pixels, sample, patches, kept.masks)
        states = [*self._counted(results, labels, patches, kept.masks)]
        return dict(
            name=image_name(sample.img_path),
            labels=classes,
            patches=count,
            states=states,
            orders=orders,
            classes=of_classes,
        )

    def _maps(self, images: Tensor, prior: Tensor | None = None) -> dict[MapName, Tensor]:
        """The maps of a normalized image, at patches of one size."""
        maps = self.subject.run(images, self.blocks, self.args.steps, prior, None)
        for name, each in maps.items():
            if not torch.isfinite(each).all():
                raise InputError(
                    f'the map of {name} is not finite: the checkpoint is of a training that '
                    'diverged'
                )
        patch, size = self.subject.patch, images.shape[-2:]
        return {name: at_stride(each, patch, size) for name, each in maps.items()}

    def _labels(self, sample: Any, size: tuple[int, int]) -> np.ndarray:
        """Labels ``(H, W)``, -1 where there is none; ``(1,)`` of a classifier's image."""
        truth = sample.get('gt_sem_seg') if self.segmentation else sample.get('gt_label')
        if truth is None:
            raise InputError(
                f'the test data have no labels for {sample.img_path!r}: take the validation data, '
                'or load annotations in the pipeline'
            )
        if not self.segmentation:
            return truth.numpy()
        labels = truth.data.squeeze(0).numpy().astype(int)
        frame = Frame.of(sample.ori_shape, size, sample.metainfo)
        difference = np.abs(np.subtract(frame.scaled, size)).max()
        if labels.shape != sample.ori_shape or difference > 1:  # which rounding may be
            raise InputError(
                'the test pipeline of the config crops or pads images, so that patches have no '
                'place in the labels: leave that step out; the data_preprocessor may pad'
            )
        return np.where(labels == self.scores.ignore_index, -1, labels)

    def _predictions(
        self, pixels: Tensor, sample: Any, patches: Patches, masks: Sequence[np.ndarray]
    ) -> Iterator[Any]:
        """The model's answer to the image with each of the masks of patches."""
        size = pixels.shape[-2:]
        filler = fill_of(pixels, self.args.fill, self.subject.patch)
        step = max(_BATCH_PIXELS // pixels[0].numel(), 1)
        for start in range(0, len(masks), step):
            inputs = [
                torch.where(torch.from_numpy(patches.pixels(mask, size)), pixels, filler)
                for mask in masks[start : start + step]
            ]
            samples = [sample.new() for _ in inputs]
            yield from self.model.test_step(dict(inputs=inputs, data_samples=samples))

    def _counted(
        self,
        results: Iterator[Any],
        labels: np.ndarray,
        patches: Patches,
        masks: Sequence[np.ndarray],
    ) -> Iterator[dict[str, list]]:
        """What each answer adds to the scores; the first is that to the whole image."""
        whole: Any = None
        for result, mask in zip(results, masks, strict=True):
            if not self.segmentation:
                scores = result.pred_score.cpu().numpy()
                whole = int(scores.argmax()) if whole is None else whole
                yield count_class(scores, whole, int(labels[0]))
                continue
            prediction = result.pred_sem_seg.data.squeeze(0).cpu().numpy()
            whole = prediction if whole is None else whole
            kept = patches.pixels(mask, labels.shape)
            yield count_pixels(prediction, whole, labels, kept)


class _Kept:
    """Which patches are kept, each set of them once; the first is all of them.

    Args:
        steps: Patches that are removed or inserted, one after the other.
        count: Patches of the image.
    """

    def __init__(self, steps: Sequence[int], count: int) -> None:
        self.steps = steps
        self.masks = [np.ones(count, dtype=bool)]
        self.numbers = {self.masks[0].tobytes(): 0}

    def add(self, order: np.ndarray) -> list[list[int]]:
        """The numbers of the masks of deletion and of insertion in an order, one for each step."""
        curves: list[list[int]] = []
        for inserts in (False, True):
            curves.append([])
            for mask in kept_patches(order, self.steps, inserts):
                number = self.numbers.setdefault(mask.tobytes(), len(self.masks))
                if number == len(self.masks):
                    self.masks.append(mask)
                curves[-1].append(number)
        return curves


def _run(measurement: _Measurement, rows: Rows, images: Sequence[_Image]) -> None:
    """Measure all images that are not measured."""
    done = len(images) - len(rows.missing(images))
    made = f', {done} of them made earlier' * (done > 0)
    print(f'{len(images)} images{made} ({rows.folder})', flush=True)
    start, new = time.monotonic(), 0
    while image := rows.claim_next(images):
        row = measurement.of(image.index, is_first=not new)
        rows.write(image, row)
        new += 1
        seconds, left = (time.monotonic() - start) / new, len(rows.missing(images))
        print(
            f'[{len(images) - left}/{len(images)}] {len(row["states"])} predictions, '
            f'{seconds:.1f} s an image' + f', {seconds * left / 60:.1f} min left' * (left > 0),
            flush=True,
        )


def _about(
    args: argparse.Namespace,
    evaluation: Evaluation,
    measurement: _Measurement,
    rows: Sequence[Mapping[str, Any]],
    whole: float,
) -> dict[str, str]:
    """The head of the report, after what it is of."""
    images = evaluation.images(CLEAN)
    fill = 'the mean color of the image'
    if args.fill == 'blur':
        fill = f'the image blurred by {measurement.subject.patch} pixels'
    counts = {row['patches'] for row in rows}
    patches = '-'.join(map(str, sorted({min(counts), max(counts)})))
    name = 'mIoU over the classes of the labels' if evaluation.segmentation else 'probability'
    return {
        'data': f'test data of the config, {len(rows)} of {images.total} images, evenly spaced',
        'blocks': f'{", ".join(map(str, measurement.blocks))} (of 0 to '
        f'{measurement.subject.depth - 1})',
        'removed': f'{", ".join(f"{100 * each:g}" for each in measurement.fractions)} % of '
        f'{patches} patches of {measurement.subject.patch} pixels, which are then {fill}',
        'whole images': f'{name} {whole:.4f}',
        'deletion, insertion': 'mean of the curve over the fractions; the inverse order has them '
        'exchanged',
    }
