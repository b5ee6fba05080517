"""``mmvars visualize``: attention, prediction, and the steps and atoms of sparse codes."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from itertools import product

import torch
from mmengine.config import DictAction
from torch import nn

from mmvars.analysis import Row, draw_figure, resolve_layer, save_figure
from mmvars.engine.launch import clear_errors
from mmvars.errors import InputError
from mmvars.visualization.host import ClassTable, Sample, network_of, num_classes_of
from mmvars.visualization.images import find_images, load_sample, test_dataset, test_pipeline
from mmvars.visualization.model import build_model, class_metainfo, read_config
from mmvars.visualization.priors import HELP as PRIOR_HELP
from mmvars.visualization.priors import NamedPrior, resolve_prior
from mmvars.visualization.sparse_views import atom_rows, step_rows
from mmvars.visualization.views import (STEP_LIMITS, ViewOptions, check_options, observe, panels_of)

__all__ = ['main', 'parse_args']

STEP_UNITS = {'relative': ', over its mean', 'shared': '', 'own': ', each in its own range'}
EPILOG = """\
IMAGE_attention.png is written for each image: input | bottom-up attention (token norms of pass 1) |
token mask | top-down attention (token norms of pass 2) | prediction of pass 2. Each combination of
prior and alpha is a row, and the prediction in it is the one under that prior and alpha. A model
without feedback (ViT, RVT, VARS, GFNet) has one pass, so neither mask nor top-down attention.

For VARS, --steps also writes IMAGE_steps.png, how attention comes about in one block (Fig. 1.5):
the map after the start and each recurrent step is |P u|, the norm over the channels of what the
code u of that step reconstructs at each patch. That is what the block hands on, and defined alike
for all dictionaries. Above each map: the share of code entries of at most 1% of the largest, and
the energy of Eq. 1.10 over that of a code of zeros.

--atoms also writes IMAGE_atoms.png, the atoms P_m that the final code uses most (Fig. A.2-A.4), by
their share of the code energy sum_m |P_m|^2 |u_m|^2: masks on the image (vars_d, vars_sd), or
filters, used at every place, origin in the middle (vars_s). Heads, channels and atoms count from 0.
Softmax attention and the Performer have neither; what the average token looks at
(--average-attention) is the map of softmax attention in the thesis (Table 1.4).

  mmvars visualize CONFIG CHECKPOINT photo.jpg --alpha 1 5 10
  mmvars visualize CONFIG CHECKPOINT photos/ --prior "class:golden retriever" class:281 --alpha 10
  mmvars visualize CONFIG CHECKPOINT photo.jpg --steps --atoms 8 --layer 0
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Draw what bottom-up and top-down attention look at, on images of your own.',
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of a segmentation or classification model')
    parser.add_argument('checkpoint', help='its checkpoint (trained here, or converted)')
    parser.add_argument('images', nargs='+', help='image files, or folders of them')
    parser.add_argument('--prior', nargs='+', metavar='PRIOR', help=PRIOR_HELP)
    parser.add_argument('--alpha', nargs='+', metavar='A',
                        help='scale of the top-down signal (default: the model\'s own, usually 1; '
                        'the thesis uses 10 for scenes with several objects); several values make '
                        'a row of panels each')
    parser.add_argument('--layer', type=int, metavar='I',
                        help='block whose output tokens (and steps and atoms) are drawn, 0-based, '
                        'negative from the end; default: the last but three (block 8 of 0..11), '
                        'where the authors look')
    parser.add_argument('--steps', action='store_true',
                        help='also draw the attention map after each recurrent step of VARS')
    parser.add_argument('--atoms', type=int, metavar='K',
                        help='also draw the K most used atoms of the dictionary of VARS (of the '
                        'dynamic and of the static one, where there are two)')
    parser.add_argument('--per-head', action='store_true',
                        help='with --atoms: the K most used of each head, instead of all heads')
    parser.add_argument('--step-limits', choices=STEP_LIMITS,
                        help='colours of --steps: relative (default) draws each map over its own '
                        'mean, all in one range, so that a sharper map has a higher peak; shared '
                        'draws the norms themselves in one range; own each in its own range')
    parser.add_argument('--threshold', type=float, metavar='F',
                        help='draw only what is above min + F (max - min) of a map; the authors\' '
                        'demonstration of controllable attention uses 0.7')
    parser.add_argument('--class-attention', action='store_true',
                        help='also draw what the class token attends to in the last block')
    parser.add_argument('--average-attention', action='store_true',
                        help='also draw what the average token attends to in the block: the mean '
                        'of all rows of the attention matrix, over all heads')
    parser.add_argument('--difference', action='store_true',
                        help='also draw what pass 2 added to, or took from, the norms of pass 1')
    parser.add_argument('--strength', type=float, default=0.7, metavar='S',
                        help='share of the map\'s colours in the overlay, 0 to 1 (default 0.7)')
    parser.add_argument('--out-dir', default='attention', metavar='DIR',
                        help='where the pictures are written (default: ./attention); older ones '
                        'of the same names are replaced')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ... (default: cuda if there is one)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='entries of the config to replace')
    try:
        return parser.parse_args(argv)
    except (AssertionError, ValueError) as error:  # mmengine's DictAction
        parser.error(f'--cfg-options: entries have the form KEY=VALUE ({error})')


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see ``--help``.

    Returns:
        0 if every image was drawn.

    Raises:
        InputError: On bad input. An image that cannot be drawn is named at once, does not stop the
            others, and is counted in the error at the end.
    """
    args = parse_args(argv)
    alphas = [_number('--alpha', word) for word in args.alpha or ()] or [None]
    if not 0 <= args.strength <= 1:
        raise InputError(f'--strength must be between 0 and 1, got {args.strength}')
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise InputError(f'--threshold must be between 0 and 1, got {args.threshold}')
    if args.per_head and args.atoms is None:
        raise InputError('--per-head tells atoms apart: give --atoms K too')
    if args.step_limits and not args.steps:
        raise InputError('--step-limits is about the colours of --steps: give that too')
    images = find_images(args.images, args.out_dir)
    cfg = read_config(args.config, args.cfg_options)
    pipeline = test_pipeline(cfg)
    model, meta = build_model(cfg, args.checkpoint, _device(args.device))
    network = network_of(model)
    classes = ClassTable.of(num_classes_of(model), *class_metainfo(test_dataset(cfg), meta))
    options = ViewOptions(layer=resolve_layer(args.layer, network.trunk.depth),
                          threshold=args.threshold, class_attention=args.class_attention,
                          average_attention=args.average_attention, difference=args.difference,
                          strength=args.strength, steps=args.steps, atoms=args.atoms,
                          per_head=args.per_head,
                          step_limits=args.step_limits or STEP_LIMITS[0])
    check_options(network, options)
    if (cfg.model.get('test_cfg') or {}).get('mode') == 'slide':
        print('the config tests with sliding windows; here each image is one forward, so that maps '
              'and segmentation belong together')
    combinations = _combinations(args.prior, alphas, model, classes)
    targets = _targets(images, args.out_dir, ['attention', *['steps'] * args.steps,
                                              *['atoms'] * (args.atoms is not None)])
    failed = 0
    for number, (image, target) in enumerate(zip(images, targets, strict=True), 1):
        try:
            with clear_errors():
                sample = load_sample(image, pipeline, network.trunk.patch_embed.patch_size)
                figures = _figures(model, sample, options, combinations, classes,
                                   os.path.basename(image))
        except InputError as error:
            failed += 1
            print(f'[{number}/{len(images)}] not drawn: {error}', file=sys.stderr)
        else:
            for kind, path in target.items():
                save_figure(figures[kind], path)
            print(f'[{number}/{len(images)}] {image} -> {" ".join(target.values())}', flush=True)
    if failed:
        raise InputError(f'{failed} of {len(images)} images could not be drawn, for the reasons '
                         f'given above; the pictures of the others are in {args.out_dir!r}')
    return 0


def _figures(model: nn.Module, sample: Sample, options: ViewOptions,
             combinations: list[tuple[NamedPrior, float | None]], classes: ClassTable,
             name: str) -> dict:
    network = network_of(model)
    device = next(network.parameters()).device
    rows: dict[str, list[Row]] = {'attention': [], 'steps': [], 'atoms': []}
    for prior, alpha in combinations:
        vector = None if prior.vector is None else prior.vector.to(device)
        seen = observe(model, sample, options, prior=vector, alpha=alpha)
        label = ''
        if network.feedback is not None:
            label = f'prior: {prior.label}\nα = {network.alpha if alpha is None else alpha:g}'
        rows['attention'].append(Row(panels_of(seen, classes, options, prior.class_index), label))
        if options.steps:
            rows['steps'] += step_rows(seen, options, label)
        if options.atoms is not None:
            rows['atoms'] += atom_rows(seen, options, label)
    place = f'block {options.layer + 1} of {network.trunk.depth}'
    texts = {'attention': f'token norms after {place}',
             'steps': f'|P u| in {place}{STEP_UNITS[options.step_limits]}',
             'atoms': f'most used atoms of {place}'}
    image = f'network input {sample.size[0]}x{sample.size[1]} px (height x width)'
    if network.feedback is None:
        texts['attention'] += ' · no feedback: one pass, no token mask, no top-down attention'
    return {kind: draw_figure(rows[kind], sample.size, f'{name} · {texts[kind]} · {image}')
            for kind in rows if rows[kind]}


def _combinations(words: list[str] | None, alphas: list[float | None], model: nn.Module,
                  classes: ClassTable) -> list[tuple[NamedPrior, float | None]]:
    if network_of(model).feedback is None:
        if words or alphas != [None]:
            raise InputError('--prior and --alpha steer top-down attention, and this model has no '
                             'feedback: leave them out, or take an AbSViT')
        print('no feedback: there is one pass, so no token mask and no top-down attention to draw')
        return [(NamedPrior(''), None)]
    priors = [resolve_prior(word, model, classes) for word in words or ['query']]
    return list(product(priors, alphas))


def _targets(images: list[str], out_dir: str, kinds: list[str]) -> list[dict[str, str]]:
    """A file for each image and kind of picture, different even where images' names are the same.

    Raises:
        InputError: If a picture would overwrite one of the images.
    """
    sources = {os.path.realpath(image) for image in images}
    targets: list[dict[str, str]] = []
    taken: set[str] = set()
    for image in images:
        name, count = os.path.splitext(os.path.basename(image))[0], 1
        stem = name
        while stem in taken:
            count += 1
            stem = f'{name}-{count}'
        taken.add(stem)
        targets.append({kind: os.path.join(out_dir, f'{stem}_{kind}.png') for kind in kinds})
        for target in targets[-1].values():
            if os.path.realpath(target) in sources:
                raise InputError(f'the picture {target!r} would overwrite an image of that name: '
                                 'give another --out-dir')
    return targets


def _number(option: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise InputError(f'{option} must be a number, got {word!r} (options go after the '
                         'images)') from None
    if not math.isfinite(value) or value < 0:
        raise InputError(f'{option} must be a finite number of at least 0, got {word}')
    return value


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f'--device {name!r} cannot be used here ({reason}); try cpu') from error
    return device
