"""Bricks: pure torch, no host framework."""

from mmvars.layers.attention import MaskedAttention, SelfAttention
from mmvars.layers.block import Block, SingleResidualBlock, make_block
from mmvars.layers.embed import STEMS, ConvStem, PatchEmbed
from mmvars.layers.grid_tied import GridTied
from mmvars.layers.mixers import MIXERS, PRESETS, build_mixer, mixer_options
from mmvars.layers.mlp import CHANNEL_MIXERS, ConvMlp, Mlp
from mmvars.layers.norm import TokenBatchNorm
from mmvars.layers.performer import Performer
from mmvars.layers.position import grid_of_image, resample_positions, square_grid
from mmvars.layers.reconstruction import SparseReconstruction
from mmvars.layers.sparse_coding import SparseTrace
from mmvars.layers.spectral import GlobalFilter
from mmvars.layers.tokens import TokenGrid, TokenMixer
from mmvars.layers.vars_dynamic import VARSConvolutionalDynamic, VARSDynamic, VARSStaticDynamic
from mmvars.layers.vars_static import VARSStatic

__all__ = [
    'CHANNEL_MIXERS', 'MIXERS', 'PRESETS', 'STEMS', 'Block', 'ConvMlp', 'ConvStem', 'GlobalFilter',
    'GridTied', 'MaskedAttention', 'Mlp', 'PatchEmbed', 'Performer', 'SelfAttention',
    'SingleResidualBlock', 'SparseReconstruction', 'SparseTrace', 'TokenBatchNorm', 'TokenGrid',
    'TokenMixer', 'VARSConvolutionalDynamic', 'VARSDynamic', 'VARSStatic', 'VARSStaticDynamic',
    'build_mixer', 'grid_of_image', 'make_block', 'mixer_options', 'resample_positions',
    'square_grid'
]
