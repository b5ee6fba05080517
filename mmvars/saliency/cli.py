"""``mmvars attention``: maps of a model against fixations or objects."""

import argparse
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmvars.datasets.files import evenly_spaced, open_image
from mmvars.engine.cpu import pick_device
from mmvars.engine.options import parse_cfg_options
from mmvars.errors import InputError, check_number, did_you_mean
from mmvars.networks.steering import check_top_down
from mmvars.networks.timm_trunk import PREFIX
from mmvars.parsers.attention import MAPS, parse_args
from mmvars.robustness.report import check_replaceable
from mmvars.saliency.data import (
    IGNORED,
    FixationData,
    MaskData,
    find_data,
)
from mmvars.saliency.measures import (
    baselines,
    fixation_scores,
    foreground_counts,
    object_scores,
    seen_labels,
    seen_points,
)
from mmvars.saliency.picture import Observer, attention_figure
from mmvars.saliency.report import Table, fixation_table, object_tables, write_report
from mmvars.saliency.resumed import default_out, identity_of, measured_images, report_of
from mmvars.saliency.subject import (
    CLASS,
    MEAN,
    NORMS,
    RECONSTRUCTION,
    WEIGHTS,
    Subject,
    View,
    load_subject,
)
from mmvars.visualization.draw import resolve_layer
from mmvars.visualization.figure import save_figure
from mmvars.visualization.model import model_files, model_names

__all__ = ['main', 'parse_blocks']

_VERSION = 3  # of the rows: raise it where a number changes
KINDS = dict(zip(MAPS, (NORMS, MEAN, CLASS, RECONSTRUCTION, WEIGHTS), strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure as the command line says; returns the exit status 0.

    Raises:
        InputError: On arguments, a config or files that cannot be used.
    """
    args = parse_args(argv)
    _check(args)
    models = [_files(each) for each in ((args.config, args.checkpoint), *args.against)]
    config, checkpoint = models[0]
    options = dict(parse_cfg_options(args.cfg_options) or {})
    data = _data(args, config, options)
    named = _named(args.figure, data) if args.figure else []
    observers = [
        _load(args, name, files, options)
        for name, files in zip(model_names(models), models, strict=True)
    ]
    if args.steps and not any(each.subject.has_steps(each.blocks) for each in observers):
        raise InputError('--steps is for VARS, and these blocks are of none: leave it out')
    _, subject, blocks = observers[0]
    indices = evenly_spaced(len(data.names), args.images)
    out = Path(args.out or default_out(config, 'attention', args.on))
    check_replaceable(out / 'attention.json', report_of(args, config, checkpoint))
    names = ('objects', 'size', 'crop', 'steps', 'sigma', 'definition', 'alpha', 'seed')
    identity = identity_of(data, subject, config, options, indices)
    identity |= dict(version=_VERSION, blocks=blocks, **{key: getattr(args, key) for key in names})
    images = measured_images(
        out, identity, indices, lambda index: _measure(args, data, subject, blocks, index)
    )
    if not images:
        raise _nothing_seen(args, data, len(indices))
    about = report_of(args, config, checkpoint) | _about(args, data, subject, blocks, images)
    if isinstance(data, FixationData):
        tables = [fixation_table([each['maps'] for each in images], args.seed)]
    else:
        # Where all pixels are of objects, none is falsely marked.
        tables = object_tables(images, args.seed)[0 if data.has_background else 1 :]
    kinds = [KINDS[word] for word in args.maps or KINDS]
    if args.maps:
        tables = _only(tables, kinds)
    settings = {key: value for key, value in vars(args).items() if key != 'out'}
    print('\n' + write_report(out, about, tables, settings))
    if args.figure:
        measured = [data.names.index(image['name']) for image in images]
        if not named:
            count = int(args.figure[0])
            named = [measured[i] for i in evenly_spaced(len(measured), count)]
        figure = attention_figure(observers, data, named, kinds, args)
        save_figure(figure, str(out / 'attention.png'))
    print(f'\nWritten: {out}/attention.txt, .json, .csv, .md' + ', .png' * bool(args.figure))
    return 0


def _files(words: Sequence[str | None]) -> tuple[str, str | None]:
    """Config and checkpoint of a model, or ``timm/NAME`` and its weights."""
    if words[0] is None or not words[0].startswith(PREFIX):
        return model_files(words)
    if len(words) > 2:
        raise InputError(f'--against takes timm/NAME WEIGHTS; got {len(words)} words')
    return words[0], words[1] if len(words) > 1 else None


def _load(
    args: argparse.Namespace, name: str, files: tuple[str, str | None], options: dict
) -> Observer:
    """A model, which must be able to see the images so.

    Raises:
        InputError: If it cannot.
    """
    subject = load_subject(*files, pick_device(args.device), options)
    if args.alpha is not None:
        if subject.network is None:
            raise InputError('--alpha is for top-down attention, and this model has none')
        check_top_down(subject.network, False, True, 'leave --alpha out')
    if args.crop is not None and args.crop % subject.patch:
        raise InputError(
            f'--crop {args.crop} is no multiple of the patch of {name}, {subject.patch} pixels'
        )
    return Observer(name, subject, parse_blocks(args.blocks, subject.depth))


def _named(words: Sequence[str], data: FixationData | MaskData) -> list[int]:
    """The images that ``--figure`` names; none where it says how many.

    Raises:
        InputError: If there are none of that name, or not as many.
    """
    if len(words) == 1 and words[0].isdecimal():
        check_number('--figure', int(words[0]), 1, len(data.names), whole=True)
        return []
    numbers = {name: k for k, name in enumerate(data.names)}
    numbers |= {Path(path).name: k for k, path in enumerate(data.paths)}
    for word in words:
        if word not in numbers:
            raise InputError(
                f'--figure: {data.title} has no image {word!r}{did_you_mean(word, numbers)} '
                '(a number alone is how many images are drawn)'
            )
    return [numbers[word] for word in words]


def _nothing_seen(
    args: argparse.Namespace, data: FixationData | MaskData, count: int
) -> InputError:
    """That there is nothing to compare maps with."""
    what = 'a fixation' if isinstance(data, FixationData) else 'an object'
    remedies = ['leave --crop out'] * (args.crop is not None)
    remedies += ['give other --objects'] * (args.objects is not None)
    remedies += ['look at more --images'] * (count < len(data.names))
    remedies = remedies or ['look at the masks, in which 0 is the background and 255 unlabeled']
    return InputError(
        f'none of the {count} images of {data.title} has {what} in what is seen of it: '
        + ', or '.join(remedies)
    )


def _only(tables: Sequence[Table], kinds: Sequence[str]) -> list[Table]:
    """With the maps of these kinds, and the baselines.

    Raises:
        InputError: If the model has none of a kind.
    """

    def kind_of(name: str) -> str:
        return name.split(', ')[2] if ', ' in name else ''

    known = dict.fromkeys(kind_of(name) for table in tables for name in table.rows)
    _check_kinds(kinds, known)
    return [
        table._replace(rows={k: row for k, row in table.rows.items() if kind_of(k) in ('', *kinds)})
        for table in tables
    ]


def _check_kinds(kinds: Sequence[str], known: Collection[str]) -> None:
    for kind in kinds:
        if kind not in known:
            words = [word for word, each in KINDS.items() if each in known]
            raise InputError(
                f'--maps: this model has no {kind} in these blocks: give {", ".join(words)}'
            )


def _check(args: argparse.Namespace) -> None:
    for name in ('images', 'size', 'crop'):
        if getattr(args, name) is not None:
            check_number(f'--{name}', getattr(args, name), 1, 10_000, whole=True)
    check_number('--seed', args.seed, 0, whole=True)
    if args.sigma is not None:
        check_number('--sigma', args.sigma, 0.1)
    if args.alpha is not None:
        check_number('--alpha', args.alpha, 0)
    if args.against and not args.figure:
        raise InputError('--against draws another model beside this one: give --figure N too')
    if args.crop is not None and args.crop > args.size:
        raise InputError(
            f'--crop {args.crop} is larger than --size {args.size}, the short side that it is cut '
            'from'
        )


def _data(args: argparse.Namespace, config: str, options: dict) -> FixationData | MaskData:
    data = find_data(args.on, args.data_root, config, options, args.drop_first)
    of_fixations = {
        '--drop-first': args.drop_first,
        '--sigma': args.sigma is not None,
        '--definition matlab': args.definition != 'pysaliency',
    }
    for option, is_given in of_fixations.items():
        if is_given and isinstance(data, MaskData):
            raise InputError(
                f'{option} is for fixations, and --on {args.on} are masks: leave it out'
            )
    if args.objects is None:
        return data
    if isinstance(data, FixationData):
        raise InputError(f'--objects is for masks, and --on {args.on} are fixations: leave it out')
    return data.only(args.objects)


def parse_blocks(words: Sequence[str], depth: int) -> list[int]:
    """The numbers that ``--blocks`` means.

    Raises:
        InputError: If there are no such blocks.
    """
    if words == ['default']:
        return [resolve_layer(None, depth)]
    if words == ['all']:
        return list(range(depth))
    try:
        numbers = [int(word) for word in words]
    except ValueError:
        raise InputError(f'--blocks takes numbers, or all; got {" ".join(words)}') from None
    for number in numbers:
        if not -depth <= number < depth:
            raise InputError(
                f'--blocks {number}: the blocks of this model are 0 to {depth - 1}, or {-depth} to '
                '-1 from the end'
            )
    return sorted({number % depth for number in numbers})


def _measure(
    args: argparse.Namespace,
    data: FixationData | MaskData,
    subject: Subject,
    blocks: Sequence[int],
    index: int,
) -> dict[str, Any] | None:
    """What is measured of an image; ``None`` where no fixation or object is in what is seen."""
    with open_image(data.paths[index], data.paths[index]) as image:
        view = subject.view(image, args.size, args.crop)
    own = subject.own_maps(view.pixels, blocks, args.steps, args.alpha)
    known = {name.kind for name in own}
    if isinstance(data, MaskData) and subject.priors.keys() & {*(data.classes or ())}:
        known.add(WEIGHTS)  # of a pass that is told a class
    _check_kinds([KINDS[word] for word in args.maps or ()], known)
    grid = tuple(next(iter(own.values())).shape[1:])
    seed = zlib.crc32(f'{args.seed} {data.names[index]}'.encode())
    maps: dict[str, Tensor] = baselines(view, grid, seed)
    maps |= {str(k): v for k, v in own.items()}
    if isinstance(data, FixationData):
        points, others = seen_points(data, index, view)
        if not len(points):
            return None
        sigma = data.sigma(index) if args.sigma is None else args.sigma
        return dict(
            name=data.names[index],
            points=len(points),
            maps=fixation_scores(maps, view, points, others, sigma, args.definition),
        )
    return _measure_objects(args, data, subject, blocks, index, view, maps)


def _measure_objects(
    args: argparse.Namespace,
    data: MaskData,
    subject: Subject,
    blocks: Sequence[int],
    index: int,
    view: View,
    maps: dict[str, Tensor],
) -> dict[str, Any] | None:
    labels = seen_labels(data, index, view)
    counted = labels != IGNORED
    foreground = counted & (labels > 0)
    if not foreground.any():
        return None
    objects = []
    for label in np.unique(labels[foreground]).tolist():
        steered: dict[str, Tensor] = {}
        seed = zlib.crc32(f'{args.seed} {data.names[index]} {label}'.encode())
        for kind, prior in _priors_of(subject, data.class_name(label), seed).items():
            asked = subject.asked_maps(view.pixels, blocks, args.steps, prior, args.alpha)
            steered |= {f'{k}, {kind}': v for k, v in asked.items()}
        objects.append(object_scores(maps | steered, view, labels == label, counted))
    return dict(
        name=data.names[index],
        share=float(foreground[counted].mean()),
        foreground=foreground_counts(maps, view, foreground, counted),
        objects=objects,
    )


def _priors_of(subject: Subject, name: str, seed: int) -> dict[str, Tensor]:
    """The prior of a class and, as a control, that of another."""
    if name not in subject.priors:
        return {}
    priors = {'class prior': subject.priors[name]}
    if others := [each for each in subject.priors if each != name]:
        other = np.random.default_rng(seed).choice(others)
        priors['another class'] = subject.priors[str(other)]
    return priors


def _about(
    args: argparse.Namespace,
    data: FixationData | MaskData,
    subject: Subject,
    blocks: Sequence[int],
    images: Sequence[dict[str, Any]],
) -> dict[str, str]:
    """The head of the report, after what it is of."""
    seen = f'short side {args.size}' + (
        f', the middle {args.crop}x{args.crop}' if args.crop else ', whole'
    )
    about = {
        'data': f'{data.title}, {len(images)} of {len(data.names)} images; {seen}, in patches of '
        f'{subject.patch}; measured at the pixels of the files',
        'blocks': f'{", ".join(map(str, blocks))} (of 0 to {subject.depth - 1})',
    }
    if isinstance(data, FixationData):
        count = sum(image['points'] for image in images)
        left_out = f'; {data.left_out} outside of their images left out' if data.left_out else ''
        if args.sigma is None:
            width = f'{data.degree[0]:g} of {data.degree[1]} columns' if data.degree else '3 %'
            blur = f'one degree, {width}' if data.degree else f'{width} of the width'
        else:
            blur = f'{args.sigma:g} pixels'
        dropped = ', without the first of each observer' if args.drop_first else ''
        about['fixations'] = f'{count}{dropped}{left_out}; blurred for CC, KL and SIM by {blur}'
        about['definition'] = args.definition
    else:
        share = float(np.mean([image['share'] for image in images]))
        objects = sum(len(image['objects']) for image in images)
        about['objects'] = f'{objects}; {share:.3f} of the pixels, mean over the images'
        if not data.has_background:
            about['foreground'] = (
                'left out: all pixels with a label are of a class, so that there is no background; '
                'give --objects'
            )
    return about
