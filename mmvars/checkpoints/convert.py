"""Conversion between the released, timm and mmvars names of a network's tensors."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmvars import __version__
from mmvars.checkpoints.adapt import (
    add_class_position,
    fold_layer_scale,
    join_projections,
    resample_patches,
)
from mmvars.checkpoints.fit import (
    GRID_RECORD,
    NEW_PARTS,
    check_parts,
    fit_tensors,
    load_tensors,
    named_state,
    shapes_of,
    source_grids,
    trunk_of,
)
from mmvars.checkpoints.formats import (
    RELEASE_METER,
    TARGETS,
    Recorded,
    mixer_meta,
    recorded_mixer,
    released_args,
    stated,
    target_format,
)
from mmvars.checkpoints.io import read_checkpoint, read_meta
from mmvars.checkpoints.key_mapping import Shapes, mixers_seen
from mmvars.checkpoints.meter import check_meter, is_meter, text_width
from mmvars.checkpoints.mixers import check_constants, check_mixer
from mmvars.checkpoints.naming import Source, name_tensors
from mmvars.checkpoints.report import ConversionReport, Status
from mmvars.checkpoints.weights import drop, select_weights, with_prefix
from mmvars.checkpoints.write import write_checkpoint
from mmvars.errors import InputError, check_choice
from mmvars.networks import ARCH_ZOO, MODELS, VisionTransformer, create_model, network_name
from mmvars.write import check_destination

__all__ = ['TASKS', 'Conversion', 'convert_checkpoint', 'convert_state_dict']

TASKS = ('segmentation', 'classification')

# It has no choice of these.
_RELEASED_ONLY = dict(preset='release', scale_aware_sparsity=False, separate_keys=False)


class Conversion(NamedTuple):
    """Tensors in the names and the order of the target format, and what became of every one.

    ``container`` is the key around them in a file of the format; ``meta`` is what a file of mmvars
    says of its token mixer.
    """

    tensors: dict[str, Tensor]
    report: ConversionReport
    container: str | None
    meta: dict[str, str]


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    arch: str,
    *,
    weights: str = 'auto',
    prefix: str | None = None,
    to: str = 'mmvars',
    ignore: Sequence[str] = (),
    overwrite: bool = False,
    **options: Any,
) -> ConversionReport:
    """Convert a file: read safely, report everything, write tensors only.

    ``to='mmvars'`` writes what both ``init_cfg=dict(type='Pretrained')`` of an mmvars backbone and
    ``load_from`` take.

    Args:
        source: Any file that :func:`~mmvars.checkpoints.read_checkpoint` reads.
        destination: ``.pth`` (``.pt``, ``.bin``) or ``.safetensors``.
        weights: See :func:`~mmvars.checkpoints.weights.select_weights`.
        prefix: What stands before the network's keys; others are left out.
        overwrite: Whether an existing destination may be replaced.
        arch, to, ignore, **options: See :func:`convert_state_dict`.

    Raises:
        InputError: If anything is unaccounted for; then nothing is written.
    """
    report = ConversionReport(f'{Path(source).name} -> {Path(destination).name} (--arch {arch})')
    arch = network_name(arch, 'arch')
    check_choice('to', to, TARGETS)
    content = read_checkpoint(source)
    check_destination(destination, source, overwrite)
    state_dict = select_weights(content, weights, report, ignore)
    if prefix is not None:
        state_dict = with_prefix(state_dict, prefix, report)
    recorded = recorded_mixer(read_meta(source, content), report.title) or released_args(content)
    tensors, _, container, meta = convert_state_dict(
        state_dict, arch, to=to, ignore=ignore, recorded=recorded, report=report, **options
    )
    meta |= dict(converted_by=f'mmvars {__version__}', converted_from=Path(source).name, arch=arch)
    write_checkpoint(destination, tensors, container, meta if to == 'mmvars' else None, overwrite)
    return report


def convert_state_dict(
    state_dict: Mapping[str, Any],
    arch: str,
    *,
    to: str = 'mmvars',
    mixer: str | None = None,
    mixer_cfg: Mapping[str, Any] | None = None,
    task: str | None = None,
    img_size: int | tuple[int, int] | None = None,
    source_grid: tuple[int, int] | None = None,
    num_classes: int | None = None,
    allow_new: Sequence[str] = (),
    ignore: Sequence[str] = (),
    seed: int = 0,
    recorded: Recorded | None = None,
    report: ConversionReport | None = None,
    **overrides: Any,
) -> Conversion:
    """Rename the tensors of a state dict, with a report on every one.

    Args:
        state_dict: Key -> tensor, in the names of any known format.
        arch: One of :data:`mmvars.networks.MODELS`.
        to: ``'mmvars'``, ``'release'`` or ``'timm'``.
        mixer: One of :data:`mmvars.layers.MIXERS`; ``None`` for the one that the tensors show.
        mixer_cfg: Options that the weights were trained with, see
            :func:`mmvars.layers.resolve_mixer_cfg`.
        task: ``'segmentation'`` drops the classifier, ``'classification'`` demands it; ``None``
            keeps what there is.
        img_size: Pixels (side, or height and width) that tensors made for one grid are resampled
            to; ``None`` keeps their grid.
        source_grid: ``(h, w)`` of the source's patches, if they are not square and the source does
            not say.
        num_classes: Rows of a classifier that is allowed to be new.
        allow_new: Prefixes of network names (``'trunk.head'``) that may be missing altogether and
            are then initialized. Prior, feedback and prompts always may.
        ignore: Shell-style patterns of source keys (and entries) to leave out.
        seed: Of the values of new tensors.
        recorded: What the source itself says of its mixer.
        report: Report to continue.
        **overrides: Arguments of :func:`~mmvars.networks.create_model` for other sizes. Prompts
            and heads follow from the tensors.

    Raises:
        CheckpointError: If a tensor is missing, unexpected, of the wrong shape, or holds NaN; it
            lists all of them and names the width, depth and patch of the file.
        InputError: On an argument that cannot be used, or a mixer or constant that is not the
            source's.
    """
    arch = network_name(arch, 'arch')
    check_choice('to', to, TARGETS)
    report = report or ConversionReport(arch)
    read_format, sources, passthrough = name_tensors(
        state_dict, report, ignore, pass_through=to != 'timm'
    )
    sources = fold_layer_scale(join_projections(sources, report), report)
    sources = add_class_position(sources, source_grid)
    advice = f'{_size_advice(shapes_of(sources))} Nothing was written.'
    sources, classes = _for_task(task, sources, num_classes, report)
    shapes = shapes_of(sources)
    overrides |= _choose_mixer(mixer, mixer_cfg or {}, recorded, shapes)
    of_meter = is_meter(passthrough)
    width = text_width(shapes_of(passthrough))
    if width and any(name.startswith(('prior.', 'feedback.')) for name in sources):
        overrides.setdefault('prior', dict(type='text', text_dim=width))
    size = _size_of_source(arch, sources, img_size, source_grid, overrides)
    size['num_classes'] = classes
    network = _meta_network(arch, **size)
    trunk, state = trunk_of(network), named_state(network)
    if of_meter:
        released = read_format is RELEASE_METER or to == 'release'
        check_meter(passthrough, trunk.embed_dim, released, report)
    target = target_format(to, list(state), passthrough)
    sources = resample_patches(sources, state.get('trunk.patch_embed.proj.weight'), report)
    check_mixer(network, sources, report.title, advice)
    check_constants(trunk, recorded, report)
    others = {
        name: trunk.mixer_cfg[name]
        for name, value in _RELEASED_ONLY.items()
        if trunk.mixer_cfg.get(name, value) != value
    }
    if others and (read_format.by_release or target.by_release):
        fixed = {name: _RELEASED_ONLY[name] for name in others}
        raise InputError(
            f'{report.title}: the released code computes with {stated(fixed)} and has '
            f'no option for it, so {stated(others)} is not possible. Leave it out of '
            f'--mixer-cfg; allow_constants, where weights are loaded, permits others'
        )
    fitted = fit_tensors(
        network,
        sources,
        report,
        [*(() if of_meter else NEW_PARTS), *check_parts(allow_new, network)],
        'the file has none; initialized as for training from scratch',
        source_grid,
    )
    rows = {name: match for name in state if (match := target.from_network(name))}
    _rename_targets(report, state, rows, to)
    if report.of(Status.UNEXPECTED):
        advice = f'--ignore PATTERN leaves keys of the file out. {advice}'
    misfits = report.of(Status.MISSING, Status.UNEXPECTED, Status.MISSHAPED)
    report.raise_problems(advice if misfits else 'Nothing was written.')
    fresh = {}
    if any(name not in fitted and not name.endswith(GRID_RECORD) for name in state):
        report.remark(f'new values drawn with seed {seed}')
        with torch.random.fork_rng(devices=[]):  # the caller's random state is left alone
            torch.manual_seed(seed)
            fresh = named_state(create_model(arch, **size))
    load_tensors(network, fitted, fresh, assign=True)
    state = named_state(network)
    tensors = {}
    for name, (key, axes) in rows.items():
        tensors[key] = state[name]
        for axis in axes:
            tensors[key] = tensors[key].unsqueeze(axis)
    for entry in report.of(Status.USED):
        shape = tuple(tensors[str(entry.target)].shape)
        entry.target_shape = None if shape == entry.shape else shape
    for key, tensor, reason in target.unread(state):
        tensors[key] = tensor
        report.add(Status.NEW, target=key, shape=tensor.shape, note=reason)
    tensors = dict(sorted(tensors.items(), key=lambda item: target.position(item[0])))
    keys = {name: target.beside_key(name) for name in passthrough}
    for entry in report.of(Status.PASSTHROUGH):
        entry.target = keys[str(entry.target)]
    tensors |= {keys[name]: tensor for name, tensor in passthrough.items()}
    if to == 'release' and trunk.mixer_cfg:
        report.remark(f'no file of the release says its constants: {stated(trunk.mixer_cfg)}')
    report.check_complete(state_dict, tensors)
    return Conversion(tensors, report, target.container, mixer_meta(trunk))


def _for_task(
    task: str | None, sources: dict[str, Source], num_classes: int | None, report: ConversionReport
) -> tuple[dict[str, Source], int]:
    """The tensors that the task needs, and the classes of its network."""
    if task is not None:
        check_choice('task', task, TASKS)
    head = [name for name in sources if name.startswith('trunk.head.')]
    if task == 'segmentation' or (task is None and not head):
        return drop(sources, report, 'classifier, dropped for segmentation', head), 0
    rows = num_classes or _length(shapes_of(sources), 'trunk.head.weight', 0)
    if not rows:
        raise InputError(
            f'{report.title}: a classifier is required, but the file has none; '
            f'convert for segmentation (--for segmentation), or start one with '
            f'--num-classes K --allow-new trunk.head'
        )
    return sources, rows


def _choose_mixer(
    mixer: str | None, mixer_cfg: Mapping[str, Any], recorded: Recorded | None, shapes: Shapes
) -> dict[str, Any]:
    """Arguments ``mixer`` and ``mixer_cfg`` of :func:`~mmvars.networks.create_model` for a file.

    What the user leaves open is what the file says, or else what its tensors show: mixers that are
    not a trunk's own. A preset that the user names decides all constants.
    """
    if mixer is None:
        mixer = (
            recorded.mixer
            if recorded
            else next(
                (
                    name
                    for name, _ in mixers_seen(shapes).most_common()
                    if name == 'performer' or name.startswith('vars')
                ),
                None,
            )
        )
    if recorded and recorded.mixer == mixer and 'preset' not in mixer_cfg:
        mixer_cfg = recorded.options | dict(mixer_cfg)
    chosen = dict(mixer=mixer, mixer_cfg=dict(mixer_cfg))
    return {name: value for name, value in chosen.items() if value}


def _rename_targets(
    report: ConversionReport, state: Mapping[str, Tensor], rows: Mapping[str, Any], to: str
) -> None:
    """Put the keys of the target format into the report, and what has none there."""
    for entry in [entry for entry in report.entries if entry.target in state]:
        name, is_record = str(entry.target), str(entry.target).endswith(GRID_RECORD)
        if name in rows:
            entry.target = rows[name][0]
        elif to == 'timm' and is_record and entry.source is None:
            report.entries.remove(entry)
        elif to == 'timm' and is_record:
            entry.status, entry.target = Status.IGNORED, None
            entry.note = "timm keeps the grid in the model's img_size, not in the file"
        else:
            entry.status, entry.note = (
                Status.REFUSED,
                f'--to {to} has no name for it'
                + (', its files are for square grids: say --img-size' if is_record else ''),
            )


def _meta_network(arch: str, **size: Any) -> nn.Module:
    """A network on the meta device: names and shapes without values."""
    with torch.device('meta'):
        return create_model(arch, **size)


def _size_of_source(
    arch: str,
    sources: Mapping[str, Source],
    img_size: int | tuple[int, int] | None,
    source_grid: tuple[int, int] | None,
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """Arguments of :func:`~mmvars.networks.create_model` for a file, beside the name.

    What the named size leaves open follows from the tensors: prompts, heads, a text prior, and,
    without ``img_size``, the size of image that tensors made for one grid are for.
    """
    size: dict[str, Any] = dict(num_classes=0)
    shapes = shapes_of(sources)
    if prompts := _length(shapes, 'trunk.prompt_embeddings', 1):
        size |= dict(
            num_prompt_tokens=prompts, deep_prompts='trunk.deep_prompt_embeddings' in sources
        )
    if 'embed_dim' in overrides:  # 1 head divides every width, where no tensor depends on it
        heads = {
            stage: shape[0]
            for stage, leaf, shape in _block_tensors(shapes)
            if leaf in ('attn.random_features', 'attn.attention_mask') and shape
        }
        widths = overrides['embed_dim']
        size['num_heads'] = (
            heads.get(0, 1)
            if isinstance(widths, int)
            else [heads.get(stage, 1) for stage in range(len(widths))]
        )
    if text_dim := _length(shapes, 'prior.projection.weight', 1):
        size['prior'] = dict(type='text', text_dim=text_dim)
    size |= overrides
    if img_size is not None:
        return size | dict(img_size=img_size)
    network = _meta_network(arch, **size)
    trunk = trunk_of(network)
    for path, _, leaf, grid, fault in source_grids(network, sources, source_grid):
        if fault or trunk.layer_id(f'{path}{leaf}'.removeprefix('trunk.')) not in (None, 0):
            break  # a map that was pooled does not tell the size of the image
        if grid is not None:
            side = trunk.patch_embed.patch_size
            return size | dict(img_size=(grid[0] * side, grid[1] * side))
    return size


def _size_advice(shapes: Shapes) -> str:
    """Width, depth and patch of a file, and the named sizes that have them, as a sentence."""
    widths = {
        stage: shape[0]
        for stage, leaf, shape in _block_tensors(shapes)
        if leaf == 'mlp.fc2.bias' and shape
    }
    if not widths:
        return 'The file shows no part of a network of mmvars.'
    depth = Counter(stage for stage, leaf, _ in _block_tensors(shapes) if leaf == 'mlp.fc2.bias')
    sizes = (
        [widths[stage] for stage in sorted(widths)],
        [depth[stage] for stage in sorted(widths)],
        _length(shapes, 'trunk.patch_embed.proj.weight', 3),
    )
    text = (
        f'The file has embed_dim {" ".join(map(str, sizes[0]))}, depth '
        f'{" ".join(map(str, sizes[1]))}{f", patch_size {sizes[2]}" if sizes[2] else ""}'
    )
    same = [name for name in MODELS if sizes == _named_sizes(name)]
    return (
        f'{text}, as --arch {" or ".join(same)}.'
        if same
        else f'{text}, which no named size has; give its own with --embed-dim, --depth and so on.'
    )


def _named_sizes(name: str) -> tuple[list[int], list[int], int]:
    """Width and depth of each stage of a named network, and the patch of a ViT's embedding."""
    trunk, arguments = ARCH_ZOO[name.replace('absvit_', 'vit_')]
    stages = [
        [size] if isinstance(size, int) else list(size)
        for size in (arguments['embed_dim'], arguments['depth'])
    ]
    has_patches = trunk is VisionTransformer and 'stem' not in arguments
    return stages[0], stages[1], arguments.get('patch_size', 16) if has_patches else 0


def _block_tensors(shapes: Shapes) -> Iterator[tuple[int, str, tuple[int, ...]]]:
    """Stage, name in the block and shape of the tensors of all blocks."""
    for name, shape in shapes.items():
        if match := re.fullmatch(r'trunk\.(?:stages\.(\d+)\.)?blocks\.\d+\.(.+)', name):
            yield int(match[1] or 0), match[2], shape


def _length(shapes: Shapes, name: str, axis: int) -> int:
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) > axis else 0
