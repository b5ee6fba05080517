"""A written file beside the model it was made from."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmvars.errors import InputError
from mmvars.export.wrap import ExportedPart

__all__ = ['check_sizes', 'difference', 'open_file', 'random_images']


def open_file(path: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    """The written file as a function of images: in onnxruntime on the CPU, or in torch."""
    if path.suffix == '.pt2':
        return torch.export.load(str(path)).module()
    import onnxruntime
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda images: [torch.from_numpy(array)
                           for array in session.run(None, {name: images.numpy()})]


def check_sizes(size: tuple[int, int], any_size: bool) -> list[tuple[int, int, int]]:
    """Batch, height and width of the images that a file is tried with."""
    height, width = size
    sizes = [(2, height, width), (1, height, width), (3, height, width)]
    if any_size:  # larger, smaller, and no multiple of anything
        sizes += [(1, height + 32, width + 16), (2, max(height // 2, 33), max(width // 2, 37))]
    return sizes


def random_images(batch: int, channels: int, size: tuple[int, int], part: ExportedPart) -> Tensor:
    """Images such as ``part`` takes: normal numbers, or pixels where it normalises itself."""
    generator = torch.Generator().manual_seed(batch)
    images = torch.randn(batch, channels, *size, generator=generator)
    return (images * 60 + 120).clamp(0, 255) if part.normalises else images


@torch.no_grad()
def difference(part: ExportedPart, run: Callable[[Tensor], Sequence[Tensor]],
               images: Tensor) -> float:
    """Greatest difference of a file's outputs from the model's, relative to the greatest number.

    Labels count by logits: how far that of the file's label lies below the greatest one.

    Args:
        part: The model.
        run: The file, from :func:`open_file`.
        images: ``(B, C, H, W)``.

    Raises:
        InputError: If an output is missing or has another shape.
    """
    wanted, found = part(images), list(run(images))
    shapes = [tuple(tensor.shape) for tensor in wanted]
    if [tuple(tensor.shape) for tensor in found] != shapes:
        raise InputError(f'the file gives {[tuple(t.shape) for t in found]} for images '
                         f'{tuple(images.shape)}, the model {shapes}')
    if part.labels:
        logits = part.logits(images)
        if logits.shape[1] == 1:
            logits = torch.cat([-logits, logits], dim=1)
        chosen = logits.gather(1, found[0].unsqueeze(1).to(torch.int64))[:, 0]
        return ((logits.amax(dim=1) - chosen).max() / _largest(logits)).item()
    return max(((a - b).abs().max() / _largest(a)).item()
               for a, b in zip(wanted, found, strict=True))


def _largest(tensor: Tensor) -> Tensor:
    return tensor.abs().max().clamp_min(1e-12)
