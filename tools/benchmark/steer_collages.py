"""Does top-down attention steer? Collages of photographs, and a prior that names one of them.

    python tools/benchmark/steer_collages.py DATA --pretrained trunk.pth --depth 10 --out DIR

DATA holds `train/CLASS/*` and `val/CLASS/*`. Each class has a prototype, the mean output token of a
few photographs less `prior.center`, and a linear classifier reads the mean output token of a pass.
Trunk, decoders (pre-tuned on the training photographs), prototypes and classifier stay as they are.
The gates and `to_value` of the feedback are trained for a few steps on collages of two other
training photographs, to make the classifier name the one whose prototype is the prior. Everything
is measured on photographs of `val`: alone, two side by side, and four in a square, which the
training has not seen. Each seed draws the photographs of the prototypes and all collages anew.

The tile of a prior is the photograph that it names; a random prior, and that of an absent class,
are assigned one. Columns:

answer: The classifier names the class of the tile. Chance: 1 / classes.
all: It does so for every tile of the collage, each with its own prior.
prior: It names the class of the prior, be that in the collage or not.
margin: Score of the tile's class less the highest of the other tiles' classes; of a photograph
    alone, less the highest of all others. The classifier was fit to scores of 1 and 0.
share: Part of the map that lies on the tile. The map is the norm of each token's change from the
    first to the second pass; for reweighting, the weight; without a prior, the norm of the token.
    A map that does not depend on the prior has 1 / tiles.
largest: The tile has the largest part of the map. Chance: 1 / tiles.
change: Mean norm of the change over the mean norm of the tokens.

Rows: `first pass` has no prior. `reweighting` is PerceiverIO: the mean token weighted by w^k, with
the best k on training collages; `trained` adds a linear map of that token, trained as the feedback
is. `untrained feedback` has all gates open alike, as far as is best on training collages. Priors
are those of the tile, where the row does not say something else.
"""

import argparse
import copy
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm.data
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.cli import run_tool
from mmvars.errors import InputError, check_number
from mmvars.networks import FirstPassOutput, create_model, pretune
from mmvars.networks.feedback import token_weights

LAYOUTS = {'photo': (1, 1), 'pair': (1, 2), 'square': (2, 2)}
"""Rows and columns of tiles."""

COLUMNS = ('answer', 'all', 'prior', 'margin', 'share', 'largest', 'change')
POWERS = (1, 2, 4, 8)
OPENINGS = (0.03, 0.1, 0.3, 1.0)
"""tanh of the gates that are opened by hand."""

BATCH = 16
SHARPNESS = 20
"""From scores, fit to 1 and 0, to logits."""


class Reading(NamedTuple):
    """What is read of collages with a prior each.

    Attributes:
        features: ``(B, C)``, the classifier's input.
        map: ``(B, h w)``, see the head of this file.
        change: ``(B,)``, likewise.
    """

    features: Tensor
    map: Tensor
    change: Tensor


Reader = Callable[[FirstPassOutput, Tensor], Reading]
"""From first passes and priors ``(B, C)``."""


@dataclass(frozen=True)
class Task:
    """What does not train beside the network.

    Attributes:
        prototypes: ``(K, C)``.
        weight, bias: Of the classifier, ``(C, K)`` and ``(K,)``.
    """

    prototypes: Tensor
    weight: Tensor
    bias: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """``(B, K)`` of ``(B, C)``."""
        return features @ self.weight + self.bias


@dataclass(frozen=True)
class Collages:
    """Attributes:
    images: ``(n, 3, H, W)``.
    labels: ``(n, tiles)`` classes.
    absent: ``(n, tiles)`` classes that are not in the collage.
    first: The first passes.
    layout: Rows and columns of tiles.
    """

    images: Tensor
    labels: Tensor
    absent: Tensor
    first: FirstPassOutput
    layout: tuple[int, int]


def main(argv: list[str] | None = None) -> int:
    """Train and measure; print tables, and write them and pictures.

    Args:
        argv: Arguments; ``None`` for the command line's.

    Returns:
        Exit status 0.

    Raises:
        InputError: If an argument or the data cannot be used.
    """
    args = parse_args(argv)
    network: Any = create_model(
        args.arch,
        'absvit',
        'given',
        args.alpha,
        depth=args.depth,
        num_classes=0,
        pretrained=args.pretrained != 'none' and (args.pretrained or True),
    )
    network.eval().requires_grad_(False)
    train, val = (load_photos(network, args.data / split, args.tile) for split in ('train', 'val'))
    if len(train) != len(val):
        raise InputError(f'{args.data} has {len(train)} classes in train and {len(val)} in val')
    args.out.mkdir(parents=True, exist_ok=True)
    pretune(network, torch.cat(train).split(BATCH))
    if args.dtype == 'bfloat16':
        autocast = torch.autocast('cpu', torch.bfloat16)
        network.forward_first_pass = autocast(network.forward_first_pass)
        network.forward_second_pass = autocast(network.forward_second_pass)
    pretuned = copy.deepcopy(network.feedback.state_dict())
    report: dict[str, Any] = dict(settings={key: str(value) for key, value in vars(args).items()})
    report['seeds'] = []
    for seed in args.seeds:
        network.feedback.requires_grad_(False).load_state_dict(pretuned)
        report['seeds'].append(run_seed(network, train, val, seed, args))
        (args.out / 'steer.json').write_text(json.dumps(report, indent=1))
        (args.out / 'steer.md').write_text(render(report['seeds']))
    print(render(report['seeds']))
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read and check the arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('data', type=Path, help='folder with train/CLASS/* and val/CLASS/*')
    parser.add_argument('--arch', default='timm/vit_small_patch14_dinov2', help='trunk')
    parser.add_argument('--depth', type=int, help='blocks to keep, from the first on')
    parser.add_argument(
        '--pretrained',
        metavar='FILE',
        help="weights of the trunk, as timm or its authors name them; default: timm's own; none: "
        'random ones',
    )
    parser.add_argument('--alpha', type=float, default=3.0, help='scale of the signal')
    parser.add_argument('--tile', type=int, default=112, help='side of a photograph, pixels')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument(
        '--steps', type=int, nargs='+', default=[40, 80, 160], help='measured after'
    )
    parser.add_argument(
        '--batch-size', type=int, default=4, help='collages a step, two priors each'
    )
    parser.add_argument('--collages', type=int, default=60, help='held-out ones; a quarter squares')
    parser.add_argument('--prototype-photos', type=int, default=20, help='of each class')
    parser.add_argument('--lr', type=float, default=1e-3, help='of to_value; gates: 30 times this')
    parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16'])
    parser.add_argument('--out', type=Path, required=True, help='folder for tables and pictures')
    args = parser.parse_args(argv)
    for name in ('tile', 'batch_size', 'collages', 'prototype_photos'):
        check_number(f'--{name.replace("_", "-")}', getattr(args, name), 1, 10_000, whole=True)
    for steps in args.steps:
        check_number('--steps', steps, 1, 1_000_000, whole=True)
    return args


def load_photos(network: Any, folder: Path, side: int) -> list[Tensor]:
    """The photographs of each class, ``(n, 3, side, side)``: shorter side scaled, center cropped.

    Raises:
        InputError: If there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f'{folder} is no folder; DATA needs train/CLASS/* and val/CLASS/*')
    config = timm.data.resolve_model_data_config(network.trunk.model)
    config |= dict(input_size=(3, side, side), crop_pct=1.0)
    photos: dict[int, list[Tensor]] = {}
    dataset = timm.data.ImageDataset(str(folder), transform=timm.data.create_transform(**config))
    for image, label in dataset:
        photos.setdefault(label, []).append(image)
    return [torch.stack(photos[label]) for label in sorted(photos)]


def run_seed(
    network: Any, train: list[Tensor], val: list[Tensor], seed: int, args: argparse.Namespace
) -> dict[str, Any]:
    """One repetition: ``{layout: {row: {column: number}}}`` and more numbers."""
    start = time.process_time()
    torch.manual_seed(seed)
    rng = random.Random(seed)
    train = [photos[torch.randperm(len(photos))] for photos in train]
    task = make_task(network, train, args.prototype_photos)
    train = [photos[args.prototype_photos :] for photos in train]
    counts = dict(photo=args.collages, pair=args.collages, square=args.collages // 4)
    tests = {
        name: make_collages(network, val, counts[name], layout, rng)
        for name, layout in LAYOUTS.items()
    }
    tuning = make_collages(network, train, -(-args.collages // 2), LAYOUTS['pair'], rng)
    result: dict[str, Any] = {name: {} for name in LAYOUTS}

    def add(row: str, reader: Reader, prior: str = 'tile', layouts: Any = LAYOUTS) -> None:
        for name in layouts:
            row_of_layout = measure(task, reader, tests[name], prior)
            result[name][row] = row_of_layout
            values = ' '.join(f'{key} {value:.3f}' for key, value in row_of_layout.items())
            print(f'seed {seed}, {name}, {row}: {values}', file=sys.stderr, flush=True)

    def best(readers: Sequence[Reader]) -> Reader:
        return max(readers, key=lambda reader: measure(task, reader, tuning, 'tile')['margin'])

    reweighting = best([partial(reweight, network, power=power) for power in POWERS])
    mapping = nn.Linear(network.trunk.embed_dim, network.trunk.embed_dim)
    nn.init.eye_(mapping.weight)
    nn.init.zeros_(mapping.bias)

    def mapped(first: FirstPassOutput, prior: Tensor) -> Reading:
        reading = reweighting(first, prior)
        return reading._replace(features=mapping(reading.features))

    feedback = partial(second_pass, network, alpha=args.alpha)
    gates = [decoder.gate for decoder in network.feedback.decoders]
    maps = [decoder.to_value.weight for decoder in network.feedback.decoders]
    add('first pass', first_pass)
    add('reweighting', reweighting)
    for gate in gates:
        gate.fill_(10.0)  # whose tanh is 1
    openings = [partial(second_pass, network, alpha=args.alpha * opening) for opening in OPENINGS]
    add('untrained feedback', best(openings))
    for gate in gates:
        gate.zero_()

    for parameter in gates + maps:
        parameter.requires_grad_(True)
    groups = [dict(params=gates, lr=30 * args.lr, weight_decay=0.0), dict(params=maps)]
    optimizer = torch.optim.AdamW(groups, lr=args.lr)
    mapping_optimizer = torch.optim.AdamW(mapping.parameters(), lr=args.lr)
    for step in range(1, max(args.steps) + 1):
        batch = make_collages(network, train, args.batch_size, LAYOUTS['pair'], rng)
        train_step(task, feedback, optimizer, batch)
        train_step(task, mapped, mapping_optimizer, batch)
        if step in args.steps and step < max(args.steps):
            add(f'feedback, {step} steps', feedback, layouts=['pair'])
    add(f'feedback, {max(args.steps)} steps', feedback)
    add('reweighting, trained', mapped)
    add('first pass, absent class', first_pass, 'absent')
    add('reweighting, absent class', reweighting, 'absent')
    add('reweighting, trained, absent class', mapped, 'absent')
    add(f'feedback, {max(args.steps)} steps, absent class', feedback, 'absent')
    add(f'feedback, {max(args.steps)} steps, random prior', feedback, 'random', ['photo', 'pair'])
    off = partial(second_pass, network, alpha=0.0)
    with torch.no_grad():
        some = select(tests['photo'].first, slice(BATCH))
        result['largest change at alpha 0'] = off(some, task.prototypes[:1]).map.max().item()
    result['tanh of the gates'] = [gate.tanh().item() for gate in gates]
    result['CPU seconds'] = time.process_time() - start
    draw(network, task, feedback, tests, args.out / f'steer_{seed}.png')
    return result


def make_task(network: Any, photos: list[Tensor], num_prototype: int) -> Task:
    """Prototypes of the first photographs of each class, and a classifier of all.

    Raises:
        InputError: If no photographs are left for collages.
    """
    if (smallest := min(map(len, photos))) <= num_prototype:
        raise InputError(
            f'--prototype-photos {num_prototype} leaves none for collages: the smallest class has '
            f'{smallest} photographs in train'
        )
    features = [
        torch.cat([first_pass(run_first_pass(network, x)).features for x in each.split(BATCH)])
        for each in photos
    ]
    center = network.prior.center
    prototypes = torch.stack([each[:num_prototype].mean(dim=0) - center for each in features])
    x = torch.cat(features)
    labels = torch.cat([torch.full((len(each),), k) for k, each in enumerate(features)])
    y = F.one_hot(labels).float()
    # Ridge regression, in float64.
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    centered = (x - x_mean).double()
    scatter = centered.T @ centered
    scatter.diagonal().add_(100 * scatter.diagonal().mean() / len(x))
    weight = torch.linalg.solve(scatter, centered.T @ (y - y_mean).double()).float()
    return Task(prototypes, weight, y_mean - x_mean @ weight)


def make_collages(
    network: Any, photos: list[Tensor], count: int, layout: tuple[int, int], rng: random.Random
) -> Collages:
    """Collages of photographs of different classes, and their first passes.

    Raises:
        InputError: If there are too few classes.
    """
    rows, columns = layout
    if len(photos) <= rows * columns:
        raise InputError(
            f'{len(photos)} classes are too few: collages of {rows * columns} and a class that is '
            f'absent need {rows * columns + 1}'
        )
    images, labels, absent = [], [], []
    for _ in range(max(count, 1)):
        classes = rng.sample(range(len(photos)), rows * columns)
        others = [label for label in range(len(photos)) if label not in classes]
        tiles = [rng.choice(photos[label]) for label in classes]
        strips = [torch.cat(tiles[i * columns : (i + 1) * columns], dim=2) for i in range(rows)]
        images.append(torch.cat(strips, dim=1))
        labels.append(classes)
        absent.append([rng.choice(others) for _ in classes])
    stacked = torch.stack(images)
    parts = [run_first_pass(network, part) for part in stacked.split(BATCH)]
    tokens = torch.cat([part.output.tokens for part in parts])
    first = FirstPassOutput(
        parts[0].output._replace(tokens=tokens),
        torch.cat([part.embedded for part in parts]),
        parts[0].grid,
    )
    return Collages(stacked, torch.tensor(labels), torch.tensor(absent), first, layout)


@torch.no_grad()
def run_first_pass(network: Any, images: Tensor) -> FirstPassOutput:
    return network.forward_first_pass(images)


def select(first: FirstPassOutput, index: Any) -> FirstPassOutput:
    """The first passes of some of the images."""
    output = first.output._replace(tokens=first.output.tokens[index])
    return FirstPassOutput(output, first.embedded[index], first.grid)


def first_pass(first: FirstPassOutput, prior: Tensor | None = None) -> Reading:
    """The first pass alone; reads no prior."""
    tokens = first.grid.patch_tokens(first.output.tokens)
    return Reading(tokens.mean(dim=1), tokens.norm(dim=-1), tokens.new_zeros(len(tokens)))


def reweight(network: Any, first: FirstPassOutput, prior: Tensor, power: int) -> Reading:
    """PerceiverIO: the output tokens of the first pass, weighted."""
    tokens = first.grid.patch_tokens(first.output.tokens)
    weights = token_weights(tokens - network.prior.center, prior) ** power  # (B, N, 1)
    features = (weights * tokens).sum(dim=1) / weights.sum(dim=1).clamp_min(1e-12)
    return Reading(features, weights.squeeze(-1), tokens.new_zeros(len(tokens)))


def second_pass(network: Any, first: FirstPassOutput, prior: Tensor, alpha: float) -> Reading:
    """The second pass, and how it differs from the first."""
    output = network.forward_second_pass(first, prior, alpha)
    before, after = (first.grid.patch_tokens(each.tokens) for each in (output.first, output.second))
    change = (after - before).norm(dim=-1)
    return Reading(after.mean(dim=1), change, change.mean(dim=1) / before.norm(dim=-1).mean(dim=1))


def train_step(
    task: Task, reader: Reader, optimizer: torch.optim.Optimizer, batch: Collages
) -> None:
    """One step on all tiles, each with its own prior."""
    index = torch.arange(len(batch.labels)).repeat_interleave(batch.labels.shape[1])
    labels = batch.labels.flatten()
    reading = reader(select(batch.first, index), task.prototypes[labels])
    loss = F.cross_entropy(SHARPNESS * task.scores(reading.features), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def measure(task: Task, reader: Reader, collages: Collages, prior: str) -> dict[str, float]:
    """The columns of a table.

    Args:
        task, reader, collages: What is measured.
        prior: 'tile', 'absent' or 'random'.
    """
    columns: dict[str, list[Tensor]] = {name: [] for name in COLUMNS}
    num_tiles = collages.labels.shape[1]
    for index in torch.arange(len(collages.labels)).split(BATCH):
        first, labels = select(collages.first, index), collages.labels[index]
        is_rival = torch.zeros(len(index), len(task.prototypes)).scatter(1, labels, 1).bool()
        if num_tiles == 1:
            is_rival = ~is_rival
        for tile, label in enumerate(labels.T):
            named = collages.absent[index, tile] if prior == 'absent' else label
            vectors = task.prototypes[named]
            if prior == 'random':
                noise = F.normalize(torch.randn_like(vectors), dim=1)
                vectors = noise * vectors.norm(dim=1, keepdim=True)
            reading = reader(first, vectors)
            scores = task.scores(reading.features)
            answer = scores.argmax(dim=1)
            rivals = is_rival.scatter(1, label.unsqueeze(1), False)
            score = scores.gather(1, label.unsqueeze(1)).squeeze(1)
            sums = sum_tiles(reading.map, collages)
            columns['answer'].append(answer == label)
            columns['prior'].append(answer == named)
            columns['margin'].append(score - scores.where(rivals, -torch.inf).amax(dim=1))
            columns['share'].append(sums[:, tile] / sums.sum(dim=1))
            columns['largest'].append(sums.argmax(dim=1) == tile)
            columns['change'].append(reading.change)
        columns['all'].append(torch.stack(columns['answer'][-num_tiles:]).all(dim=0))
    if prior == 'random':
        del columns['prior']  # it has no class
    return {name: torch.cat(values).float().mean().item() for name, values in columns.items()}


def sum_tiles(maps: Tensor, collages: Collages) -> Tensor:
    """``(B, tiles)``: what of maps ``(B, h w)`` lies on each tile."""
    (height, width), (rows, columns) = collages.first.grid[:2], collages.layout
    tiles = maps.reshape(-1, rows, height // rows, columns, width // columns)
    return tiles.sum(dim=(2, 4)).flatten(1) + 1e-9  # a map of zeros has equal parts


def render(results: Sequence[dict[str, Any]]) -> str:
    """Tables in Markdown: means over seeds, and standard deviations where there are several."""
    lines = []
    for layout in LAYOUTS:
        lines += [f'| {layout} | {" | ".join(COLUMNS)} |', '|---' * (len(COLUMNS) + 1) + '|']
        for row in results[0][layout]:
            cells = [row]
            for column in COLUMNS:
                values = [
                    result[layout][row][column]
                    for result in results
                    if column in result[layout][row]
                ]
                cell = f'{statistics.mean(values):.2f}' if values else ''
                if len(values) > 1:
                    cell += f' ± {statistics.stdev(values):.2f}'
                cells.append(cell)
            lines.append(f'| {" | ".join(cells)} |')
        lines.append('')
    return '\n'.join(lines)


@torch.no_grad()
def draw(network: Any, task: Task, reader: Reader, tests: dict[str, Collages], path: Path) -> None:
    """Some collages, the weights and the change for priors of two tiles, and of an absent class."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    rows = [
        (tests[name], index)
        for name, count in (('pair', 4), ('square', 3))
        for index in range(min(count, len(tests[name].labels)))
    ]
    figure, axes = pyplot.subplots(
        len(rows), 7, figsize=(15, 1.9 * len(rows)), squeeze=False, layout='constrained'
    )
    for row, (collages, index) in zip(axes, rows, strict=True):
        first, labels = (
            select(collages.first, slice(index, index + 1)),
            collages.labels[index].tolist(),
        )
        names = ['prior 1', f'prior {len(labels)}', 'absent class']
        priors = [
            task.prototypes[[label]]
            for label in (labels[0], labels[-1], int(collages.absent[index, 0]))
        ]
        weights = [reweight(network, first, prior, 1) for prior in priors]
        readings = [first_pass(first), *(reader(first, prior) for prior in priors)]
        titles = [
            f'{name}: answer {labels.index(answer) + 1 if answer in labels else "other"}'
            for name, reading in zip(['no prior', *names], readings, strict=True)
            for answer in [task.scores(reading.features).argmax().item()]
        ]
        highest = max(reading.map.max().item() for reading in readings[1:])
        image = collages.images[index].movedim(0, -1)
        row[0].imshow(((image - image.min()) / (image.max() - image.min())).numpy())
        for axis, title, reading, top in (
            (row[1], f'token norm\n{titles[0]}', readings[0], None),
            (row[2], f'weights\n{names[0]}', weights[0], 0.5),
            (row[3], f'change\n{titles[1]}', readings[1], highest),
            (row[4], f'weights\n{names[1]}', weights[1], 0.5),
            (row[5], f'change\n{titles[2]}', readings[2], highest),
            (row[6], f'change\n{titles[3]}', readings[3], highest),
        ):
            axis.imshow(reading.map.reshape(first.grid[:2]).numpy(), vmin=0, vmax=top, cmap='magma')
            axis.set_title(title, fontsize=9)
        for axis in row:
            axis.set_axis_off()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


if __name__ == '__main__':
    sys.exit(run_tool(main))
