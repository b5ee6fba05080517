"""Photographs in a folder for each class of ImageNet, as its other test sets come."""

import os
from functools import cache
from importlib.resources import files
from typing import Any

from mmengine.dataset import BaseDataset

from mmvars.errors import InputError, check_choice, first_of
from mmvars.registry import DATASETS

__all__ = ['ImageNetFolders', 'imagenet_numbers', 'imagenet_synsets', 'imagenet_wnids']

_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')


@cache
def imagenet_wnids(subset: str | None = None) -> tuple[str, ...]:
    """WordNet ids of the 1000 classes of ImageNet in order, or of the 200 of ``'a'`` or ``'r'``."""
    name = f'imagenet_{subset}_synsets.txt' if subset else 'imagenet_synsets.txt'
    return tuple((files('timm.data') / '_info' / name).read_text().split())


def imagenet_numbers(subset: str) -> list[int]:
    """Which of the 1000 classes those of a subset are."""
    return [imagenet_wnids().index(wnid) for wnid in imagenet_wnids(subset)]


@cache
def imagenet_synsets() -> tuple[str, ...]:
    """WordNet's names of the 1000 classes in order, ``tench.n.01``: unlike words, none is twice.

    Of WordNet 3.0: the first word of each synset, and the number of its sense among those of this
    word. LVIS names its categories so.
    """
    return tuple((files('mmvars.data') / 'imagenet_synsets.txt').read_text().split())


@DATASETS.register_module()
class ImageNetFolders(BaseDataset):
    """Images in ``data_prefix['img_path']/CLASS/``, labeled with the numbers of ImageNet's classes.

    ``CLASS`` is a WordNet id or, as in ImageNet-V2, the number of the class, 0 to 999. The label is
    that number whichever folders there are and however they sort ("10" comes before "2").

    Args:
        subset: ``'a'`` or ``'r'``: there are only the 200 classes of ImageNet-A or -R.
        partial: Whether some classes may lack a folder.
        **kwargs: Of ``mmengine.dataset.BaseDataset``.

    Raises:
        InputError: If there are folders of other classes, too few, or without images.
    """

    def __init__(self, subset: str | None = None, partial: bool = False, **kwargs: Any) -> None:
        if subset is not None:
            check_choice('subset', subset, ('a', 'r'))
        self.subset = subset
        self.partial = partial
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """List the images, in the order of their classes."""
        root = self.data_prefix['img_path']
        names = {e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith('.')}
        by_number = any(map(str.isdecimal, names))
        numbers = imagenet_numbers(self.subset) if self.subset else range(len(imagenet_wnids()))
        classes = {str(k) if by_number else imagenet_wnids()[k]: k for k in numbers}
        missing = [name for name in classes if name not in names]
        samples, empty = [], []
        for name in (name for name in classes if name in names):
            found = [e.name for e in os.scandir(os.path.join(root, name)) if e.is_file()]
            images = sorted(file for file in found if file.lower().endswith(_EXTENSIONS))
            empty += [name] * (not images)
            samples += [
                dict(img_path=os.path.join(root, name, file), gt_label=classes[name])
                for file in images
            ]
        what = f'ImageNet-{self.subset.upper()}' if self.subset else 'ImageNet'
        for which, problem in (
            (sorted(names - classes.keys()), 'are none of'),
            (missing * (not self.partial), 'are missing, of'),
            (empty, 'are empty, of'),
        ):
            if which:
                raise InputError(
                    f'{len(which)} folders in {root!r} {problem} the {len(classes)} '
                    f'classes of {what}: {first_of(which, 3)}'
                )
        return samples
