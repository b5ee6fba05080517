"""Time and peak memory of networks and token mixers: `mmvars benchmark`, or run this file."""

import sys

from mmvars.cli import run_tool

if __name__ == '__main__':  # before the imports that take seconds
    sys.exit(run_tool('benchmark'))


import argparse
import ast
import math
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError, check_choice, check_number
from mmvars.layers import MIXERS, TokenGrid, build_mixer, fuse
from mmvars.networks import Feedback, Trunk, TrunkOutput, create_model, network_name
from mmvars.parsers.benchmark import parse_args

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the scripts beside this one
from get_flops import check_json_arguments, markdown_table, write_json  # noqa: E402  # noqa: E402
from reference_absvit import AbSViT, rename_weights  # noqa: E402
from timing import (  # noqa: E402
    Case,
    Contender,
    Settings,
    growth_exponent,
    measure_case,
    memory_source,
    paired_ratio,
    spread,
)

NUM_CLASSES = 1000


def main(argv: list[str] | None = None) -> int:
    """Measure time and peak memory, and print tables.

    Args:
        argv: Arguments; ``None`` for the command line's.

    Returns:
        Exit status 0.

    Raises:
        InputError: If an argument cannot be used; nothing was measured or written then.
    """
    args = parse_args(argv)
    settings = make_settings(args)
    cases = mixer_cases(args) if args.suite == 'mixers' else model_cases(args)
    names = [contender.name for contender in cases[0].contenders]
    reference = args.reference or names[0]
    check_choice('--reference', reference, names)
    check_json_arguments(args)
    torch.set_num_threads(args.threads)
    entries = []
    for case in cases:
        print(f'measuring {case.group}, {case.size}', file=sys.stderr, flush=True)
        entries.append(measure(case, settings, reference))
    result = dict(
        suite=args.suite,
        size_name='tokens' if args.suite == 'mixers' else 'pixels',
        settings=describe(settings, args, reference),
        cases=entries,
        growth=growth(entries),
    )
    print(render(result))
    write_json(args, result)
    return 0


def make_settings(args: argparse.Namespace) -> Settings:
    """Settings from the arguments of the command.

    Raises:
        InputError: If one is out of range, or the device is not there.
    """
    for name, low in (('rounds', 1), ('warmup', 0), ('threads', 1)):
        check_number(f'--{name}', getattr(args, name), low, whole=True)
    check_number('--min-seconds', args.min_seconds, 0)
    if not re.fullmatch(r'cpu|cuda(:\d+)?', args.device):
        raise InputError(f'--device must be cpu, cuda or cuda:N, got {args.device!r}')
    device = torch.device(args.device)
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f'--device {args.device} is not there: torch sees '
            f'{torch.cuda.device_count()} CUDA devices; use --device cpu'
        )
    clock = args.clock or ('process' if args.threads == 1 else 'wall')
    return Settings(
        device,
        args.dtype,
        args.mode,
        args.rounds,
        args.warmup,
        args.min_seconds,
        clock,
        args.seed,
        args.compile,
    )


# Mixers


class MixerCall(nn.Module):
    """A token mixer with its grid: ``(B, N, C)`` to ``(B, N, C)``."""

    def __init__(self, mixer: nn.Module, grid: TokenGrid) -> None:
        super().__init__()
        self.mixer, self.grid = mixer, grid

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x, self.grid)

    def fuse(self) -> None:
        fuse(self.mixer)


def mixer_cases(args: argparse.Namespace) -> list[Case]:
    """Mixers alone, at every width and grid; each is built for the grid it is measured at."""
    grids = sorted(map(parse_tokens, args.tokens), key=math.prod)
    widths = [_sides('--widths', text, '192x6', pair=True) for text in args.widths]
    _refuse_repeated('--tokens', [math.prod(grid) for grid in grids])
    _refuse_repeated('--mixers', args.mixers)
    _refuse_repeated('--widths', widths)
    if len(args.batch_sizes) > 1:
        raise InputError('--suite mixers measures one batch size; --suite models takes several')
    check_number('batch size', args.batch_sizes[0], 1, whole=True)
    for name in args.mixers:
        check_choice('mixer', name, MIXERS)
    return [
        Case(
            f'width {dim}, {heads} heads, batch {args.batch_sizes[0]}',
            math.prod(grid),
            tuple(_mixer(name, dim, heads, grid, args) for name in args.mixers),
        )
        for dim, heads in widths
        for grid in grids
    ]


def _mixer(
    name: str, dim: int, heads: int, grid: tuple[int, int], args: argparse.Namespace
) -> Contender:
    steps = (
        {}
        if args.num_steps is None or not name.startswith('vars_')
        else dict(num_steps=args.num_steps)
    )

    def build() -> nn.Module:
        mixer = build_mixer(name, dim, heads, grid, preset=args.preset, **steps)
        return MixerCall(mixer, TokenGrid(*grid))

    with torch.device('meta'):
        build()  # so that what cannot be built is known before anything is measured
    batch = args.batch_sizes[0]
    return Contender(name, build, lambda: (torch.randn(batch, math.prod(grid), dim),))


def parse_tokens(text: str) -> tuple[int, int]:
    """A patch grid from ``HxW``, or from a number N of tokens: the grid nearest to a square.

    Raises:
        InputError: If the text is neither, or N has no grid that is at most four times as wide as
            high.
    """
    match = re.fullmatch(r'([1-9]\d*)(?:x([1-9]\d*))?', text.strip().lower())
    if not match:
        raise InputError(
            f'--tokens takes a number of tokens or HEIGHTxWIDTH, for instance 196 or '
            f'14x14, got {text!r}'
        )
    tokens = int(match[1])
    if match[2]:
        return tokens, int(match[2])
    height = next(side for side in range(math.isqrt(tokens), 0, -1) if tokens % side == 0)
    width = tokens // height
    if width > 4 * height:
        raise InputError(
            f'--tokens {tokens} has no grid nearer to a square than {height}x{width}; '
            f'take another number ({math.isqrt(tokens) ** 2}), or say {height}x{width}'
        )
    return height, width


# Models


@dataclass(frozen=True)
class ModelSpec:
    """A contender of --models.

    Attributes:
        text: As written: its name in tables.
        library: A key of :data:`LIBRARIES`.
        name: That :func:`mmvars.networks.create_model` knows.
        options: Arguments of the network, and ``fuse``.
        img_size: ``(H, W)`` that it is built for.
        num_classes: 0 for features.
    """

    text: str
    library: str
    name: str
    options: dict[str, Any]
    img_size: tuple[int, int] = (224, 224)
    num_classes: int = NUM_CLASSES

    @property
    def function(self) -> str:
        """What it computes, in whatever library."""
        changes = {
            key: value
            for key, value in sorted(self.options.items())
            if key not in ('grad_checkpointing', 'fuse')
        }
        return f'{self.name} {changes}'

    def create(self) -> nn.Module:
        """This package's network of the name, with weights that let every term show.

        Fresh ones hide much: biases are zero, and what is fed back fades after a decoder or two.
        """
        options = {key: value for key, value in self.options.items() if key != 'fuse'}
        network = create_model(
            self.name, **dict(img_size=self.img_size, num_classes=self.num_classes) | options
        )
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.normal_(std=0.1)
            if isinstance(getattr(network, 'feedback', None), Feedback):
                for weight in network.feedback.decoders.parameters():
                    # Keeps the length of a signal; on a trunk of timm there are gates too.
                    weight.normal_(std=weight[0].numel() ** -0.5)
        return network


class Model(nn.Module):
    """A network of one library with the weights of :meth:`ModelSpec.create`.

    Args:
        spec: The network.
        task: Which of the methods below ``forward`` calls.
    """

    def __init__(self, spec: ModelSpec, task: str) -> None:
        super().__init__()
        self.spec, self.task = spec, task

    def forward(self, *inputs: Tensor) -> Tensor | list[Tensor]:
        return getattr(self, self.task)(*inputs)

    def classify(self, images: Tensor) -> Tensor:
        """Class scores ``(B, K)``."""
        raise NotImplementedError

    def features(self, images: Tensor) -> list[Tensor]:
        """Maps ``(B, C, h, w)`` after each quarter of the blocks, the last after the final norm."""
        raise NotImplementedError

    def losses(self, images: Tensor, classes: Tensor) -> Tensor:
        """The training loss: cross entropy, unless the method has more."""
        return F.cross_entropy(self.classify(images), classes)


class OurModel(Model):
    """A network of this package."""

    def __init__(self, spec: ModelSpec, task: str) -> None:
        super().__init__(spec, task)
        self.network = spec.create()
        self.trunk: Trunk = getattr(self.network, 'trunk', self.network)

    def fuse(self) -> None:
        if self.spec.options.get('fuse', True):
            self.network.fuse()

    def classify(self, images: Tensor) -> Tensor:
        output = self.network(images, pooled_only=True)
        return self.network.forward_head(self.last_pass(output))

    def features(self, images: Tensor) -> list[Tensor]:
        last = self.last_pass(self.network(images, out_indices=_quarters(self.trunk.depth)))
        maps = [
            grid.to_map(tokens) for grid, tokens in zip(last.grids, last.intermediates, strict=True)
        ]
        return [*maps[:-1], last.grid.to_map(last.tokens)]

    def last_pass(self, output: Any) -> TrunkOutput:
        return output if self.network is self.trunk else output.second

    def losses(self, images: Tensor, classes: Tensor) -> Tensor:
        network = self.network
        if network is self.trunk:
            return super().losses(images, classes)
        reconstructs = isinstance(getattr(network, 'feedback', None), Feedback)
        out = network(images, reconstruction=reconstructs)
        loss = (
            sum(
                F.cross_entropy(network.forward_head(part), classes)
                for part in (out.first, out.second)
            )
            / 2
        )
        return loss + 0.1 * out.reconstruction.sum() if reconstructs else loss


class TimmModel(Model):
    """timm's ViT."""

    def __init__(self, spec: ModelSpec, task: str) -> None:
        super().__init__(spec, task)
        trunk = spec.create()
        weights = trunk.state_dict()
        weights.pop('trained_grid', None)
        self.model = timm.create_model(
            f'{spec.name}_patch16_224',
            img_size=spec.img_size,
            num_classes=spec.num_classes,
            embed_dim=trunk.embed_dim,
            depth=trunk.depth,
            num_heads=trunk.blocks[0].attn.num_heads,
        )
        self.model.load_state_dict(weights)

    def classify(self, images: Tensor) -> Tensor:
        return self.model(images)

    def features(self, images: Tensor) -> list[Tensor]:
        indices = list(_quarters(len(self.model.blocks)))
        final, maps = self.model.forward_intermediates(images, indices=indices)
        last = final[:, self.model.num_prefix_tokens :].transpose(1, 2)
        return [*maps[:-1], last.unflatten(2, maps[-1].shape[-2:])]


class ReferenceModel(Model):
    """The AbSViT of one page, ``reference_absvit.py``."""

    def __init__(self, spec: ModelSpec, task: str) -> None:
        super().__init__(spec, task)
        network = spec.create()
        trunk = network.trunk
        self.model = AbSViT(
            spec.img_size,
            trunk.patch_embed.patch_size,
            trunk.embed_dim,
            trunk.depth,
            trunk.blocks[0].attn.num_heads,
            spec.num_classes,
        )
        self.model.load_state_dict(rename_weights(network.state_dict()))

    def classify(self, images: Tensor) -> Tensor:
        return self.model.classify(self.model(images).tokens)

    def features(self, images: Tensor) -> list[Tensor]:
        out = self.model(images)
        tokens = [out.hidden_states[i + 1] for i in _quarters(len(self.model.blocks))[:-1]]
        return [
            y[:, 1:].transpose(1, 2).unflatten(2, self.model.grid) for y in (*tokens, out.tokens)
        ]

    def losses(self, images: Tensor, classes: Tensor) -> Tensor:
        return self.model.loss(images, classes)


LIBRARIES: dict[str, type[Model]] = dict(mmvars=OurModel, timm=TimmModel, reference=ReferenceModel)


class Group(NamedTuple):
    """Images of one size and batch, and what is computed of them."""

    size: tuple[int, int]
    batch: int
    task: str  # a method of Model

    def __str__(self) -> str:
        return f'{self.size[0]}x{self.size[1]}, batch {self.batch}: {self.task}'


def model_cases(args: argparse.Namespace) -> list[Case]:
    """Whole networks at every size and batch; each is built for the size it is measured at."""
    return [
        Case(
            str(group),
            math.prod(group.size),
            tuple(_model_contender(_at(spec, group), group) for spec in specs),
        )
        for specs, group in _groups(args)
    ]


def _model_contender(spec: ModelSpec, group: Group) -> Contender:
    def inputs() -> tuple[Tensor, ...]:
        images = torch.randn(group.batch, 3, *group.size)
        if group.task != 'losses':
            return (images,)
        return images, torch.randint(spec.num_classes, (group.batch,))

    return Contender(
        spec.text,
        lambda: LIBRARIES[spec.library](spec, group.task),
        inputs,
        spec.function,
        input_gradients=False,
    )


def parse_model(text: str) -> ModelSpec:
    """A contender from ``[library/]name[:option=value...]``.

    Raises:
        InputError: If there is no such library or network, or an option is malformed.
    """
    whole, *options = text.split(':')
    library, slash, name = whole.partition('/')
    library, name = (library, name) if slash else ('mmvars', whole)
    check_choice(f'the library of {text!r}', library, LIBRARIES)
    if not (library == 'mmvars' and name.startswith('timm/')):
        name = network_name(name)
    family = dict(timm='vit', reference='absvit').get(library, '')
    if family and not re.fullmatch(f'{family}_(tiny|small|base)', name):
        raise InputError(
            f'{library} has {family}_tiny, {family}_small and {family}_base here, got {name!r}'
        )
    values = {}
    for option in options:
        key, equals, value = option.partition('=')
        if not (equals and key.isidentifier() and value):
            raise InputError(f'{text!r}: an option is written NAME=VALUE, got {option!r}')
        try:
            values[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[key] = value
    if values and library != 'mmvars':
        raise InputError(f'{text!r}: only networks of mmvars take options')
    return ModelSpec(text, library, name, values)


def _groups(args: argparse.Namespace) -> list[tuple[list[ModelSpec], Group]]:
    _refuse_repeated('--models', args.models)
    specs = [parse_model(text) for text in args.models]
    sizes = [_sides('--sizes', text, '224 or 512x1024') for text in args.sizes]
    _refuse_repeated('--sizes', sizes)
    _refuse_repeated('--batch-sizes', args.batch_sizes)
    for height, width in sizes:
        if (height % 32 or width % 32) and any(spec.library != 'mmvars' for spec in specs):
            raise InputError(
                f'--sizes {height}x{width}: sides must be multiples of 32 pixels, '
                f'which the networks of other libraries take'
            )
    for batch in args.batch_sizes:
        check_number('--batch-sizes', batch, 1, whole=True)
    if args.mode == 'training' and args.task == 'features':
        raise InputError('--mode training takes the loss of class scores; --task features has none')

    def task(size: tuple[int, int]) -> str:
        if args.mode == 'training':
            return 'losses'
        if args.task == 'auto':
            return 'classify' if size == (224, 224) else 'features'
        return args.task

    return [
        (specs, Group(size, batch, task(size)))
        for size in sorted(sizes, key=math.prod)
        for batch in args.batch_sizes
    ]


def _at(spec: ModelSpec, group: Group) -> ModelSpec:
    """A contender for images of one size, built on the meta device once: it may be refused."""
    spec = replace(
        spec, img_size=group.size, num_classes=0 if group.task == 'features' else NUM_CLASSES
    )
    with torch.device('meta'):
        spec.create()
    return spec


def _quarters(depth: int) -> tuple[int, ...]:
    """The last block of each quarter: 2, 5, 8, 11 of twelve."""
    return tuple(sorted({max(0, depth * part // 4 - 1) for part in range(1, 5)}))


def _sides(option: str, text: str, example: str, pair: bool = False) -> tuple[int, int]:
    match = re.fullmatch(r'([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?', text.lower())
    if not match or (pair and not match[2]):
        form = 'CHANNELSxHEADS' if pair else 'SIDE or HEIGHTxWIDTH in pixels'
        raise InputError(f'{option} takes {form}, for instance {example}, got {text!r}')
    return int(match[1]), int(match[2] or match[1])


def _refuse_repeated(option: str, values: Sequence[Any]) -> None:
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise InputError(f'{option} names {", ".join(repeated)} more than once; once is enough')


# Results


def measure(case: Case, settings: Settings, reference: str) -> dict[str, Any]:
    """Measure a case: ``group``, ``size``, and the numbers of each contender."""
    measurements = measure_case(case, settings)
    base = next(one for one in measurements if one.name == reference)
    return dict(
        group=case.group,
        size=case.size,
        contenders=[
            dict(
                name=one.name,
                seconds=one.seconds,
                time=spread(one.seconds)._asdict(),
                ratio=paired_ratio(one.seconds, base.seconds, settings.seed)._asdict(),
                peak_bytes=one.peak_bytes,
                saved_bytes=one.saved_bytes,
                multiply_adds=one.macs.to_dict(),
            )
            for one in measurements
        ],
    )


def growth(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Growth exponents of time and memory of each contender, by group."""
    found = []
    for group in dict.fromkeys(entry['group'] for entry in entries):
        members = [entry for entry in entries if entry['group'] == group]
        sizes = [entry['size'] for entry in members]
        for rows in zip(*(entry['contenders'] for entry in members), strict=True):
            found.append(
                dict(
                    group=group,
                    name=rows[0]['name'],
                    time=growth_exponent(sizes, [row['time']['median'] for row in rows]),
                    memory=growth_exponent(sizes, [row['peak_bytes'] or 0 for row in rows]),
                )
            )
    return found


def describe(settings: Settings, args: argparse.Namespace, reference: str) -> dict[str, Any]:
    """The settings and the machine as plain values."""
    on_cpu = settings.device.type == 'cpu'
    name = (
        (platform.processor() or platform.machine())
        if on_cpu
        else (torch.cuda.get_device_name(settings.device))
    )
    return asdict(settings) | dict(
        device=str(settings.device),
        device_name=name,
        clock=settings.clock if on_cpu else 'device',
        torch=torch.__version__,
        threads=args.threads,
        reference=reference,
        preset=args.preset,
        num_steps=args.num_steps,
        memory_source=memory_source(settings.device),
        load=round(os.getloadavg()[0], 2) if hasattr(os, 'getloadavg') else None,
    )


def render(result: dict[str, Any]) -> str:
    """The result as Markdown that also reads as plain text."""
    settings, training = result['settings'], result['settings']['mode'] == 'training'
    compiled = ', compiled' if settings['compile'] else ''
    parts = [
        f'{settings["mode"]}{compiled} on {settings["device_name"]}, {settings["dtype"]}, '
        f'{settings["threads"]} thread(s), torch {settings["torch"]}; {settings["rounds"]} '
        f'interleaved rounds, {settings["clock"]} time; load {settings["load"]}. ms: median, '
        f'and half the middle half of the samples in %. ratio: to {settings["reference"]}, '
        f'round by round, with its bootstrap interval. GMAC: 10^9 multiply-adds of one call.'
    ]
    header = [
        result['size_name'],
        'contender',
        'ms',
        '+-%',
        'ratio',
        '5-95 %',
        'peak MiB',
        *(['saved MiB'] if training else []),
        'GMAC',
    ]
    for group in dict.fromkeys(case['group'] for case in result['cases']):
        rows = [
            _row(case['size'], row, training)
            for case in result['cases']
            if case['group'] == group
            for row in case['contenders']
        ]
        parts.append(f'## {group}\n\n{markdown_table(header, rows)}')
        growth_rows = [
            [
                row['name'],
                *('-' if row[key] is None else f'{row[key]:.2f}' for key in ('time', 'memory')),
            ]
            for row in result['growth']
            if row['group'] == group
        ]
        if any(row[1] != '-' for row in growth_rows):
            table = markdown_table(['contender', 'time ~ N^p', 'memory ~ N^p'], growth_rows)
            parts.append(f'Sizes from 1024 to 8192:\n\n{table}')
    source = settings['memory_source']
    parts.append(
        f'Peak memory: {source}.'
        if source
        else 'Peak memory: not measured, this system does not say it.'
    )
    return '\n\n'.join(parts)


def _row(size: int, row: dict[str, Any], training: bool) -> list[str]:
    time, ratio, macs = row['time'], row['ratio'], row['multiply_adds']
    width = (time['high'] - time['low']) / max(time['median'], 1e-12) * 50
    sizes = [row['peak_bytes'], *([row['saved_bytes']] if training else [])]
    return [
        str(size),
        row['name'],
        f'{time["median"] * 1e3:.2f}',
        f'{width:.0f}',
        f'{ratio["median"]:.3f}',
        f'{ratio["low"]:.2f} to {ratio["high"]:.2f}',
        *('-' if count is None else f'{count / 2**20:.1f}' for count in sizes),
        f'{(macs["all"] + macs["fourier"]) / 1e9:.3f}',
    ]
