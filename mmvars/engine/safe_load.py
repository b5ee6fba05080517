"""Read training states without executing code from the file.

A training state holds more than tensors (optimiser, schedulers, the log's history), so it is a
pickle with a few classes in it. It is read by torch's restricted unpickler with exactly those
allowed. mmengine's own loader falls back to the unrestricted one when that fails; this one refuses.
"""

import os
import re
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from torch import Tensor

from mmvars.checkpoints.files import read_checkpoint, why_unreadable
from mmvars.errors import InputError

__all__ = ['check_checkpoint_file', 'load_from_local']


def check_checkpoint_file(path: str, name: str) -> None:
    """Refuse a file that is missing, empty or cut off, without reading its tensors.

    Args:
        path: Local path. Anything with a scheme (``https://``, ...) is not looked at.
        name: What the user calls it, for the message.

    Raises:
        InputError: Naming the file and what is wrong with it.
    """
    if '://' in path:
        return
    if not os.path.isfile(path):
        raise InputError(f'{name} {path!r} does not exist')
    if os.path.getsize(path) == 0:
        raise InputError(f'{name} {path!r} is empty')
    with open(path, 'rb') as file:
        looks_like_zip = file.read(2) == b'PK'
    if looks_like_zip and not zipfile.is_zipfile(path):
        raise InputError(f'{name} {path!r} is truncated (its table of contents is missing): copy '
                         'or download it again')


def load_from_local(filename: str, map_location: Any = None) -> dict:
    """Load a local checkpoint of mmengine's Runner, restricted to what such a file holds.

    Args:
        filename: Path of a ``.pth`` file, or of a ``.safetensors`` file of weights.
        map_location: As for :func:`torch.load`.

    Returns:
        The checkpoint. ``meta['config']`` is removed: mmengine executes it as Python on resume,
        and no Runner writes it.

    Raises:
        InputError: If the file is missing, damaged, holds other objects than those allowed, or
            holds values that are not finite.
    """
    filename = os.path.expanduser(filename)
    check_checkpoint_file(filename, 'checkpoint')
    if filename.endswith('.safetensors'):
        checkpoint = dict(state_dict=read_checkpoint(filename))
    else:
        checkpoint = _load_restricted(filename, map_location)
        if checkpoint and all(isinstance(value, Tensor) for value in checkpoint.values()):
            checkpoint = dict(state_dict=checkpoint)  # mmengine's EMA hook looks for the entry
    meta = checkpoint.get('meta')
    if isinstance(meta, dict) and meta.pop('config', None) is not None:
        print_log(f"{filename}: meta['config'] was removed, since resuming would execute it",
                  logger='current')
    state = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise InputError(f'checkpoint {filename!r} holds no state dict (names and tensors), but '
                         f'a {type(state).__name__}; save the state dict of the model')
    _refuse_nans(state, filename)
    return checkpoint


def _load_restricted(filename: str, map_location: Any) -> dict:
    try:
        with _allowed_classes():
            checkpoint = torch.load(filename, map_location=map_location, weights_only=True)
    except OSError as error:
        raise InputError(f'checkpoint {filename!r} cannot be read: {error.strerror}') from None
    except Exception as error:  # the unpickler, fed garbage, can fail in any way
        wanted = _wanted(error) if isinstance(error, UnpicklingError) else None
        if wanted is None:
            raise InputError(why_unreadable(filename, error)) from None
        raise InputError(f'checkpoint {filename!r} was refused: it wants more than tensors, '
                         f'numbers and the log history ({wanted}). Nothing was run. Files of other '
                         'programs go through `mmvars convert` first') from None
    if not isinstance(checkpoint, dict):
        raise InputError(f'checkpoint {filename!r} holds a {type(checkpoint).__name__}, not a dict')
    return checkpoint


def _refuse_nans(state: dict, filename: str) -> None:
    bad = [key for key, value in state.items()
           if isinstance(value, Tensor) and not bool(torch.isfinite(value).all())]
    if bad:
        more = f' and {len(bad) - 5} more' if len(bad) > 5 else ''
        raise InputError(f'checkpoint {filename!r} holds NaN or infinity in {", ".join(bad[:5])}'
                         f'{more}: the training that wrote it diverged; use an earlier one')


def _history_method(owner: Any, name: str) -> Any:
    """Stands in for ``getattr`` in the files: a log history refers to its own four methods by it.

    The real ``getattr`` would let a file reach any module's globals, and change them.
    """
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise UnpicklingError(f'attribute {name!r} of {owner!r}')
    return getattr(owner, name)


# The restricted unpickler finds it under the name that the files use.
_history_method.__module__, _history_method.__qualname__ = 'builtins', 'getattr'
_history_method.__name__ = 'getattr'


def _numpy_functions() -> list[Callable]:
    """What rebuilds arrays and scalars, under the names that files of numpy 1 and numpy 2 use."""
    return [_named(value.__reduce__()[0], module) for value in (np.zeros(1), np.float64(0))
            for module in ('numpy.core.multiarray', 'numpy._core.multiarray')]


def _named(function: Callable, module: str) -> Callable:
    def call(*args: Any) -> Any:
        return function(*args)

    call.__module__, call.__qualname__ = module, function.__name__
    call.__name__ = function.__name__
    return call


def _allowed_classes() -> Any:
    """Context in which torch's restricted unpickler takes what the log history is made of."""
    number_types = (np.float64, np.float32, np.int64, np.int32, np.uint32, np.bool_)
    allowed: list[Callable] = [
        HistoryBuffer, _history_method, *_numpy_functions(), np.ndarray, np.dtype,
        *(type(np.dtype(t)) for t in number_types)
    ]
    if hasattr(torch.serialization, 'safe_globals'):  # torch >= 2.5
        return torch.serialization.safe_globals(allowed)
    return _added_globals(allowed)


@contextmanager
def _added_globals(allowed: list[Callable]) -> Any:
    if not hasattr(torch.serialization, 'add_safe_globals'):
        raise InputError(f'torch {torch.__version__} cannot read training states safely: install '
                         'torch 2.4 or newer')
    torch.serialization.add_safe_globals(allowed)
    yield


def _wanted(error: UnpicklingError) -> str | None:
    """What a refused file asked for, out of torch's long message."""
    found = re.search(r'(?:GLOBAL|Unsupported class) (\S+)|(attribute \S+ of \S+)', str(error))
    return (found[1] or found[2]) if found else None
