"""The sources of checkpoints: a table of names each, and what their files say of the mixer.

A new family of networks adds a table.
"""

import argparse
import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch

from mmvars.checkpoints.key_mapping import Format, first_match, table
from mmvars.errors import InputError
from mmvars.layers import resolve_mixer_cfg
from mmvars.networks import Trunk

__all__ = [
    'FORMATS',
    'MMVARS',
    'NOT_OURS',
    'RELEASE_METER',
    'RENAMED_FOR_TIMM',
    'TARGETS',
    'Recorded',
    'detect_format',
    'mixer_meta',
    'recorded_mixer',
    'released_args',
    'stated',
    'target_format',
]

_DISTILLED = 'a distilled DeiT; take the file of the same size without distillation'
_OF_TIMM = "the networks of mmvars have none; arch='timm/NAME' with pretrained='FILE' has them"
NOT_OURS: dict[str, str] = {
    'trunk.dist_token': f'a class token of {_DISTILLED}',
    'trunk.head_dist.*': f'a head of {_DISTILLED}',
    'trunk.reg_token': f'register tokens: {_OF_TIMM}',
    'trunk.storage_tokens': f'register tokens: {_OF_TIMM}',
    'trunk.norm_pre.*': f'a norm before the blocks: {_OF_TIMM}',
    'trunk.patch_embed.norm.*': f'a norm of the patches: {_OF_TIMM}',
    'trunk.attn_pool.*': f'attention pooling: {_OF_TIMM}',
    'trunk.blocks.#.attn.q_norm.*': f'a norm of the queries: {_OF_TIMM}',
    'trunk.blocks.#.attn.k_norm.*': f'a norm of the keys: {_OF_TIMM}',
    'trunk.blocks.#.ls1.*': 'a layer scale that does not fit attn.proj',
    'trunk.blocks.#.ls2.*': 'a layer scale that does not fit mlp.fc2',
}
"""Templates of names, as timm has them, of parts that the networks of mmvars lack -> what they
are."""

_BLOCK = 'blocks.#.norm1.* blocks.#.attn.qkv.* blocks.#.attn.proj.* blocks.#.norm2.* blocks.#.mlp.*'
_LAYER_SCALES = 'blocks.#.ls1.gamma blocks.#.ls2.gamma'
_MASK = 'stands for masked patches in pretraining; nothing reads it later'
_HEADS = ('decode_head.*', 'auxiliary_head.*')
_IN_CONFIG = 'mean and std are in the config'

TIMM = Format(
    title='timm / DeiT / DINO / released plain ViT',
    rows=table(
        'cls_token reg_token register_tokens>reg_token storage_tokens dist_token pos_embed '
        f'patch_embed.* norm_pre.* {_BLOCK} {_LAYER_SCALES} blocks.#.gamma_1>blocks.#.ls1.gamma '
        'blocks.#.gamma_2>blocks.#.ls2.gamma blocks.#.attn.q_norm.* blocks.#.attn.k_norm.* '
        'norm.* fc_norm.* attn_pool.* head_dist.* head.*'
    ),
    signs=('cls_token', 'pos_embed', 'blocks.#.*'),
    ignored={'mask_token': _MASK},
)

HUGGING_FACE = Format(
    title='ViT or DINOv2 of Hugging Face transformers',
    rows=(
        *table(
            'cls_token register_tokens>reg_token position_embeddings>pos_embed '
            'patch_embeddings.projection.*>patch_embed.proj.*',
            'embeddings.',
        ),
        *table(
            'layernorm_before.*>norm1.* norm1.* attention.attention.query.*>attn.q_proj.* '
            'attention.attention.key.*>attn.k_proj.* attention.attention.value.*>attn.v_proj.* '
            'attention.output.dense.*>attn.proj.* layer_scale1.lambda1>ls1.gamma '
            'layernorm_after.*>norm2.* norm2.* intermediate.dense.*>mlp.fc1.* '
            'output.dense.*>mlp.fc2.* mlp.fc1.* mlp.fc2.* layer_scale2.lambda1>ls2.gamma '
            'mlp.weights_in.*>mlp.fc1.* mlp.weights_out.*>mlp.fc2.*',
            'encoder.layer.#.',
            'trunk.blocks.#.',
        ),
        *table('layernorm.*>norm.*'),
    ),
    signs=('embeddings.patch_embeddings.*',),
    outside=table('classifier.*>head.*'),
    ignored={
        'embeddings.mask_token': _MASK,
        'pooler.*': 'a layer after the class token that classifiers do not read',
    },
)


def _hugging_face_dinov3(title: str, sign: str, mlp: str) -> Format:
    """DINOv3, in the names of its authors; gated or not."""
    return Format(
        title=title,
        rows=(
            *table(
                'cls_token register_tokens>storage_tokens patch_embeddings.*>patch_embed.proj.*',
                'embeddings.',
            ),
            *table(
                'norm1.* attention.q_proj.*>attn.q_proj.* attention.k_proj.*>attn.k_proj.* '
                'attention.v_proj.*>attn.v_proj.* attention.o_proj.*>attn.proj.* '
                f'layer_scale1.lambda1>ls1.gamma norm2.* {mlp} layer_scale2.lambda1>ls2.gamma',
                'layer.#.',
                'trunk.blocks.#.',
            ),
            *table('norm.*'),
        ),
        signs=(f'layer.#.mlp.{sign}.*',),
        ignored={'embeddings.mask_token': _MASK},
    )


HUGGING_FACE_DINOV3_GATED = _hugging_face_dinov3(
    'DINOv3 of Hugging Face transformers, gated',
    'gate_proj',
    'mlp.gate_proj.*>mlp.w1.* mlp.up_proj.*>mlp.w2.* mlp.down_proj.*>mlp.w3.*',
)

HUGGING_FACE_DINOV3 = _hugging_face_dinov3(
    'DINOv3 of Hugging Face transformers',
    'up_proj',
    'mlp.up_proj.*>mlp.fc1.* mlp.down_proj.*>mlp.fc2.*',
)

RELEASE = Format(
    title='released AbSViT',
    rows=(
        *table('prompt_embeddings deep_prompt_embeddings cls_token pos_embed'),
        ('prompt', 'prior.query'),
        ('prompt_decoder.*', 'prior.projection.*'),
        *table(f'patch_embed.* {_BLOCK} norm.*'),
        ('decoders.#.linear.weight', 'feedback.decoders.#.to_below.weight'),
        ('decoders.#.linear2.weight', 'feedback.decoders.#.to_value.weight'),
        *table('fc_norm.* head.*'),
    ),
    signs=('prompt', 'decoders.#.*', 'prompt_embeddings'),
    container='model',
)

RELEASE_SEGMENTOR = RELEASE._replace(
    title='segmentor trained by the released code (backbone and heads)',
    prefix='backbone.',
    signs=('blocks.#.*',),
    passthrough=_HEADS,
    container='state_dict',
)

_BERT_LAYER = (
    'attention.self.query.*>self_attn.query.* attention.self.key.*>self_attn.key.* '
    'attention.self.value.*>self_attn.value.* attention.output.dense.*>self_attn.proj.* '
    'attention.output.LayerNorm.*>norm1.* crossattention.self.query.*>cross_attn.query.* '
    'crossattention.self.key.*>cross_attn.key.* crossattention.self.value.*>cross_attn.value.* '
    'crossattention.output.dense.*>cross_attn.proj.* crossattention.output.LayerNorm.*>norm2.* '
    'intermediate.dense.*>fc1.* output.dense.*>fc2.* output.LayerNorm.*>norm3.*'
)
_METER = (
    ('text_transformer.*', 'text_backbone.model.*'),
    *table(
        'cross_modal_text_transform.*>text_projection.* '
        'cross_modal_image_transform.*>image_projection.* '
        'token_type_embeddings.weight>token_types.weight',
        target='fusion.',
    ),
    *table(_BERT_LAYER, 'cross_modal_text_layers.#.', 'fusion.text_layers.#.'),
    *table(_BERT_LAYER, 'cross_modal_image_layers.#.', 'fusion.image_layers.#.'),
    *table(
        'cross_modal_text_pooler.dense.*>text_pooler.* '
        'cross_modal_image_pooler.dense.*>image_pooler.*',
        target='fusion.',
    ),
    *table(
        'vqa_classifier.0.*>layers.0.* vqa_classifier.1.*>layers.1.* '
        'vqa_classifier.3.*>layers.3.* rank_output.*>rank.* itm_score.fc.*>matching.*',
        target='head.',
    ),
)

RELEASE_METER = RELEASE._replace(
    title='released METER',
    rows=tuple(row for row in RELEASE.rows if row[0] not in ('prompt', 'head.*')),
    prefix='vit_model.',
    signs=('blocks.#.*',),
    beside=_METER,
    ignored={
        'vit_model.head.*': 'a classifier of ImageNet that METER does not read',
        'text_transformer.pooler.*': 'a layer after the text that METER does not read',
        'text_transformer.embeddings.position_ids': 'the numbers of positions, a constant',
    },
    container='state_dict',
)

OPENMMLAB = Format(
    title='VisionTransformer of MMPretrain or MMSegmentation',
    rows=(
        *table(
            'cls_token pos_embed patch_embed.projection.*>patch_embed.proj.* patch_embed.norm.* '
            'pre_norm.*>norm_pre.* ln_pre.*>norm_pre.*'
        ),
        *table(
            'ln1.*>norm1.* attn.qkv.* attn.attn.in_proj_weight>attn.qkv.weight '
            'attn.attn.in_proj_bias>attn.qkv.bias attn.proj.* attn.attn.out_proj.*>attn.proj.* '
            'attn.gamma1.weight>ls1.gamma ln2.*>norm2.* ffn.layers.0.0.*>mlp.fc1.* '
            'ffn.layers.1.*>mlp.fc2.* ffn.w12.*>mlp.fc1.* ffn.w3.*>mlp.fc2.* '
            'ffn.gamma2.weight>ls2.gamma',
            'layers.#.',
            'trunk.blocks.#.',
        ),
        *table('ln1.*>norm.* ln2.*>fc_norm.*'),
    ),
    signs=('layers.#.ln1.*',),
    outside=table('head.layers.head.*>head.* head.fc.*>head.*'),
    passthrough=_HEADS,
    ignored={'data_preprocessor.*': _IN_CONFIG},
)

GFNET = Format(
    title='released GFNet',
    rows=table(
        'pos_embed patch_embed.* blocks.#.norm1.* '
        'blocks.#.filter.complex_weight>blocks.#.attn.complex_weight '
        'blocks.#.norm2.* blocks.#.mlp.* norm.* head.*'
    ),
    signs=('blocks.#.filter.*',),
    container='model',
)

FAN = Format(
    title='released FAN',
    rows=table(
        'cls_token patch_embed.backbone.* patch_embed.* pos_embed.token_projection.* '
        'blocks.#.gamma1 blocks.#.gamma2 blocks.#.norm1.* blocks.#.attn.q.* '
        'blocks.#.attn.kv.* blocks.#.attn.proj.* blocks.#.norm2.* blocks.#.mlp.* '
        'cls_attn_blocks.#.* norm.* head.*'
    ),
    signs=('cls_attn_blocks.#.*',),
    container='state_dict',
)

_RVT_BLOCK, _BLOCK_OF_STAGE = 'transformers.#.blocks.#.', 'trunk.stages.#.blocks.#.'


def _rvt(title: str, signs: str, block: str, **rest: Any) -> Format:
    """The released RVT code with the blocks of one kind of attention."""
    return Format(
        title=title,
        rows=(
            *table('patch_embed.*'),
            *table(f'{block} mlp.*', _RVT_BLOCK, _BLOCK_OF_STAGE),
            *table('pools.#.conv.* norm.*>fc_norm.* head.*'),
        ),
        signs=tuple(_RVT_BLOCK + sign for sign in signs.split()),
        container='model',
        by_release=True,
        **rest,
    )


RVT_VARS_S = _rvt(
    'released VARS-S in RVT',
    'kernel kernel2',
    'kernel>attn.dictionary L>attn.lipschitz kernel_norm> kernel2>attn.output_filter '
    'v.*>attn.value.* proj.*>attn.proj.* norm1.bn.*>attn.norm.bn.* norm2.bn.*',
    singletons={f'{_RVT_BLOCK}kernel': (2,), f'{_RVT_BLOCK}kernel2': (1, 2)},
    constants={
        f'{_RVT_BLOCK}kernel_norm': (f'{_BLOCK_OF_STAGE}attn.dictionary', lambda _: torch.ones(()))
    },
)

RVT_VARS_D = _rvt(
    'released VARS-D or VARS-SD in RVT',
    'attn.learned_k attn.learned_lam',
    'norm1.* attn.rand_matrix>attn.random_features attn.kernel>attn.static_atoms attn.L> '
    'attn.learned_k>attn.gram_modulation attn.learned_lam>attn.sparsity_scale '
    'attn.learned_L>attn.step_scale attn.qkv.*>attn.qv.* attn.proj.* norm2.*',
    constants={
        f'{_RVT_BLOCK}attn.L': (
            f'{_BLOCK_OF_STAGE}attn.random_features',
            lambda each: torch.full(each.shape[:1], 25.0),
        )
    },
)

RVT = _rvt(
    'released RVT',
    '*',
    'norm1.* attn.att_mask>attn.attention_mask attn.rand_matrix>attn.random_features '
    'attn.qkv.* attn.proj.* norm2.*',
)

MMVARS = Format(
    title='mmvars backbone inside an OpenMMLab model',
    rows=(
        *table('head.fc.*>head.*'),
        *(
            row
            for prefix in ('backbone.network.', 'network.', '')
            for row in table('trunk.* prior.* feedback.*', prefix, '')
        ),
        *table('backbone.network.*>* network.*>*'),
    ),
    signs=('backbone.network.*', 'network.*', 'trunk.*'),
    passthrough=(*_HEADS, *(name for _, name in _METER)),
    ignored={'data_preprocessor.*': _IN_CONFIG},
    container='state_dict',
)
"""Read for all backbones, written for those with top-down attention."""

MMVARS_PLAIN = MMVARS._replace(
    title='mmvars backbone without top-down attention',
    rows=table('head.fc.*>head.* backbone.network.*>*'),
)

PLAIN_TRUNK = Format(
    title='state dict of a plain mmvars network',
    rows=table('*'),
    signs=(
        'stages.#.blocks.#.attn.*',
        'blocks.#.attn.complex_weight',
        'blocks.#.attn.random_features',
        'blocks.#.attn.dictionary',
    ),
)

FORMATS: tuple[Format, ...] = (
    MMVARS,
    RELEASE_SEGMENTOR,
    RELEASE_METER,
    RVT_VARS_S,
    RVT_VARS_D,
    RVT,
    GFNET,
    FAN,
    PLAIN_TRUNK,
    OPENMMLAB,
    HUGGING_FACE_DINOV3_GATED,
    HUGGING_FACE_DINOV3,
    HUGGING_FACE,
    RELEASE,
    TIMM,
)
"""All formats that are read; the first whose signs a file has is taken."""

RENAMED_FOR_TIMM = (
    MMVARS,
    OPENMMLAB,
    HUGGING_FACE_DINOV3_GATED,
    HUGGING_FACE_DINOV3,
    HUGGING_FACE,
)
"""Formats whose names timm does not read."""

TARGETS: dict[str, tuple[Format, ...]] = {
    'mmvars': (MMVARS_PLAIN, MMVARS),
    'release': (RELEASE, RVT, RVT_VARS_D, RVT_VARS_S, GFNET, FAN),
    'timm': (TIMM,),
}
"""Formats that are written, by the name of the choice; which of several, the network decides."""


def detect_format(keys: Collection[str]) -> Format | None:
    """The format that the names of a file's tensors show, or ``None``."""
    has_heads = any(first_match(_HEADS, key) for key in keys)
    formats = (f for f in FORMATS if f is not RELEASE_SEGMENTOR or has_heads)
    return next((f for f in formats if f.fits(keys)), None)


def target_format(to: str, names: Collection[str], beside: Collection[str] = ()) -> Format:
    """The format to write for a network's ``names``: of :data:`TARGETS`, the first that lacks
    fewest. ``beside``: what mmvars calls the tensors beside it."""
    choices = TARGETS[to]
    if to == 'release' and beside:
        is_meter = any(RELEASE_METER.beside_key(name) != name for name in beside)
        choices = (RELEASE_METER if is_meter else RELEASE_SEGMENTOR,)
    return min(choices, key=lambda f: sum(f.from_network(name) is None for name in names))


_DYNAMIC_SWITCHES = dict(
    shrinkage=('gelu', 'soft'),
    step_bound=('row_sum', 'spectral'),
    step_scaling=('multiply', 'divide'),
    gram_transpose=(False, True),
    start=('shrunk', 'projection'),
    residual=(False, True),
    normalise_atoms=(True, False),
    normalise_queries=(True, False),
    value=('projected', 'input'),
)
OLD_SWITCHES: dict[str, dict[str, tuple[Any, Any]]] = {
    'vars_d': _DYNAMIC_SWITCHES,
    'vars_sd': _DYNAMIC_SWITCHES | dict(static_atoms=('free', 'convolution')),
    'vars_s': dict(
        step_bound=('running', 'spectral'),
        start=('shrunk', 'projection'),
        residual=(False, True),
        norm=('batch', 'layer'),
        output_filter=(True, False),
        learned_scaling=(False, True),
        value=('projected', 'input'),
        hermitian_filters=(False, True),
    ),
}
"""Options in the meta of files of mmvars 0.1 -> their values in the presets release and thesis."""

_RELEASED_CONSTANTS = {
    'num_step': 'num_steps',
    'lam': 'sparsity',
    'rand_feat_dim_ratio': 'feature_ratio',
}


class Recorded(NamedTuple):
    """Name of the mixer that a file states, and the options that it states, not always all."""

    mixer: str
    options: dict[str, Any]


def mixer_meta(trunk: Trunk) -> dict[str, str]:
    """What the meta of a file of mmvars says of its mixer, in strings."""
    return dict(mixer=trunk.mixer, mixer_cfg=json.dumps(trunk.mixer_cfg))


def recorded_mixer(meta: Mapping[str, Any], title: str) -> Recorded | None:
    """What :func:`mixer_meta`, of this version or of 0.1, wrote; ``None`` if it is not there.

    Raises:
        InputError: If the entry is damaged, or names a mixture of options that 0.1 had and this
            version does not.
    """
    key = next((key for key in ('mixer_cfg', 'mixer_options') if key in meta), None)
    if key is None:
        return None
    try:
        mixer, options = str(meta['mixer']), dict(json.loads(meta[key]))
    except (TypeError, ValueError, KeyError, RecursionError):
        raise InputError(
            f'{title}: the entries mixer and {key} of its meta are damaged '
            f'({meta[key]!r}); convert the original file again'
        ) from None
    switches = {
        name: value for name, value in options.items() if name in OLD_SWITCHES.get(mixer, {})
    }
    if not switches:
        return Recorded(mixer, options)
    preset = next(
        (
            preset
            for index, preset in enumerate(('release', 'thesis'))
            if all(OLD_SWITCHES[mixer][name][index] == value for name, value in switches.items())
        ),
        None,
    )
    if preset is None:
        raise InputError(
            f'{title}: the file was made by mmvars 0.1 with {stated(switches)}, a '
            f"mixture of the presets 'release' and 'thesis' that this version does "
            f'not have; run it with mmvars 0.1'
        )
    present = resolve_mixer_cfg(mixer, preset)  # without what was off in 0.1, and is gone
    return Recorded(
        mixer,
        dict(preset=preset)
        | {
            name: value
            for name, value in options.items()
            if name not in switches and (name in present or value is not False)
        },
    )


def released_args(content: Any) -> Recorded | None:
    """What the options of the released training script say, if a file has them as ``args``."""
    args = content.get('args') if isinstance(content, Mapping) else None
    options = vars(args) if isinstance(args, argparse.Namespace) else {}
    if options.get('attention') not in ('vars_d', 'vars_sd'):  # VARS-S takes no notice of them
        return None
    return Recorded(
        options['attention'],
        {
            ours: options[theirs]
            for theirs, ours in _RELEASED_CONSTANTS.items()
            if isinstance(options.get(theirs), (int, float))
        },
    )


def stated(options: Mapping[str, Any]) -> str:
    """Options as Python writes them: ``num_steps=3, preset='thesis'``."""
    return ', '.join(f'{name}={value!r}' for name, value in options.items())
