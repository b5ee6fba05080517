"""Flickr30K: photographs and five captions of each, to find one by the other."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset

from mmvars.datasets.annotations import read_json
from mmvars.errors import InputError, check_number
from mmvars.registry import DATASETS

__all__ = ['Flickr30K']


@DATASETS.register_module()
class Flickr30K(BaseDataset):
    """Images and captions in the layout of Karpathy's splits (``dataset_flickr30k.json``).

    In training a sample is a caption with its image, and ``text`` is the caption and, drawn anew
    each time, captions of other images (the released code draws from those of the image too). In
    tests (``test_mode``) it is an image: ``gt_text_id`` says which of :attr:`captions` are its own.

    Args:
        data_root: Folder that the other paths are relative to.
        ann_file: ``dataset_flickr30k.json``.
        data_prefix: Folder of the images.
        split: One or several of those in ``ann_file``: ``'train'``, ``'val'``, ``'test'``.
        num_negatives: Captions of other images in each sample.
        **kwargs: As for mmengine's ``BaseDataset``.

    Attributes:
        captions: All captions of the splits, image by image.

    Raises:
        InputError: If a file is missing or holds something else, or no image is of the splits.
    """

    LAYOUT = ('{ann_file}', '{data_prefix}/IMAGE')

    def __init__(
        self,
        data_root: str,
        ann_file: str = 'annotations/dataset_flickr30k.json',
        data_prefix: str = 'images',
        split: str | Sequence[str] = 'train',
        num_negatives: int = 15,
        **kwargs: Any,
    ) -> None:
        check_number('num_negatives', num_negatives, 1, whole=True)
        self.splits = (split,) if isinstance(split, str) else tuple(split)
        self.num_negatives = num_negatives
        self.captions: list[str] = []
        super().__init__(
            data_root=data_root,
            ann_file=ann_file,
            data_prefix=dict(img_path=data_prefix),
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """Each image with the numbers of its captions; in training, each caption with its image."""
        example = dict(filename='1.jpg', split='train', sentences=[dict(raw='A man sits.')])
        images = read_json(self.ann_file, "Karpathy's splits", dict(images=[example]))['images']
        chosen = [image for image in images if image['split'] in self.splits]
        if not chosen:
            known = ', '.join(sorted({image['split'] for image in images}))
            raise InputError(
                f'{self.ann_file!r} has no image of split {"+".join(self.splits)}; it has {known}'
            )
        folder = self.data_prefix['img_path']
        names = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        missing = [image['filename'] for image in chosen if image['filename'] not in names]
        if missing:
            raise InputError(
                f'{len(missing)} of {len(chosen)} images of {self.ann_file!r} are not in '
                f'{folder!r}, first {missing[0]!r}; check data_prefix, and that all of the archive '
                'is unpacked'
            )
        if not self.test_mode and len(chosen) < 2:
            raise InputError(f'{self.ann_file!r}: training needs two images of {self.splits}')
        self.captions = [text['raw'] for image in chosen for text in image['sentences']]
        samples, first = [], 0
        for number, image in enumerate(chosen):
            own = list(range(first, first + len(image['sentences'])))
            first += len(own)
            path = os.path.join(folder, image['filename'])
            samples.append(dict(img_path=path, image_id=number, gt_text_id=own))
        if self.test_mode:
            return samples
        return [dict(sample, text_id=text) for sample in samples for text in sample['gt_text_id']]

    def get_data_info(self, idx: int) -> dict:
        """The sample; in training with ``text``, its caption first."""
        info = super().get_data_info(idx)
        if not self.test_mode:
            own = info['gt_text_id']
            others = np.random.randint(len(self.captions) - len(own), size=self.num_negatives)
            others += len(own) * (others >= own[0])  # an image's captions follow one another
            info['text'] = [self.captions[number] for number in (info['text_id'], *others)]
        return info
