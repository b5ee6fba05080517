"""Errors that name the files of a sample, whatever transforms the pipeline of a data set has.

And one for batches that no memory holds, before they are loaded.

The frameworks open what a data set names, whatever it is: a FIFO hangs, a device never ends, a
header may claim gigabytes, and their errors say what is wrong, but not with which file.
"""

import os
import random
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmengine.dataset import Compose, InfiniteSampler
from mmengine.structures import BaseDataElement
from torch.utils.data import DataLoader

from mmvars.datasets.files import open_image, refuse_special_file
from mmvars.engine.errors import format_config_error
from mmvars.errors import InputError

__all__ = ['CheckedPipeline', 'check_batch_size', 'check_pipelines']


def check_pipelines(dataset: Any) -> None:
    """Give a data set, and those that it wraps, a :class:`CheckedPipeline`."""
    for inner in (getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or ())):
        if inner is not None:
            check_pipelines(inner)
    if type(getattr(dataset, 'pipeline', None)) is Compose:
        dataset.pipeline = CheckedPipeline(dataset.pipeline.transforms)


def check_batch_size(loader: DataLoader) -> None:
    """Refuse batches that the machine cannot hold, by the size of the first sample.

    The samples of a batch and the batch that is made of them are there together.

    Raises:
        InputError: If two batches take more than the memory of the machine.
    """
    size = getattr(loader.batch_sampler, 'batch_size', None)
    if not size or not hasattr(os, 'sysconf'):
        return
    if not isinstance(getattr(loader.batch_sampler, 'sampler', None), InfiniteSampler):
        size = min(size, len(loader.dataset))
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        sample = _num_bytes(loader.dataset[0])
    except Exception:  # loading fails again, where it can be said better
        return
    finally:
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    if (needed := 2 * size * sample) > memory:
        is_test = getattr(loader.dataset, 'test_mode', False)
        name = 'val_dataloader or test_dataloader' if is_test else 'train_dataloader'
        raise InputError(
            f'batch_size {size} of {name}: loading a batch takes about {needed / 1e9:,.0f} GB, '
            f'and this machine has {memory / 1e9:,.0f} GB: set it to {memory // (2 * sample)} '
            'at the very most'
        )


def _num_bytes(value: Any) -> int:
    """Bytes of the tensors and arrays in a sample."""
    if isinstance(value, BaseDataElement):
        value = dict(value.all_items())
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return sum(map(_num_bytes, value))
    return getattr(value, 'nbytes', 0)


class CheckedPipeline(Compose):
    """The pipeline of a data set, with errors that name the files of the sample.

    Raises:
        InputError: If the image or its labels are no file or claim too many pixels, the two differ
            in size, or a transform fails.
    """

    def __call__(self, data: dict) -> dict | None:
        paths = [data[key] for key in ('img_path', 'seg_map_path') if data.get(key)]
        paths = [path for path in paths if isinstance(path, str) and '://' not in path]
        sizes = [size for size in map(_size, paths) if size is not None]
        if len(sizes) == 2 and sorted(sizes[0]) != sorted(sizes[1]):  # EXIF may turn an image
            image, labels = [f'{width}x{height}' for width, height in sizes]
            raise InputError(
                f'labels {paths[1]!r} have {labels} pixels, but their image {paths[0]!r} has '
                f'{image}; they must be of one size'
            )
        try:
            return super().__call__(data)
        except InputError:
            raise
        except Exception as error:
            if _lacks_memory(error):
                raise InputError(
                    f'there is no memory to load {" with labels ".join(map(repr, paths))}: lower '
                    'batch_size or num_workers of the data loader, or allow more (ulimit -v)'
                ) from error
            for path in filter(os.path.isfile, paths):
                if (fault := _fault(path)) is not None:
                    raise InputError(
                        f'{path!r} is damaged, or no image ({fault}); fetch it again, or remove it '
                        'from the data set'
                    ) from error
            reason = (
                format_config_error(error, is_first_step=False)
                or (f'{type(error).__name__}: {error}'.strip().partition('\n')[0])
            )
            raise InputError(
                f'{" with labels ".join(map(repr, paths)) or "a sample"} cannot be loaded: '
                f'{reason}; correct the file or the pipeline of the data set. MMVARS_DEBUG=1 '
                'shows the traceback'
            ) from error


def _size(path: str) -> tuple[int, int] | None:
    """``(width, height)`` as the header of a file has it; None where it has none."""
    refuse_special_file(path)
    try:
        with open_image(path, path) as image:
            return image.size
    except InputError:
        raise
    except Exception:  # missing, damaged or of another format: the loader judges
        return None


def _fault(path: str) -> str | None:
    """Why a file cannot be decoded; PIL raises nearly anything where content is damaged."""
    try:
        with open_image(path, path) as image:
            image.load()
    except Exception as error:
        return None if _lacks_memory(error) else f'{type(error).__name__}: {error}'
    return None


def _lacks_memory(error: Exception) -> bool:
    """Also as OpenCV and torch say it, which have no class of error for it."""
    pattern = 'Insufficient memory|allocate memory|not enough memory'
    return isinstance(error, MemoryError) or re.search(pattern, str(error)) is not None
