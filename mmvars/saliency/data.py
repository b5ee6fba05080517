"""What maps are compared with: fixations of people, or masks of objects, of a folder of images."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from mmvars.datasets.files import image_name, images_in, open_image
from mmvars.datasets.imagenet import imagenet_synsets
from mmvars.errors import InputError, first_of
from mmvars.networks.timm_trunk import PREFIX
from mmvars.priors import find_class
from mmvars.saliency.fixations import points_of_map
from mmvars.saliency.lvis import ANNOTATIONS, read_lvis
from mmvars.steerability.photos import NO_CLASS, Photos
from mmvars.visualization.model import read_config

__all__ = [
    'IGNORED',
    'NAMED',
    'FixationData',
    'MaskData',
    'find_data',
    'read_config_data',
    'read_data',
]

_DEGREES = {'osie': (24.0, 800), 'mit1003': (35.0, 1024)}
"""Pixels a degree on the columns that people saw (Xu et al., 2014; Judd et al., 2009)."""

NAMED = {
    'osie': 'data/osie',
    'mit1003': 'data/mit1003',
    'voc': 'data/VOCdevkit/VOC2012',
    'lvis': 'data/lvis_v1',
}
"""Name of ``--on`` -> where it is by default."""

_LAYOUTS = """a folder of fixations:        a folder of masks:
  images/NAME.jpg               images/NAME.jpg
  fixations.json                masks/NAME.png
fixations.json: {"NAME": [[[x, y], ...], ...]}, a list of points in pixels for each observer;
masks: labels, 0 is the background, 255 does not count"""
_OSIE = """data/osie
  stimuli/NAME.jpg
  eye/fixations.mat: "fixations", cells with "img" and "subjects", cells with fix_x and fix_y"""
_MIT1003 = """data/mit1003
  ALLSTIMULI/NAME.jpeg
  ALLFIXATIONMAPS/NAME_fixPts.jpg, or extracted/NAME.jpeg_OBSERVER.mat with "fixations", x and y in
  a row each: what the authors' fixation finder makes of the eye traces in DATA/OBSERVER/NAME.mat,
  as pysaliency's extract_fixations.m runs it; the traces themselves are not read"""
_VOC = """data/VOCdevkit/VOC2012
  ImageSets/Segmentation/val.txt
  JPEGImages/NAME.jpg
  SegmentationClass/NAME.png"""
IGNORED = -1
_IGNORED_IN_FILES = 255

VOC_CLASSES = (
    'background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,'
    'motorbike,person,pottedplant,sheep,sofa,train,tvmonitor'
).split(',')


@dataclass(frozen=True)
class FixationData:
    """Images and where people looked.

    Attributes:
        title: For the report.
        names, paths: Of the images.
        points: ``(F, 2)`` of each, within the image.
        left_out: Fixations outside of their image.
        degree: Pixels of one degree of visual angle in an image of that many columns, and these;
            ``None`` where it is not known.
    """

    title: str
    names: Sequence[str]
    paths: Sequence[str]
    points: Sequence[np.ndarray]
    sizes: Sequence[tuple[int, int]]
    left_out: int = 0
    degree: tuple[float, int] | None = None

    def sigma(self, index: int) -> float:
        """Of the blurred fixations of an image, in pixels: one degree, else 3 % of the width."""
        pixels, columns = self.degree or (0.03, 1)
        return pixels * self.sizes[index][1] / columns


@dataclass(frozen=True)
class MaskData:
    """Images and the masks of what is in them.

    Attributes:
        title: For the report.
        names, paths: Of the images.
        labels: From the number of an image to its labels ``(H, W)``: 0 is the background,
            :data:`IGNORED` does not count.
        files: That the labels are in.
        classes: Names of the labels from 0 on, the background first; ``None`` where unknown.
        has_background: Whether pixels can be of no object.
    """

    title: str
    names: Sequence[str]
    paths: Sequence[str]
    labels: Callable[[int], np.ndarray]
    files: Sequence[str]
    classes: Sequence[str] | None = None
    has_background: bool = True

    def class_name(self, label: int) -> str:
        """Name of a label; ``''`` where it has none."""
        return self.classes[label] if self.classes and label < len(self.classes) else ''

    def only(self, classes: Sequence[str]) -> 'MaskData':
        """With these classes as objects; all others are background.

        Args:
            classes: Names, or numbers of labels where classes have no names.

        Raises:
            InputError: If the data have no such class.
        """
        if self.classes is None:
            numbers = [self._number(name) for name in classes]
        else:
            numbers = [find_class(name, self.classes) for name in classes]
        labels = self.labels

        def selected(index: int) -> np.ndarray:
            all_labels = labels(index)
            return np.where(np.isin(all_labels, [*numbers, IGNORED]), all_labels, 0)

        return replace(self, labels=selected, has_background=True)

    def _number(self, label: str) -> int:
        if not label.isdecimal() or int(label) in (0, _IGNORED_IN_FILES):
            raise InputError(
                f'--objects {label}: the classes of {self.title} have no names: give numbers of '
                'labels, such as --objects 3 7; 0 is the background, and 255 unlabeled'
            )
        return int(label)


def _file_labels(masks: Sequence[str]) -> Callable[[int], np.ndarray]:
    def read(index: int) -> np.ndarray:
        with open_image(masks[index], masks[index]) as image:
            labels = np.asarray(image)
        if labels.ndim != 2:
            raise InputError(
                f'{masks[index]} is a color image, and a mask has a label in each pixel: save it '
                'as a gray or palette PNG'
            )
        return np.where(labels == _IGNORED_IN_FILES, IGNORED, labels.astype(int))

    return read


def find_data(
    on: str, root: str | None, config: str, options: Mapping[str, Any], drop_first: bool = False
) -> FixationData | MaskData:
    """The data that ``--on`` and ``--data-root`` name, or those of a config.

    Args:
        on: ``'test'``, or what :func:`read_data` takes.
        root: Where they are; ``None``: not given.
        config: Path or name of the config, or ``timm/NAME``, which has none.
        options: Its ``--cfg-options``.
        drop_first: See :func:`read_data`.

    Raises:
        InputError: If they are not there, or ``'test'`` is asked for without a config.
    """
    if on != 'test':
        return read_data(on, root, drop_first)
    if config.startswith(PREFIX) or root is not None:
        raise InputError(
            '--on test is the test data of a config, where the config says they are: leave '
            '--data-root out, and give a config'
        )
    return read_config_data(read_config(config, options))


def read_config_data(cfg: Config) -> MaskData:
    """The data that ``--on test`` names; class k of the config is label k + 1.

    Raises:
        InputError: If the config is of no segmentor, or its test data are not there.
    """
    head = cfg.model.get('decode_head')
    if head is None:
        raise InputError(
            '--on test takes masks from the test data of a segmentor, and this config is of none: '
            'give voc, or a folder'
        )
    head = head[-1] if isinstance(head, Sequence) else head
    photos = Photos(cfg, None, head['num_classes'], segments=True)
    entries = [photos.dataset.get_data_info(index) for index in range(len(photos))]
    paths = [entry['img_path'] for entry in entries]
    classes = photos.dataset.metainfo.get('classes')

    def read(index: int) -> np.ndarray:
        labels = photos[index].labels
        return np.where(labels == NO_CLASS, IGNORED, labels + 1)

    names = [image_name(path) for path in paths]
    masks = [entry.get('seg_map_path') or '' for entry in entries]
    known = None if classes is None else ('background', *classes)
    title = 'test data of the config'
    return MaskData(title, names, paths, read, masks, known, has_background=False)


def read_data(
    on: str, root: str | None = None, drop_first: bool = False
) -> FixationData | MaskData:
    """The data that ``--on`` names.

    Args:
        on: A key of :data:`NAMED`, or a folder.
        root: Where a named one is, if not there.
        drop_first: Of fixations, leave out the first of each observer, which is where the cross
            before the image was.

    Raises:
        InputError: If it is not there, or laid out otherwise.
    """
    if on in NAMED:
        folder = Path(root or NAMED[on])
    elif root is not None:
        raise InputError(
            f'--data-root says where {", ".join(NAMED)} are, and --on {on} is a folder: leave it '
            'out'
        )
    else:
        folder = Path(on)
    if not folder.is_dir():
        remedy = (
            f'It is that of --on {on}: give --data-root DIR'
            if on in NAMED
            else f'--on takes {", ".join(NAMED)}, or a folder'
        )
        raise InputError(f'the folder {folder} does not exist. {remedy}')
    if on == 'voc':
        return _read_voc(folder)
    if on == 'lvis':
        classes = ('background', *imagenet_synsets())
        return MaskData('lvis', *read_lvis(folder, IGNORED), [str(folder / ANNOTATIONS)], classes)
    if (folder / 'fixations.json').is_file():
        return _read_fixations(folder, on, drop_first)
    if on == 'osie':
        return _read_osie(folder, drop_first)
    if on == 'mit1003':
        return _read_mit1003(folder, drop_first)
    if (folder / 'masks').is_dir():
        return _read_masks(folder)
    raise InputError(f'{folder} has neither fixations.json nor masks. It must be\n{_LAYOUTS}')


def _read_fixations(folder: Path, title: str, drop_first: bool) -> FixationData:
    path = folder / 'fixations.json'
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        points = {name: _joined(observers, drop_first) for name, observers in content.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f'{path} is not as it must be ({error}):\n{_LAYOUTS}') from None
    return _inside(title, _with_images(points, folder / 'images', path))


def _read_osie(folder: Path, drop_first: bool) -> FixationData:
    """The published layout, as pysaliency's ``get_OSIE`` reads it."""
    path = folder / 'eye' / 'fixations.mat'
    if not path.is_file():
        raise InputError(
            f'{folder} has neither fixations.json nor {path.relative_to(folder)}. It must be\n'
            f'{_OSIE}\nor\n{_LAYOUTS}'
        )
    try:
        points = {
            each['img']: _joined(
                [
                    np.stack([np.atleast_1d(one['fix_x']), np.atleast_1d(one['fix_y'])], axis=1)
                    for one in each['subjects']
                ],
                drop_first,
            )
            for each in _read_mat(path)['fixations']
        }
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f'{path} is not as it must be ({error!r}):\n{_OSIE}') from None
    return _inside('osie', _with_images(points, folder / 'stimuli', path))


def _read_mit1003(folder: Path, drop_first: bool) -> FixationData:
    images = [*(folder / 'ALLSTIMULI').glob('*.jpeg')]
    extracted = sorted((folder / 'extracted').glob('*.jpeg_*.mat'))
    maps = sorted((folder / 'ALLFIXATIONMAPS').glob('*_fixPts.jpg'))
    if not images or not (extracted or maps):
        raise InputError(
            f'{folder} holds {len(images)} images, {len(maps)} maps of fixations and '
            f'{len(extracted)} files of extracted ones of MIT1003. It must be\n{_MIT1003}\n'
            '(archives from people.csail.mit.edu/tjudd/WherePeopleLook), or images/ with '
            'fixations.json'
        )
    points: dict[str, np.ndarray] = {}
    if extracted:
        points, source = _extracted(extracted, drop_first), extracted[0].parent
    elif drop_first:
        raise InputError(
            '--drop-first needs fixations in their order, and ALLFIXATIONMAPS has none: leave it '
            'out, or give extracted/ or fixations.json'
        )
    else:
        source = maps[0].parent
        for path in maps:
            with open_image(str(path), str(path)) as image:
                pixels = np.asarray(image.convert('L'))
            # A JPEG: what it adds around a point is weak.
            fixated = points_of_map(np.where(pixels > 127, 1.0, 0.0))
            points[path.name.removesuffix('_fixPts.jpg')] = fixated
    return _inside('mit1003', _with_images(points, folder / 'ALLSTIMULI', source))


def _extracted(paths: Sequence[Path], drop_first: bool) -> dict[str, np.ndarray]:
    """The fixations of each image, from a file an observer."""
    observers: dict[str, list[np.ndarray]] = {}
    for path in paths:
        try:
            rows = np.asarray(_read_mat(path)['fixations'], dtype=float)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'{path} is not as it must be ({error!r}):\n{_MIT1003}') from None
        name = path.name.rpartition('.jpeg_')[0]
        observers.setdefault(name, []).append(np.atleast_2d(rows)[:, :2])
    return {name: _joined(each, drop_first) for name, each in observers.items()}


def _joined(observers: Sequence[Any], drop_first: bool) -> np.ndarray:
    """The fixations ``(F, 2)`` of all observers of an image."""
    points = [np.asarray(each, dtype=float) for each in observers]
    points = [each for each in points if each.size]
    if any(each.ndim != 2 or each.shape[1] != 2 for each in points):
        raise ValueError('a fixation has an x and a y')
    return np.concatenate([np.zeros((0, 2)), *(each[int(drop_first) :] for each in points)])


def _with_images(
    points: Mapping[str, np.ndarray], folder: Path, source: Path
) -> dict[str, tuple[str, np.ndarray]]:
    """The file and the fixations of each image, which is named with its suffix or without."""
    files = {Path(file).name: file for file in images_in(str(folder))}
    stems = {Path(name).stem: file for name, file in files.items()}
    found = {name: files.get(name) or stems.get(name) for name in points}
    if missing := [name for name, file in found.items() if file is None]:
        raise InputError(f'{folder} lacks {first_of(missing)}, which {source} names')
    return {name: (str(found[name]), each) for name, each in points.items()}


def _read_mat(path: Path) -> Any:
    """The variables of a file of MATLAB, cells as lists and structs as dicts."""
    try:
        from scipy.io.matlab import MatReadError, loadmat
    except ImportError:
        raise InputError(f'reading {path} needs SciPy: pip install scipy') from None
    try:
        return loadmat(str(path), simplify_cells=True)
    except (MatReadError, NotImplementedError, ValueError, TypeError) as error:
        raise InputError(
            f'{path} is no MATLAB file that SciPy reads ({error}); of version 7.3 it reads none: '
            'save it with -v7'
        ) from None


def _inside(title: str, items: Mapping[str, tuple[str, np.ndarray]]) -> FixationData:
    """With the fixations that are within their images."""
    names, paths, points, sizes, left_out = [], [], [], [], 0
    for name, (path, each) in items.items():
        with open_image(path, path) as image:
            width, height = image.size
        inside = ((each >= 0) & (each < (width, height))).all(axis=1)
        left_out += int((~inside).sum())
        if inside.any():  # without a fixation there is nothing to measure
            names.append(name)
            paths.append(path)
            points.append(each[inside])
            sizes.append((height, width))
    if len(names) < 2:
        raise InputError(
            f'{title}: {len(names)} of {len(items)} images have fixations within the image, and '
            'the shuffled AUC needs two: points are [x, y] in pixels of the file'
        )
    return FixationData(title, names, paths, points, sizes, left_out, _DEGREES.get(title))


def _read_voc(folder: Path) -> MaskData:
    split = folder / 'ImageSets' / 'Segmentation' / 'val.txt'
    if not split.is_file():
        raise InputError(f'{split} does not exist. VOC 2012 must be laid out as\n{_VOC}')
    names = split.read_text(encoding='utf-8').split()
    paths = [str(folder / 'JPEGImages' / f'{name}.jpg') for name in names]
    masks = [str(folder / 'SegmentationClass' / f'{name}.png') for name in names]
    if missing := [path for path in (*paths, *masks) if not Path(path).is_file()]:
        raise InputError(f'VOC 2012 lacks {first_of(missing, 2)}. It must be\n{_VOC}')
    return MaskData('voc', names, paths, _file_labels(masks), masks, VOC_CLASSES)


def _read_masks(folder: Path) -> MaskData:
    paths = images_in(str(folder / 'images'))
    masks = {path.stem: str(path) for path in sorted((folder / 'masks').glob('*.png'))}
    names = [Path(path).stem for path in paths]
    if missing := [name for name in names if name not in masks]:
        raise InputError(f'{folder}/masks lacks {first_of(missing)} (.png)')
    files = [masks[name] for name in names]
    return MaskData(folder.name, names, paths, _file_labels(files), files)
