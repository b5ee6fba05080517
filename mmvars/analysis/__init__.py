"""Looking at what a network attends to: maps, recorders, figures. Pure torch and matplotlib."""

from mmvars.analysis.classes import find_class, short_name
from mmvars.analysis.figure import Row, draw_figure, figure_to_array, save_figure
from mmvars.analysis.halves import Half, Halved, HalfShares, half_shares
from mmvars.analysis.maps import (attention_from_class_token, attention_row, kept_above,
                                  suppress_below, token_mask_map, token_norm_map, upsample_map)
from mmvars.analysis.panels import (Blank, HeatMap, LabelMap, Panel, Picture, TopClasses, blend,
                                    default_palette)
from mmvars.analysis.recorder import (AttentionRecorder, TopDownRecorder, default_layer,
                                      mixes_by_attention, resolve_layer)
from mmvars.analysis.sparse_codes import (AtomSet, AtomUse, SparseCodeRecorder, atom_counts,
                                          atom_sets, check_sparse_codes, energy_shares,
                                          most_used_atoms, near_zero_share, sparsity_weight,
                                          spatial_atoms, step_maps)

__all__ = [
    'AtomSet', 'AtomUse', 'AttentionRecorder', 'Blank', 'Half', 'HalfShares', 'Halved',
    'HeatMap', 'LabelMap', 'Panel', 'Picture', 'Row', 'SparseCodeRecorder', 'TopClasses',
    'TopDownRecorder', 'atom_counts', 'atom_sets', 'attention_from_class_token',
    'attention_row', 'blend', 'check_sparse_codes', 'default_layer', 'default_palette',
    'draw_figure', 'energy_shares', 'figure_to_array', 'find_class', 'half_shares',
    'kept_above', 'mixes_by_attention', 'most_used_atoms', 'near_zero_share', 'resolve_layer',
    'save_figure', 'short_name', 'sparsity_weight', 'spatial_atoms', 'step_maps',
    'suppress_below', 'token_mask_map', 'token_norm_map', 'upsample_map'
]
