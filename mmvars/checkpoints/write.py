"""Checkpoints are written as all results are."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from mmvars.write import check_destination, whole_or_nothing

__all__ = ['write_checkpoint']


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
    with whole_or_nothing(path, overwrite) as file:
        if path.suffix == '.safetensors':
            # Not save_file: it has a temporary file of its own, which a kill leaves behind.
            file.write(save(copies, metadata={'format': 'pt', **(meta or {})}))
        elif container is None:
            torch.save(copies, file)
        else:
            torch.save({container: copies, **({'meta': dict(meta)} if meta else {})}, file)
