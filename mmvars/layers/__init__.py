"""Layers: pure torch, without OpenMMLab."""

from mmvars.layers.attention import INJECTIONS, MaskedAttention, SelfAttention
from mmvars.layers.block import (
    CHANNEL_MIXERS,
    Block,
    ConvMlp,
    Mlp,
    SingleResidualBlock,
    TokenBatchNorm,
    build_block,
    is_block,
)
from mmvars.layers.embed import (
    STEMS,
    GridResizeMixin,
    PatchEmbed,
    TokenGrid,
    infer_square_grid,
    patch_grid,
    resample_pos_embed,
)
from mmvars.layers.fuse import Fusible, fuse, unfuse
from mmvars.layers.global_filter import GlobalFilter
from mmvars.layers.mixers import MIXERS, PRESETS, TokenMixer, build_mixer, resolve_mixer_cfg
from mmvars.layers.performer import Performer
from mmvars.layers.sparse_coding import SparseTrace
from mmvars.layers.vars_attention import VARSConvolutionalDynamic, VARSDynamic, VARSStaticDynamic
from mmvars.layers.vars_static import VARSStatic

__all__ = [
    'CHANNEL_MIXERS',
    'INJECTIONS',
    'MIXERS',
    'PRESETS',
    'STEMS',
    'Block',
    'ConvMlp',
    'Fusible',
    'GlobalFilter',
    'GridResizeMixin',
    'MaskedAttention',
    'Mlp',
    'PatchEmbed',
    'Performer',
    'SelfAttention',
    'SingleResidualBlock',
    'SparseTrace',
    'TokenBatchNorm',
    'TokenGrid',
    'TokenMixer',
    'VARSConvolutionalDynamic',
    'VARSDynamic',
    'VARSStatic',
    'VARSStaticDynamic',
    'build_block',
    'build_mixer',
    'fuse',
    'infer_square_grid',
    'is_block',
    'patch_grid',
    'resample_pos_embed',
    'resolve_mixer_cfg',
    'unfuse',
]
