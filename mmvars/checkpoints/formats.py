"""The sources of checkpoints: one row each. A new family of networks adds rows here."""

from collections.abc import Collection
from dataclasses import replace

from mmvars.checkpoints.rules import Format, Reason, Rename, same_names

__all__ = ['FORMATS', 'MMVARS', 'RELEASE', 'RELEASE_SEGMENTOR', 'TARGETS', 'TIMM', 'detect_format']

_NOT_OURS = (
    Reason('dist_token', 'a distilled DeiT: its second class token has no place in this network; '
           'take the file of the same size without distillation'),
    Reason('head_dist.{path}', 'the distillation head of a distilled DeiT; take the file of the '
           'same size without distillation'),
    Reason('reg_token', 'register tokens, which this network does not have'),
    Reason('norm_pre.{path}', 'a norm before the blocks, which this network does not have'),
    Reason('blocks.{i}.ls1.{path}', 'layer scale, which this network does not have'),
    Reason('blocks.{i}.ls2.{path}', 'layer scale, which this network does not have'),
    Reason('blocks.{i}.attn.q_norm.{path}', 'query norms, which this network does not have'),
    Reason('blocks.{i}.attn.k_norm.{path}', 'key norms, which this network does not have'),
)

TIMM = Format(
    name='timm',
    title='timm / DeiT / released plain ViT',
    renames=same_names('trunk.', 'cls_token', 'pos_embed', 'patch_embed.{path}',
                       'blocks.{i}.{path}', 'norm.{path}', 'fc_norm.{path}', 'head.{path}'),
    signs=('cls_token', 'pos_embed', 'blocks.{i}.{path}'),
    refused=_NOT_OURS,
    unnamed=(Reason('trunk.pos_grid', "timm keeps the grid of the positions in the model's "
                    'img_size, not in the file'), ),
)

RELEASE = Format(
    name='release',
    title='released AbSViT',
    renames=(
        *same_names('trunk.', 'prompt_embeddings', 'deep_prompt_embeddings', 'cls_token',
                    'pos_embed'),
        Rename('prompt', 'prior.query'),
        *same_names('trunk.', 'patch_embed.{path}', 'blocks.{i}.{path}', 'norm.{path}'),
        Rename('decoders.{i}.linear.weight', 'feedback.decoders.{i}.chain.weight'),
        Rename('decoders.{i}.linear2.weight', 'feedback.decoders.{i}.readout.weight'),
        *same_names('trunk.', 'fc_norm.{path}', 'head.{path}'),
    ),
    signs=('prompt', 'decoders.{i}.{path}', 'prompt_embeddings'),
    refused=_NOT_OURS,
    container='model',
)

_HEADS_OF_SEGMENTORS = ('decode_head.{path}', 'auxiliary_head.{path}')

RELEASE_SEGMENTOR = replace(
    RELEASE,
    name='release-segmentor',
    title='segmentor trained by the released code (backbone and heads)',
    prefix='backbone.',
    signs=('cls_token', 'pos_embed', 'blocks.{i}.{path}'),
    carried=_HEADS_OF_SEGMENTORS,
    container='state_dict',
)

_BUFFERS = (Reason('data_preprocessor.{path}', 'mean and std are in the config'), )

MMVARS = Format(
    name='mmvars',
    title='mmvars backbone inside an OpenMMLab model',
    renames=(
        Rename('head.fc.{path}', 'trunk.head.{path}'),
        Rename('backbone.network.{path}', '{path}'),
        Rename('network.{path}', '{path}'),
        *(Rename(f'{part}.{{path}}', f'{part}.{{path}}')
          for part in ('trunk', 'prior', 'feedback')),
    ),
    signs=('backbone.network.{path}', 'network.{path}', 'trunk.{path}'),
    carried=_HEADS_OF_SEGMENTORS,
    ignored=_BUFFERS,
    container='state_dict',
)

FORMATS: tuple[Format, ...] = (MMVARS, RELEASE_SEGMENTOR, RELEASE, TIMM)
"""All formats that are read, the more telling signs first."""

TARGETS: dict[str, Format] = {f.name: f for f in (MMVARS, RELEASE, TIMM)}
"""Formats that are written."""


def detect_format(keys: Collection[str]) -> Format | None:
    """The format that the names of a file's tensors show, or ``None``."""
    return next((f for f in FORMATS if f.fits(keys)), None)
