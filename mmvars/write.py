"""The one writer of checkpoints and other results, which destroys nothing.

Nothing here imports torch.
"""

import contextlib
import functools
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from mmvars.errors import InputError

__all__ = [
    'WriteError',
    'check_destination',
    'whole_or_nothing',
    'write_bytes',
    'write_text',
]

SUFFIXES = ('.pth', '.pt', '.bin', '.safetensors')


class WriteError(InputError):
    """The disk refuses: it is full, read-only, over a quota or not allowed."""


def check_destination(
    path: str | Path,
    source: str | Path | None = None,
    overwrite: bool = False,
    suffixes: Sequence[str] = SUFFIXES,
) -> Path:
    """Refuse a destination that cannot or must not be written, before any work is done.

    Raises:
        InputError: If ``path`` exists and ``overwrite`` is false, is the ``source`` itself, has
            none of the ``suffixes``, or stands in a folder that cannot be written.
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


def write_bytes(path: str | Path, content: bytes, overwrite: bool = False) -> None:
    """Write a file whole or not at all."""
    with whole_or_nothing(path, overwrite) as file:
        file.write(content)


def write_text(path: str | Path, text: str, overwrite: bool = False) -> None:
    """Write a text file in UTF-8 whole or not at all."""
    write_bytes(path, text.encode(), overwrite)


@contextlib.contextmanager
def whole_or_nothing(path: str | Path, overwrite: bool = False) -> Iterator[BinaryIO]:
    """An open file beside ``path`` that takes its place at the end, or is removed.

    It is on the disk before it takes the name. Who needs a path to write to takes ``file.name``.
    Files that killed writers left in the folder are removed first.

    Raises:
        InputError: If ``path`` exists and ``overwrite`` is false, or is a folder.
        WriteError: If the disk refuses.
    """
    path = Path(path)
    _refuse_existing(path, overwrite)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}@{socket.gethostname()}.partial')
    try:
        _remove_partials(path.parent)
        with open(temporary, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _refuse_existing(path, overwrite)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides it
        if not isinstance(cause, OSError):
            raise
        raise WriteError(f'{path} cannot be written: {cause.strerror or cause}') from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@functools.cache  # once a run: a folder of pictures is long
def _remove_partials(folder: Path) -> None:
    """Remove what writers left that were killed.

    A writer is dead if its process is on this host and gone, or if it has not written for a day:
    processes of other hosts that share the folder cannot be seen.
    """
    for file in folder.glob('.*.partial'):
        match = re.fullmatch(r'\..+\.(\d+)(?:@(.+))?\.partial', file.name)
        if match is None:
            continue
        with contextlib.suppress(OSError):  # another process may have removed it
            gone = match[2] == socket.gethostname() and not _is_alive(int(match[1]))
            if gone or file.stat().st_mtime < time.time() - 24 * 3600:
                file.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no number of a process
        pass
    return True


def _flush_folder(folder: Path) -> None:
    """Bring new names to the disk, where the file system knows how."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise InputError(f'{path} is a folder; give the path of a file')
    if path.exists() and not overwrite:
        raise InputError(
            f'{path} exists and is kept as it is; choose another name, or replace it with '
            '--overwrite (in Python: overwrite=True)'
        )
