"""Looking at what a network attends to: maps, recorders, figures. Pure torch and matplotlib."""

from mmvars.analysis.classes import find_class, short_name
from mmvars.analysis.figure import Row, draw_figure, figure_to_array, save_figure
from mmvars.analysis.maps import (attention_from_class_token, suppress_below, token_mask_map,
                                  token_norm_map, upsample_map)
from mmvars.analysis.panels import (HeatMap, LabelMap, Panel, Picture, TopClasses, blend,
                                    default_palette)
from mmvars.analysis.recorder import (AttentionRecorder, TopDownRecorder, default_layer,
                                      resolve_layer)

__all__ = [
    'AttentionRecorder', 'HeatMap', 'LabelMap', 'Panel', 'Picture', 'Row', 'TopClasses',
    'TopDownRecorder', 'attention_from_class_token', 'blend', 'default_layer', 'default_palette',
    'draw_figure', 'figure_to_array', 'find_class', 'resolve_layer', 'save_figure', 'short_name',
    'suppress_below', 'token_mask_map', 'token_norm_map', 'upsample_map'
]
