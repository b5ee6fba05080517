"""Reading, converting and loading checkpoints: pure torch, every tensor reported."""

from mmvars.checkpoints.convert import Conversion, convert_checkpoint, convert_state_dict
from mmvars.checkpoints.io import read_checkpoint
from mmvars.checkpoints.load import load_heads, load_pretrained, load_timm_weights
from mmvars.checkpoints.partial import trunk_record, write_partial
from mmvars.checkpoints.report import CheckpointError, ConversionReport
from mmvars.checkpoints.write import write_checkpoint

__all__ = [
    'CheckpointError',
    'Conversion',
    'ConversionReport',
    'convert_checkpoint',
    'convert_state_dict',
    'load_heads',
    'load_pretrained',
    'load_timm_weights',
    'read_checkpoint',
    'trunk_record',
    'write_checkpoint',
    'write_partial',
]
