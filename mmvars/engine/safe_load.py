"""Training states for mmengine's Runner, through the one safe reader of checkpoints.

A training state holds more than tensors (optimizer, schedulers, the log's history). mmengine's own
loader falls back to the unrestricted unpickler for it; this one refuses what the reader refuses.
"""

import os
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, print_log
from torch import Tensor

from mmvars.checkpoints.io import (
    LoggedValues,
    NumpyArray,
    check_checkpoint_file,
    read_checkpoint,
    tensor_fault,
)
from mmvars.errors import InputError, first_of

__all__ = ['check_source', 'load_from_local']


def check_source(cfg: Config, path: str, name: str) -> None:
    """:func:`check_checkpoint_file`, but for folders, which some strategies write and read."""
    if 'runner_type' not in cfg or not os.path.isdir(path):
        check_checkpoint_file(path, name)


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load a local checkpoint of mmengine's Runner, restricted to what such a file holds.

    Args:
        filename: Path of a ``.pth`` file, or of a ``.safetensors`` file of weights.
        map_location: As mmengine hands it in; tensors are read to the CPU and copied from there.

    Returns:
        The checkpoint. ``meta['config']`` is removed: mmengine executes it as Python on resume,
        and no Runner writes it.

    Raises:
        InputError: If the file is missing, damaged, holds other objects than those allowed, or
            holds values that are not finite.
    """
    checkpoint = read_checkpoint(filename)
    if not isinstance(checkpoint, dict):
        raise InputError(f'checkpoint {filename} holds a {type(checkpoint).__name__}, not a dict')
    if checkpoint and all(isinstance(value, Tensor) for value in checkpoint.values()):
        checkpoint = dict(state_dict=checkpoint)  # mmengine's EMA hook looks for the entry
    state, meta = checkpoint.get('state_dict', checkpoint), checkpoint.get('meta')
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise InputError(
            f'checkpoint {filename} holds no state dict (names and tensors), but a '
            f'{type(state).__name__}; save the state dict of the model'
        )
    if not isinstance(meta, (dict, type(None))):
        raise InputError(f'checkpoint {filename}: its meta is a {type(meta).__name__}, not a dict')
    if 'state_dict' in checkpoint:
        _check_finite(state, filename)
    if meta is not None and meta.pop('config', None) is not None:
        print_log(
            f"{filename}: meta['config'] was removed, since resuming would execute it",
            logger='current',
        )
    return _restored(checkpoint)


def _check_finite(state: dict[str, Any], filename: str) -> None:
    faults = {key: fault for key, value in state.items() if (fault := tensor_fault(value))}
    for key, fault in faults.items():
        if 'infinite of' not in fault:
            raise InputError(f'checkpoint {filename}: {key} is {fault}')
    if faults:
        raise InputError(
            f'checkpoint {filename} holds NaN or infinity in {first_of(list(faults))}: '
            f'the training that wrote it diverged; use an earlier one'
        )


def _restored(value: Any) -> Any:
    """``value`` with arrays and log histories in the place of their stand-ins, at any depth."""
    if isinstance(value, NumpyArray):
        order = 'F' if value.fortran_order else 'C'
        return np.array(value.values, value.dtype).reshape(value.shape, order=order)
    if isinstance(value, LoggedValues):
        return HistoryBuffer(value.values, value.counts, value.max_length)
    if isinstance(value, (dict, list)):
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            value[key] = _restored(inner)
    return tuple(map(_restored, value)) if type(value) is tuple else value
