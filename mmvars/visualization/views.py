"""From a model and an image to a row of panels."""

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mmvars.analysis import (AttentionRecorder, HeatMap, LabelMap, Panel, Picture, TopClasses,
                             TopDownRecorder, attention_from_class_token, suppress_below,
                             token_mask_map, token_norm_map, upsample_map)
from mmvars.visualization.host import ClassTable, Sample, is_segmentor, network_of, predict

__all__ = ['Observation', 'ViewOptions', 'observe', 'panels_of']

PASS_NAMES = ('Bottom-up attention', 'Top-down attention')


@dataclass(frozen=True)
class ViewOptions:
    """What to draw.

    Args:
        layer: Block whose tokens are drawn, see :func:`mmvars.analysis.resolve_layer`.
        threshold: Draw nothing under this fraction of a map's range; ``None``: draw all.
        class_attention: Also draw what the class token looks at in the last block.
        difference: Also draw the norms of pass 2 less those of pass 1.
        strength: Share of the colours in overlays, 0 to 1.
    """

    layer: int | None = None
    threshold: float | None = None
    class_attention: bool = False
    difference: bool = False
    strength: float = 0.7


@dataclass
class Observation:
    """What one forward showed, at the size of the image: maps ``(H, W)`` float32.

    Attributes:
        norms: Token norms of pass 1 and, with feedback, pass 2.
        token_mask: Weights of the prior modulation; ``None`` without feedback.
        class_attention: Attention of the class token in each pass, if it was asked for.
        prediction: Labels ``(H, W)`` of a segmentor, probabilities ``(K,)`` of a classifier.
    """

    image: np.ndarray
    norms: list[np.ndarray]
    token_mask: np.ndarray | None
    class_attention: list[np.ndarray]
    prediction: np.ndarray


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
    with ExitStack() as stack:
        record = stack.enter_context(TopDownRecorder(network, options.layer, prior, alpha))
        attention = stack.enter_context(AttentionRecorder(network, layers=[-1], query=0)) \
            if options.class_attention else None
        prediction = predict(model, images)
    output, height, width = record.output, *sample.size
    grid = output.bottom_up.grid

    def at_image_size(maps: Tensor) -> np.ndarray:
        maps = upsample_map(maps, network.trunk.patch_embed.patch_size, (height, width))
        return maps[0].cpu().numpy()

    return Observation(
        image=sample.picture(model),
        norms=[at_image_size(token_norm_map(tokens, grid)) for tokens in record.tokens],
        token_mask=None if output.token_mask is None else at_image_size(
            token_mask_map(output.token_mask, grid)),
        class_attention=[at_image_size(attention_from_class_token(p[0], grid))
                         for p in (attention.passes if attention else ())],
        prediction=prediction[:height, :width] if is_segmentor(model) else prediction)


def panels_of(seen: Observation, classes: ClassTable, options: ViewOptions,
              highlight: int | None = None) -> list[Panel]:
    """Input, bottom-up attention, token mask, top-down attention, prediction, in this order.

    A plain ViT has no second pass: no mask and no top-down panel. With class attention there is a
    panel of it after each of the two attention maps; the difference comes after these.

    Args:
        highlight: The class the prior stands for, marked among the likeliest classes.
    """
    strength = options.strength

    def shown(values: np.ndarray) -> np.ndarray:
        # Here, on the visible part, so that padding has no say in the range.
        if options.threshold is None:
            return values
        return suppress_below(torch.from_numpy(values)[None], options.threshold)[0].numpy()

    panels: list[Panel] = [Picture(seen.image)]
    for index, norms in enumerate(seen.norms):
        if index == 1:
            # Zero means "not fed back", so the scale starts there whatever the smallest weight.
            limits = 0., max(float(seen.token_mask.max()), 1e-6)
            panels.append(HeatMap(seen.token_mask, seen.image, 'Token mask',
                                  'cosine of pass-1 tokens with the prior', limits, strength))
        panels.append(HeatMap(shown(norms), seen.image, PASS_NAMES[index],
                              f'token norms, pass {index + 1}', strength=strength))
        if seen.class_attention:
            panels.append(HeatMap(shown(seen.class_attention[index]), seen.image,
                                  'Class token looks at',
                                  f'last block, mean of heads, pass {index + 1}',
                                  strength=strength))
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
