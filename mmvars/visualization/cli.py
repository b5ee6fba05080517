"""``mmvars visualize``: attention, prediction, and the steps and atoms of sparse codes."""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence

import torch
from mmengine.config import DictAction
from torch import nn

from mmvars.analysis import Row, draw_figure, resolve_layer, save_figure
from mmvars.checkpoints.files import check_destination, write_text
from mmvars.engine.launch import clear_errors
from mmvars.errors import InputError
from mmvars.visualization.host import ClassTable, Sample, network_of, num_classes_of
from mmvars.visualization.images import (find_images, load_sample, picture_files, test_dataset,
                                         test_pipeline)
from mmvars.visualization.model import build_model, class_metainfo, read_config
from mmvars.visualization.pairs import load_pair, pair_row, pair_sentence
from mmvars.visualization.priors import HELP as PRIOR_HELP
from mmvars.visualization.priors import NamedPrior
from mmvars.visualization.sparse_views import atom_rows, step_rows
from mmvars.visualization.steering import Steering, class_token_note, maps_footer, steerings
from mmvars.visualization.views import (STEP_LIMITS, ViewOptions, check_options, observe, panels_of,
                                        reweights_output)

__all__ = ['main', 'parse_args']

STEP_UNITS = {'relative': ', over its mean', 'shared': '', 'own': ', each in its own range'}
EPILOG = """\
IMAGE_attention.png is written for each image: input | bottom-up attention (token norms of pass 1) |
token mask | top-down attention (token norms of pass 2) | prediction of pass 2. Each combination of
prior and alpha is a row, and the prediction in it is the one under that prior and alpha. A model
without feedback (ViT, RVT, VARS, FAN, GFNet) has one pass, so neither mask nor top-down attention.
Of the rivals of AbS, perceiver_io has one pass too: drawn are its output tokens before and after
the mask; feedback has no mask and takes no --prior; mask_attention takes no --alpha.

--pair LEFT RIGHT puts two photos side by side (Fig. 2.4, 2.5, 2.8): give the class of the left one
and that of the right one as --prior. On every map stand the shares of its sum (of what is above
--threshold) on each half, the asked one in bold; they are printed too, and written with --json.
The prior should be in the space of the patch tokens, as the prototypes of a model with average
pooling are (absvit-tiny-p8-gap); those of a class-token model hardly are.

For VARS, --steps also writes IMAGE_steps.png, how attention comes about in one block (Fig. 1.5):
the map after the start and each recurrent step is |P u|, the norm over the channels of what the
code u of that step reconstructs at each patch. That is what the block hands on, and defined alike
for all dictionaries. Above each map: the share of code entries of at most 1% of the largest, and
the energy of Eq. 1.10 over that of a code of zeros.

--atoms also writes IMAGE_atoms.png, the atoms P_m that the final code uses most (Fig. A.2-A.4), by
their share of the code energy sum_m |P_m|^2 |u_m|^2: masks on the image (vars_d, vars_sd), or
filters, used at every place, origin in the middle (vars_s). Heads, channels and atoms count from 0.
Softmax attention and the Performer have neither; what the average token looks at
(--average-attention) is their map in the thesis (Table 1.4).

  mmvars visualize CONFIG CHECKPOINT photo.jpg --alpha 1 5 10
  mmvars visualize CONFIG CHECKPOINT photos/ --prior "class:golden retriever" class:281 --alpha 10
  mmvars visualize CONFIG CHECKPOINT photo.jpg --steps --atoms 8 --layer 0
  mmvars visualize CONFIG CHECKPOINT --pair cat.jpg dog.jpg --prior class:tabby class:pug \\
      --alpha 1 5 10 --threshold 0.7 --json shares.json
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Draw what bottom-up and top-down attention look at, on images of your own.',
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of a segmentation or classification model')
    parser.add_argument('checkpoint', help='its checkpoint (trained here, or converted)')
    parser.add_argument('images', nargs='*', help='image files, or folders of them')
    parser.add_argument('--pair', nargs=2, metavar=('LEFT', 'RIGHT'),
                        help='instead of images: two photos, drawn side by side as one')
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
                        help='also draw what the last pass added to, or took from, the norms of '
                        'pass 1')
    parser.add_argument('--strength', type=float, default=0.7, metavar='S',
                        help='share of the map\'s colours in the overlay, 0 to 1 (default 0.7)')
    parser.add_argument('--out-dir', default='attention', metavar='DIR',
                        help='where the pictures are written (default: ./attention); older ones '
                        'of the same names are replaced')
    parser.add_argument('--json', metavar='FILE',
                        help='with --pair: also write the shares of the halves, and the '
                        'probabilities of the classes asked for, to FILE')
    parser.add_argument('--overwrite', action='store_true', help='replace FILE')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ... (default: cuda if there is one)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='entries of the config to replace')
    try:
        # Intermixed, so that images may stand after options although there need not be any.
        return parser.parse_intermixed_args(argv)
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
    alphas = [_number('--alpha', word) for word in args.alpha or ()]
    _check_arguments(args)
    images = args.pair or find_images(args.images, args.out_dir)
    cfg = read_config(args.config, args.cfg_options)
    pipeline = test_pipeline(cfg)
    model, meta = build_model(cfg, args.checkpoint, _device(args.device))
    network = network_of(model)
    if args.layer is not None and reweights_output(network) and not (
            args.steps or args.atoms is not None or args.average_attention):
        raise InputError('--layer says where top-down attention is drawn, and this model has it in '
                         "its output alone (design='perceiver_io'): leave it out")
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
    rows = steerings(args.prior, alphas, model, classes, pair=args.pair is not None)
    if network.is_plain:
        print('no feedback: there is one pass, so no token mask and no top-down attention to draw')
    if note := class_token_note(model, rows):
        print(f'{note}; the thesis takes a model with average pooling here, such as '
              'absvit-tiny-p8-gap')
    kinds = ['attention', *['steps'] * args.steps, *['atoms'] * (args.atoms is not None)]
    targets = picture_files(images, args.out_dir, kinds, joined=args.pair is not None)
    patch_size = network.trunk.patch_embed.patch_size
    if args.pair:
        with clear_errors():
            sample = load_pair(*args.pair, pipeline, patch_size)
            figures, numbers = _figures(model, sample, options, rows, classes,
                                        ' + '.join(map(os.path.basename, args.pair)))
        _save(figures, targets[0])
        print(f'{" + ".join(args.pair)} -> {" ".join(targets[0].values())}')
        print('\n'.join(map(pair_sentence, numbers)))
        if args.json:
            result = dict(left=args.pair[0], right=args.pair[1], size=sample.size,
                          seam=sample.seam, layer=None if reweights_output(network)
                          else options.layer, threshold=options.threshold, rows=numbers)
            write_text(args.json, json.dumps(result, indent=1) + '\n', args.overwrite)
        return 0
    failed = 0
    for number, (image, target) in enumerate(zip(images, targets, strict=True), 1):
        try:
            with clear_errors():
                sample = load_sample(image, pipeline, patch_size)
                figures, _ = _figures(model, sample, options, rows, classes,
                                      os.path.basename(image))
        except InputError as error:
            failed += 1
            print(f'[{number}/{len(images)}] not drawn: {error}', file=sys.stderr)
        else:
            _save(figures, target)
            print(f'[{number}/{len(images)}] {image} -> {" ".join(target.values())}', flush=True)
    if failed:
        raise InputError(f'{failed} of {len(images)} images could not be drawn, for the reasons '
                         f'given above; the pictures of the others are in {args.out_dir!r}')
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    for name, value in (('--strength', args.strength), ('--threshold', args.threshold)):
        if value is not None and not 0 <= value <= 1:
            raise InputError(f'{name} must be between 0 and 1, got {value}')
    if args.per_head and args.atoms is None:
        raise InputError('--per-head tells atoms apart: give --atoms K too')
    if args.step_limits and not args.steps:
        raise InputError('--step-limits is about the colours of --steps: give that too')
    if bool(args.images) == bool(args.pair):
        raise InputError('give images to draw, or --pair LEFT RIGHT' if not args.pair else
                         f'--pair draws two photos and nothing else, got {args.images} too')
    for path in args.pair or ():
        if not os.path.isfile(path):
            raise InputError(f'--pair takes two image files, and {path!r} is none')
    if args.json is None:
        return
    if not args.pair:
        raise InputError('--json writes the shares of the two halves: give --pair LEFT RIGHT too')
    for source in (args.config, args.checkpoint, *args.pair):
        check_destination(args.json, source, args.overwrite, suffixes=())


def _save(figures: dict, target: dict[str, str]) -> None:
    for kind, path in target.items():
        save_figure(figures[kind], path)


def _figures(model: nn.Module, sample: Sample, options: ViewOptions, rows: list[Steering],
             classes: ClassTable, name: str) -> tuple[dict, list[dict]]:
    """The figures by kind; of two photos side by side also what the rows say in numbers."""
    network = network_of(model)
    device = next(network.parameters()).device
    panels: dict[str, list[Row]] = {'attention': [], 'steps': [], 'atoms': []}
    numbers = []
    is_pair = sample.seam is not None
    found = [row.prior.class_index for row in rows if row.prior and is_pair]
    others = tuple(dict.fromkeys(index for index in found if index is not None))
    for row in rows:
        prior = row.prior or NamedPrior('')
        vector = None if prior.vector is None else prior.vector.to(device)
        seen = observe(model, sample, options, prior=vector, alpha=row.alpha)
        label = row.label(network)
        panels['attention'].append(
            Row(panels_of(seen, classes, options, prior.class_index, others, row.asked), label))
        if options.steps:
            panels['steps'] += step_rows(seen, options, label)
        if options.atoms is not None:
            panels['atoms'] += atom_rows(seen, options, label)
        if is_pair:
            numbers.append(pair_row(seen, row, rows, model, classes))
    place = f'block {options.layer + 1} of {network.trunk.depth}'
    texts = {'attention': maps_footer(network, options.layer),
             'steps': f'|P u| in {place}{STEP_UNITS[options.step_limits]}',
             'atoms': f'most used atoms of {place}'}
    if is_pair:
        texts['attention'] += ' · on each half its share of the sum'
        if options.threshold is not None:
            texts['attention'] += f' (of norms above the threshold {options.threshold:g})'
    if note := class_token_note(model, rows):
        texts['attention'] += f' · {note}'
    image = f'network input {sample.size[0]}x{sample.size[1]} px (height x width)'
    figures = {kind: draw_figure(panels[kind], sample.size, f'{name} · {texts[kind]} · {image}')
               for kind in panels if panels[kind]}
    return figures, numbers


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
