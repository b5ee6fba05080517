"""Labeled images of a config's test data, and collages of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image

from mmvars.datasets.checks import check_data_roots
from mmvars.engine.errors import user_errors
from mmvars.errors import InputError
from mmvars.visualization.model import (
    LABEL_STEPS,
    Model,
    dataset_of,
    image_pipeline,
    swaps_channels,
)

__all__ = ['LAYOUTS', 'Photo', 'Photos', 'collage']

LAYOUTS = ('square', 'side')
"""Of two images: halves of one square, as in the authors' demonstration; or both in full."""

NO_CLASS = -1


@dataclass(frozen=True, eq=False)
class Photo:
    """An image with its labels.

    Attributes:
        name: Of its file.
        image: ``(H, W, 3)`` uint8, RGB.
        labels: Classes ``(H, W)``, -1 where there is none; of a classifier's image one class in
            all pixels.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray

    def fit(self, height: int, width: int) -> 'Photo':
        """Scaled until it covers a size, and its middle cut out."""
        rows, columns = self.labels.shape
        scale = max(height / rows, width / columns)
        shape = max(round(columns * scale), width), max(round(rows * scale), height)
        image = Image.fromarray(self.image).resize(shape, Image.Resampling.BILINEAR)
        labels = Image.fromarray(self.labels.astype(np.int32)).resize(
            shape, Image.Resampling.NEAREST
        )
        left, top = (shape[0] - width) // 2, (shape[1] - height) // 2
        window = np.s_[top : top + height, left : left + width]
        return Photo(self.name, np.asarray(image)[window], np.asarray(labels)[window])


class Photos:
    """The test data of a config, each image at its own size.

    Those of a classifier are prepared (resized, cropped) by the test pipeline, as the network sees
    them.

    Args:
        cfg: The config.
        model: Its model.
        num_classes: Labels from there on are no class.

    Raises:
        InputError: If there are none, or they have no labels.
    """

    def __init__(self, cfg: Config, model: Model, num_classes: int, segments: bool) -> None:
        check_data_roots(cfg, ('test_dataloader',))
        dataset = dataset_of(cfg)
        with user_errors():
            self.dataset = DATASETS.build(dict(dataset, pipeline=[]))
            self.load = image_pipeline(cfg, labels=segments)
        if segments:  # images and labels at their own size
            steps = ('LoadImageFromFile', *LABEL_STEPS)
            transforms = self.load.transforms
            self.load.transforms = [each for each in transforms if type(each).__name__ in steps]
        self.model, self.num_classes, self.segments = model, num_classes, segments
        if not len(self.dataset):
            raise InputError('the test data of the config hold no image: check its data_root')

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """As the data set has them, where they are as many as the model's."""
        names = self.dataset.metainfo.get('classes')
        return tuple(names) if names and len(names) == self.num_classes else None

    def label(self, index: int) -> int:
        """The class of a classifier's image."""
        label = self.dataset.get_data_info(index).get('gt_label')
        if not isinstance(label, int | np.integer):
            raise InputError(
                'the test data of the config have no labels (gt_label), or several an image, and '
                'steerability is measured against one: take a labeled, single-label data set'
            )
        return int(label)

    def __getitem__(self, index: int) -> Photo:
        entry = self.dataset.get_data_info(index)
        with user_errors():
            loaded = self.load(dict(entry))
        name = entry['img_path']
        if not self.segments:
            pixels = loaded['inputs']
            pixels = pixels.flip(0) if swaps_channels(self.model.data_preprocessor) else pixels
            image = pixels.permute(1, 2, 0).numpy().astype(np.uint8)
            return Photo(name, image, np.full(image.shape[:2], self.label(index)))
        if 'gt_seg_map' not in loaded:
            raise InputError(
                f'the test pipeline of the config loads no labels of {name}: add LoadAnnotations'
            )
        image, labels = loaded['img'][..., ::-1].astype(np.uint8), loaded['gt_seg_map']
        if labels.shape != image.shape[:2]:
            raise InputError(
                f'the labels of {name} have {labels.shape} pixels (height, width), the image '
                f'{image.shape[:2]}: they must be of one size'
            )
        labels = labels.astype(np.int64)
        known = (labels >= 0) & (labels < self.num_classes)
        return Photo(name, np.ascontiguousarray(image), np.where(known, labels, NO_CLASS))


def collage(photos: Sequence[Photo], layout: str) -> tuple[Photo, list[np.ndarray]]:
    """Two images beside each other, or four in a square; and the region ``(H, W)`` of each.

    Args:
        photos: Two or four. The size is that of the first.
        layout: Of two: ``'square'``: their middles, in the halves of one image; ``'side'``: both in
            full, in an image of twice the width. Four are in the quarters of one image.
    """
    height, width = photos[0].labels.shape
    rows, columns = (2, 2) if len(photos) == 4 else (1, 2)
    if layout == 'side' and len(photos) == 2:
        width *= 2
    elif layout == 'square' and len(photos) == 2:
        height = width = min(height, width)
    image = np.zeros((height, width, 3), np.uint8)
    labels = np.full((height, width), NO_CLASS)
    regions = []
    for tile, photo in enumerate(photos):
        row, column = divmod(tile, columns)
        top, bottom = row * height // rows, (row + 1) * height // rows
        left, right = column * width // columns, (column + 1) * width // columns
        fitted = photo.fit(bottom - top, right - left)
        window = np.s_[top:bottom, left:right]
        image[window], labels[window] = fitted.image, fitted.labels
        regions.append(np.zeros((height, width), bool))
        regions[-1][window] = True
    return Photo(' + '.join(photo.name for photo in photos), image, labels), regions
