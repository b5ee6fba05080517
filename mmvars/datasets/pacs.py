"""PACS, four domains of the same seven classes, to train on three and test on the fourth."""

import itertools
import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset, InfiniteSampler

from mmvars.datasets.files import SUFFIXES
from mmvars.datasets.layout import describe_layout
from mmvars.errors import InputError, check_choice, check_number
from mmvars.registry import DATA_SAMPLERS, DATASETS

__all__ = ['DOMAINS', 'PACS', 'DomainSampler']

DOMAINS = ('art_painting', 'cartoon', 'photo', 'sketch')
_HELD_OUT = 0.2  # of each source domain, as in DomainBed


@DATASETS.register_module()
class PACS(BaseDataset):
    """Images of PACS (Li et al., ICCV 2017), in the folders ``DOMAIN/CLASS/IMAGE``.

    Of each source domain, those that are not the target, ``'train'`` has four fifths, drawn at
    random, and ``'val'`` the others. ``'test'`` has all images of the target.

    Args:
        data_root: Folder of the domains.
        target: The domain that is left out: one of :data:`DOMAINS`.
        split: ``'train'``, ``'val'`` or ``'test'``.
        split_seed: Of the draw. It must be the same for ``'train'`` and ``'val'``: the key
            ``split_seed`` of ``--cfg-options`` sets both, as ``target`` does.
        **kwargs: As for mmengine's ``BaseDataset``.

    Raises:
        InputError: If an argument is none of these, or a folder of a class is missing or empty;
            shows the layout expected and found.
    """

    METAINFO = dict(
        classes=('dog', 'elephant', 'giraffe', 'guitar', 'horse', 'house', 'person'),
    )
    LAYOUT = tuple(f'{domain}/CLASS/IMAGE' for domain in DOMAINS)

    def __init__(
        self,
        data_root: str,
        target: str,
        split: str = 'train',
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_choice('target', target, DOMAINS)
        check_choice('split', split, ('train', 'val', 'test'))
        check_number('split_seed', split_seed, 0, whole=True)
        self.target, self.split, self.split_seed = target, split, split_seed
        classes = self.METAINFO['classes']
        empty = [
            f'{domain}/{name}'
            for domain, name in itertools.product(DOMAINS, classes)
            if not _images(os.path.join(data_root, domain, name))
        ]
        if empty:
            more = f' and {len(empty) - 3} more' if len(empty) > 3 else ''
            raise InputError(
                f'The data_root {data_root!r} of PACS has no images in {", ".join(empty[:3])}{more}'
                f'\n{describe_layout(dict(data_root=data_root), PACS)}\n'
                f'CLASS is each of {", ".join(classes)}. Put the data there, or say where they are '
                'with --cfg-options data_root=PATH'
            )
        super().__init__(data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Path, label and domain of each image."""
        if self.split == 'test':
            return self._load(self.target)
        samples = []
        for number, domain in enumerate(DOMAINS):
            if domain != self.target:
                images = self._load(domain)
                order = np.random.default_rng([self.split_seed, number]).permutation(len(images))
                held_out = int(_HELD_OUT * len(images))
                chosen = order[:held_out] if self.split == 'val' else order[held_out:]
                samples += [images[index] for index in sorted(chosen)]
        return samples

    def _load(self, domain: str) -> list[dict]:
        return [
            dict(img_path=path, gt_label=label, domain=domain)
            for label, name in enumerate(self.METAINFO['classes'])
            for path in _images(os.path.join(self.data_root, domain, name))
        ]


def _images(folder: str) -> list[str]:
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [os.path.join(folder, name) for name in names if name.lower().endswith(SUFFIXES)]


@DATA_SAMPLERS.register_module()
class DomainSampler(InfiniteSampler):
    """Endless, and one image of each domain after the other, however many each has.

    A batch of 96 images holds 32 of each of three domains. Each domain is shuffled anew whenever
    it has been seen. ``dataset`` names the domain of each sample: ``get_data_info(i)['domain']``.
    """

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self.seed)
        domains = defaultdict(list)
        for index in range(self.size):
            domains[self.dataset.get_data_info(index)['domain']].append(index)

        def endless(indices: list[int]) -> Iterator[int]:
            while True:
                for position in torch.randperm(len(indices), generator=generator).tolist():
                    yield indices[position]

        for each in zip(*map(endless, domains.values()), strict=True):
            yield from each
