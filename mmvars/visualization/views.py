"""From a model and an image to a row of panels."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from mmvars.analysis import (AttentionRecorder, Half, Halved, HalfShares, HeatMap, LabelMap, Panel,
                             Picture, SparseCodeRecorder, TopClasses, TopDownRecorder, atom_counts,
                             attention_from_class_token, attention_row, check_sparse_codes,
                             half_shares, mixes_by_attention, resolve_layer, suppress_below,
                             token_mask_map, token_norm_map, upsample_map)
from mmvars.errors import InputError, check_number
from mmvars.networks import TopDown, TopDownOutput, Trunk
from mmvars.visualization.host import ClassTable, Sample, is_segmentor, network_of, predict

__all__ = ['STEP_LIMITS', 'Observation', 'ViewOptions', 'check_options', 'observe', 'panels_of',
           'reweights_output']

STEP_LIMITS = ('relative', 'shared', 'own')


@dataclass(frozen=True)
class ViewOptions:
    """What to draw.

    Args:
        layer: Block whose tokens and codes are drawn, see :func:`mmvars.analysis.resolve_layer`.
        threshold: Draw nothing under this fraction of a map's range; ``None``: draw all.
        class_attention: Also draw what the class token looks at in the last block.
        average_attention: Also draw what the average token looks at in the block.
        difference: Also draw the norms of top-down less those of bottom-up attention.
        strength: Share of the colours in overlays, 0 to 1.
        steps: Record the steps of the block's sparse code.
        atoms: Number of atoms of that code to draw; ``None``: none.
        per_head: As many atoms of every head, instead of all heads together.
        step_limits: Colours of the steps. ``'relative'``: each map over its own mean, one range for
            all steps, so that a sharper map is one with a higher peak; ``'shared'``: the norms
            themselves in one range; ``'own'``: each in its own.
    """

    layer: int | None = None
    threshold: float | None = None
    class_attention: bool = False
    average_attention: bool = False
    difference: bool = False
    strength: float = 0.7
    steps: bool = False
    atoms: int | None = None
    per_head: bool = False
    step_limits: str = STEP_LIMITS[0]

    def shown(self, values: np.ndarray) -> np.ndarray:
        """The part of a map above the threshold; of the visible part, so that padding has no say.
        """
        if self.threshold is None:
            return values
        return suppress_below(torch.from_numpy(values)[None], self.threshold)[0].numpy()


def reweights_output(network: TopDown) -> bool:
    """Whether top-down attention is one pass whose output tokens are reweighted (PerceiverIO)."""
    return network.feedback is None and not network.is_plain


def check_options(network: TopDown, options: ViewOptions) -> None:
    """Refuse what this network cannot show, before an image is read.

    Raises:
        InputError: With the reason.
    """
    layer = resolve_layer(options.layer, network.trunk.depth)
    mixer = network.trunk.blocks[layer].attn
    if options.class_attention:
        if getattr(network.trunk, 'cls_token', None) is None:
            raise InputError('class attention cannot be drawn: this '
                             f'{type(network.trunk).__name__} has no class token that could look '
                             'at anything. The attention of the average token can take its place '
                             'for softmax attention and the Performer, the steps for VARS')
        last = _last_attention(network.trunk)
        if not mixes_by_attention(last):
            raise InputError('class attention cannot be drawn: the last block mixes tokens with '
                             f'{type(last).__name__}, which has no attention matrix')
    if options.average_attention and not mixes_by_attention(mixer):
        hint = '; draw its steps instead' if hasattr(mixer, 'trace') else ''
        raise InputError(f'the attention of the average token cannot be drawn: block {layer} mixes '
                         f'tokens with {type(mixer).__name__}, which has no attention matrix{hint}')
    if options.steps or options.atoms is not None:
        check_sparse_codes(network, layer)
    if options.atoms is not None:
        _check_atoms(atom_counts(mixer), options)


def _check_atoms(counts: dict[str, tuple[int, int]], options: ViewOptions) -> None:
    check_number('atoms', options.atoms, 1, whole=True)
    if options.per_head and 'channel' in counts:
        raise InputError('atoms cannot be told apart by head: the static atoms of this model are '
                         'filters of single channels')
    for group, (groups, each) in counts.items():
        most = each if options.per_head else groups * each
        if options.atoms > most:
            raise InputError(f'atoms must be at most {most}, got {options.atoms}: there are {each} '
                             f'a {group}' + ('' if options.per_head else f', {groups} {group}s'))


@dataclass
class Observation:
    """What one forward showed, at the size of the image: maps ``(H, W)`` float32.

    Attributes:
        norms: Token norms of all passes. Of a network that reweights its output, those of the
            output tokens before and after.
        norm_notes: What each of them is.
        token_mask: Weights of the last prior modulation; ``None`` without a prior.
        class_attention: Attention of the class token in each pass, if it was asked for.
        average_attention: That of the average token.
        codes: The sparse codes of the block, if steps or atoms were asked for.
        prediction: Labels ``(H, W)`` of a segmentor, probabilities ``(K,)`` of a classifier.
        enlarge: Brings maps ``(1, h, w)`` of the block to the size of the image.
        seam: Of the sample.
        norm_shares: With a seam: how the mass of each of ``norms`` above the threshold is divided.
        mask_shares: The same of the token mask, all of it.
    """

    image: np.ndarray
    norms: list[np.ndarray]
    norm_notes: list[str]
    token_mask: np.ndarray | None
    class_attention: list[np.ndarray]
    average_attention: list[np.ndarray]
    codes: SparseCodeRecorder | None
    prediction: np.ndarray
    enlarge: Callable[[Tensor], np.ndarray]
    seam: int | None = None
    norm_shares: list[HalfShares | None] = field(default_factory=list)
    mask_shares: HalfShares | None = None


@torch.no_grad()
def observe(model: nn.Module, sample: Sample, options: ViewOptions, prior: Tensor | None = None,
            alpha: float | None = None) -> Observation:
    """Run the model once and record all passes.

    Maps and prediction come from the same forward, so a segmentation drawn beside a prior is the
    segmentation *under* that prior.

    Args:
        model: A segmentor or classifier in eval mode, with an mmvars backbone.
        sample: The image.
        prior: ``(C,)``; ``None``: the model's own.
        alpha: Scale of the top-down signal; ``None``: the model's own.

    Raises:
        InputError: If the backbone is none of mmvars, prior or scale do not fit it, or the output
            overflows.
    """
    network = network_of(model)
    images = sample.prepared(model)
    layer = resolve_layer(options.layer, network.trunk.depth)
    with ExitStack() as stack:
        record = stack.enter_context(TopDownRecorder(network, layer, prior, alpha))
        of_class = of_average = codes = None
        if options.class_attention:
            of_class = stack.enter_context(AttentionRecorder(network, layers=[-1], query=0))
        if options.average_attention:
            number = sum(mixes_by_attention(block.attn) for block in network.trunk.blocks[:layer])
            of_average = stack.enter_context(AttentionRecorder(network, [number], query='mean'))
        if options.steps or options.atoms is not None:
            codes = stack.enter_context(SparseCodeRecorder(network, layer))
        prediction = predict(model, images)
    output, size = record.output, sample.size
    strides = network.trunk.strides

    def at_image_size(maps: Tensor, block: int = -1) -> np.ndarray:
        return upsample_map(maps, strides[block], size)[0].cpu().numpy()

    last_grid = output.bottom_up.grid
    norms, notes, place = _norm_maps(network, record)
    if not all(torch.isfinite(map_).all() for map_ in norms):
        raise InputError('the output tokens are not finite' + (
            '; the checkpoint is of a training that diverged' if alpha is None else
            f' with alpha {alpha:g}: take a smaller one'))
    mask = _mask_map(network, output)
    seen = Observation(
        image=sample.picture(model),
        norms=[at_image_size(m, place) for m in norms], norm_notes=notes,
        token_mask=None if mask is None else at_image_size(mask),
        class_attention=[at_image_size(attention_from_class_token(p[0], last_grid))
                         for p in (of_class.passes if of_class else ())],
        average_attention=[at_image_size(attention_row(p[0], record.grid), layer)
                           for p in (of_average.passes if of_average else ())],
        codes=codes,
        prediction=prediction[:size[0], :size[1]] if is_segmentor(model) else prediction,
        enlarge=partial(at_image_size, block=layer), seam=sample.seam)
    if sample.seam is not None:
        seen.norm_shares = [half_shares(m[0], strides[place], size, sample.seam, options.threshold)
                            for m in norms]
        if mask is not None:
            seen.mask_shares = half_shares(mask[0], strides[-1], size, sample.seam)
    return seen


def _norm_maps(network: TopDown,
               record: TopDownRecorder) -> tuple[list[Tensor], list[str], int]:
    """Maps ``(1, h, w)`` of token norms, what each is, and the block whose grid they have."""
    if not reweights_output(network):
        return ([token_norm_map(tokens, record.grid) for tokens in record.tokens],
                [f'token norms, pass {i + 1}' for i in range(len(record.tokens))], record.layer)
    outputs = record.output.bottom_up, record.output.top_down
    return ([token_norm_map(output.tokens, output.grid) for output in outputs],
            ['norms of output tokens', 'norms of reweighted output tokens'], -1)


def _mask_map(network: TopDown, output: TopDownOutput) -> Tensor | None:
    if output.token_mask is None or network.prior is None:  # without a prior it is all ones
        return None
    grid = output.bottom_up.grid
    # The class token of a FAN is in the output, but not among the tokens that go back.
    grid = grid._replace(num_prefix=output.token_mask.shape[1] - grid.num_patches)
    return token_mask_map(output.token_mask, grid)


def _last_attention(trunk: Trunk) -> nn.Module:
    """What mixes the class token last: a FAN has blocks of its own for it."""
    return getattr(trunk, 'cls_attn_blocks', trunk.blocks)[-1].attn


def panels_of(seen: Observation, classes: ClassTable, options: ViewOptions,
              highlight: int | None = None, others: tuple[int, ...] = (),
              asked: Half | None = None) -> list[Panel]:
    """Input, bottom-up attention, token mask, top-down attention, prediction, in this order.

    A plain network has neither mask nor top-down panel, feedback without a prior has no mask. With
    several rounds of feedback there is a panel for each, and the mask stands before the last. The
    attention of the class token or of the average token comes after the attention maps of its pass,
    the difference after all of these. Where two photos lie side by side, the shares of the halves
    stand on the maps.

    Args:
        highlight: The class the prior stands for, marked among the likeliest classes.
        others: More classes to show in any case.
        asked: The half whose class that is.
    """
    strength, last = options.strength, len(seen.norms) - 1

    def halved(panel: Panel, shares: HalfShares | None = None) -> Panel:
        if seen.seam is None:
            return panel
        words = ('', '') if shares is None else tuple(f'{share:.1%}' for share in shares)
        return Halved(panel, seen.seam, seen.image.shape[1], words, asked)

    panels: list[Panel] = [halved(Picture(seen.image))]
    for index, norms in enumerate(seen.norms):
        if index == last and seen.token_mask is not None:
            # Zero means "not fed back", so the scale starts there whatever the smallest weight.
            limits = 0., max(float(seen.token_mask.max()), 1e-6)
            panels.append(halved(HeatMap(seen.token_mask, seen.image, 'Token mask',
                                         f'cosine of pass-{max(last, 1)} tokens with the prior',
                                         limits, strength), seen.mask_shares))
        panels.append(halved(HeatMap(options.shown(norms), seen.image,
                                     f'{"Top-down" if index else "Bottom-up"} attention',
                                     seen.norm_notes[index], strength=strength),
                             seen.norm_shares[index] if seen.norm_shares else None))
        for maps, title, note in (
                (seen.class_attention, 'Class token looks at', 'last block, mean of heads'),
                (seen.average_attention, 'Average token looks at', 'mean of queries and heads')):
            if index < len(maps):  # reweighted output tokens look at nothing any more
                panels.append(halved(HeatMap(options.shown(maps[index]), seen.image, title,
                                             f'{note}, pass {index + 1}', strength=strength)))
    if options.difference and last:
        change = seen.norms[-1] - seen.norms[0]
        reach = max(float(np.abs(change).max()), 1e-6)  # white is "no change"
        note = (f'token norms, pass {last + 1} − pass 1'
                if seen.norm_notes[0].startswith('token') else 'output tokens, after − before')
        panels.append(halved(HeatMap(change, seen.image, 'Top-down − bottom-up', note,
                                     (-reach, reach), strength, 'bwr')))
    note = seen.norm_notes[-1].removeprefix('norms of ').removeprefix('token norms, ')
    if seen.prediction.ndim == 2:
        panels.append(LabelMap(seen.prediction, seen.image, classes.names, classes.palette,
                               note=note))
    else:
        panels.append(TopClasses(seen.prediction, classes.names, note=note, highlight=highlight,
                                 others=others))
    return panels
