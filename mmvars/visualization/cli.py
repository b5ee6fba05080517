"""``mmvars visualize``: attention, prediction, and the steps and atoms of sparse codes."""

import argparse
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from mmvars.datasets.files import images_in
from mmvars.engine.errors import user_errors
from mmvars.engine.options import parse_cfg_options
from mmvars.errors import InputError, check_choice
from mmvars.networks import PerceiverIO, Trunk
from mmvars.networks.steering import check_top_down, feeds_back_unasked, scale_of
from mmvars.parsers.visualize import parse_args
from mmvars.predictor import Predictor, run_files
from mmvars.prior_words import GRAMMAR, Place, class_number, parse_prior
from mmvars.robustness.corruptions import CORRUPTIONS, check_corruption
from mmvars.visualization.corrupted import Subject, corruption_rows
from mmvars.visualization.draw import (
    LIMITS,
    ModelOutputs,
    ViewOptions,
    atom_rows,
    attention_rows,
    block_name,
    check_options,
    maps_footer,
    resolve_layer,
    run_model,
    step_rows,
)
from mmvars.visualization.figure import (
    Half,
    Panel,
    Row,
    draw_figure,
    draw_panel,
    save_figure,
    short_name,
)
from mmvars.visualization.model import (
    ClassTable,
    Model,
    annotated_images,
    image_pipeline,
    is_segmentor,
    load_sample,
    model_files,
    model_names,
    network_of,
    read_config,
)
from mmvars.visualization.priors import PanelConfig
from mmvars.write import check_destination, write_text

__all__ = ['main']

_NOT_CORRUPTED = 'pair', 'prior', 'prototypes', 'text', 'alpha', 'steps', 'atoms', 'difference'


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see ``--help``.

    Raises:
        InputError: On bad input. An image that cannot be drawn is named at once, does not stop the
            others, and is counted in the error at the end.
    """
    args = parse_args(argv)
    if os.path.isdir(args.config):  # a run, whose checkpoint may be left out
        if args.checkpoint and not args.checkpoint.endswith(('.pth', '.safetensors')):
            args.images, args.checkpoint = [args.checkpoint, *args.images], None
        args.config, args.checkpoint = map(str, run_files(args.config, args.checkpoint))
    alphas = list(map(_alpha, args.alpha or ()))
    _check_arguments(args)
    if args.corrupt:
        return _draw_corrupted(args)
    images = args.pair or find_images(args.images, args.out_dir)
    kinds = ['attention', *['steps'] * args.steps, *['atoms'] * (args.atoms is not None)]
    joined = args.pair is not None
    targets = picture_files(images, args.out_dir, kinds, joined, args.format)
    cfg_options = parse_cfg_options(args.cfg_options)
    cfg = read_config(args.config, dict(cfg_options or {}))
    pipeline = image_pipeline(cfg)
    predictor = Predictor(
        args.config,
        args.checkpoint,
        device=args.device,
        prototypes=args.prototypes,
        text=args.text,
        cfg_options=cfg_options,
    )
    model, classes = predictor.model, ClassTable(predictor.classes, predictor.palette)
    network, trunk = network_of(model), model.backbone.trunk
    if (
        args.layer is not None
        and isinstance(network, PerceiverIO)
        and not (args.steps or args.atoms is not None or args.average_attention)
    ):
        raise InputError(
            '--layer says where top-down attention is drawn, and this model has it in '
            "its output alone (design='perceiver_io'): leave it out"
        )
    options = ViewOptions(
        **{option.name: getattr(args, option.name) for option in fields(ViewOptions)}
    )
    check_options(model, options)
    configs = panel_configs(args.prior, alphas, predictor, pair=args.pair is not None)
    if (cfg.model.get('test_cfg') or {}).get('mode') == 'slide':
        print(
            'the config tests with sliding windows; here each image is one forward, so that maps '
            'and segmentation belong together'
        )
    if isinstance(network, Trunk):
        print('no feedback: there is one pass, so no token mask and no top-down attention to draw')
    if note := _class_token_note(model, configs):
        print(
            f'{note}; the thesis takes a model with average pooling here, such as '
            'absvit-tiny-p8-gap'
        )

    annotations = {} if args.pair else annotated_images(cfg, images)
    labeled_pipeline = image_pipeline(cfg, labels=True) if annotations else pipeline
    model_name = os.path.splitext(os.path.basename(args.config))[0]
    num_failed, sources = 0, [args.pair] if args.pair else [[image] for image in images]
    for number, (paths, target) in enumerate(zip(sources, targets, strict=True), 1):
        try:
            with user_errors():
                annotation = annotations.get(os.path.realpath(paths[0]))
                sample = load_sample(
                    paths,
                    labeled_pipeline if annotation else pipeline,
                    trunk.strides[0],
                    annotation,
                )
                configs = _with_places(configs, predictor, paths[0])
                outputs = [run_model(model, sample, options, config) for config in configs]
                name = f'{" + ".join(short_paths(*paths))} · {model_name}'
                rows = {
                    kind: _rows(kind, outputs, model, options, configs, classes) for kind in kinds
                }
                figures = [
                    draw_figure(
                        rows[kind],
                        sample.size,
                        f'{name} · {_footer(kind, outputs[0], model, options, configs)}',
                    )
                    for kind in kinds
                ]
        except InputError as error:
            if args.pair:
                raise
            num_failed += 1
            print(f'[{number}/{len(sources)}] not drawn: {error}', file=sys.stderr)
            continue
        for figure, (kind, path) in zip(figures, target.items(), strict=True):
            save_figure(figure, path)
            _save_panels(args, rows[kind], sample.size, path)
        print(
            f'[{number}/{len(sources)}] {" + ".join(paths)} -> {" ".join(target.values())}',
            flush=True,
        )
        if args.pair:
            numbers = [
                pair_numbers(*row, configs, model, classes)
                for row in zip(outputs, configs, strict=True)
            ]
            print('\n'.join(map(pair_sentence, numbers)))
            if args.json:
                layer = (
                    None
                    if isinstance(network, PerceiverIO)
                    else resolve_layer(options.layer, trunk.depth)
                )
                result = dict(
                    left=paths[0],
                    right=paths[1],
                    size=sample.size,
                    seam=sample.seam,
                    layer=layer,
                    threshold=options.threshold,
                    rows=numbers,
                )
                write_text(args.json, json.dumps(result, indent=1) + '\n', args.overwrite)
    _check_failures(num_failed, len(sources), args.out_dir)
    return 0


def _check_failures(num_failed: int, total: int, out_dir: str) -> None:
    if num_failed:
        others = f'; the pictures of the others are in {out_dir!r}' * (num_failed < total)
        raise InputError(
            f'{num_failed} of {total} images could not be drawn, for the reasons given above'
            + others
        )


def _draw_corrupted(args: argparse.Namespace) -> int:
    """Draw models by corruptions, a picture for each image; returns the exit status 0."""
    images = find_images(args.images, args.out_dir)
    targets = picture_files(images, args.out_dir, ['corruptions'], suffix=args.format)
    files = [model_files(each) for each in ((args.config, args.checkpoint), *args.against)]
    names = model_names(files)
    cfg_options = parse_cfg_options(args.cfg_options)
    options = ViewOptions(
        **{option.name: getattr(args, option.name) for option in fields(ViewOptions)}
    )
    subjects = []
    for name, (config, checkpoint) in zip(names, files, strict=True):
        pipeline = image_pipeline(read_config(config, dict(cfg_options or {})))
        predictor = Predictor(config, checkpoint, device=args.device, cfg_options=cfg_options)
        check_options(predictor.model, options)
        subjects.append(Subject(name, predictor.model, pipeline))
    num_failed = 0
    for number, (image, target) in enumerate(zip(images, targets, strict=True), 1):
        try:
            with user_errors():
                rows, size = corruption_rows(subjects, image, args.corrupt, args.severity, options)
        except InputError as error:
            num_failed += 1
            print(f'[{number}/{len(images)}] not drawn: {error}', file=sys.stderr)
            continue
        path = target['corruptions']
        footer = f'{short_paths(image)[0]} · on the clean image{LIMITS[options.limits]}'
        footer += ' · blocks are counted from 0'
        footer += ' · one range a model' * (options.limits != 'own')
        save_figure(draw_figure(rows, size, footer), path)
        _save_panels(args, rows, size, path)
        print(f'[{number}/{len(images)}] {image} -> {path}', flush=True)
    _check_failures(num_failed, len(images), args.out_dir)
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    for name, value in (('--strength', args.strength), ('--threshold', args.threshold)):
        if value is not None and not 0 <= value <= 1:
            raise InputError(f'{name} must be between 0 and 1, got {value}')
    if args.per_head and args.atoms is None:
        raise InputError('--per-head tells atoms apart: give --atoms K too')
    if args.corrupt:
        args.severity = 3 if args.severity is None else args.severity
        for corruption in args.corrupt:
            check_choice('--corrupt', corruption, CORRUPTIONS)
            check_corruption(corruption, args.severity, 0)
        for option in _NOT_CORRUPTED:
            if getattr(args, option) not in (None, False):
                raise InputError(
                    f'--corrupt draws models as they are, without --{option}: leave one of both out'
                )
    elif args.against or args.severity is not None:
        option = '--against draws models side by side' if args.against else '--severity is'
        raise InputError(f'{option} of corrupted images: give --corrupt NAME [NAME ...] too')
    if bool(args.images) == bool(args.pair):
        raise InputError(
            'give images to draw, or --pair LEFT RIGHT'
            if not args.pair
            else f'--pair draws two photos and nothing else, got {args.images} too'
        )
    for path in args.pair or ():
        if not os.path.isfile(path):
            raise InputError(f'--pair takes two image files, and {path!r} is none')
    if args.json and not args.pair:
        raise InputError('--json writes the shares of the two halves: give --pair LEFT RIGHT too')
    for source in (args.config, args.checkpoint, *args.pair) if args.json else ():
        check_destination(args.json, source, args.overwrite, suffixes=())


def _alpha(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise InputError(
            f'--alpha must be a finite number of at least 0, got {word!r} (options go '
            'after the images)'
        )
    return value


def panel_configs(
    words: Sequence[str] | None,
    alphas: Sequence[float],
    predictor: Predictor,
    pair: bool = False,
) -> list[PanelConfig]:
    """The rows of a figure: each prior with each scale.

    Args:
        words: Of ``--prior``; of a ``pair`` of photos the left one's first.
        alphas: Of ``--alpha``.
        predictor: Of the model.
        pair: Whether two photos are drawn as one.

    Raises:
        InputError: If a prior is not understood, or the model has no use for a prior or a scale.
    """
    network = network_of(predictor.model)
    flags = (
        '--prior and --alpha' if isinstance(network, Trunk) else '--prior' if words else '--alpha'
    )
    has_prior = any(word != 'none' for word in words or ())
    if words or isinstance(network, Trunk) or feeds_back_unasked(network):
        check_top_down(network, has_prior, bool(alphas), f'leave {flags} out')
    else:
        raise InputError(f'this model has no prior of its own: give --prior {GRAMMAR}')
    if pair and words and len(words) > 2:
        raise InputError(
            f'--pair takes at most two of --prior, the class of the left and of the '
            f'right photo, got {len(words)}: {" ".join(words)}'
        )
    if not words and getattr(network, 'prior', None) is not None:
        words = ['query']
    rows = [_row(word, predictor) for word in words or ()] or [PanelConfig()]
    halves: tuple[Half, ...] = ('left', 'right')
    if pair:
        if any(row.place for row in rows):
            raise InputError(
                '--pair: a point, box or mask of --prior lies in one image, and there are two; '
                'give example:IMAGE@X0,Y0,X1,Y1, or another kind'
            )
        rows = [
            row if row.prior is None else replace(row, half=half)
            for row, half in zip(rows, halves, strict=False)
        ]
    return [replace(row, alpha=alpha) for row in rows for alpha in alphas] or rows


def _row(word: str, predictor: Predictor) -> PanelConfig:
    """What a word of ``--prior`` means in a figure."""
    prompt = parse_prior(word, predictor)
    kind, _, rest = word.partition(':')
    name = f'{kind} {os.path.basename(rest) if kind in ("mask", "example", "file") else rest}'
    if isinstance(prompt, Place):
        return PanelConfig(name, place=prompt)
    if kind == 'query':
        return PanelConfig('learned query')
    if kind == 'none':
        if getattr(network_of(predictor.model), 'prior', None) is None or (
            predictor.scales_without_prior
        ):
            return PanelConfig()
        return PanelConfig('none', torch.zeros(predictor.model.backbone.embed_dims))
    if kind != 'class':
        return PanelConfig(name, prompt)
    index, (names, vectors) = class_number(rest, predictor), predictor.class_priors
    is_same = len(vectors) == len(predictor.classes) and names in (None, predictor.classes)
    name = short_name(names[index]) if names else f'class {index}'
    return PanelConfig(name, prompt, index if is_same else None)


def _with_places(
    configs: Sequence[PanelConfig], predictor: Predictor, image: str
) -> list[PanelConfig]:
    """``configs`` with the priors of the places in an image."""
    if any(config.place for config in configs):
        predictor.set_image(image)
    return [
        replace(config, prior=predictor.prior_vector(config.place)) if config.place else config
        for config in configs
    ]


def find_images(paths: list[str], out_dir: str) -> list[str]:
    """The image files that ``paths`` (files and folders, searched with all they hold) name.

    ``out_dir`` is left out of the search: it holds our own pictures.

    Raises:
        InputError: If a path does not exist, or a folder holds no image.
    """
    images: list[str] = []
    for path in paths:
        if not os.path.exists(path):
            raise InputError(f'the image {path!r} does not exist')
        images += images_in(path, out_dir) if os.path.isdir(path) else [path]
    return list(dict.fromkeys(images))


def picture_files(
    images: list[str], out_dir: str, kinds: list[str], joined: bool = False, suffix: str = 'png'
) -> list[dict[str, str]]:
    """A file for each image and kind of picture; with ``joined`` all images are one picture.

    Raises:
        InputError: If a picture would overwrite one of the images.
    """
    names = [os.path.splitext(os.path.basename(image))[0] for image in images]
    stems: list[str] = []
    for name in ['+'.join(names)] if joined else names:
        # Different files even where the names of the images are the same.
        candidates = (name if i == 1 else f'{name}-{i}' for i in itertools.count(1))
        stems.append(next(stem for stem in candidates if stem not in stems))
    sources = set(map(os.path.realpath, images))
    targets = [
        {kind: os.path.join(out_dir, f'{stem}_{kind}.{suffix}') for kind in kinds} for stem in stems
    ]
    for target in itertools.chain.from_iterable(files.values() for files in targets):
        if os.path.realpath(target) in sources:
            raise InputError(
                f'the picture {target!r} would overwrite an image of that name: '
                'give another --out-dir'
            )
    return targets


def short_paths(*paths: str) -> list[str]:
    """The names of one or two files, with as many folders as it takes to tell them apart."""
    names = list(map(os.path.basename, paths))
    if len(set(names)) == len(names) or os.path.samefile(*paths):
        return names
    full_paths = list(map(os.path.abspath, paths))
    return [os.path.relpath(path, os.path.commonpath(full_paths)) for path in full_paths]


def _rows(
    kind: str,
    outputs: list[ModelOutputs],
    model: Model,
    options: ViewOptions,
    configs: list[PanelConfig],
    classes: ClassTable,
) -> list[Row]:
    """The panels of one picture of an image: a row, or several, for each of ``outputs``."""
    labels = [config.label(network_of(model)) for config in configs]
    if kind == 'attention':
        others = _prior_classes(configs) if outputs[0].seam is not None else ()
        return attention_rows(outputs, classes, options, configs, labels, others)
    draw_rows = step_rows if kind == 'steps' else atom_rows
    rows = [
        row
        for out, label in zip(outputs, labels, strict=True)
        for row in draw_rows(out, options, label)
    ]
    options.share_limits(panel for row in rows for panel in row.panels)
    return rows


def _footer(
    kind: str,
    outputs: ModelOutputs,
    model: Model,
    options: ViewOptions,
    configs: list[PanelConfig],
) -> str:
    """What is drawn in one picture of an image, for the small print."""
    (height, width), grid = outputs.image.shape[:2], outputs.grids[-1]
    of_block = block_name(options.layer, model.backbone.trunk.depth)
    if kind == 'steps':
        text = f'|P u| in {of_block}{LIMITS[options.limits]}'
    elif kind == 'atoms':
        text = f'most used atoms of {of_block}'
    else:
        text = maps_footer(model, options)
        if outputs.seam is not None:
            text += ' · on each half its share of the sum'
            if options.threshold is not None:
                text += f' (of norms above the threshold {options.threshold:g})'
        if note := _class_token_note(model, configs):
            text += f' · {note}'
    return f'{text} · {grid.height}x{grid.width} tokens of {height}x{width} px (height x width)'


def _save_panels(
    args: argparse.Namespace, rows: Sequence[Row], size: tuple[int, int], path: str
) -> None:
    """Write every panel of a picture alone, where that is asked for."""
    if args.panels:
        stem = os.path.splitext(os.path.basename(path))[0]
        for name, panel in _named_panels(rows):
            panel_file = os.path.join(args.panels, f'{stem}_{name}.{args.format}')
            save_figure(draw_panel(panel, size), panel_file)


def _named_panels(rows: Sequence[Row]) -> Iterator[tuple[str, Panel]]:
    """Every panel of a picture that shows something, with a name for its file."""
    for number, row in enumerate(rows, 1):
        label = f'{number} {row.label.replace("α", "alpha")}' if len(rows) > 1 else ''
        for panel in row.panels:
            if panel.title:
                yield re.sub(r'[^\w.]+', '-', f'{label} {panel.title}'.lower()).strip('-'), panel


def _prior_classes(configs: Sequence[PanelConfig]) -> tuple[int, ...]:
    indices = (config.class_index for config in configs)
    return tuple(dict.fromkeys(index for index in indices if index is not None))


def _class_token_note(model: Model, configs: Sequence[PanelConfig]) -> str:
    """A warning where class prototypes steer a model that classifies by its class token."""
    if _prior_classes(configs) and model.backbone.out_type == 'cls_token':
        return (
            'class prototypes of a class-token model align with that token, hardly with the patches'
        )
    return ''


def pair_numbers(
    outputs: ModelOutputs,
    config: PanelConfig,
    configs: Sequence[PanelConfig],
    model: Model,
    classes: ClassTable,
) -> dict:
    """One row in numbers, ready for JSON; shares and probabilities from 0 to 1."""
    network = network_of(model)
    result: dict[str, Any] = dict(
        prior=config.name,
        asked=config.half,
        alpha=scale_of(network, config.alpha),
        bottom_up=outputs.norm_shares[0],
    )
    if not isinstance(network, Trunk):
        result |= dict(token_mask=outputs.mask_shares, top_down=outputs.norm_shares[-1])
    if not is_segmentor(model):
        likeliest = int(outputs.prediction.argmax())
        result['prediction'] = classes.names[likeliest]
        result['probabilities'] = {
            classes.names[i]: float(outputs.prediction[i])
            for i in sorted({*_prior_classes(configs), likeliest})
        }
    return result


def pair_sentence(row: dict) -> str:
    """:func:`pair_numbers` in a line."""
    words = [] if row['prior'] is None else [f'prior {row["prior"]}']
    words += [] if row['alpha'] is None else [f'alpha {row["alpha"]:g}']
    half = row['asked'] or 'left'
    shares = [
        f'{name} {"no attention at all" if row[key] is None else f"{row[key][half]:.1%}"}'
        for key, name in (('bottom_up', 'bottom-up'), ('top_down', 'top-down'))
        if key in row
    ]
    if row['prior'] is not None and 'token_mask' in row and row['token_mask'] is None:
        shares.append('no token agrees with the prior, so the mask is 0')
    text = f'  {", ".join([*words, f"on the {half} half"])}: {", ".join(shares)}'
    if 'probabilities' in row:
        text += '; ' + ', '.join(
            f'{name.split(",")[0]} {share:.1%}' for name, share in row['probabilities'].items()
        )
    return text
