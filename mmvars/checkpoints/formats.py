"""The sources of checkpoints: one row each. A new family of networks adds rows here."""

from collections.abc import Collection
from dataclasses import replace

from mmvars.checkpoints.rules import Constant, Format, Reason, Rename, same_names

__all__ = ['FAN', 'FORMATS', 'GFNET', 'MMVARS', 'RELEASE', 'RELEASE_SEGMENTOR', 'RVT', 'RVT_VARS_D',
           'RVT_VARS_S', 'TARGETS', 'TIMM', 'detect_format', 'target_format']

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

_BLOCK = tuple(f'blocks.{{i}}.{part}.{{path}}'
               for part in ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp'))

TIMM = Format(
    name='timm',
    title='timm / DeiT / released plain ViT',
    rows=same_names('trunk.', 'cls_token', 'pos_embed', 'patch_embed.{path}', *_BLOCK,
                    'norm.{path}', 'fc_norm.{path}', 'head.{path}'),
    signs=('cls_token', 'pos_embed', 'blocks.{i}.{path}'),
    refused=_NOT_OURS,
    unnamed=(Reason('trunk.trained_grid', "timm keeps the grid of the positions in the model's "
                    'img_size, not in the file'), ),
)

RELEASE = Format(
    name='absvit',
    title='released AbSViT',
    rows=(
        *same_names('trunk.', 'prompt_embeddings', 'deep_prompt_embeddings', 'cls_token',
                    'pos_embed'),
        Rename('prompt', 'prior.query'),
        *same_names('trunk.', 'patch_embed.{path}', *_BLOCK, 'norm.{path}'),
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
    name='absvit-segmentor',
    title='segmentor trained by the released code (backbone and heads)',
    prefix='backbone.',
    signs=('cls_token', 'pos_embed', 'blocks.{i}.{path}'),
    carried=_HEADS_OF_SEGMENTORS,
    container='state_dict',
)

GFNET = Format(
    name='gfnet',
    title='released GFNet',
    rows=(
        *same_names('trunk.', 'pos_embed', 'patch_embed.{path}', 'blocks.{i}.norm1.{path}'),
        Rename('blocks.{i}.filter.complex_weight', 'trunk.blocks.{i}.attn.complex_weight'),
        *same_names('trunk.', 'blocks.{i}.norm2.{path}', 'blocks.{i}.mlp.{path}', 'norm.{path}',
                    'head.{path}'),
    ),
    signs=('blocks.{i}.filter.{path}', ),
    container='model',
)

FAN = Format(
    name='fan',
    title='released FAN',
    rows=same_names('trunk.', 'cls_token', 'patch_embed.backbone.{path}', 'patch_embed.{path}',
                    'pos_embed.token_projection.{path}', 'blocks.{i}.gamma1', 'blocks.{i}.gamma2',
                    *(f'blocks.{{i}}.{part}.{{path}}' for part in
                      ('norm1', 'attn.q', 'attn.kv', 'attn.proj', 'norm2', 'mlp')),
                    'cls_attn_blocks.{i}.{path}', 'norm.{path}', 'head.{path}'),
    signs=('cls_attn_blocks.{i}.{path}', ),
    container='state_dict',
)

_RVT_BLOCK, _BLOCK_OF_STAGE = 'transformers.{j}.blocks.{i}', 'trunk.stages.{j}.blocks.{i}'


def _in_block(source: str, target: str | None = None, singletons: tuple[int, ...] = ()) -> Rename:
    """A row for a tensor of an RVT block; ``target`` is the same name where it is left out."""
    return Rename(f'{_RVT_BLOCK}.{source}', f'{_BLOCK_OF_STAGE}.{target or source}', singletons)


def _rvt(name: str, title: str, signs: tuple[str, ...], *block: Rename | Constant) -> Format:
    """The released RVT code with the blocks of one kind of attention."""
    return Format(
        name=name,
        title=title,
        rows=(*same_names('trunk.', 'patch_embed.{path}'), *block, _in_block('mlp.{path}'),
              *same_names('trunk.', 'pools.{j}.conv.{path}'),
              Rename('norm.{path}', 'trunk.fc_norm.{path}'),
              Rename('head.{path}', 'trunk.head.{path}')),
        signs=tuple(f'{_RVT_BLOCK}.{sign}' for sign in signs),
        container='model',
        variable=('num_steps', 'sparsity', 'feature_ratio', 'atoms_per_channel'),
    )


RVT_VARS_S = _rvt(
    'rvt-vars-s', 'released VARS-S in RVT', ('kernel', 'kernel2'),
    _in_block('kernel', 'attn.dictionary', singletons=(2, )),
    _in_block('L', 'attn.step_bound'),
    Constant(f'{_RVT_BLOCK}.kernel_norm', f'{_BLOCK_OF_STAGE}.attn.dictionary', 1.,
             'nothing reads it: the norm of the atoms at the start of training, about 1'),
    _in_block('kernel2', 'attn.output_filter', singletons=(1, 2)),
    _in_block('v.{path}', 'attn.value.{path}'),
    _in_block('proj.{path}', 'attn.proj.{path}'),
    _in_block('norm1.bn.{path}', 'attn.norm.bn.{path}'),
    _in_block('norm2.bn.{path}'),
)

RVT_VARS_D = _rvt(
    'rvt-vars-d', 'released VARS-D or VARS-SD in RVT', ('attn.learned_k', 'attn.learned_lam'),
    _in_block('norm1.{path}'),
    _in_block('attn.rand_matrix', 'attn.random_features'),
    _in_block('attn.kernel', 'attn.static_atoms'),
    Constant(f'{_RVT_BLOCK}.attn.L', f'{_BLOCK_OF_STAGE}.attn.gram_modulation', 25.,
             'nothing reads it: the bound of the step follows from the input',
             length_of=f'{_BLOCK_OF_STAGE}.attn.random_features'),
    _in_block('attn.learned_k', 'attn.gram_modulation'),
    _in_block('attn.learned_lam', 'attn.sparsity_scale'),
    _in_block('attn.learned_L', 'attn.step_scale'),
    _in_block('attn.qkv.{path}', 'attn.qv.{path}'),
    _in_block('attn.proj.{path}'),
    _in_block('norm2.{path}'),
)

RVT = _rvt(
    'rvt', 'released RVT', ('{path}', ),
    _in_block('norm1.{path}'),
    _in_block('attn.att_mask', 'attn.attention_mask'),
    _in_block('attn.rand_matrix', 'attn.random_features'),
    _in_block('attn.qkv.{path}'),
    _in_block('attn.proj.{path}'),
    _in_block('norm2.{path}'),
)

_BUFFERS = (Reason('data_preprocessor.{path}', 'mean and std are in the config'), )

MMVARS = Format(
    name='mmvars',
    title='mmvars backbone inside an OpenMMLab model',
    rows=(
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

FORMATS: tuple[Format, ...] = (MMVARS, RELEASE_SEGMENTOR, RVT_VARS_S, RVT_VARS_D, RVT, GFNET,
                               FAN, RELEASE, TIMM)
"""All formats that are read, the more telling signs first."""

TARGETS: dict[str, tuple[Format, ...]] = {
    'mmvars': (MMVARS, ),
    'release': (RELEASE, RVT, RVT_VARS_D, RVT_VARS_S, GFNET, FAN),
    'timm': (TIMM, ),
}
"""Formats that are written, by the name of the choice; which of several, the network decides."""


def detect_format(keys: Collection[str]) -> Format | None:
    """The format that the names of a file's tensors show, or ``None``."""
    return next((f for f in FORMATS if f.fits(keys)), None)


def target_format(to: str, names: Collection[str], heads: bool = False) -> Format:
    """The format to write: of those called ``to``, the one that lacks fewest names.

    Args:
        to: One of :data:`TARGETS`.
        names: Names of the network's tensors.
        heads: Whether there are heads of a segmentor to write.
    """
    choices = (RELEASE_SEGMENTOR, ) if to == 'release' and heads else TARGETS[to]
    return min(choices, key=lambda f: sum(f.from_network(name) is None for name in names))
