"""Measuring images one after the other, so that a run that was stopped goes on."""

import hashlib
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmvars.checkpoints.partial import sha256_of
from mmvars.datasets.files import contents_digest
from mmvars.networks.timm_trunk import PREFIX
from mmvars.robustness.rows import Rows
from mmvars.saliency.data import NAMED, FixationData, MaskData
from mmvars.saliency.subject import Subject
from mmvars.visualization.model import read_config

__all__ = [
    'CHUNK',
    'default_out',
    'identity_of',
    'measured_images',
    'progress',
    'report_of',
]

CHUNK = 20  # images in a row


def default_out(config: str, command: str, on: str) -> Path:
    """Where results are written by default; a tag of timm's (``vit.mae``) is no suffix."""
    name = config.removeprefix(PREFIX) if config.startswith(PREFIX) else Path(config).stem
    return Path('work_dirs', name, command, Path(on).resolve().name)


def report_of(args: Namespace, config: str, checkpoint: str | Path | None) -> dict[str, str]:
    """What a report is of: its first lines, by which it is known that it may be replaced.

    Args:
        args: Of the command line: ``on`` and ``data_root``.
        config: Of the model, or ``timm/NAME``.
        checkpoint: The file; ``None``: timm's own.
    """
    folder = args.data_root or NAMED.get(args.on, args.on)
    return {
        'model': config,
        'checkpoint': str(checkpoint or 'none'),
        'from': 'test' if args.on == 'test' else str(Path(folder).resolve()),
    }


@dataclass(frozen=True)
class _Chunk:
    """Images that are measured together."""

    name: str
    indices: tuple[int, ...]


def identity_of(
    data: FixationData | MaskData,
    subject: Subject,
    config: str,
    options: dict,
    indices: Sequence[int],
) -> dict[str, Any]:
    """What measures depend on beside options. Files count by what they hold: they may be elsewhere.

    Args:
        data: Whose images.
        subject: The model.
        config: Of the model, or ``timm/NAME``.
        options: Its ``--cfg-options``.
        indices: Of the images that are looked at.
    """
    digest = hashlib.sha256(f'{data.title} {data.names}'.encode())
    if isinstance(data, FixationData):
        for points in data.points:
            digest.update(points.tobytes())
        digest.update(str(data.degree).encode())
    else:
        digest.update(f'{data.classes} {contents_digest(data.files)}'.encode())
    return dict(
        weights=sha256_of(subject.weights),
        # An option of a mixer, or alpha, is no weight.
        model=config if config.startswith(PREFIX) else repr(read_config(config, options).model),
        data=digest.hexdigest(),
        images=[data.names[index] for index in indices],
        contents=contents_digest([data.paths[index] for index in indices]),
    )


def progress(done: int, total: int, seconds: float) -> str:
    """A line for a log: images of how many, seconds for one of them, and the time left."""
    left = seconds * (total - done) / 60
    return f'[{done}/{total}] {seconds:.2f} s an image' + f', {left:.1f} min left' * (left > 0)


def measured_images(
    out: str | Path,
    identity: Mapping[str, Any],
    indices: Sequence[int],
    measure: Callable[[int], dict[str, Any] | None],
) -> list[dict[str, Any]]:
    """What is measured of each image, made now or earlier; without those of which there is nothing.

    Args:
        out: Folder of the results; :data:`CHUNK` images at a time are a file in ``rows``.
        identity: All that they depend on.
        indices: Of the images.
        measure: From the number of an image to what JSON can hold, or ``None``.
    """
    chunks = [
        _Chunk(f'images_{start:05d}', tuple(indices[start : start + CHUNK]))
        for start in range(0, len(indices), CHUNK)
    ]
    rows = Rows.of(out, [(identity, chunks)])
    total = len(indices)
    done = total - sum(len(chunk.indices) for chunk in rows.missing(chunks))
    print(f'{total} images{f", {done} of them made earlier" * (done > 0)} ({rows.folder})')
    start, new = time.monotonic(), 0
    while chunk := rows.claim_next(chunks):
        images = [measure(index) for index in chunk.indices]
        rows.write(chunk, dict(images=[each for each in images if each is not None]))
        new += len(images)
        left = sum(len(chunk.indices) for chunk in rows.missing(chunks))
        print(progress(total - left, total, (time.monotonic() - start) / new), flush=True)
    return [image for chunk in chunks for image in rows.read(chunk)['images']]
