"""Attention maps of any model: of ours in all passes, of other vision transformers in one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from mmvars.errors import InputError
from mmvars.layers import TokenGrid
from mmvars.visualization.draw import ViewOptions, map_panels, resolve_layer, run_model
from mmvars.visualization.figure import HeatMap
from mmvars.visualization.maps import token_norm_map, upsample_map
from mmvars.visualization.model import Model, Sample, network_of

__all__ = ['attention_maps']

_MOST_PREFIX_TOKENS = 16  # class, distillation and register tokens


def attention_maps(
    model: Model, sample: Sample, options: ViewOptions | None = None
) -> list[HeatMap]:
    """The panels of :func:`map_panels`; of a plain ViT that is not ours its token norms.

    Ours sees the whole image in one forward, also where tests use sliding windows. Empty is the
    list of a model whose blocks do not keep one grid of patches (ResNet, Swin, SegFormer), and of
    another ViT that sees sliding windows.

    Args:
        model: A segmentor or classifier, in eval mode.
        sample: An image.
        options: Which maps; of another ViT ``layer``, ``threshold`` and ``strength`` count.
    """
    options = options or ViewOptions()
    try:
        network_of(model)
    except InputError:
        return _of_plain_vit(model, sample, options)
    return map_panels(run_model(model, sample, options), options)


@torch.no_grad()
def _of_plain_vit(model: Model, sample: Sample, options: ViewOptions) -> list[HeatMap]:
    """Norms of the patch tokens after a block, as they are drawn of our networks."""
    found = next(filter(None, map(_parts, model.modules())), None)
    if found is None:
        return []
    convolution, blocks = found
    layer = resolve_layer(options.layer, len(blocks))
    with _outputs_of(convolution, blocks[layer]) as (grids, tokens):
        packed = dict(inputs=sample.inputs, data_samples=sample.data_sample)
        model.test_step(pseudo_collate([packed]))
    if len(grids) != 1 or len(tokens) != 1 or grids[0].ndim != 4 or tokens[0].ndim != 3:
        return []
    (height, width), stride = grids[0].shape[-2:], convolution.stride[0]
    num_prefix = tokens[0].shape[1] - height * width
    covers = height * stride >= sample.size[0] and width * stride >= sample.size[1]
    if not 0 <= num_prefix <= _MOST_PREFIX_TOKENS or not covers:
        return []
    norms = token_norm_map(tokens[0], TokenGrid(height, width, num_prefix))
    values = upsample_map(norms, stride, sample.size)[0].cpu().numpy()
    return [
        HeatMap(
            options.cut(options.scaled(values)),
            sample.picture(model),
            strength=options.strength,
            kind='norms',
            title='Attention',
            note=f'token norms, block {layer}',
        )
    ]


def _parts(module: nn.Module) -> tuple[nn.Conv2d, list[nn.Module]] | None:
    """What embeds patches, and the blocks, of a ViT of mmseg, mmpretrain or timm."""
    embed = getattr(module, 'patch_embed', None)
    blocks = getattr(module, 'layers', getattr(module, 'blocks', None))
    if not isinstance(embed, nn.Module) or not isinstance(blocks, nn.ModuleList | nn.Sequential):
        return None
    convolutions = [part for part in embed.modules() if isinstance(part, nn.Conv2d)]
    return (convolutions[0], list(blocks)) if len(convolutions) == 1 and len(blocks) else None


@contextmanager
def _outputs_of(*modules: nn.Module) -> Iterator[list[list[Tensor]]]:
    """What modules return, call by call."""
    records: list[list[Tensor]] = [[] for _ in modules]
    handles = [
        module.register_forward_hook(lambda module, args, output, kept=kept: kept.append(output))
        for module, kept in zip(modules, records, strict=True)
    ]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()
