"""Training states for mmengine's Runner, through the one safe reader of checkpoints.

A training state holds more than tensors (optimizer, schedulers, the log's history). mmengine's own
loader falls back to the unrestricted unpickler for it; this one refuses what the reader refuses.
"""

from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer, print_log
from torch import Tensor

from mmvars.checkpoints.io import (
    LoggedValues,
    NumpyArray,
    check_checkpoint_file,
    read_checkpoint,
    tensor_fault,
)
from mmvars.errors import InputError

__all__ = ['check_checkpoint_file', 'load_from_local']


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
    state = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise InputError(
            f'checkpoint {filename} holds no state dict (names and tensors), but a '
            f'{type(state).__name__}; save the state dict of the model'
        )
    faults = {
        key: fault
        for key, value in state.items()
        if isinstance(value, Tensor) and (fault := tensor_fault(value))
    }
    if faults:
        more = f' and {len(faults) - 5} more' if len(faults) > 5 else ''
        raise InputError(
            f'checkpoint {filename} holds NaN or infinity in '
            f'{", ".join(list(faults)[:5])}{more}: the training that wrote it '
            f'diverged; use an earlier one'
        )
    meta = checkpoint.get('meta')
    if isinstance(meta, dict) and meta.pop('config', None) is not None:
        print_log(
            f"{filename}: meta['config'] was removed, since resuming would execute it",
            logger='current',
        )
    _restore(checkpoint)
    return checkpoint


def _restore(content: dict | list, seen: set[int] | None = None) -> None:
    """Put arrays and log histories in the place of their stand-ins, in nested dicts and lists."""
    seen = set() if seen is None else seen
    seen.add(id(content))
    for key, value in list(content.items() if isinstance(content, dict) else enumerate(content)):
        if isinstance(value, NumpyArray):
            content[key] = _array(value)
        elif isinstance(value, LoggedValues):
            content[key] = HistoryBuffer(value.values, value.counts, value.max_length)
        elif isinstance(value, (dict, list)) and id(value) not in seen:
            _restore(value, seen)


def _array(stand_in: NumpyArray) -> np.ndarray:
    order = 'F' if stand_in.fortran_order else 'C'
    return np.array(stand_in.values).reshape(stand_in.shape, order=order)
