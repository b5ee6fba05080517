"""``mmvars predict``: labels, heat maps, overlays and probabilities of images and videos."""

import argparse
import csv
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.utils import ProgressBar
from PIL import Image

from mmvars.datasets.files import images_in
from mmvars.engine.options import parse_cfg_options
from mmvars.errors import InputError, check_number
from mmvars.networks.steering import check_top_down
from mmvars.parsers.predict import parse_args
from mmvars.pictures import encoded, heat_colors, with_palette
from mmvars.predictor import Prediction, Predictor, run_files
from mmvars.prior_words import Place, parse_prior
from mmvars.steering import NotFinite
from mmvars.visualization.figure import blend
from mmvars.visualization.model import network_of
from mmvars.write import write_bytes, write_text

__all__ = ['Source', 'find_sources', 'main']

VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')
SUFFIXES = {'labels': '.png', 'heatmap': '.png', 'overlay': '.jpg', 'probabilities': '.npz'}
STRENGTH = 0.6  # of the colors in an overlay


def main(argv: Sequence[str] | None = None) -> int:
    """Predict as the command line says; returns the exit status 0.

    Raises:
        InputError: On bad input. An image that cannot be predicted is named at once, does not stop
            the others, and is counted in the error at the end.
    """
    args = parse_args(argv)
    sources = find_sources(args.images, args.out_dir, args.carry_state)
    _check_arguments(args, sources)
    results = Results(args)
    results.check(sources)
    predictor = Predictor(
        args.model,
        args.checkpoint,
        device=args.device,
        prototypes=args.prototypes,
        text=args.text,
        cfg_options=parse_cfg_options(args.cfg_options) or None,
    )
    prompts, alphas = _prompts(args, [*results.folders], predictor)
    bar = ProgressBar(sum(source.num_frames(args.every) for source in sources))
    num_failed = num_written = 0
    for source in sources:
        if source.starts:
            priors, previous = None, None
        try:
            for name, image in source.frames(args.every):
                is_done = args.resume and results.has(name)
                if not is_done or (source.is_video and priors is None):
                    predictor.set_image(image, previous)
                    if priors is None:  # a place is one in the first frame
                        priors = [
                            predictor.prior_vector(prompt) if isinstance(prompt, Place) else prompt
                            for prompt in prompts
                        ]
                if not is_done:
                    for word, prior, alpha in zip(results.folders, priors, alphas, strict=True):
                        prediction = predictor.predict(prior, alpha)
                        results.write(name, word, prediction, predictor)
                    previous = prediction if args.carry_state else None
                    num_written += 1
                bar.update()
        except NotFinite:
            raise  # not the image's fault
        except InputError as error:
            num_failed += 1
            print(f'\nnot predicted: {source.path}: {error}', file=sys.stderr)
    print(f'\n{num_written} images and frames -> {args.out_dir}')
    if num_failed:
        raise InputError(
            f'{num_failed} of {len(sources)} images and videos could not be predicted, for the '
            'reasons given above'
        )
    return 0


def _check_arguments(args: argparse.Namespace, sources: Sequence['Source']) -> None:
    """Refuse options that contradict each other, or that nothing would come of."""
    check_number('--every', args.every, 1, whole=True)
    if args.alpha is not None:
        check_number('--alpha', args.alpha, 0)
    words = args.prior or []
    needs = [
        ('--every', args.every > 1, 'a video', any(source.is_video for source in sources)),
        ('--text', args.text, '--prior text:WORDS', any(w.startswith('text:') for w in words)),
        (
            '--prototypes',
            args.prototypes,
            '--prior class:NAME or text:WORDS',
            any(word.startswith(('class:', 'text:')) for word in words),
        ),
        ('--prior text:WORDS', any(w.startswith('text:') for w in words), '--text', args.text),
        (
            '--carry-state',
            args.carry_state,
            'a video or a folder of its frames',
            any(source.is_video or not source.starts for source in sources),
        ),
        ('--carry-state', args.carry_state, 'one --prior at a time', len(words) < 2),
        ('--carry-state', args.carry_state, 'all frames, so no --resume', not args.resume),
        ('--resume', args.resume, 'what is there, so no --overwrite', not args.overwrite),
    ]
    for option, is_given, needed, is_there in needs:
        if is_given and not is_there:
            raise InputError(f'{option} needs {needed}')


def _prompts(
    args: argparse.Namespace, words: Sequence[str], predictor: Predictor
) -> tuple[list[Any], list[float | None]]:
    """Of each word of ``--prior`` what the predictor takes, and the scale."""
    is_asked = {*words} != {'none'}
    if is_asked and not predictor.is_steerable:
        raise InputError(f'--prior: {args.model} takes none, leave it out; an AbSViT takes one')
    prompts = [parse_prior(word, predictor) for word in words]
    if args.alpha is None:
        return prompts, [None] * len(words)
    if predictor.model is None:
        raise InputError(f'--alpha: {args.model} is an exported file, leave it out')
    has_prior = any(prompt is not None for prompt in prompts)
    check_top_down(network_of(predictor.model), has_prior, True, 'leave --alpha out')
    scales = [prompt is not None or predictor.scales_without_prior for prompt in prompts]
    return prompts, [args.alpha if scaled else None for scaled in scales]


@dataclass(frozen=True)
class Source:
    """An image or a video.

    Attributes:
        path: Of the file.
        name: Of its results, without suffix.
        starts: Whether it does not go on from the image before.
    """

    path: str
    name: str
    starts: bool = True

    @property
    def is_video(self) -> bool:
        return self.path.lower().endswith(VIDEOS)

    def num_frames(self, every: int) -> int:
        """As far as the file says; 1 of an image."""
        count = cv2.VideoCapture(self.path).get(cv2.CAP_PROP_FRAME_COUNT) if self.is_video else 1
        return max(-(-int(count) // every), 1)

    def frames(self, every: int) -> Iterator[tuple[str, Any]]:
        """Name and image of each frame: a path, or pixels ``(H, W, 3)`` in RGB.

        Raises:
            InputError: If it is no video.
        """
        if not self.is_video:
            yield self.name, self.path
            return
        video, number = cv2.VideoCapture(self.path), 0
        expected = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        while video.grab():
            if number % every == 0:
                is_read, pixels = video.retrieve()
                if not is_read:
                    break
                yield f'{self.name}/{number:06}', np.ascontiguousarray(pixels[..., ::-1])
            number += 1
        if number == 0:
            raise InputError('OpenCV can read no frame; convert the video to .mp4 (H.264)')
        if number < expected:
            raise InputError(
                f'OpenCV can read {number} of its {expected} frames, which have been predicted; '
                'the file is damaged after them, or convert it to .mp4 (H.264)'
            )


def find_sources(paths: Sequence[str], out_dir: str, are_frames: bool = False) -> list[Source]:
    """The images and videos that files and folders name, each once.

    With ``are_frames`` the images of a folder go on from each other.

    Raises:
        InputError: If a path does not exist, or a folder holds no image.
    """
    names: dict[str, tuple[str, bool]] = {}  # path -> name, starts
    for path in paths:
        if os.path.isdir(path):
            if os.path.realpath(path) == os.path.realpath(out_dir):
                raise InputError(
                    f'{path!r} is both --out-dir and a folder of images: give another --out-dir'
                )
            for number, image in enumerate(images_in(path, out_dir)):
                starts = number == 0 or not are_frames
                names.setdefault(image, (os.path.relpath(image, path), starts))
        elif os.path.isfile(path):
            names.setdefault(path, (os.path.basename(path), True))
        else:
            what = 'is no file' if os.path.exists(path) else 'does not exist'
            raise InputError(f'the image {path!r} {what}')
    sources: list[Source] = []
    taken: set[str] = set()
    for path, (name, starts) in names.items():
        stem = os.path.splitext(name)[0]
        # Different files even where the names of the images are the same.
        candidates = (stem if i == 1 else f'{stem}-{i}' for i in itertools.count(1))
        unique = next(each for each in candidates if each.lower() not in taken)
        taken.add(unique.lower())
        sources.append(Source(path, unique, starts))
    return sources


class Results:
    """The folder of results.

    Args:
        args: Arguments of the command.

    Attributes:
        folders: Word of ``--prior`` -> folder; ``none`` where there is none.
        rows: What the table of a classifier has: name and prior.
        has_begun: Whether a result has been written by this call.
        before: What ``predict.json`` holds; empty where it is missing or damaged.
        since: Files modified before, in nanoseconds, are results of other settings.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        root, words = Path(args.out_dir), dict.fromkeys(args.prior or ['none'])
        self.folders = dict.fromkeys(words, root)
        if len(words) > 1:
            for number, word in enumerate(words, 1):
                slug = re.sub(r'[^\w.,-]+', '-', word)
                self.folders[word] = root / f'{number}-{slug}'[:100]
        self.table = root / 'labels.csv'
        self.settings = root / 'predict.json'
        self.has_begun = False
        self.before = self._read_settings()
        self.since: int = self.before.get('since', 0)
        self.rows: set[tuple[str, str]] = set()
        if args.resume and self.table.exists():
            with open(self.table, newline='', encoding='utf-8') as file:
                self.rows = {(row[0], row[1]) for row in csv.reader(file) if len(row) == 5}

    def check(self, sources: Sequence[Source]) -> None:
        """Refuse to replace results, or to mix settings, unless asked to; and images at all.

        Raises:
            InputError: Naming the first.
        """
        if self.settings.exists() and not self.args.overwrite and self._changed:
            name = self._changed[0]
            raise InputError(
                f'the results in {self.args.out_dir} are of other settings '
                f'({name} {self.before.get(name)!r} there, {self._used[name]!r} here): give '
                'another --out-dir, or replace them with --overwrite'
            )
        paths = [
            self._path(source.name, word, kind).with_suffix('')
            if source.is_video
            else self._path(source.name, word, kind)
            for source in sources
            for word in self.folders
            for kind in SUFFIXES
        ]
        images = {os.path.realpath(source.path) for source in sources}
        for path in [self.table, *paths]:
            if os.path.realpath(path) in images:
                raise InputError(f'{path} is one of the images: give another --out-dir')
            if path.exists() and not self.args.overwrite and not self.args.resume:
                raise InputError(
                    f'{path} exists: replace what is there with --overwrite, keep it and predict '
                    'the rest with --resume, or give another --out-dir'
                )

    def _begin(self) -> None:
        """Say in the folder what its results are made of, and from when on."""
        self.has_begun = True
        self.settings.parent.mkdir(parents=True, exist_ok=True)
        if self.args.overwrite:
            self.table.unlink(missing_ok=True)
        if self.args.overwrite and self._changed:
            self.settings.touch()
            self.since = self.settings.stat().st_mtime_ns  # by the clock of the file system
        content = json.dumps(self._used | dict(since=self.since), indent=1)
        write_text(self.settings, content + '\n', overwrite=True)

    def _read_settings(self) -> dict[str, Any]:
        if not self.settings.exists():
            return {}
        try:
            content = json.loads(self.settings.read_text(encoding='utf-8'))
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    @cached_property
    def _changed(self) -> list[str]:
        """Settings that are not those of ``predict.json``."""
        return [name for name, value in self._used.items() if self.before.get(name) != value]

    @cached_property
    def _used(self) -> dict[str, Any]:
        """All that results depend on but the images, in terms of JSON."""
        config, checkpoint = run_files(self.args.model, self.args.checkpoint)
        names = 'prior', 'alpha', 'prototypes', 'text', 'every', 'cfg_options'
        weights = checkpoint or config
        return dict(
            model=config,
            checkpoint=str(weights),
            modified=os.stat(weights).st_mtime_ns if os.path.exists(weights) else None,
            **{name: getattr(self.args, name) for name in names},
        )

    def has(self, name: str) -> bool:
        """Whether all results of an image are there, of these settings."""
        return all(
            (self._has(name, word, 'labels') or (name, word) in self.rows)
            and all(self._has(name, word, kind) for kind in self._kinds(word))
            for word in self.folders
        )

    def _has(self, name: str, word: str, kind: str) -> bool:
        path = self._path(name, word, kind)
        return path.exists() and path.stat().st_mtime_ns >= self.since

    def write(self, name: str, word: str, answer: Prediction, predictor: Predictor) -> None:
        """Write the results of an image with one prior."""
        if not self.has_begun:  # what cannot be predicted leaves the folder as it is
            self._begin()
        is_map = np.ndim(answer.labels) == 2
        for kind in (*['labels'] * is_map, *self._kinds(word)):
            content = _ENCODERS[kind](answer, predictor, word)
            path = self._path(name, word, kind)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, content, overwrite=True)
        if not is_map and (name, word) not in self.rows:
            self._add_row(name, word, answer, predictor)

    def _add_row(self, name: str, word: str, answer: Prediction, predictor: Predictor) -> None:
        is_new = not self.table.exists()
        self.table.parent.mkdir(parents=True, exist_ok=True)
        with open(self.table, 'a', newline='', encoding='utf-8') as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(['image', 'prior', 'label', 'class', 'probability'])
            label = int(answer.labels)
            score = f'{answer.probabilities[label]:.6f}'
            writer.writerow([name, word, label, predictor.classes[label], score])

    def _kinds(self, word: str) -> list[str]:
        """What is written beside the labels."""
        return [
            *['heatmap'] * (word != 'none'),
            *['overlay'] * self.args.overlay,
            *['probabilities'] * self.args.probabilities,
        ]

    def _path(self, name: str, word: str, kind: str) -> Path:
        return self.folders[word] / kind / (name + SUFFIXES[kind])


def _labels(answer: Prediction, predictor: Predictor, word: str) -> bytes:
    if len(predictor.classes) > 256:
        return encoded(Image.fromarray(answer.labels.astype(np.uint16)), 'PNG')
    return encoded(with_palette(answer.labels, predictor.palette), 'PNG')


def _heatmap(answer: Prediction, predictor: Predictor, word: str) -> bytes:
    assert answer.heatmap is not None  # there was a prior
    return encoded(Image.fromarray(np.uint8(np.rint(255 * answer.heatmap))), 'PNG')


def _overlay(answer: Prediction, predictor: Predictor, word: str) -> bytes:
    """Labels in their colors, and beside them the heat map, on the image in gray."""
    panels = []
    if np.ndim(answer.labels) == 2:
        panels.append(np.asarray(predictor.palette)[answer.labels] / 255)
    if word != 'none':
        panels.append(heat_colors(answer.heatmap) / 255)
    elif not panels:
        if answer.attention is None:
            raise InputError('--overlay: an exported classifier gives no map to draw, leave it out')
        panels.append(heat_colors(answer.attention / answer.attention.max()) / 255)
    picture = np.concatenate([blend(each, predictor.image, STRENGTH) for each in panels], axis=1)
    return encoded(Image.fromarray(np.uint8(255 * picture)), 'JPEG')


def _probabilities(answer: Prediction, predictor: Predictor, word: str) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(
        file, probabilities=answer.probabilities.astype(np.float16), classes=predictor.classes
    )
    return file.getvalue()


_ENCODERS = {
    'labels': _labels,
    'heatmap': _heatmap,
    'overlay': _overlay,
    'probabilities': _probabilities,
}
