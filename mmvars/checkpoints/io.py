"""Checkpoint files: one reader, which executes nothing and takes no more than a file holds.

Files are what they start as: a zip file or a plain file of ``torch.save``, or safetensors. All that
can be known to be wrong from sizes and names is refused before a tensor is read.
"""

import hashlib
import json
import os
import re
import stat
import struct
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlparse

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from mmvars.checkpoints.unpickle import (
    MAX_ENTRIES,
    MAX_INSTRUCTIONS,
    LoggedValues,
    NumpyArray,
    Storage,
    Unusable,
    check_key,
    unpickle,
)
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

MAX_DEPTH = 32  # of dicts in dicts
MAX_HEADER = 2**24  # bytes of a safetensors header; 1,000 tensors need 2**17
MAX_CLAIM = 3  # what the tensors of a file may have together, in sizes of the file
MAX_TIED = 64  # the same where tensors that share a storage are counted each
MAX_VALUE = 200  # characters of a value in a message

_ZIP = b'PK\3\4'
_PLAIN = b'\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # torch's number, as pickles of all protocols end
_PLAIN_VERSION = 1001
_KINDS = (
    (stat.S_ISDIR, 'is a folder'),
    (stat.S_ISFIFO, 'is a FIFO'),
    (stat.S_ISSOCK, 'is a socket'),
    (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), 'is a device'),
)
_DTYPES = {
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
}
_VALUES = (str, int, float, bytes, type(None), torch.dtype, torch.device, NumpyArray, LoggedValues)


def read_checkpoint(path: str | Path) -> Any:
    """What a ``.pth``-like or safetensors file holds, tensors on the CPU; the content decides which
    of the two it is, not the suffix.

    Args:
        path: A file, or an ``http(s)://`` address, which is downloaded once into torch's cache.

    Raises:
        InputError: If the file does not exist, is damaged, is no checkpoint, holds a tensor that
            no model could take, or wants anything beyond what :mod:`~mmvars.checkpoints.unpickle`
            builds, which is then named.
    """
    path = _local(path)
    check_checkpoint_file(path)
    try:
        with open(path, 'rb') as file:
            content = _reader_of(file)(file)
        _check_values(content, path.stat().st_size)
    except InputError as error:
        raise InputError(f'checkpoint {path} {error}') from None
    except OSError as error:
        raise InputError(f'checkpoint {path} cannot be read: {error.strerror or error}') from None
    except Exception as error:  # noqa: BLE001  readers, fed garbage, can fail in any way
        raise InputError(f'checkpoint {path} {_damage(error)}') from None
    return content


def read_meta(path: str | Path, content: Any) -> dict[str, Any]:
    """Entry ``meta`` of the ``content`` of a file, or the header of a safetensors file."""
    path = _local(path)
    with open(path, 'rb') as file:
        reader = _reader_of(file)
    if reader is _read_safetensors:
        with safe_open(path, 'pt') as tensors:
            return dict(tensors.metadata() or {})
    meta = content.get('meta') if isinstance(content, Mapping) else None
    return dict(meta) if isinstance(meta, Mapping) else {}


def check_checkpoint_file(path: str | Path, name: str = 'checkpoint') -> None:
    """Refuse a local file that is none, empty or cut off, without reading its tensors.

    Raises:
        InputError: Naming the file, as the user's ``name`` for it, and what is wrong with it.
    """
    if '://' in str(path):
        return
    try:
        status = os.stat(path)
    except FileNotFoundError:
        link = f'is a link to {os.readlink(path)}, which ' if os.path.islink(path) else ''
        raise InputError(
            f'{name} {path} {link}does not exist; give the path of a .pth or .safetensors file'
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise InputError(f'{name} {str(path)!r} cannot be read: {reason}') from None
    for is_kind, words in _KINDS:
        if is_kind(status.st_mode):
            raise InputError(f'{name} {path} {words}; give the path of a .pth or .safetensors file')
    if status.st_size == 0:
        raise InputError(f'{name} {path} is empty; download or copy it again')
    try:
        with open(path, 'rb') as file:
            _reader_of(file)
            if file.read(4) == _ZIP:
                _zip_directory(file)
    except InputError as error:
        raise InputError(f'{name} {path} {error}') from None
    except OSError as error:
        raise InputError(f'{name} {path} cannot be read: {error.strerror or error}') from None


def tensor_fault(value: Any, target: Tensor | None = None) -> str:
    """Why ``value`` cannot be the contents of ``target`` (of any tensor if ``None``), or ``''``.

    Shapes are not compared.
    """
    if not isinstance(value, Tensor):
        return f'a {type(value).__name__}, not a tensor'
    if fault := _tensor_kind_fault(value):
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
    return (
        (_joined(key), value) for key, value in _values_in(content) if isinstance(value, Tensor)
    )


def _local(path: str | Path) -> Path:
    """The file itself, or that of an address in torch's cache."""
    address = str(path)
    if not re.match(r'\w{2,}:/', address):  # a Path has made one slash of two
        return Path(path).expanduser()
    if not address.startswith(('http://', 'https://')):
        raise InputError(f'{path} is an address, not a file; download it first and give its path')
    name = (
        hashlib.sha256(address.encode()).hexdigest()[:8] + '-' + Path(urlparse(address).path).name
    )
    file = Path(torch.hub.get_dir(), 'checkpoints', name)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(file), progress=False)
        except (OSError, ValueError) as error:  # whatever urllib makes of it
            raise InputError(f'checkpoint {address} cannot be downloaded: {error}') from None
    return file


def _reader_of(file: IO[bytes]) -> Callable[[IO[bytes]], Any]:
    """What reads a file that starts as this one does; its position stays at the start."""
    start = file.read(32)
    file.seek(0)
    if start.startswith(_ZIP):
        return _read_zip
    if start.startswith(b'\x80') and _PLAIN in start:
        return _read_plain
    if start[8:9] == b'{' or str(file.name).endswith('.safetensors'):
        return _read_safetensors
    if start.startswith(b'\x80'):
        raise InputError(
            'is refused: it is a pickle that torch.save did not write, which could run any code. '
            'Nothing was run. If you trust it, write its tensors with torch.save'
        )
    raise InputError(
        f'is no checkpoint: it starts with {start[:16]!r}. A web page saved under the name of the '
        f'file looks like that; download it again'
    )


def _read_zip(file: IO[bytes]) -> Any:
    """What ``torch.save`` writes: ``NAME/data.pkl``, and a member ``NAME/data/KEY`` a storage."""
    start, count = _zip_directory(file)
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if archive.start_dir != start or len(members) != count:
            raise InputError(_damage('it has two tables of contents, or two members of one name'))
        root = next(iter(members)).partition('/')[0]
        if f'{root}/constants.pkl' in members:
            raise InputError(
                'is a TorchScript archive, which holds a program; save the state dict of its '
                'model instead'
            )
        for name, member in members.items():
            if member.flag_bits & 1:
                raise InputError(f'is refused: its member {name!r} is encrypted')
            if member.compress_type != zipfile.ZIP_STORED or (
                member.compress_size != member.file_size
            ):
                raise InputError(
                    f'is refused: its member {name!r} is compressed, which torch.save never does'
                )
            if not name.startswith(f'{root}/') or '..' in name:
                raise InputError(
                    f'is refused: its member {name!r} lies outside of the folder {root!r}'
                )
        if sum(member.file_size for member in members.values()) > start:
            raise InputError(_damage('its members overlap'))
        if f'{root}/data.pkl' not in members:
            raise InputError(f'is no checkpoint: the zip file has no {root}/data.pkl')
        if f'{root}/byteorder' in members and archive.read(f'{root}/byteorder') != b'little':
            raise InputError('is refused: it was written on a big-endian machine; convert it there')
        storages: dict[str, Storage] = {}

        def load_storage(description: tuple) -> Storage:
            dtype, key, numel = _described(description, len_expected=5)
            if isinstance(dtype, str):
                return Storage(torch.empty(0), dtype)
            if key not in storages:
                member = members[f'{root}/data/{key}']
                if member.file_size != numel * dtype.itemsize:
                    raise InputError(
                        _damage(f'{numel} numbers claimed in {member.file_size} bytes')
                    )
                with archive.open(member) as stored:
                    data = torch.empty(member.file_size, dtype=torch.uint8)
                    _fill(data, stored)
                    storages[key] = Storage(data, dtype)
            return Storage(storages[key].data, dtype)

        with archive.open(f'{root}/data.pkl') as pickled:
            return unpickle(pickled, load_storage)


def _read_plain(file: IO[bytes]) -> Any:
    """What ``torch.save`` wrote before 1.6: five pickles, then the storages one after another."""
    available = os.fstat(file.fileno()).st_size
    storages: dict[str, Storage] = {}

    def load_storage(description: tuple) -> Storage:
        nonlocal available
        dtype, key, numel = _described(description, len_expected=6)
        if isinstance(dtype, str):
            raise InputError(f'cannot be used: it holds {dtype} tensors')
        if key not in storages:
            available -= numel * dtype.itemsize
            if available < 0:
                raise InputError(_damage('its tensors claim more bytes than it has'))
            storages[key] = Storage(torch.empty(numel * dtype.itemsize, dtype=torch.uint8), dtype)
        return Storage(storages[key].data, dtype)

    unpickle(file, load_storage)  # torch's number
    if unpickle(file, load_storage) != _PLAIN_VERSION:
        raise InputError('is refused: torch.save wrote another version of its format')
    unpickle(file, load_storage)  # sizes of C's types where it was written
    content = unpickle(file, load_storage)
    keys = unpickle(file, load_storage)
    if type(keys) is not list or set(keys) != set(storages) or len(keys) != len(storages):
        raise InputError(_damage('its list of storages is another than that of its tensors'))
    for key in keys:
        data, width = storages[key].data, storages[key].dtype.itemsize  # type: ignore[union-attr]
        if struct.unpack('<q', file.read(8))[0] * width != data.numel():
            raise InputError(_damage('a storage has another size than its tensors say'))
        _fill(data, file)
    if file.read(1):
        raise InputError(_damage('something follows its tensors'))
    return content


def _read_safetensors(file: IO[bytes]) -> Any:
    """A JSON header, checked here for what the library takes or is slow at; then its reader."""
    size = os.fstat(file.fileno()).st_size
    (length,) = struct.unpack('<Q', file.read(8))
    if length > min(MAX_HEADER, size - 8):
        raise InputError(_damage(f'a header of {length} bytes in a file of {size}'))
    header = json.loads(file.read(length), object_pairs_hook=_unique)
    if len(header) > MAX_ENTRIES:
        raise InputError(f'has over {MAX_ENTRIES:,} entries: no checkpoint')
    return load_file(file.name)


def _zip_directory(file: IO[bytes]) -> tuple[int, int]:
    """Where the table of contents of a zip file starts, and its number of members.

    It must reach to the very end of the file, as in those of ``torch.save``, so that the file
    cannot be two things at once.
    """
    end = file.seek(0, os.SEEK_END) - 22
    file.seek(max(end - 76, 0))  # where torch puts the records of large files before the last one
    records = file.read()
    if records[-22:-18] != b'PK\5\6' or records[-2:] != b'\0\0':
        raise InputError(_damage('its table of contents is missing, or something follows it'))
    count, length, start = struct.unpack('<10xHII2x', records[-22:])
    if records[:4] == b'PK\6\6' and records[56:60] == b'PK\6\7':
        count, length, start = struct.unpack('<32xQQQ', records[:56])
        end -= 76
    if start + length != end or not 0 < count <= MAX_ENTRIES:
        raise InputError(_damage('its table of contents is not where it says'))
    return start, count


def _described(description: Any, len_expected: int) -> tuple[torch.dtype | str, str, int]:
    """Type, key and number of the numbers of a storage, from what a pickle says of it."""
    word, dtype, key, _, numel, *view = description
    if word != 'storage' or len(description) != len_expected or any(view):
        raise InputError(_damage('a storage is described as torch.save does not'))
    if not isinstance(dtype, (torch.dtype, str)) or type(key) is not str:
        raise InputError(_damage('a storage is described as torch.save does not'))
    if type(numel) is not int or numel < 0:
        raise InputError(_damage(f'a storage of {str(numel)[:20]} numbers'))
    return dtype, key, numel


def _fill(data: Tensor, file: IO[bytes]) -> None:
    if data.numel() and file.readinto(data.numpy()) != data.numel():  # type: ignore[attr-defined]
        raise EOFError('its tensors are cut off')


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = {check_key(key): value for key, value in pairs}
    if len(result) != len(pairs):
        raise InputError(_damage('a key of its header occurs twice'))
    return result


def _values_in(content: Any) -> Iterator[tuple[tuple, Any]]:
    """All values in nested containers, the containers too, with their keys."""
    pending: list[tuple[tuple, Any]] = [((), content)]
    while pending:
        key, value = pending.pop()
        yield key, value
        if isinstance(value, Namespace):
            value = vars(value)
        if isinstance(value, (Mapping, list, tuple)):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            pending += [((*key, name), inner) for name, inner in items]


def _check_values(content: Any, size: int) -> None:
    """Refuse what is not plain data, or is larger than a file of ``size`` bytes may become."""
    claimed = tied = 0
    storages: set[int] = set()
    for number, (key, value) in enumerate(_values_in(content)):
        fault = ''
        if isinstance(value, Tensor):
            fault = _tensor_kind_fault(value)
            claim, storage = value.numel() * value.element_size(), value.untyped_storage()
            if storage.data_ptr() in storages and claim <= storage.nbytes():
                tied += claim
            else:
                claimed += claim
            storages.add(storage.data_ptr())
        elif isinstance(value, Unusable):
            fault = value.why
        elif isinstance(value, (Mapping, list, tuple, Namespace)):
            if not _has_versions(getattr(value, '_metadata', None)):
                fault = 'a dict whose _metadata are no versions of modules'
        elif not isinstance(value, _VALUES):
            fault = f'a {type(value).__name__}, not data'
        if fault:
            raise InputError(f'cannot be used: {_joined(key)} is {fault}')
        if len(key) > MAX_DEPTH or number > MAX_INSTRUCTIONS:
            raise InputError(
                f'is refused: it is nested deeper than {MAX_DEPTH} levels, or holds itself'
            )
        if claimed > MAX_CLAIM * size + 2**20 or claimed + tied > MAX_TIED * size + 2**20:
            raise InputError(
                f'is refused: its tensors claim over {claimed + tied:,} bytes, the file has '
                f'{size:,}'
            )


def _has_versions(metadata: Any) -> bool:
    return metadata is None or (
        isinstance(metadata, dict)
        and all(
            isinstance(each, dict) and isinstance(each.get('version'), (int, type(None)))
            for each in metadata.values()
        )
    )


def _tensor_kind_fault(tensor: Tensor) -> str:
    """Why no model could take the numbers of a tensor, or ``''``."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
        return f'not a plain dense tensor ({tensor.dtype}, {tensor.layout}, {tensor.device})'
    return '' if tensor.dtype in _DTYPES else f'a tensor of {tensor.dtype}'


def _joined(key: tuple) -> str:
    return '.'.join(map(str, key)) or 'the file'


def _damage(error: Exception | str) -> str:
    """What is wrong with a file that broke off the reading, and the remedy."""
    reason = str(error).splitlines()[0][:MAX_VALUE] if str(error) else type(error).__name__
    if isinstance(error, RecursionError):
        reason = 'it is nested too deep'
    return f'is truncated or damaged ({reason}); download or copy it again'
