"""``mmvars probe``: images decoded from the bottom-up and top-down input of the first block."""

import argparse
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmvars.datasets.files import evenly_spaced, open_image
from mmvars.engine.cpu import pick_device
from mmvars.engine.options import parse_cfg_options
from mmvars.errors import InputError, check_number
from mmvars.networks import TopDown
from mmvars.networks.feedback import Feedback
from mmvars.networks.steering import check_top_down, feeds_back_unasked, given_priors
from mmvars.networks.timm_trunk import PREFIX
from mmvars.networks.top_down import FirstPassOutput
from mmvars.parsers.probe import parse_args
from mmvars.predictor import run_files
from mmvars.robustness.report import check_replaceable
from mmvars.saliency.data import IGNORED, FixationData, MaskData, find_data
from mmvars.saliency.measures import seen_labels
from mmvars.saliency.probing import (
    SCORES,
    Decoder,
    DecoderFit,
    embedded_patches,
    probe_scores,
)
from mmvars.saliency.report import Table, write_report
from mmvars.saliency.resumed import (
    CHUNK,
    default_out,
    identity_of,
    measured_images,
    progress,
    report_of,
)
from mmvars.saliency.subject import Subject, View, load_subject
from mmvars.steerability.estimates import Estimate, Resamples, Tally
from mmvars.visualization.figure import Picture, Row, draw_figure, save_figure

__all__ = ['main']

BOTTOM_UP = 'bottom-up'
OF_PRIOR = ('class prior', 'own prior', 'object prior')
"""Top-down inputs that are no control."""
_VERSION = 1  # of the rows: raise it where a number changes
HELD_OUT = 10
"""One of so many images that the decoder is made of chooses the ridge."""


@dataclass
class _Example:
    """What the picture shows of an object."""

    image: np.ndarray
    inside: np.ndarray
    decoded: Mapping[str, np.ndarray]
    label: str


def main(argv: Sequence[str] | None = None) -> int:
    """Probe as the command line says; returns the exit status 0.

    Raises:
        InputError: On arguments, a config or files that cannot be used.
    """
    args = parse_args(argv)
    for name in ('images', 'size'):
        if getattr(args, name) is not None:
            check_number(f'--{name}', getattr(args, name), 1, 10_000, whole=True)
    for name in ('seed', 'examples'):
        check_number(f'--{name}', getattr(args, name), 0, whole=True)
    if args.alpha is not None:
        check_number('--alpha', args.alpha, 0)
    config, checkpoint = args.config, args.checkpoint
    if not config.startswith(PREFIX):
        config, checkpoint = run_files(config, checkpoint)
    options = dict(parse_cfg_options(args.cfg_options) or {})
    data = _masks(args, config, options)
    subject = load_subject(
        config, None if checkpoint is None else str(checkpoint), pick_device(args.device), options
    )
    if subject.trunk is None:
        raise InputError(
            'the tokens of this model are not known here: give a network of mmvars, or timm/NAME'
        )
    if args.alpha is not None:
        network = subject.network or subject.trunk
        check_top_down(network, bool(subject.priors), True, 'leave --alpha out')
    _check_count(args, data, subject)
    out = Path(args.out or default_out(config, 'probe', args.on))
    _make_folder(out)
    report = report_of(args, config, checkpoint)
    check_replaceable(out / 'probe.json', report)
    indices = evenly_spaced(len(data.names), args.images)
    names = ('objects', 'size', 'after_norm', 'alpha', 'seed')
    identity = identity_of(data, subject, config, options, indices)
    identity |= dict(probe=_VERSION, **{key: getattr(args, key) for key in names})
    with torch.no_grad():
        decoder = _fit(args, data, subject, indices[::2])
        rows = measured_images(
            out,
            identity,
            indices[1::2],
            lambda index: _scores(args, data, subject, decoder, index),
        )
        examples = _examples(args, data, subject, decoder, indices[1::2])
    images = [row['objects'] for row in rows]
    if not images:
        raise InputError(
            f'none of the {len(indices[1::2])} images of {data.title} that are measured has an '
            'object and a background: look at more --images, give other --objects, or look at the '
            'masks'
        )
    about = {
        **report,
        'data': f'{data.title}, {len(indices)} of {len(data.names)} images, short side {args.size}',
        'tokens': 'input of the first block, '
        + ('after its norm' if args.after_norm else 'before its norm'),
        'decoder': f'of {len(indices[::2])} images; ridge {decoder.ridge:g}; R2 of those of them '
        f'that chose it {decoder.r2:.4f}',
        'measured': f'{sum(map(len, images))} objects in {len(images)} other images',
        'top-down input': _kind_of_prior(subject),
    }
    settings = {key: value for key, value in vars(args).items() if key != 'out'}
    print('\n' + write_report(out, about, [_table(images, args.seed)], settings, 'probe'))
    if examples:
        save_figure(_figure(examples), str(out / 'probe.png'))
    print(f'\nWritten: {out}/probe.txt, .json, .csv, .md' + ', .png' * bool(examples))
    return 0


def _make_folder(out: Path) -> None:
    """Before anything is measured.

    Raises:
        InputError: If it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f'--out {out} cannot be made a folder ({error.strerror}): give another'
        ) from None


def _masks(args: argparse.Namespace, config: str, options: dict) -> MaskData:
    data = find_data(args.on, args.data_root, config, options)
    if isinstance(data, FixationData):
        raise InputError(
            f'--on {args.on} are fixations, and R2 is measured inside and outside of masks: give '
            'voc, test, or a folder with masks'
        )
    return data if args.objects is None else data.only(args.objects)


def _kind_of_prior(subject: Subject) -> str:
    """Which prior the top-down input is of; what the lack of one is due to."""
    network = subject.network
    if not isinstance(network, TopDown) or not isinstance(network.feedback, Feedback):
        return 'none: the network has no decoders'
    own, of_class = feeds_back_unasked(network), bool(subject.priors)
    of_object = network.prior is not None and not of_class
    kinds = ['own prior'] * own + ['class prior'] * of_class + ['object prior'] * of_object
    return ', '.join(kinds)


def _fit(
    args: argparse.Namespace, data: MaskData, subject: Subject, indices: Sequence[int]
) -> Decoder:
    """The decoder of the bottom-up tokens of these images, in one pass."""
    trunk: Any = subject.trunk
    fit = DecoderFit(trunk)
    print(f'fitting the decoder to {len(indices)} images', flush=True)
    start = time.monotonic()
    for number, index in enumerate(indices):
        view = _view(args, data, subject, index)
        embedded, grid = trunk.forward_embed(subject.normalize(view.pixels))
        tokens = embedded_patches(_normed(args, trunk, embedded), grid)
        fit.add(tokens, view.pixels, held_out=number % HELD_OUT == 0)
        done = number + 1
        if done % CHUNK == 0 or done == len(indices):
            print(progress(done, len(indices), (time.monotonic() - start) / done), flush=True)
    return fit.solve()


def _check_count(args: argparse.Namespace, data: MaskData, subject: Subject) -> None:
    """Refuse too few images before the decoder's pass: their tokens follow from the sizes alone.

    Raises:
        InputError: With the least ``--images`` that would do.
    """
    trunk: Any = subject.trunk
    needed, patch, total = trunk.widths[0] + 1, trunk.strides[0], len(data.names)

    @cache
    def tokens_of(index: int) -> int:
        height, width, _ = _view(args, data, subject, index).pixels.shape
        return height * width // patch**2

    def tokens(count: int) -> int:
        found = 0
        for number, index in enumerate(evenly_spaced(total, count)[::2]):
            if number % HELD_OUT and found < needed:  # no more images are read than that takes
                found += tokens_of(index)
        return found

    count = min(args.images or total, total)
    if (found := tokens(count)) >= needed:
        return
    least = next((each for each in range(count + 1, total + 1) if tokens(each) >= needed), None)
    remedy = 'give a larger --size' if least is None else f'give --images {least}, or more'
    raise InputError(
        f'{count} images of --size {args.size} have {found} tokens to fit the decoder, which needs '
        f'{needed}, one more than there are channels: {remedy}'
    )


def _view(args: argparse.Namespace, data: MaskData, subject: Subject, index: int) -> View:
    with open_image(data.paths[index], data.paths[index]) as image:
        return subject.view(image, args.size, None)


def _normed(args: argparse.Namespace, trunk: Any, embedded: Tensor) -> Tensor:
    return trunk.blocks[0].norm1(embedded) if args.after_norm else embedded


def _scores(
    args: argparse.Namespace, data: MaskData, subject: Subject, decoder: Decoder, index: int
) -> dict[str, Any] | None:
    """The scores of each object of an image; ``None`` where there is none."""
    objects, _ = _measure(args, data, subject, decoder, index)
    return dict(name=data.names[index], objects=objects) if objects else None


def _examples(
    args: argparse.Namespace,
    data: MaskData,
    subject: Subject,
    decoder: Decoder,
    indices: Sequence[int],
) -> list[_Example]:
    """What the picture shows, of evenly spaced images."""
    if not args.examples:
        return []
    shown = evenly_spaced(len(indices), args.examples)
    examples = [_measure(args, data, subject, decoder, indices[i])[1] for i in shown]
    return [each for each in examples if each is not None]


def _measure(
    args: argparse.Namespace, data: MaskData, subject: Subject, decoder: Decoder, index: int
) -> tuple[list[dict[str, list[float]]], Any]:
    view = _view(args, data, subject, index)
    labels = _labels(data, index, view)
    counted = labels != IGNORED
    found, sizes = np.unique(labels[counted & (labels > 0)], return_counts=True)
    if not len(found):
        return [], None
    trunk: Any = subject.trunk
    pixels = subject.normalize(view.pixels)
    if subject.network is None or _kind_of_prior(subject).startswith('none'):
        embedded, grid = trunk.forward_embed(pixels)
        first = None
    else:
        first = subject.network.forward_first_pass(pixels)
        embedded, grid = first.embedded, first.grid
    tokens = embedded_patches(_normed(args, trunk, embedded), grid)
    image, mean = view.pixels / 255, decoder.mean_image(grid)
    objects, example = [], None
    for label, size in zip(found.tolist(), sizes, strict=True):
        if (labels[counted] == label).all():
            continue  # there is no outside
        name = data.class_name(label)
        seed = zlib.crc32(f'{args.seed} {data.names[index]} {label}'.encode())
        inside = labels == label
        signals = {} if first is None else _signals(subject, first, name, inside, args.alpha, seed)
        decoded = {BOTTOM_UP: decoder(tokens, grid)}
        for kind, signal in signals.items():
            decoded[f'top-down, {kind}'] = decoder(signal, grid)
            decoded[f'sum, {kind}'] = decoder(tokens + signal, grid)
        objects.append(probe_scores(decoded, image, mean, inside, counted))
        if size == sizes.max() or example is None:
            example = _Example(image, inside, decoded, name or f'label {label}')
    return objects, example


def _labels(data: MaskData, index: int, view: View) -> np.ndarray:
    """Labels at the pixels that the model sees."""
    labels = seen_labels(data, index, view)
    size = view.pixels.shape[1], view.pixels.shape[0]
    return np.asarray(
        Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
    )


def _signals(
    subject: Subject,
    first: FirstPassOutput,
    name: str,
    inside: np.ndarray,
    alpha: float | None,
    seed: int,
) -> dict[str, Tensor]:
    """Kind of prior -> top-down input of the first block, patches ``(h w, C)``."""
    network = subject.network
    rng = np.random.default_rng(seed)
    priors: dict[str, Tensor | None] = {}
    if feeds_back_unasked(network):
        priors['own prior'] = None if network.prior is None else network.prior.default()[0]
    if name in subject.priors:
        priors['class prior'] = subject.priors[name]
        if others := [each for each in subject.priors if each != name]:
            priors['another class'] = subject.priors[str(rng.choice(others))]
    if not subject.priors and network.prior is not None:
        priors['object prior'] = _region_prior(network, first, inside)
        priors['prior of the rest'] = _region_prior(network, first, ~inside)
    if not priors:
        return {}
    stacked = None
    if network.prior is not None:
        vector = torch.from_numpy(rng.standard_normal(network.trunk.embed_dim)).float()
        priors['random prior'] = vector.to(first.embedded.device)
        stacked = torch.stack([*priors.values()])
    count = len(priors)
    tokens, embedded = (x.expand(count, -1, -1) for x in (first.output.tokens, first.embedded))
    first = first._replace(output=first.output._replace(tokens=tokens), embedded=embedded)
    with given_priors(network):
        top_down = network.forward_second_pass(first, stacked, alpha).top_down[0]
    grid = network.trunk.block_grids(first.grid)[0]
    signals = dict(zip(priors, grid.patch_tokens(top_down), strict=True))
    order = torch.from_numpy(rng.permutation(grid.num_patches)).to(top_down.device)
    for kind in OF_PRIOR:
        if kind in signals:
            signals[f'{kind}, shuffled'] = signals[kind][order]
    return signals


def _region_prior(network: Any, first: FirstPassOutput, inside: np.ndarray) -> Tensor:
    """The prior that a mask asks by: the mean output token of the first pass at its pixels.

    Less the center of the prior and whitened, where it has these, as for ``mmvars.Predictor``.
    """
    grid, prior = first.output.grid, network.prior
    shares = F.adaptive_avg_pool2d(torch.from_numpy(inside).float()[None], grid[:2]).flatten()
    tokens = grid.patch_tokens(first.output.tokens)[0]
    shares = (shares / shares.sum()).to(tokens)
    mean = shares @ tokens
    if prior.center is not None:
        mean = mean - prior.center
    return mean if prior.whitening is None else mean @ prior.whitening


def _table(images: Sequence[Sequence[Mapping[str, list[float]]]], seed: int) -> Table:
    """Over all objects; R2 is one less the sum of all errors over that of the mean patch."""
    draws = Resamples(len(images), seed)
    scored = [(i, scores) for i, objects in enumerate(images) for scores in objects]
    rows: dict[str, list[Estimate]] = {}
    for name in dict.fromkeys(name for _, scores in scored for name in scores):
        tallies = [Tally() for _ in range(4)]
        for i, scores in scored:
            if name in scores:
                for side in (0, 1):
                    error, total, correlation = scores[name][3 * side : 3 * side + 3]
                    tallies[side].add(i, total - error, total)
                    tallies[2 + side].add(i, correlation)
        inside, outside, r_inside, r_outside = tallies
        rows[name] = [
            draws.estimate(inside),
            draws.estimate(outside),
            draws.estimate(r_inside),
            draws.estimate(r_outside),
            draws.estimate(r_inside, minus=r_outside),
        ]
    return Table('images from the tokens of the first block (Fig. 2.9)', SCORES, rows)


def _figure(examples: Sequence[_Example]) -> Any:
    rows = []
    for each in examples:
        dimmed = np.where(each.inside[..., None], each.image, 0.25 * each.image)
        panels = [Picture(each.image, title='image'), Picture(dimmed, title='object')]
        for name, decoded in each.decoded.items():
            if name == BOTTOM_UP or name.endswith(OF_PRIOR):
                kind, _, prior = name.partition(', ')
                panels.append(Picture(_shown(decoded, each.image), title=kind, note=prior))
        rows.append(Row(panels, each.label))
    footer = (
        'Each decoded image is brought to the mean and standard deviation of the image, a channel '
        'at a time: what top-down input adds can be far from 0 to 1.'
    )
    width = max(len(row.panels) for row in rows)
    rows = [row for row in rows if len(row.panels) == width]
    return draw_figure(rows, examples[0].image.shape[:2], footer)


def _shown(decoded: np.ndarray, image: np.ndarray) -> np.ndarray:
    axes = (0, 1)
    scaled = (decoded - decoded.mean(axes)) / np.maximum(decoded.std(axes), 1e-9)
    return np.clip(scaled * image.std(axes) + image.mean(axes), 0, 1)
