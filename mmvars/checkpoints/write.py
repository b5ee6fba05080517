"""The one writer of checkpoints and other results, which destroys nothing."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mmvars.errors import InputError

__all__ = ['check_destination', 'write_bytes', 'write_checkpoint', 'write_text']

SUFFIXES = ('.pth', '.pt', '.bin', '.safetensors')


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


def write_checkpoint(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    container: str | None = None,
    meta: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a file of contiguous tensors, in their order, whole or not at all.

    Args:
        path: ``.safetensors`` writes that format (flat), any other known suffix ``torch.save``.
        tensors: Name -> tensor.
        container: Key of the dict around the tensors; ``None`` for a flat file.
        meta: Entry ``meta`` beside the container, or the header of a safetensors file.
        overwrite: Whether an existing file may be replaced.

    Raises:
        InputError: See :func:`check_destination`; also if the disk refuses.
    """
    path = check_destination(path, overwrite=overwrite)
    # A view would drag its whole storage into the file.
    copies = {
        key: tensor.detach().clone(memory_format=torch.contiguous_format)
        for key, tensor in tensors.items()
    }
    with _whole_or_nothing(path, overwrite) as temporary:
        if path.suffix == '.safetensors':
            save_file(copies, temporary, metadata={'format': 'pt', **(meta or {})})
        elif container is None:
            torch.save(copies, temporary)
        else:
            torch.save({container: copies, **({'meta': dict(meta)} if meta else {})}, temporary)


def write_bytes(path: str | Path, content: bytes, overwrite: bool = False) -> None:
    """Write any file as :func:`write_checkpoint` does."""
    with _whole_or_nothing(Path(path), overwrite) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str, overwrite: bool = False) -> None:
    """Write a text file in UTF-8 as :func:`write_checkpoint` does."""
    write_bytes(path, text.encode(), overwrite)


@contextlib.contextmanager
def _whole_or_nothing(path: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place at the end, or is removed."""
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
        raise InputError(
            f'{path} exists and is kept as it is; choose another name, or say '
            f'--overwrite (overwrite=True)'
        )
