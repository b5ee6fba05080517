"""From a model and an image to a row of panels."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from mmvars.analysis import (AttentionRecorder, HeatMap, LabelMap, Panel, Picture,
                             SparseCodeRecorder, TopClasses, TopDownRecorder, atom_counts,
                             attention_from_class_token, attention_row, check_sparse_codes,
                             mixes_by_attention, resolve_layer, suppress_below, token_mask_map,
                             token_norm_map, upsample_map)
from mmvars.errors import InputError, check_number
from mmvars.networks import TopDown
from mmvars.visualization.host import ClassTable, Sample, is_segmentor, network_of, predict

__all__ = ['STEP_LIMITS', 'Observation', 'ViewOptions', 'check_options', 'observe', 'panels_of']

STEP_LIMITS = ('relative', 'shared', 'own')
PASS_NAMES = ('Bottom-up attention', 'Top-down attention')


@dataclass(frozen=True)
class ViewOptions:
    """What to draw.

    Args:
        layer: Block whose tokens and codes are drawn, see :func:`mmvars.analysis.resolve_layer`.
        threshold: Draw nothing under this fraction of a map's range; ``None``: draw all.
        class_attention: Also draw what the class token looks at in the last block.
        average_attention: Also draw what the average token looks at in the block.
        difference: Also draw the norms of pass 2 less those of pass 1.
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
                             'for softmax attention, the steps for VARS')
        last = network.trunk.blocks[-1].attn
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
        norms: Token norms of pass 1 and, with feedback, pass 2.
        token_mask: Weights of the prior modulation; ``None`` without feedback.
        class_attention: Attention of the class token in each pass, if it was asked for.
        average_attention: That of the average token.
        codes: The sparse codes of the block, if steps or atoms were asked for.
        prediction: Labels ``(H, W)`` of a segmentor, probabilities ``(K,)`` of a classifier.
        enlarge: Brings maps ``(1, h, w)`` of the block to the size of the image.
    """

    image: np.ndarray
    norms: list[np.ndarray]
    token_mask: np.ndarray | None
    class_attention: list[np.ndarray]
    average_attention: list[np.ndarray]
    codes: SparseCodeRecorder | None
    prediction: np.ndarray
    enlarge: Callable[[Tensor], np.ndarray]


@torch.no_grad()
def observe(model: nn.Module, sample: Sample, options: ViewOptions, prior: Tensor | None = None,
            alpha: float | None = None) -> Observation:
    """Run the model once and record both passes.

    Maps and prediction come from the same forward, so a segmentation drawn beside a prior is the
    segmentation *under* that prior.

    Args:
        model: A segmentor or classifier in eval mode, with an mmvars backbone.
        sample: The image.
        prior: ``(C,)``; ``None``: the model's own.
        alpha: Scale of the top-down signal; ``None``: the model's own.

    Raises:
        InputError: If the backbone is none of mmvars, or prior or scale do not fit it.
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
    output, height, width = record.output, *sample.size

    def at_image_size(maps: Tensor, block: int = -1) -> np.ndarray:
        enlarged = upsample_map(maps, network.trunk.strides[block], (height, width))
        return enlarged[0].cpu().numpy()

    last_grid = output.bottom_up.grid
    return Observation(
        image=sample.picture(model),
        norms=[at_image_size(token_norm_map(tokens, record.grid), layer)
               for tokens in record.tokens],
        token_mask=None if output.token_mask is None else at_image_size(
            token_mask_map(output.token_mask, last_grid)),
        class_attention=[at_image_size(attention_from_class_token(p[0], last_grid))
                         for p in (of_class.passes if of_class else ())],
        average_attention=[at_image_size(attention_row(p[0], record.grid), layer)
                           for p in (of_average.passes if of_average else ())],
        codes=codes,
        prediction=prediction[:height, :width] if is_segmentor(model) else prediction,
        enlarge=partial(at_image_size, block=layer))


def panels_of(seen: Observation, classes: ClassTable, options: ViewOptions,
              highlight: int | None = None) -> list[Panel]:
    """Input, bottom-up attention, token mask, top-down attention, prediction, in this order.

    Without feedback there is no second pass: no mask and no top-down panel. The attention of the
    class token or of the average token comes after each of the two attention maps, the difference
    after these.

    Args:
        highlight: The class the prior stands for, marked among the likeliest classes.
    """
    strength = options.strength

    panels: list[Panel] = [Picture(seen.image)]
    for index, norms in enumerate(seen.norms):
        if index == 1:
            # Zero means "not fed back", so the scale starts there whatever the smallest weight.
            limits = 0., max(float(seen.token_mask.max()), 1e-6)
            panels.append(HeatMap(seen.token_mask, seen.image, 'Token mask',
                                  'cosine of pass-1 tokens with the prior', limits, strength))
        panels.append(HeatMap(options.shown(norms), seen.image, PASS_NAMES[index],
                              f'token norms, pass {index + 1}', strength=strength))
        for maps, title, note in (
                (seen.class_attention, 'Class token looks at', 'last block, mean of heads'),
                (seen.average_attention, 'Average token looks at', 'mean of queries and heads')):
            if maps:
                panels.append(HeatMap(options.shown(maps[index]), seen.image, title,
                                      f'{note}, pass {index + 1}', strength=strength))
    if options.difference and len(seen.norms) > 1:
        change = seen.norms[1] - seen.norms[0]
        reach = max(float(np.abs(change).max()), 1e-6)  # white is "no change"
        panels.append(HeatMap(change, seen.image, 'Top-down − bottom-up',
                              'token norms, pass 2 − pass 1', (-reach, reach), strength, 'bwr'))
    note = f'pass {len(seen.norms)}'
    if seen.prediction.ndim == 2:
        panels.append(LabelMap(seen.prediction, seen.image, classes.names, classes.palette,
                               note=note))
    else:
        panels.append(TopClasses(seen.prediction, classes.names, note=note, highlight=highlight))
    return panels
