"""Checkpoint files: read without executing anything, write without destroying anything."""

import argparse
import contextlib
import os
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, serialization

from mmvars.errors import InputError

__all__ = ['check_destination', 'read_checkpoint', 'read_meta', 'why_unreadable',
           'write_bytes', 'write_checkpoint', 'write_text']

SAFETENSORS_SUFFIX = '.safetensors'
SUFFIXES = ('.pth', '.pt', '.bin', SAFETENSORS_SUFFIX)


class _Inert:
    """What a class of somebody else becomes when a file is read: a bag that does nothing."""

    def __init__(self, *args: Any) -> None:
        del args

    def __setstate__(self, state: Any) -> None:
        del state


def _inert(module: str, name: str) -> type:
    # The safe unpickler looks names up by `__module__` and `__name__`, so the stand-in carries
    # those of the class that it replaces. Nothing of that class is imported or run.
    return type(name, (_Inert, ), {'__module__': module, '__qualname__': name})


_ALLOWED: tuple[type, ...] = (
    argparse.Namespace,  # `args` of released checkpoints: attributes only
    # The training log inside every OpenMMLab runner checkpoint, and numpy numbers among metrics.
    # Read as inert bags: neither mmengine's nor numpy's code is called.
    _inert('mmengine.logging.history_buffer', 'HistoryBuffer'),
    _inert('builtins', 'getattr'),
    _inert('numpy', 'dtype'),
    _inert('numpy', 'ndarray'),
    *(_inert(module, name) for module in ('numpy.core.multiarray', 'numpy._core.multiarray')
      for name in ('_reconstruct', 'scalar')),
)


# What every file of tensors looks up; torch's own list decides, this only keeps messages short.
_OF_TENSORS = re.compile(r'torch\.(\w+|_utils\._rebuild\w+|_tensor\.\w+|storage\.\w+|'
                         r'nn\.parameter\.Parameter)|collections\.(OrderedDict|Counter)|'
                         r'_codecs\.encode')


def read_checkpoint(path: str | Path) -> Any:
    """Read a ``.pth``-like or safetensors file; the content decides, not the suffix.

    Only tensors, plain Python values and ``argparse.Namespace`` come to life
    (``torch.load(weights_only=True)``); the training log of an OpenMMLab runner is read as inert
    bags. No code of the file is ever run.

    Returns:
        What was saved, on the CPU; for safetensors the dict of tensors.

    Raises:
        InputError: If the file is missing, truncated, no checkpoint, or wants to build anything
            else, which is then named.
    """
    if re.match(r'\w{2,}:/', str(path)):  # a Path has made one slash of two
        raise InputError(f'{path} is an address, not a file; download it first and give its path')
    path = Path(path)
    if not path.is_file():
        kind = 'a folder' if path.is_dir() else 'missing'
        raise InputError(f'checkpoint {path} is {kind}; give the path of a .pth or .safetensors '
                         f'file')
    try:
        if _is_safetensors(path):
            return load_file(path)
        with _only_allowed(), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # what matters ends as an error
            return torch.load(path, map_location='cpu', weights_only=True)
    except SafetensorError as error:
        raise InputError(f'checkpoint {path} is a damaged or truncated safetensors file ({error}); '
                         f'download or copy it again') from None
    except OSError as error:
        raise InputError(f'checkpoint {path} cannot be read: {error}') from None
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, TypeError, KeyError,
            IndexError, AttributeError, AssertionError, struct.error, UnicodeDecodeError,
            zipfile.BadZipFile) as error:
        # The unpickler was stopped, or fed garbage; what it says depends on where that happened.
        raise InputError(why_unreadable(path, error)) from None


def read_meta(path: str | Path, content: Any) -> dict[str, Any]:
    """What a file says of itself: entry ``meta``, or the header of a safetensors file.

    Args:
        path: The file.
        content: What :func:`read_checkpoint` made of it.
    """
    if _is_safetensors(Path(path)):
        with safe_open(path, 'pt') as file:
            return dict(file.metadata() or {})
    meta = content.get('meta') if isinstance(content, Mapping) else None
    return dict(meta) if isinstance(meta, Mapping) else {}


def check_destination(path: str | Path, source: str | Path | None = None, overwrite: bool = False,
                      suffixes: Sequence[str] = SUFFIXES) -> Path:
    """Refuse a destination that cannot or must not be written, before any work is done.

    Args:
        path: File that will be written.
        source: File that is read, and must survive even ``overwrite``.
        overwrite: Whether an existing file may be replaced.
        suffixes: Endings to choose from; empty for any.

    Raises:
        InputError: If ``path`` exists and ``overwrite`` is false, is ``source`` itself, has no
            known suffix, or stands in a folder that does not exist or may not be written.
    """
    path = Path(path)
    if suffixes and path.suffix not in suffixes:
        raise InputError(f'{path} must end in one of {", ".join(suffixes)}')
    if source is not None and os.path.exists(source) and path.exists() and path.samefile(source):
        raise InputError(f'{path} is the source itself; write to another file')
    _refuse_existing(path, overwrite)
    if not path.parent.is_dir():
        raise InputError(f'the folder {path.parent} does not exist; make it first')
    if not os.access(path.parent, os.W_OK):
        raise InputError(f'the folder {path.parent} may not be written; choose another')
    return path


def write_checkpoint(path: str | Path, tensors: Mapping[str, Tensor], container: str | None = None,
                     meta: Mapping[str, str] | None = None, overwrite: bool = False) -> None:
    """Write a tensor-only file, whole or not at all.

    Args:
        path: ``.safetensors`` writes that format (flat), any other known suffix ``torch.save``.
        tensors: Name -> tensor, written in this order and without shared storage.
        container: Key of the dict around the tensors; ``None`` for a flat file.
        meta: Plain strings that say where the tensors come from (``meta`` of the container, or
            the safetensors header).
        overwrite: Whether an existing file may be replaced.

    Raises:
        InputError: See :func:`check_destination`; also if the disk refuses.
    """
    path = check_destination(path, overwrite=overwrite)
    # A view would drag its whole storage into the file.
    own = {key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}
    with _whole_or_nothing(path, overwrite) as temporary:
        if path.suffix == SAFETENSORS_SUFFIX:
            save_file(own, temporary, metadata={'format': 'pt', **(meta or {})})
        elif container is None:
            torch.save(own, temporary)
        else:
            content: dict = {container: own}
            torch.save(content | ({'meta': dict(meta)} if meta else {}), temporary)


def write_bytes(path: str | Path, content: bytes, overwrite: bool = False) -> None:
    """Write a file, whole or not at all.

    Raises:
        InputError: If it exists and ``overwrite`` is false, or the disk refuses.
    """
    with _whole_or_nothing(Path(path), overwrite) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str, overwrite: bool = False) -> None:
    """Write a text file in UTF-8, as :func:`write_bytes` does."""
    write_bytes(path, text.encode(), overwrite)


@contextlib.contextmanager
def _whole_or_nothing(path: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary neighbour of ``path`` that takes its place at the end, or vanishes."""
    _refuse_existing(path, overwrite)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    try:
        yield temporary
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        _refuse_existing(path, overwrite)
        os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # the latter two from the writers
        reason = getattr(error, 'strerror', None) or str(error).partition('\n')[0]
        raise InputError(f'{path} cannot be written: {reason}') from None
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise InputError(f'{path} is a folder; give the path of a file')
    if path.exists() and not overwrite:
        raise InputError(f'{path} exists and is kept as it is; choose another name, or say '
                         f'--overwrite (overwrite=True)')


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
    return path.suffix == SAFETENSORS_SUFFIX or (len(start) == 9 and start[8:] == b'{' and
                                                 struct.unpack('<Q', start[:8])[0] < 2**27)


def why_unreadable(path: str | Path, error: Exception) -> str:
    """What is wrong with a file that the safe unpickler stopped at, and the remedy."""
    path = Path(path)
    if 'TorchScript' in str(error):
        return (f'checkpoint {path} is a TorchScript archive, which holds a program; save the '
                f'state dict of its model instead')
    wanted = _wanted_names(path, str(error))
    if wanted:
        return (f'checkpoint {path} is refused: besides tensors its pickle wants '
                f'{", ".join(wanted)}, which could run any code. Nothing was run. If you trust the '
                f'file, save its tensors alone (torch.save of a state dict) where it came from')
    with open(path, 'rb') as file:
        start = file.read(64)
    if not start:
        return f'checkpoint {path} is empty; download or copy it again'
    if start[:2] == b'PK' or start[:1] == b'\x80':
        reason = str(error).split('. ')[0].strip() or type(error).__name__
        return f'checkpoint {path} is truncated or damaged ({reason}); download or copy it again'
    return (f'checkpoint {path} is no checkpoint: it starts with {start[:16]!r}. A web page saved '
            f'under the name of the file looks like that; download it again')


def _wanted_names(path: Path, message: str) -> list[str]:
    """Names that the pickle looks up and that are not allowed, found without running it."""
    allowed = {f'{kind.__module__}.{kind.__name__}' for kind in _ALLOWED}
    names = {name.replace('__builtin__', 'builtins') for data in _pickles(path)
             for name in _looked_up(data)}
    wanted = {name for name in names - allowed if not _OF_TENSORS.fullmatch(name)}
    told = re.findall(r'(?:GLOBAL|class) ([\w.]+\.\w+)', message)
    return sorted(wanted | set(told) - allowed)


def _pickles(path: Path) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member.endswith('.pkl'):
                    yield archive.read(member)
    except (zipfile.BadZipFile, NotImplementedError, OSError):
        with open(path, 'rb') as file:
            if file.peek(1)[:1] in b'\x80(}]c':  # how a pickle starts
                yield file.read()


def _looked_up(data: bytes) -> Iterator[str]:
    start, end, strings = 0, 0, []
    while start < len(data):  # the old format is several pickles in a row
        try:
            for opcode, argument, offset in pickletools.genops(data[start:]):
                end = start + offset + 1
                if opcode.name in ('GLOBAL', 'INST'):
                    yield argument.replace(' ', '.')
                elif opcode.name == 'STACK_GLOBAL':
                    yield '.'.join(strings[-2:])
                elif isinstance(argument, str):
                    strings.append(argument)
            start = end
        except Exception:  # noqa: BLE001  garbage after the names is no obstacle to naming them
            return
