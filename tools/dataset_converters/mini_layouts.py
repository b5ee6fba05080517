"""Writes one scene in the folder layouts and label conventions of the public data sets.

Needs numpy and Pillow only: the labels come as indices of ``NAMES``.
"""

from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ['IDS', 'NAMES', 'WNIDS', 'write_imagenet', 'write_lists', 'write_scene']

#: Label in the scenes -> official id in (ADE20K files, Cityscapes train ids, VOC 2012).
#: ADE20K files count the 150 classes from 1, and 0 is "other"; 255 is void in Cityscapes; what is
#: no class of VOC is background, 0.
IDS = {
    'road': (7, 0, 0),
    'sidewalk': (12, 1, 0),
    'building': (2, 2, 0),
    'tree': (5, 8, 0),
    'sky': (3, 10, 0),
    'person': (13, 11, 15),
    'car': (21, 13, 7),
    'table': (16, 255, 11),
    'ball': (120, 255, 0),
    'thing': (0, 255, 0),
}
NAMES = tuple(IDS)
#: Classes of the close-ups -> index among ImageNet-1k's 1,000.
WNIDS = {
    'n03063599': 504,
    'n03201208': 532,
    'n04037443': 751,
    'n04254680': 805,
    'n04399382': 850,
    'n04476259': 868,
}
_ADE, _CITY, _VOC = np.array(list(IDS.values()), np.uint8).T
#: The square layouts show these columns of the Cityscapes image, so all three agree pixel by pixel.
SQUARE = slice(64, 192)
QUALITY = 80


def voc_palette() -> list[int]:
    """Return VOC's 256 colors: bits 0 to 2 of the id, read from low to high, fill r, g, b."""
    index = np.arange(256)
    colors = np.zeros((256, 3), int)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (index >> channel & 1) << 7 - bit
        index >>= 3
    return colors.ravel().tolist()


def with_border(labels: np.ndarray) -> np.ndarray:
    """Set 255 on the pixels at either side of an edge between two ids, as VOC does.

    Args:
        labels: (H, W) uint8.

    Returns:
        (H, W) uint8.
    """
    padded = np.pad(labels, 1, mode='edge')
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge = np.any([labels != other for other in around], axis=0)
    return np.where(edge, np.uint8(255), labels)


def _save(path: Path, pixels: np.ndarray, palette: list[int] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)  # turns the gray image into a palette image
    if path.suffix == '.png':
        image.save(path, optimize=True)
    else:
        image.save(path, quality=QUALITY, optimize=True)


def write_scene(root: Path, split: str, number: int, image: np.ndarray, labels: np.ndarray) -> None:
    """Write one scene in the layouts of ADE20K, Cityscapes and VOC 2012.

    Args:
        root: Gets the folders ``ade20k``, ``cityscapes`` and ``voc12``.
        split: ``'train'`` or ``'val'``.
        number: Of the scene within its split, from 1.
        image: (128, 256, 3) uint8, RGB.
        labels: (128, 256), indices of ``NAMES``.
    """
    # As in the original, training and validation are other towns.
    town = {'train': 'minitown', 'val': 'minihaven'}[split]
    city, stem = root / 'cityscapes', f'{split}/{town}/{town}_{number:06d}_000019'
    _save(city / 'leftImg8bit' / f'{stem}_leftImg8bit.png', image)
    _save(city / 'gtFine' / f'{stem}_gtFine_labelTrainIds.png', _CITY[labels])

    image, labels = image[:, SQUARE], labels[:, SQUARE]
    folder = {'train': 'training', 'val': 'validation'}[split]
    stem = f'{folder}/ADE_{split}_{number:08d}'
    _save(root / 'ade20k' / 'images' / f'{stem}.jpg', image)
    _save(root / 'ade20k' / 'annotations' / f'{stem}.png', _ADE[labels])

    stem = _voc_name(split, number)
    _save(root / 'voc12' / 'JPEGImages' / f'{stem}.jpg', image)
    _save(
        root / 'voc12' / 'SegmentationClass' / f'{stem}.png',
        with_border(_VOC[labels]),
        voc_palette(),
    )


def _voc_name(split: str, number: int) -> str:
    return f'2012_{number + (100 if split == "val" else 0):06d}'


def write_imagenet(root: Path, split: str, number: int, wnid: str, image: np.ndarray) -> None:
    """Write one close-up (H, W, 3) uint8 into ``imagenet/<split>/<wnid>``."""
    name = f'{wnid}_{number}.jpg' if split == 'train' else f'ILSVRC2012_val_{number:08d}.jpg'
    _save(root / 'imagenet' / split / wnid / name, image)


def write_lists(root: Path, counts: dict[str, int]) -> None:
    """Write the lists of files: VOC's names, and ImageNet's ``meta`` with the official indices.

    Args:
        root: With everything else written.
        counts: Number of scenes for each split.
    """
    for split, count in counts.items():
        _write_list(
            root / 'voc12' / 'ImageSets' / 'Segmentation' / f'{split}.txt',
            [_voc_name(split, number) for number in range(1, count + 1)],
        )
        folder = root / 'imagenet' / split
        paths = sorted(path.relative_to(folder).as_posix() for path in folder.glob('*/*.jpg'))
        _write_list(
            root / 'imagenet' / 'meta' / f'{split}.txt',
            [f'{path} {WNIDS[path.split("/")[0]]}' for path in paths],
        )


def _write_list(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + '\n')
