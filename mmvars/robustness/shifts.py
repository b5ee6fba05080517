"""Images of another source, in place of the test data of a config, which prepares them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from mmvars.datasets.checks import dataset_class, dataset_entries, dataset_problem
from mmvars.datasets.imagenet import imagenet_numbers, imagenet_wnids
from mmvars.datasets.layout import describe_layout
from mmvars.errors import InputError, first_of
from mmvars.robustness.corruptions import STANDARD
from mmvars.robustness.guard import check_classes
from mmvars.robustness.protocols import Setting

__all__ = ['SHIFTS', 'Shift', 'ShiftedData']

Spellings = Sequence[Sequence[str]]


def _imagenet() -> Spellings:
    from mmpretrain.datasets.categories import IMAGENET_CATEGORIES

    return IMAGENET_CATEGORIES, imagenet_wnids()


def _cityscapes() -> Spellings:
    from mmseg.datasets import CityscapesDataset

    return (CityscapesDataset.METAINFO['classes'],)


CLASSES = {'ImageNet': _imagenet, 'Cityscapes': _cityscapes}
"""Whose classes -> their names in order, each way in which they are written."""


@dataclass(frozen=True)
class Shift:
    """Where the images of a protocol are.

    Attributes:
        classes: Whose classes they have, a key of ``CLASSES``.
        dataset: Its config, without ``data_root`` and ``pipeline``; ``{change}`` and ``{level}`` in
            ``data_prefix`` stand for those of a setting.
        published: Change -> how many images the authors have, where it is known.
    """

    classes: str
    dataset: Mapping[str, Any]
    published: Mapping[str, int]

    @property
    def of_classifiers(self) -> bool:
        return self.classes == 'ImageNet'


def _folders(published: Mapping[str, int], **options: Any) -> Shift:
    dataset = dict(type='mmvars.ImageNetFolders', _scope_='mmpretrain', test_mode=True, **options)
    return Shift('ImageNet', dataset, published)


def _streets(kind: str, images: str, labels: str, published: Mapping[str, int]) -> Shift:
    prefix = dict(img_path=images, seg_map_path=labels)
    return Shift('Cityscapes', dict(type=kind, data_prefix=prefix, test_mode=True), published)


SHIFTS = {
    'imagenet-a': _folders({'imagenet-a': 7500}, subset='a'),
    'imagenet-r': _folders({'imagenet-r': 30000}, subset='r'),
    'imagenet-sketch': _folders({'imagenet-sketch': 50889}),
    'imagenet-v2': _folders({'imagenet-v2': 10000}),
    'hendrycks': _folders(
        dict.fromkeys(STANDARD, 50000), data_prefix=dict(img_path='{change}/{level}')
    ),
    # The files of ACDC are named as those of Dark Zurich, which are of the same authors.
    'acdc': _streets(
        'mmseg.DarkZurichDataset',
        'rgb_anon/{change}/val',
        'gt/{change}/val',
        dict(fog=100, night=106, rain=100, snow=100),
    ),
    'dark-zurich': _streets(
        'mmseg.DarkZurichDataset', 'rgb_anon/val/night', 'gt/val/night', dict(night=50)
    ),
    'bdd100k': _streets(
        'mmseg.BDD100KDataset',
        'images/10k/val',
        'labels/sem_seg/masks/val',
        dict(bdd100k=1000),
    ),
}
"""Protocol -> its images."""


class ShiftedData:
    """The images of a protocol in a folder, prepared as the test images of a config.

    Args:
        protocol: A key of ``SHIFTS``.
        root: The folder.
        cfg: Its test pipeline is taken, and the names of its classes.
        partial: Whether some classes of ImageNet may lack images.

    Attributes:
        class_ids: Numbers of the classes that can be right; ``None``: all.
    """

    def __init__(self, protocol: str, root: str, cfg: Config, partial: bool = False) -> None:
        self.protocol = protocol
        self.root = root
        self.shift = SHIFTS[protocol]
        entries = dataset_entries(cfg.test_dataloader.get('dataset'), 'test_dataloader.dataset')
        _, self._own = next(entries)
        if not self._own.get('pipeline'):
            raise InputError(
                f'--protocol {protocol} prepares images as the test data of the config, but '
                'test_dataloader.dataset has no pipeline: write it into the config'
            )
        self.dataset = dict(self.shift.dataset, pipeline=self._own['pipeline'])
        subset = self.dataset.get('subset')
        self.class_ids = imagenet_numbers(subset) if subset else None
        self._options: dict[str, Any] = dict(data_root=root)
        if self.shift.of_classifiers:
            self._options['partial'] = partial

    def config(self, setting: Setting) -> dict[str, Any]:
        """Of the data set of a setting."""
        prefix = {
            key: path.format(change=setting.change, level=f'{setting.level:g}')
            for key, path in self.dataset.get('data_prefix', {}).items()
        }
        return dict(self.dataset, **self._options, data_prefix=prefix or dict(img_path=''))

    def build(self, setting: Setting) -> Any:
        """The data set of a setting.

        Raises:
            InputError: If it is not there, or not whole: with the layout expected and found.
        """
        cfg = self.config(setting)
        problem = dataset_problem(cfg)
        if problem is None:
            try:
                return DATASETS.build(cfg)
            except InputError as error:
                problem = str(error)
        raise self.refusal(problem, setting)

    def check_folders(self, settings: Sequence[Setting]) -> None:
        """Refuse a folder that lacks those of some settings, before the images are listed.

        Raises:
            InputError: With the layout expected and found.
        """
        paths = {
            os.path.join(self.root, path): setting
            for setting in settings
            for path in self.config(setting)['data_prefix'].values()
        }
        missing = [path for path in paths if not os.path.isdir(path)]
        if missing and os.path.isdir(self.root):
            what = f'{len(missing)} of {len(paths)} folders do not exist: {first_of(missing, 3)}'
            raise self.refusal(what, paths[missing[0]])

    def check_images(self, names: Mapping[Setting, Sequence[str]]) -> None:
        """Refuse stored corruptions of other images each, for their mean would mean nothing.

        Raises:
            InputError: With the layout expected and found.
        """
        (first, images), *others = names.items()
        for setting, each in others:
            if each != images:
                raise self.refusal(
                    f'{setting.name} has {len(each)} images, {first.name} {len(images)}, or others',
                    setting,
                )

    def refusal(self, problem: str, setting: Setting) -> InputError:
        """What says what is wrong, with the layout expected and found."""
        cfg = self.config(setting)
        return InputError(
            f'--protocol {self.protocol} --data {self.root}: {problem}\n'
            f'{describe_layout(cfg, dataset_class(cfg))}\n'
            'Unpack the archives there, or give the folder that holds them with --data'
            + '; --ignore-mismatch takes a part of the classes'
            * self.shift.of_classifiers
        )

    def check_classes(self, num_classes: int, *names: Sequence[str] | None) -> list[str]:
        """What is wrong with the classes of a model for these images: a line for each.

        Args:
            num_classes: Of the model.
            *names: Lists of the names of its classes, those that are known.

        Raises:
            InputError: If it has another number.
        """
        spellings = CLASSES[self.shift.classes]()
        what = f'the {len(spellings[0])} classes of {self.shift.classes}'
        if num_classes != len(spellings[0]):
            raise InputError(
                f'--protocol {self.protocol} is for models of {what}, and this one has '
                f'{num_classes}: its scores there would mean nothing. Give a checkpoint, and a '
                f'config, with a head of {what}'
            )
        named = (self._own.get('metainfo') or {}).get('classes')
        metainfo = getattr(dataset_class(self._own), 'METAINFO', {})
        problems = []
        for known in (*names, named or metainfo.get('classes')):
            others = [check_classes(num_classes, each, known) for each in spellings]
            problems += others[0] if all(others) else check_classes(num_classes, known, None)
        return list(dict.fromkeys(problems))
