"""Bricks: pure torch, no host framework."""

from mmvars.layers.attention import SelfAttention
from mmvars.layers.block import Block, mlp
from mmvars.layers.embed import PatchEmbed
from mmvars.layers.position import grid_of_image, resample_positions, square_grid
from mmvars.layers.tokens import TokenGrid, TokenMixer

__all__ = [
    'Block', 'PatchEmbed', 'SelfAttention', 'TokenGrid', 'TokenMixer', 'grid_of_image', 'mlp',
    'resample_positions', 'square_grid'
]
