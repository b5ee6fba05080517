"""Store a corrupted data set once, for other people's tools and for many models."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy
import torch

import mmvars
from mmvars.datasets import Corrupt, LoadImageFromFile
from mmvars.errors import InputError
from mmvars.write import write_bytes, write_text

__all__ = ['RECORD', 'write_corrupted']

RECORD = 'corruption.json'


def write_corrupted(
    paths: Sequence[str],
    root: str,
    out: str,
    corrupt: Corrupt,
    load: Callable[[dict], dict] | None = None,
    finish: Callable[[dict], dict] | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[Path]:
    """Write the corrupted images of a data set below a folder, under the names that they have.

    They are PNG files, so that what is loaded from them is bit for bit what ``corrupt`` gives in a
    pipeline; names end in ``.png`` whatever they ended in. (The files of ImageNet-C are JPEGs of
    quality 85: a second corruption, on which numbers depend.) Labels are neither written nor moved.

    A file is written whole or not at all, and one that is there is not made again: started after
    a kill, or in several processes, it goes on. ``corruption.json`` says what the folder holds.

    Args:
        paths: Images.
        root: Folder that holds them all; what follows it in their paths is their name.
        out: Folder to write to; made if it is not there.
        corrupt: What is done to them.
        load: How they are loaded: the loader of the pipeline that the files stand in for. By
            default that of mmvars.
        finish: What is done after the corruption.
        progress: Wraps the images in a progress bar.

    Returns:
        The files, one an image.

    Raises:
        InputError: If a path is not below ``root``, two images would get one name, or ``out`` holds
            something else; what the loader, the corruption and the disk refuse.
    """
    load = load or LoadImageFromFile()
    targets = _targets(paths, root, out)
    _write_record(Path(out), corrupt, load, finish)
    for path, target in progress(list(zip(paths, targets, strict=True))):
        if target.exists():
            continue
        results = corrupt.transform(load(dict(img_path=path)))
        if finish is not None:
            results = finish(results)
        image = results['img'].astype('uint8')
        order = slice(None, None, 1 if corrupt.channel_order == 'bgr' else -1)
        _, content = cv2.imencode('.png', image[..., order])
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(
            target, content.tobytes(), overwrite=True
        )  # another process may have been faster
    return targets


def _targets(paths: Sequence[str], root: str, out: str) -> list[Path]:
    """Where each image is written to, one file for each."""
    sources: dict[Path, str] = {}
    for path in paths:
        name = Path(os.path.relpath(path, root))
        if '..' in name.parts:
            raise InputError(
                f'{path!r} is not below root={root!r}; choose one that holds all images'
            )
        target = Path(out, name).with_suffix('.png')
        if target in sources:
            raise InputError(
                f'{sources[target]!r} and {path!r} would both be written to {target}; rename one'
            )
        sources[target] = path
    return list(sources)


def _write_record(folder: Path, corrupt: Corrupt, load: Callable, finish: Callable | None) -> None:
    """Say what the folder holds, or refuse it if it says or holds something else."""
    record = dict(
        name=corrupt.name,
        severity=corrupt.severity,
        seed=corrupt.seed,
        loader=repr(load),
        **({} if finish is None else {'finish': repr(finish)}),
        versions=dict(
            mmvars=mmvars.__version__,
            numpy=numpy.__version__,
            opencv=cv2.__version__,
            torch=torch.__version__,
        ),
    )
    path = folder / RECORD
    if path.exists():
        if (stored := json.loads(path.read_text(encoding='utf-8'))) != record:
            raise InputError(
                f'{folder} holds other images: {stored}, not {record}; write elsewhere'
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f'{folder} holds files, but no {RECORD}; write to an empty folder')
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, indent=2) + '\n', overwrite=True)
