"""From a model and an image to rows of panels."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from mmvars.errors import InputError, check_number
from mmvars.layers import TokenGrid
from mmvars.networks import PerceiverIO, Trunk
from mmvars.pictures import COLOR_MAP
from mmvars.visualization.figure import (
    HeatMap,
    LabelMap,
    Panel,
    Picture,
    Row,
    SideBySide,
    TopClasses,
)
from mmvars.visualization.maps import (
    atom_counts,
    atom_sets,
    attention_map,
    energy_shares,
    half_shares,
    key_trace,
    map_at_grid,
    most_used_atoms,
    near_zero_share,
    sparsity_weight,
    suppress_below,
    token_norm_map,
    upsample_map,
)
from mmvars.visualization.model import (
    ClassTable,
    Model,
    Sample,
    is_segmentor,
    network_of,
    predict_whole,
)
from mmvars.visualization.priors import PanelConfig
from mmvars.visualization.recorder import recording

__all__ = [
    'AVERAGE',
    'CLASS_TOKEN',
    'LIMITS',
    'ModelOutputs',
    'ViewOptions',
    'atom_rows',
    'attention_panels',
    'attention_rows',
    'block_name',
    'check_options',
    'map_panels',
    'maps_footer',
    'norms_name',
    'resolve_layer',
    'run_model',
    'step_rows',
]

LIMITS = {
    'relative': ', each map over its own mean',
    'shared': '',
    'own': ', each in its own range',
}
MAX_COLUMNS = 8  # of atoms
CLASS_TOKEN, AVERAGE = 'Class token looks at', 'Average token looks at'  # titles, and kinds


@dataclass(frozen=True)
class ViewOptions:
    """What to draw: the flags of ``mmvars visualize`` that have these names, see its help."""

    layer: int | None = None
    threshold: float | None = None
    class_attention: bool = False
    average_attention: bool = False
    difference: bool = False
    strength: float = 0.7
    steps: bool = False
    atoms: int | None = None
    per_head: bool = False
    limits: str = 'relative'

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """A map ``(H, W)`` of norms or shares in the unit in which it is compared with others."""
        return values / max(float(values.mean()), 1e-12) if self.limits == 'relative' else values

    def cut(self, values: np.ndarray) -> np.ndarray:
        """The part of a map ``(H, W)``, without padding, above the threshold."""
        return values if self.threshold is None else suppress_below(values, self.threshold)

    def share_limits(self, panels: Iterable[Panel]) -> None:
        """Give all heat maps of one kind one range, unless each is to have its own."""
        maps = [panel for panel in panels if isinstance(panel, HeatMap) and panel.kind]
        for kind in {heat_map.kind for heat_map in maps} if self.limits != 'own' else ():
            same = [heat_map for heat_map in maps if heat_map.kind == kind]
            ranges = [m.limits or (float(m.values.min()), float(m.values.max())) for m in same]
            for heat_map in same:
                heat_map.limits = min(low for low, _ in ranges), max(high for _, high in ranges)


def resolve_layer(layer: int | None, depth: int) -> int:
    """The block index that ``layer`` means; negative counts from the end.

    ``None`` is the last of the first ``depth - 3``, where the authors' demonstration looks (block 9
    of 12); in networks of up to three blocks the first block.

    Raises:
        InputError: If there is no such block.
    """
    if layer is None:
        return max(depth - 4, 0)
    if not -depth <= layer < depth:
        raise InputError(
            f'layer must be a block index from 0 to {depth - 1} (or {-depth} to -1 '
            f'from the end), got {layer}'
        )
    return layer % depth


def check_options(model: Model, options: ViewOptions) -> None:
    """Refuse what this model cannot show by an ``InputError``, before an image is read."""
    network_of(model)
    trunk = model.backbone.trunk
    layer = resolve_layer(options.layer, trunk.depth)
    mixer, last = trunk.blocks[layer].attn, _last_attention(trunk)
    has_matrix, has_code = hasattr(mixer, 'attention_probabilities'), hasattr(mixer, 'trace')
    mixes = f'block {layer} mixes tokens with {type(mixer).__name__}, which'
    if options.class_attention:
        if not trunk.has_class_token:
            raise InputError(
                f'class attention cannot be drawn: this {type(trunk).__name__} has no '
                'class token that could look at anything. The attention of the '
                'average token can take its place'
            )
        if not hasattr(last, 'attention_probabilities'):
            raise InputError(
                'class attention cannot be drawn: the last block mixes tokens with '
                f'{type(last).__name__}, which has no attention matrix'
            )
    if options.average_attention and not hasattr(mixer, 'mean_attention'):
        raise InputError(
            f'the attention of the average token cannot be drawn: {mixes} has no values that could '
            'be attended to'
        )
    if options.steps and not has_code:
        reason = (
            'is a single step without sparsity (Eq. 1.14)' if has_matrix else 'has no sparse code'
        )
        raise InputError(
            f'there are no steps to draw: {mixes} {reason}. Take a model with the mixer vars_s, '
            'vars_d or vars_sd'
        )
    if options.atoms is not None and not (has_code or hasattr(mixer, 'keys_values')):
        raise InputError(
            f'there are no atoms to draw: {mixes} has neither a dictionary nor keys. Take a model '
            'of VARS, or with softmax attention or the Performer'
        )
    if options.atoms is None:
        return
    check_number('atoms', options.atoms, 1, whole=True)
    counts = atom_counts(mixer)
    if options.per_head and 'channel' in counts:
        raise InputError(
            'atoms cannot be told apart by head: the static atoms of this model are '
            'filters of single channels'
        )
    for group, (groups, each) in counts.items():
        most = each if options.per_head else groups * each
        if options.atoms > most:
            raise InputError(
                f'atoms must be at most {most}, got {options.atoms}: there are {each} '
                f'a {group}' + ('' if options.per_head else f', {groups} {group}s')
            )


@dataclass
class ModelOutputs:
    """What one forward gave, at the size of the image: maps ``(H, W)`` float32.

    Lists have an entry for each pass. A network that reweights its output has one pass, and in its
    place the output tokens before and after.
    """

    image: np.ndarray  # (H, W, 3) uint8, RGB
    norms: list[np.ndarray]  # of the tokens
    stages: list[str]  # what the norms are of: 'pass 1', ...; '' where there is one pass
    prediction: np.ndarray  # labels (H, W) of a segmentor, probabilities (K,) of a classifier
    layer: int  # the block, from 0
    mixer: nn.Module  # of the block
    grids: list[TokenGrid]  # of the block's tokens
    enlarge: Callable[[Tensor], np.ndarray]  # maps (1, h, w) of the block to the image's size
    traces: list  # the block's sparse codes, if recorded
    token_mask: np.ndarray | None = None  # weights of the prior; None where there is no prior
    class_attention: list[np.ndarray] = field(default_factory=list)  # if recorded
    average_attention: list[np.ndarray] = field(default_factory=list)  # if recorded
    seam: int | None = None  # of two photos; then:
    norm_shares: list[dict | None] = field(default_factory=list)  # of norms above the threshold
    mask_shares: dict | None = None  # of all of the token mask
    truth: np.ndarray | None = None  # what is annotated: labels (H, W), or class numbers


@torch.no_grad()
def run_model(
    model: Model, sample: Sample, options: ViewOptions, config: PanelConfig | None = None
) -> ModelOutputs:
    """Run the model, in eval mode, once, with a prior and a scale or its own; record all passes.

    Maps and prediction come from the same forward, so a segmentation drawn beside a prior is the
    segmentation *under* that prior.

    Raises:
        InputError: If prior or scale do not fit the backbone, or the output overflows.
    """
    config = config or PanelConfig()
    network, trunk = network_of(model), model.backbone.trunk
    layer = resolve_layer(options.layer, trunk.depth)
    block, size = trunk.blocks[layer], sample.size
    images = sample.preprocessed(model)
    watched: dict[str, tuple[nn.Module, Callable]] = {
        'tokens': (block, lambda block, args, tokens: (tokens, args[1]))
    }
    # A matrix has heads * N * N numbers, 200 MB in ViT-B at 512x1024: only a row is recorded.
    if options.class_attention:
        watched['class'] = (
            _last_attention(trunk),
            lambda mixer, args, output: mixer.attention_probabilities(*args[:3])[:, :, :1].clone(),
        )
    if options.average_attention:
        watched['average'] = (
            block.attn,
            lambda mixer, args, output: mixer.mean_attention(*args[:3]).unsqueeze(2),
        )
    if options.steps or options.atoms is not None:
        watched['traces'] = (
            block.attn,
            lambda mixer, args, output: (
                mixer.trace(*args[:3]) if hasattr(mixer, 'trace') else key_trace(mixer, *args[:3])
            ),
        )
    prior = None if config.prior is None else config.prior.to(images.device)
    with recording(network, watched, prior, config.alpha) as records:
        prediction = predict_whole(model, images)
    output, tokens = records['output'][0], records['tokens']
    first, last = (output, output) if isinstance(network, Trunk) else (output.first, output.second)
    # Blocks of timm are called with positions in place of a grid, and all have that of the output.
    grids = [
        grid if isinstance(grid, TokenGrid) else (last if index else first).grid
        for index, (_, grid) in enumerate(tokens)
    ]
    # Maps of a first pass at a lower resolution are brought to the grids of the last pass.
    grid, stride, last_stride = grids[-1], trunk.strides[layer], trunk.strides[-1]

    def at_image_size(maps: Tensor, pixels: int) -> np.ndarray:
        return upsample_map(maps, pixels, size)[0].cpu().numpy()

    def enlarge(maps: Tensor) -> np.ndarray:
        return at_image_size(map_at_grid(maps, grid), stride)

    norm_stride, stages = stride, [f'pass {i + 1}' for i in range(len(tokens))]
    norm_maps = [
        map_at_grid(token_norm_map(block_tokens, own_grid), grid)
        for (block_tokens, _), own_grid in zip(tokens, grids, strict=True)
    ]
    if isinstance(network, PerceiverIO):  # one pass, whose output tokens are reweighted
        norm_stride, stages = last_stride, ['output tokens', 'reweighted output tokens']
        norm_maps = [token_norm_map(out.tokens, out.grid) for out in (first, last)]
    if not all(torch.isfinite(norm_map).all() for norm_map in norm_maps):
        raise InputError(
            'the output tokens are not finite'
            + (
                '; the checkpoint is of a training that diverged'
                if config.alpha is None
                else f' with alpha {config.alpha:g}: take a smaller one'
            )
        )
    outputs = ModelOutputs(
        sample.picture(model),
        [at_image_size(m, norm_stride) for m in norm_maps],
        stages if len(stages) > 1 else [''],
        prediction[: size[0], : size[1]] if is_segmentor(model) else prediction,
        layer,
        block.attn,
        grids,
        enlarge,
        records.get('traces', []),
        seam=sample.seam,
        truth=sample.truth,
    )
    for row, row_grid in zip(records.get('average', ()), grids, strict=False):
        outputs.average_attention.append(enlarge(attention_map(row, row_grid)))
    for index, row in enumerate(records.get('class', ())):
        class_map = attention_map(row, (last if index else first).grid)
        outputs.class_attention.append(
            at_image_size(map_at_grid(class_map, last.grid), last_stride)
        )
    if sample.seam is not None:
        outputs.norm_shares = [
            half_shares(norm_map[0], norm_stride, size, sample.seam, options.threshold)
            for norm_map in norm_maps
        ]
    if getattr(network, 'prior', None) is not None:
        # FAN's class token is in the output, but not among the tokens that go back.
        weights = output.token_weights[:, -last.grid.num_patches :].float()
        mask = last.grid._replace(num_prefix=0).to_map(weights)[:, 0]
        outputs.token_mask = at_image_size(mask, last_stride)
        if sample.seam is not None:
            outputs.mask_shares = half_shares(mask[0], last_stride, size, sample.seam)
    return outputs


def _last_attention(trunk: Trunk) -> nn.Module:
    """What mixes the class token last: a FAN has blocks of its own for it."""
    return getattr(trunk, 'cls_attn_blocks', trunk.blocks)[-1].attn


def map_panels(
    outputs: ModelOutputs, options: ViewOptions, config: PanelConfig | None = None
) -> list[HeatMap]:
    """Bottom-up attention, token mask, top-down attention.

    A plain network has neither mask nor top-down panel, feedback without a prior has no mask. With
    several rounds of feedback there is a panel for each, and the mask stands before the last. The
    attention of the class token or of the average token comes after the attention maps of its pass,
    the difference after all of these. Where two photos lie side by side, the shares of the halves
    stand on the maps.

    Args:
        config: Of the row.
    """
    config, image, last = config or PanelConfig(), outputs.image, len(outputs.norms) - 1
    reweighted = outputs.stages[0] == 'output tokens'
    block = f'block {outputs.layer}'
    panels: list[HeatMap] = []
    steered = False

    def heat_map(
        values: np.ndarray,
        title: str,
        note: str,
        kind: str,
        shares: dict | None = None,
        limits: tuple[float, float] | None = None,
        color_map: str = COLOR_MAP,
    ) -> None:
        texts = tuple(f'{share:.1%}' for share in (shares or {}).values())
        panels.append(
            HeatMap(
                values,
                image,
                limits,
                options.strength,
                color_map,
                kind=kind,
                title=title,
                note=note,
                halves=_halves(outputs, config, texts),
                steered=steered,
            )
        )

    for index, (norms, stage) in enumerate(zip(outputs.norms, outputs.stages, strict=True)):
        steered = index > 0
        of_pass = f', {stage}' if stage and not reweighted else ''
        if index == last and outputs.token_mask is not None:
            steered = True
            # Zero means "not fed back", so the scale starts there whatever the smallest weight.
            heat_map(
                outputs.token_mask,
                'Token mask',
                f'cosine of {"output" if reweighted else f"pass-{last}"} tokens with the prior',
                'mask',
                outputs.mask_shares,
                (0.0, max(float(outputs.token_mask.max()), 1e-6)),
            )
        heat_map(
            options.cut(options.scaled(norms)),
            f'{"Top-down" if index else "Bottom-up"} attention',
            f'norms of {stage}' if reweighted else f'token norms, {block}{of_pass}',
            'norms',
            outputs.norm_shares[index] if outputs.norm_shares else None,
        )
        for maps, title, note in (
            (outputs.class_attention, CLASS_TOKEN, 'class attention, last block'),
            (outputs.average_attention, AVERAGE, f'mean attention, {block}'),
        ):
            if index < len(maps):  # there are none of reweighted output tokens
                heat_map(options.cut(options.scaled(maps[index])), title, note + of_pass, title)
    if options.difference and last:
        change = options.scaled(outputs.norms[-1]) - options.scaled(outputs.norms[0])
        reach = max(float(np.abs(change).max()), 1e-6)  # white is "no change"
        heat_map(
            change,
            'Top-down − bottom-up',
            'output tokens, after − before'
            if reweighted
            else f'token norms, {block}, pass {last + 1} − pass 1',
            'difference',
            None,
            (-reach, reach),
            'bwr',
        )
    return panels


def attention_panels(
    outputs: ModelOutputs,
    classes: ClassTable,
    options: ViewOptions,
    config: PanelConfig | None = None,
    others: tuple[int, ...] = (),
) -> list[Panel]:
    """Input, the maps of :func:`map_panels`, ground truth, prediction.

    There is a ground truth where the sample has annotations; that of a classifier is marked among
    the likeliest classes.

    Args:
        config: Of the row: the class that its prior stands for is marked among the likeliest
            classes.
        others: More classes to show in any case.
    """
    config, image = config or PanelConfig(), outputs.image

    def label_map(labels: np.ndarray, title: str = 'Segmentation', note: str = '') -> LabelMap:
        return LabelMap(labels, image, classes.names, classes.palette, title=title, note=note)

    panels: list[Panel] = [
        Picture(image, halves=_halves(outputs, config)),
        *map_panels(outputs, options, config),
    ]
    note = outputs.stages[-1]
    if outputs.prediction.ndim == 2:
        if outputs.truth is not None:
            panels.append(label_map(outputs.truth, title='Ground truth'))
        prediction: Panel = label_map(outputs.prediction, note=note)
    else:
        truth = () if outputs.truth is None else tuple(outputs.truth.tolist())
        prediction = TopClasses(
            outputs.prediction,
            classes.names,
            highlight=config.class_index,
            others=others,
            truth=truth,
            note=note,
        )
    prediction.steered = len(outputs.norms) > 1
    return [*panels, prediction]


def _halves(
    outputs: ModelOutputs, config: PanelConfig, texts: tuple[str, ...] = ()
) -> SideBySide | None:
    if outputs.seam is None:
        return None
    return SideBySide(outputs.seam / outputs.image.shape[1], texts, config.half)


def attention_rows(
    outputs: Sequence[ModelOutputs],
    classes: ClassTable,
    options: ViewOptions,
    configs: Sequence[PanelConfig],
    labels: Sequence[str],
    others: tuple[int, ...] = (),
) -> list[Row]:
    """A row of :func:`attention_panels` for each prior and scale, in common ranges.

    With several rows, what depends on neither (input, bottom-up attention, ground truth) stands
    once, in a row of its own; the ground truth over the segmentations.
    """
    rows = [
        Row(attention_panels(out, classes, options, config, others), label)
        for out, config, label in zip(outputs, configs, labels, strict=True)
    ]
    if len(rows) > 1:
        first_pass = [
            replace(panel, halves=panel.halves and replace(panel.halves, half=None))
            for panel in rows[0].panels
            if not panel.steered
        ]
        steered = [[panel for panel in row.panels if panel.steered] for row in rows]
        columns = max(len(first_pass), len(steered[0]))
        last = [first_pass.pop()] if isinstance(first_pass[-1], LabelMap) else []
        space = [Panel()] * (columns - len(first_pass) - len(last))
        rows = [Row([*first_pass, *space, *last])] + [
            Row([*[Panel()] * (columns - len(panels)), *panels], row.label)
            for row, panels in zip(rows, steered, strict=True)
        ]
    options.share_limits(panel for row in rows for panel in row.panels)
    return rows


def block_name(layer: int | None, depth: int) -> str:
    """The block that a layer means, as it is counted in all options: from 0."""
    return f'block {resolve_layer(layer, depth)} of 0 to {depth - 1}'


def norms_name(model: Model, layer: int | None = None) -> str:
    """Of what tokens the norms are, which are drawn as attention."""
    if isinstance(network_of(model), PerceiverIO):
        return 'norms of the output tokens'
    return f'token norms after {block_name(layer, model.backbone.trunk.depth)}'


def maps_footer(model: Model, options: ViewOptions) -> str:
    """Where the maps of a model come from, for the small print."""
    network = network_of(model)
    text = norms_name(model, options.layer)
    if isinstance(network, PerceiverIO):
        return f'{text} · one pass, reweighted by the token mask'
    text += LIMITS[options.limits]
    if isinstance(network, Trunk):
        text += ' · no feedback: one pass, no token mask, no top-down attention'
    elif network.prior is None:
        text += ' · feedback without a prior, so no token mask'
    return text


def step_rows(outputs: ModelOutputs, options: ViewOptions, label: str = '') -> list[Row]:
    """Input, start, step 1, ... of the block's code: one row for each pass.

    The map of a step is ``||P u||`` at each patch, over the channels of all heads (Figures 1.5 and
    A.1): how much of the input the code of that step reconstructs there. The thesis does not say
    how its maps were drawn. This one is chosen because P u is all that VARS hands on (Eq. 1.11),
    because it is defined alike for all dictionaries and steps, and because the norm of a token is
    what the thesis draws elsewhere (Figures 2.4 to 2.8).
    """
    rows = []
    for number, (trace, grid) in enumerate(zip(outputs.traces, outputs.grids, strict=True), 1):
        maps = [outputs.enlarge(token_norm_map(tokens, grid)) for tokens in trace.reconstructions]
        maps = [options.cut(options.scaled(m)) for m in maps]
        energies = energy_shares(trace, sparsity_weight(outputs.mixer, grid))[:, 0].tolist()
        panels: list[Panel] = [Picture(outputs.image)]
        for step, (values, code, energy) in enumerate(
            zip(maps, trace.codes, energies, strict=True)
        ):
            note = f'near zero {float(near_zero_share(code)[0]):.0%}, energy {energy:.3g}'
            panels.append(
                HeatMap(
                    values,
                    outputs.image,
                    strength=options.strength,
                    kind='steps',
                    title=f'Step {step}' if step else 'Start',
                    note=note,
                )
            )
        lines = [label, f'pass {number}' if len(outputs.traces) > 1 else '']
        rows.append(Row(panels, '\n'.join(filter(None, lines))))
    options.share_limits(panel for row in rows for panel in row.panels)
    return rows


def atom_rows(outputs: ModelOutputs, options: ViewOptions, label: str = '') -> list[Row]:
    """The input and the atoms that the last code uses most: dynamic ones, then static ones."""
    rows = []
    for atoms in atom_sets(outputs.traces[-1], outputs.mixer, outputs.grids[-1]):
        name, image = ('head', outputs.image) if atoms.on_image else ('channel', None)
        kind = 'Φ(K)' if atoms.kind == 'key' else atoms.kind
        text = f'{label}\n{kind} {"atoms" if atoms.on_image else "filters"}'.strip()
        for group in range(len(atoms.shares)) if options.per_head else [None]:
            panels: list[Panel] = []
            for place, atom, share in most_used_atoms(atoms.shares, options.atoms or 1, group):
                atom_map = atoms.maps[place, atom]
                values = outputs.enlarge(atom_map[None]) if atoms.on_image else atom_map.numpy()
                reach = max(float(np.abs(values).max()), 1e-12)
                # Zero is "no part in the atom": black, or white between the two signs.
                low, color_map = (-reach, 'bwr') if values.min() < 0 else (0.0, COLOR_MAP)
                note = f'{share:.1%} of the code' if share >= 0.001 else '<0.1% of the code'
                panels.append(
                    HeatMap(
                        values,
                        image,
                        (low, reach),
                        options.strength,
                        color_map,
                        title=f'{name} {place}, atom {atom}',
                        note=note,
                    )
                )
            # Rows of equal length, as few as possible; the input stands before the first.
            columns = -(-len(panels) // -(-len(panels) // MAX_COLUMNS))
            for start in range(0, len(panels), columns):
                part = [
                    Panel() if start else Picture(outputs.image),
                    *panels[start : start + columns],
                ]
                part += [Panel()] * (columns + 1 - len(part))
                rows.append(Row(part, '' if start else text))
    return rows
