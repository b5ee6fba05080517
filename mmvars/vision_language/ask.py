"""``mmvars ask``: answers of a METER, where each question makes it look, and where people look."""

import argparse
import json
import os
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dataset import Compose

from mmvars.engine.checks import check_answers
from mmvars.engine.cpu import pick_device
from mmvars.engine.errors import user_errors
from mmvars.engine.options import parse_cfg_options
from mmvars.errors import InputError, check_number
from mmvars.parsers.ask import parse_args
from mmvars.predictor import run_files
from mmvars.robustness.runner import evenly_spaced
from mmvars.saliency.measures import baselines
from mmvars.saliency.report import Table, write_report
from mmvars.saliency.subject import BOTTOM_UP, CLASS, WEIGHTS, Subject, View, subject_of
from mmvars.states import Frame
from mmvars.steerability.estimates import Resamples, Tally
from mmvars.vision_language.heads import VQAHead
from mmvars.vision_language.human_attention import (
    QuestionData,
    rank_correlation,
    read_vqa_hat,
    seen_map,
)
from mmvars.vision_language.meter import METER
from mmvars.visualization.cli import find_images, picture_files
from mmvars.visualization.figure import (
    HeatMap,
    Panel,
    Picture,
    Row,
    TopClasses,
    draw_figure,
    save_figure,
)
from mmvars.visualization.maps import suppress_below, upsample_map
from mmvars.visualization.model import (
    ClassTable,
    Sample,
    build_model,
    class_sources,
    dataset_of,
    image_pipeline,
    load_sample,
    read_config,
)
from mmvars.write import write_text

__all__ = ['main']

NUM_ANSWERS = 5
NUM_DRAWN = 8  # questions of VQA-HAT in the picture
MAPS = 'Bottom-up', 'Token weights', 'Top-down'
LOOKS = 'class token, last block, mean of heads'


class Answer(NamedTuple):
    """What a model makes of a question.

    Attributes:
        scores: Probability of each answer ``(K,)``; of a model of retrieval its score ``(1,)``.
        maps: ``(h, w)`` at the patches, by title: class attention of both passes, token weights.
    """

    scores: np.ndarray
    maps: dict[str, np.ndarray]


class Asked(NamedTuple):
    """A METER with all that asking takes."""

    model: METER
    pipeline: Compose
    answers: tuple[str, ...]
    subject: Subject

    @torch.no_grad()
    def answer(self, sample: Sample, question: str) -> Answer:
        """Ask a question about an image."""
        model, images = self.model, sample.preprocessed(self.model)
        text = model.text_backbone([question])
        scores = model.head(model.extract_feat(images, text))[0].float().sigmoid()
        prior = model.backbone.prior.from_vectors(text.vector) if model.is_steered else None
        depth = model.backbone.num_layers
        found = self.subject.run(images, [depth - 1], False, prior, None)
        maps = {}
        for name, each in found.items():
            if name.kind == CLASS:
                maps['Bottom-up' if name.stage == BOTTOM_UP else 'Top-down'] = each.mean(dim=0)
            elif name.kind == WEIGHTS:
                maps['Token weights'] = each[0]
        if not maps:
            raise InputError(
                f'mmvars.{type(model.backbone).__name__} of this config has no attention of a '
                'class token that could be drawn: use a trunk of mmvars, such as arch="base"'
            )
        ordered = {k: maps[k].numpy() for k in MAPS if k in maps}
        return Answer(scores.reshape(-1).cpu().numpy(), ordered)


def main(argv: Sequence[str] | None = None) -> int:
    """Ask as the command line says; returns the exit status 0.

    Raises:
        InputError: On arguments, a config or files that cannot be used.
    """
    args = parse_args(argv)
    if os.path.isdir(args.config) and args.checkpoint:
        if not args.checkpoint.endswith(('.pth', '.safetensors')):
            args.images, args.checkpoint = [args.checkpoint, *args.images], None
    _check(args)
    data = read_vqa_hat(Path(args.vqa_hat)) if args.vqa_hat else None
    out = args.out or os.path.join('work_dirs', Path(args.config).stem, 'ask')
    images = find_images(args.images, out)
    asked = _load(args)
    os.makedirs(out, exist_ok=True)
    if data is not None:
        _measure(args, asked, data, out)
        return 0
    _note_cut(asked, args.question)
    results: list[dict[str, Any]] = []
    num_failed = 0
    for image, target in zip(images, picture_files(images, out, ['answers']), strict=True):
        try:
            with user_errors():
                sample = load_sample([image], asked.pipeline, asked.model.backbone.trunk.strides[0])
        except InputError as error:
            num_failed += 1
            print(f'{image} not asked about: {error}', file=sys.stderr)
            continue
        rows = []
        for question in args.question:
            answer = asked.answer(sample, question)
            likeliest = _likeliest(asked, answer)
            results.append(dict(image=image, question=question, answers=likeliest))
            words = ', '.join(f'{name} {score:.1%}' for name, score in likeliest.items())
            if not answer.maps.get('Token weights', np.ones(1)).any():
                words += ' (no token is like the prior of the question: nothing is fed back)'
            print(f'{image}: {question} {words}', flush=True)
            rows.append(_row(asked, sample, question, answer, args.threshold))
        footer = f'{os.path.basename(image)} · attention of the {LOOKS}'
        save_figure(draw_figure(rows, sample.size, footer), target['answers'])
        # After each image, so that they say what the pictures show where a run is stopped.
        write_text(os.path.join(out, 'answers.json'), json.dumps(results, indent=1) + '\n', True)
    if num_failed:
        raise InputError(
            f'{num_failed} of {len(images)} images could not be read, for the reasons given above; '
            f'the answers to the others are in {out!r}'
        )
    print(f'Written: answers.json and a picture of each image ({out})')
    return 0


def _check(args: argparse.Namespace) -> None:
    if bool(args.vqa_hat) == bool(args.images):
        raise InputError(
            'give images, and --question after them, or --vqa-hat DIR'
            if not args.vqa_hat
            else '--vqa-hat has its own images and questions: leave the others out'
        )
    if bool(args.question) != bool(args.images):
        given, missing = ('images', '--question') if args.images else ('--question', 'images')
        raise InputError(f'{given} without {missing}: give both, or --vqa-hat DIR alone')
    if args.questions is not None and not args.vqa_hat:
        raise InputError('--questions says how many of --vqa-hat DIR to measure: give that too')
    if args.questions is not None:
        check_number('--questions', args.questions, 2, whole=True)
    for question in args.question or ():
        if not question.strip():
            raise InputError(f'--question needs words, got {question!r}')
    check_number('--threshold', args.threshold, 0, 1)
    check_number('--seed', args.seed, 0, whole=True)


def _load(args: argparse.Namespace) -> Asked:
    """The model of the config, filled from the checkpoint."""
    config, checkpoint = run_files(args.config, args.checkpoint)
    if checkpoint is None:
        raise InputError(f'{config} is a config: give its CHECKPOINT too')
    cfg = read_config(config, dict(parse_cfg_options(args.cfg_options) or {}))
    if 'text_backbone' not in cfg.model:
        raise InputError(
            f'{config} describes no mmvars.METER, and no other model takes questions; where a text '
            'is the prior of a segmentor, `mmvars predict --prior text:WORDS` takes it'
        )
    model, meta = build_model(cfg, str(checkpoint), pick_device(args.device))
    answers: tuple[str, ...] = ()
    if isinstance(model.head, VQAHead):
        *configured, trained = class_sources(dataset_of(cfg), meta)
        for source in configured:
            check_answers((source or {}).get('classes'), (trained or {}).get('classes'))
        answers = ClassTable.of(model.head.num_answers, *configured, trained).names
    return Asked(model, image_pipeline(cfg), answers, subject_of(cfg, model, str(checkpoint)))


def _note_cut(asked: Asked, questions: Sequence[str]) -> None:
    """Say which questions the text backbone does not read to their end."""
    backbone = asked.model.text_backbone
    tokens = backbone.tokenizer(list(questions))['input_ids']
    pairs = zip(questions, tokens, strict=True)
    if cut := [question for question, each in pairs if len(each) > backbone.max_length]:
        print(
            f'note: {len(cut)} of {len(questions)} questions are longer than the '
            f'{backbone.max_length} tokens that the model reads, and are cut: {cut[0]!r}',
            flush=True,
        )


def _likeliest(asked: Asked, answer: Answer) -> dict[str, float]:
    if not asked.answers:
        return {'fits': float(answer.scores[0])}
    order = np.argsort(-answer.scores, kind='stable')[:NUM_ANSWERS]
    return {asked.answers[index]: float(answer.scores[index]) for index in order}


def _row(
    asked: Asked,
    sample: Sample,
    question: str,
    answer: Answer,
    threshold: float,
    human: np.ndarray | None = None,
) -> Row:
    """Panels of a question: image, people, maps, answers."""
    image = sample.picture(asked.model)
    stride = asked.model.backbone.trunk.strides[-1]
    panels: list[Panel] = [Picture(image)]
    if human is not None:
        panels.append(HeatMap(human, image, title='People', note='mean of their maps'))
    for title, values in answer.maps.items():
        pixels = upsample_map(torch.from_numpy(values)[None], stride, sample.size)[0].numpy()
        is_cut = title != 'Token weights'
        note = f'class token, above {threshold:g} of its range' if is_cut else 'cosine with prior'
        shown = suppress_below(pixels, threshold) if is_cut else pixels
        panels.append(HeatMap(shown, image, title=title, note=note))
    if asked.answers:
        panels.append(TopClasses(answer.scores, asked.answers, title='Answers'))
    return Row(panels, question)


def _measure(args: argparse.Namespace, asked: Asked, data: QuestionData, out: str) -> None:
    """Compare with the maps of people, and draw the first questions."""
    indices = evenly_spaced(len(data.names), args.questions)
    _note_cut(asked, [data.questions[index] for index in indices])
    scores: list[dict[str, float]] = []
    rows: list[Row] = []
    size = (1, 1)
    start = time.monotonic()
    for number, index in enumerate(indices, 1):
        path = data.paths[index]
        with user_errors():
            sample = load_sample([path], asked.pipeline, asked.model.backbone.trunk.strides[0])
        meta = sample.data_sample.metainfo
        frame = Frame.of(tuple(meta['ori_shape'][:2]), sample.size, meta)
        human = [seen_map(file, frame) for file in data.human[index]]
        answer = asked.answer(sample, data.questions[index])
        other = asked.answer(sample, data.questions[data.other(index)])
        scores.append(_scores(answer, other, human, f'{args.seed} {data.names[index]}'))
        if len(rows) < NUM_DRAWN and (not rows or sample.size == size):
            size, mean = sample.size, np.mean(human, axis=0)
            question = data.questions[index]
            rows.append(_row(asked, sample, question, answer, args.threshold, mean))
        if number % 20 == 0 or number == len(indices):
            seconds = (time.monotonic() - start) / number
            print(f'[{number}/{len(indices)}] {seconds:.2f} s a question', flush=True)
    draws = Resamples(len(scores), args.seed)
    table = {}
    for name in dict.fromkeys(name for each in scores for name in each):
        tally = Tally()
        for i, each in enumerate(scores):
            if np.isfinite(each.get(name, np.nan)):
                tally.add(i, each[name])
        table[name] = [draws.estimate(tally)]
    about = dict(
        model=args.config,
        data=f'{data.title}, {len(indices)} of {len(data.names)} questions',
        maps=f'attention of the {LOOKS}; token weights: cosine of the tokens with the prior',
    )
    tables = [Table('rank correlation with people', ('Spearman',), table)]
    settings = {key: value for key, value in vars(args).items() if key != 'out'}
    print('\n' + write_report(out, about, tables, settings, stem='vqa-hat'))
    footer = f'{data.title} · attention of the {LOOKS}'
    save_figure(draw_figure(rows, size, footer), os.path.join(out, 'vqa-hat.png'))
    print(f'\nWritten: {out}/vqa-hat.txt, .json, .csv, .md and .png')


def _scores(
    answer: Answer, other: Answer, human: Sequence[np.ndarray], seed: str
) -> dict[str, float]:
    """Rank correlation of each map with those of the people, its mean over them."""
    height, width = human[0].shape
    view = View(np.empty(0), 0, 0, height, width)
    grid: Any = next(iter(answer.maps.values())).shape
    maps = {
        name: values.mean(dim=0).numpy()
        for name, values in baselines(view, grid, zlib.crc32(seed.encode())).items()
    }
    maps |= answer.maps
    if 'Top-down' in other.maps:
        maps['Top-down, another question'] = other.maps['Top-down']
    scores = {}
    for name, values in maps.items():
        large = torch.nn.functional.interpolate(
            torch.from_numpy(np.asarray(values, dtype=np.float32))[None, None],
            (height, width),
            mode='bilinear',
        )[0, 0].numpy()
        scores[name] = float(np.mean([rank_correlation(large, each) for each in human]))
    if len(human) > 1:
        rest = [np.mean([*human[:i], *human[i + 1 :]], axis=0) for i in range(len(human))]
        pairs = zip(human, rest, strict=True)
        scores['other people'] = float(np.mean([rank_correlation(*pair) for pair in pairs]))
    return scores
