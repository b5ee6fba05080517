"""Reading, converting and loading checkpoints: pure torch, every tensor accounted for."""

from mmvars.checkpoints.account import Account, CheckpointError
from mmvars.checkpoints.convert import Conversion, convert_checkpoint, convert_state_dict
from mmvars.checkpoints.files import read_checkpoint, write_checkpoint
from mmvars.checkpoints.load import load_pretrained

__all__ = [
    'Account', 'CheckpointError', 'Conversion', 'convert_checkpoint', 'convert_state_dict',
    'load_pretrained', 'read_checkpoint', 'write_checkpoint'
]
