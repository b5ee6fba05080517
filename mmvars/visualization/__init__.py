"""Attention pictures of OpenMMLab models: the command-line tool and the validation hook."""

from mmvars.visualization.hook import AttentionVisualizationHook

__all__ = ['AttentionVisualizationHook']
