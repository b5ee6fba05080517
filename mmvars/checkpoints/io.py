"""The one reader of checkpoint files, which executes nothing."""

import argparse
import contextlib
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, serialization

from mmvars.errors import InputError

__all__ = [
    'LoggedValues',
    'NumpyArray',
    'check_checkpoint_file',
    'read_checkpoint',
    'read_meta',
    'tensor_fault',
    'tensors_in',
]

_NUMBERS = dict(
    f8='d', f4='f', f2='e', i8='q', i4='i', i2='h', i1='b', u8='Q', u4='I', u2='H', u1='B', b1='?'
)  # numpy's codes of number types -> those of struct


class _NumpyType:
    """Stands in for ``numpy.dtype``."""

    def __init__(self, code: str, *_: Any) -> None:
        if code not in _NUMBERS:
            raise pickle.UnpicklingError(f'GLOBAL numpy.dtype.{code}')
        self.code, self.order = _NUMBERS[code], '<'

    def __setstate__(self, state: tuple) -> None:
        self.order = '>' if state[1] == '>' else '<'

    def read(self, data: bytes) -> tuple:
        return tuple(number for (number,) in struct.iter_unpack(self.order + self.code, data))


class NumpyArray:
    """Stands in for ``numpy.ndarray``: numbers in the order of memory."""

    shape, fortran_order, values = (), False, ()

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, dtype, self.fortran_order, data = state
        self.values = dtype.read(data)


class LoggedValues:
    """Stands in for mmengine's ``HistoryBuffer``, which holds one logged number over time."""

    max_length, values, counts = 1_000_000, (), ()

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.max_length = state.get('_max_length', state.get('max_length', self.max_length))
        self.values = state['_log_history'].values
        self.counts = state['_count_history'].values
        if len(self.values) != len(self.counts):
            raise pickle.UnpicklingError('a log history with fewer counts than values')


def _method_of_log(owner: Any, name: str) -> None:
    """Stands in for ``getattr``, by which a log refers to its own methods; gives nothing."""
    if owner is not LoggedValues or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'GLOBAL {getattr(owner, "__name__", owner)}.{name}')


def _text_to_bytes(text: str, encoding: str) -> bytes:
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'GLOBAL codecs.{encoding}')
    return text.encode('latin1')


def _named(module: str, name: str, stand_in: Callable) -> Callable:
    """``stand_in`` under the name by which torch's restricted unpickler looks a class up."""
    stand_in.__module__, stand_in.__name__, stand_in.__qualname__ = module, name, name
    return stand_in


_ALLOWED: tuple[Any, ...] = (
    argparse.Namespace,  # `args` of released checkpoints: attributes only
    _named('numpy', 'dtype', _NumpyType),
    _named('numpy', 'ndarray', NumpyArray),
    _named('mmengine.logging.history_buffer', 'HistoryBuffer', LoggedValues),
    _named('builtins', 'getattr', _method_of_log),
    _named('_codecs', 'encode', _text_to_bytes),
    *(
        _named(f'numpy.{core}.multiarray', name, function)
        for core in ('core', '_core')
        for name, function in (
            ('_reconstruct', lambda *_: NumpyArray()),
            ('scalar', lambda dtype, data: dtype.read(data)[0]),
        )
    ),
)
"""All that a file may build besides tensors and plain Python values: the options of the released
training script, and the log of an OpenMMLab runner. Numbers of numpy become Python's, arrays and
log entries the stand-ins above. No code of numpy or mmengine is called."""


def read_checkpoint(path: str | Path, map_location: Any = 'cpu') -> Any:
    """What a ``.pth``-like or safetensors file holds; the content decides, not the suffix.

    ``map_location`` is that of :func:`torch.load`; tensors of safetensors stay on the CPU.

    Raises:
        InputError: If the file does not exist, is truncated, is no checkpoint, holds a tensor that
            is not a plain dense one, or builds anything beyond ``_ALLOWED``, which is then named.
    """
    if re.match(r'\w{2,}:/', str(path)):  # a Path has made one slash of two
        raise InputError(f'{path} is an address, not a file; download it first and give its path')
    path = Path(path).expanduser()
    check_checkpoint_file(path)
    try:
        if _is_safetensors(path):
            return load_file(path)
        with _only_allowed(), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # what matters ends as an error
            content = torch.load(path, map_location=map_location, weights_only=True)
    except SafetensorError as error:
        raise InputError(
            f'checkpoint {path} is a damaged or truncated safetensors file ({error}); '
            f'download or copy it again'
        ) from None
    except OSError as error:
        raise InputError(f'checkpoint {path} cannot be read: {error}') from None
    except Exception as error:  # noqa: BLE001  the unpickler, fed garbage, can fail in any way
        raise InputError(f'checkpoint {path} is {_why_unreadable(path, error)}') from None
    for key, tensor in tensors_in(content):
        if fault := _layout_fault(tensor) or _size_fault(tensor):
            raise InputError(f'checkpoint {path}: {key} is {fault}')
    return content


def read_meta(path: str | Path, content: Any) -> dict[str, Any]:
    """Entry ``meta`` of the ``content`` of a file, or the header of a safetensors file."""
    if '://' not in str(path) and _is_safetensors(Path(path).expanduser()):
        with safe_open(Path(path).expanduser(), 'pt') as file:
            return dict(file.metadata() or {})
    meta = content.get('meta') if isinstance(content, Mapping) else None
    return dict(meta) if isinstance(meta, Mapping) else {}


def check_checkpoint_file(path: str | Path, name: str = 'checkpoint') -> None:
    """Refuse a local file that is missing, empty or cut off, without reading its tensors.

    Raises:
        InputError: Naming the file, as the user's ``name`` for it, and what is wrong with it.
    """
    if '://' in str(path):
        return
    if not os.path.isfile(path):
        kind = 'is a folder' if os.path.isdir(path) else 'does not exist'
        raise InputError(f'{name} {path} {kind}; give the path of a .pth or .safetensors file')
    if os.path.getsize(path) == 0:
        raise InputError(f'{name} {path} is empty; download or copy it again')
    with open(path, 'rb') as file:
        is_zip = file.read(2) == b'PK'
    if is_zip and not zipfile.is_zipfile(path):
        raise InputError(
            f'{name} {path} is truncated or damaged (its table of contents is '
            f'missing); download or copy it again'
        )


def tensor_fault(value: Any, target: Tensor | None = None) -> str:
    """Why ``value`` cannot be the contents of ``target`` (of any tensor if ``None``), or ``''``.

    Shapes are not compared.
    """
    if not isinstance(value, Tensor):
        return f'a {type(value).__name__}, not a tensor'
    if fault := _layout_fault(value):
        return fault
    if target is not None and value.is_floating_point() != target.is_floating_point():
        return f'{value.dtype} where {target.dtype} belongs'
    if value.is_floating_point() and value.numel():
        value = value.float()  # what it will be; a float64 may overflow
        # The extremes are NaN if any value is, and need no temporary of the tensor's size.
        if not all(extreme.isfinite() for extreme in value.aminmax()):
            return (
                f'{int(value.isnan().sum())} NaN and {int(value.isinf().sum())} infinite of '
                f'{value.numel()} values'
            )
    return ''


def tensors_in(content: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested dicts and lists, with their keys."""
    pending, seen = [('', content)], set()
    while pending:
        key, value = pending.pop()
        if isinstance(value, Tensor):
            yield key or 'the file', value
        elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            pending += [(f'{key}.{name}' if key else str(name), inner) for name, inner in items]


@contextlib.contextmanager
def _only_allowed() -> Iterator[None]:
    """Let the safe unpickler build :data:`_ALLOWED`, and nothing that the process had allowed."""
    before = list(serialization.get_safe_globals())
    serialization.clear_safe_globals()
    serialization.add_safe_globals(list(_ALLOWED))
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


def _is_safetensors(path: Path) -> bool:
    """Whether the file starts as a safetensors file does: length of the header, then JSON."""
    with open(path, 'rb') as file:
        start = file.read(9)
    return path.suffix == '.safetensors' or (
        len(start) == 9 and start[8:] == b'{' and struct.unpack('<Q', start[:8])[0] < 2**27
    )


def _layout_fault(tensor: Tensor) -> str:
    """Why the numbers of a tensor are not simply those in its storage, or ``''``."""
    if tensor.is_quantized or tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
        return f'not a plain dense tensor ({tensor.dtype}, {tensor.layout}, {tensor.device})'
    return ''


def _size_fault(tensor: Tensor) -> str:
    """Why a tensor must not be copied: a small file can claim more numbers than fit anywhere."""
    claimed, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    return f'a view of {claimed} bytes on {stored}' if claimed > max(stored, 2**20) else ''


def _why_unreadable(path: Path, error: Exception) -> str:
    """What is wrong with a file that the safe unpickler stopped at, and the remedy."""
    if 'TorchScript' in str(error):
        return (
            'a TorchScript archive, which holds a program; save the state dict of its model instead'
        )
    with open(path, 'rb') as file:
        start = file.read(16)
    if start[:2] != b'PK' and start[:1] != b'\x80':
        return (
            f'no checkpoint: it starts with {start!r}. A web page saved under the name of the '
            f'file looks like that; download it again'
        )
    name = re.search(r"GLOBAL ([\w.]+)|class '?(\w+\.[\w.]*\w)", str(error))
    if name or 'Unsupported operand' in str(error):
        what = name[1] or name[2] if name else 'instructions that torch.save does not write'
        return (
            f'refused: besides tensors its pickle wants {what}, which could run any code. '
            f'Nothing was run. If you trust the file, save its tensors alone (torch.save of a '
            f'state dict) where it came from'
        )
    reason = str(error).split('. ')[0].strip() or type(error).__name__
    return f'truncated or damaged ({reason}); download or copy it again'
