"""Checks of labels and of data roots, before they fail in the middle of a run."""

import inspect
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope

from mmvars.datasets.files import refuse_special_file
from mmvars.datasets.layout import describe_layout
from mmvars.errors import InputError
from mmvars.registry import TRANSFORMS

__all__ = [
    'LOADERS',
    'CheckLabels',
    'check_data_roots',
    'dataset_class',
    'dataset_entries',
    'dataset_problem',
]

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


@TRANSFORMS.register_module()
class CheckLabels(BaseTransform):
    """Refuse labels that are no class and not the ignored value. Place it after LoadAnnotations.

    Required keys: ``gt_seg_map`` (H, W), integers, as LoadAnnotations leaves it. Samples without
    labels (inference) pass.

    Args:
        num_classes: Number of classes; labels are 0 to ``num_classes - 1``.
        ignore_index: The label that the loss and the metric leave out.

    Raises:
        InputError: If labels are not loaded yet, are not one value a pixel, differ in size from
            the image, or hold other values.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if num_classes < 1:
            raise InputError(f'num_classes must be positive, got {num_classes}')
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def transform(self, results: dict) -> dict:
        if 'gt_seg_map' not in results:
            if 'seg_map_path' in results:
                raise InputError(
                    'CheckLabels found no labels loaded; place it after '
                    'LoadAnnotations in the pipeline'
                )
            return results
        labels, path = results['gt_seg_map'], results.get('seg_map_path', 'gt_seg_map')
        if labels.ndim != 2:
            raise InputError(
                f'labels {path!r} hold {labels.shape[-1]} channels (shape {labels.shape}); save '
                'them as a gray or palette PNG, with one class id a pixel'
            )
        # The test pipelines resize the image before the labels are loaded, never the labels. Some
        # transforms of mmseg write the channels into img_shape too.
        sizes = [tuple(results[key][:2]) for key in ('ori_shape', 'img_shape') if key in results]
        if sizes and labels.shape not in sizes:
            raise InputError(
                f'labels {path!r} have {labels.shape} pixels (height, width), but their image '
                f'{results.get("img_path")!r} has {sizes[0]}; they must be of one size'
            )
        wrong = (labels < 0) | (labels >= self.num_classes)
        wrong &= labels != self.ignore_index
        if not wrong.any():
            return results
        values = np.unique(labels[wrong])
        shown = ', '.join(map(str, values[:8])) + (', ...' if len(values) > 8 else '')
        if results.get('reduce_zero_label'):
            remedy = 'With reduce_zero_label 0 became ignored and every other id one less'
        elif values.tolist() == [self.num_classes]:
            remedy = (
                'If the ids count from 1 and 0 means "other", set reduce_zero_label=True in '
                'the data set'
            )
        else:
            remedy = 'They look like other ids than those of the classes (raw or color ids?)'
        raise InputError(
            f'labels {path!r} hold the values {shown} in {wrong.sum()} of {wrong.size} pixels, but '
            f'num_classes={self.num_classes} allows 0 to {self.num_classes - 1} and the ignored '
            f'{self.ignore_index}. {remedy}; else correct num_classes, or write '
            f'{self.ignore_index} where nothing is to be learned'
        )

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(num_classes={self.num_classes}, '
            f'ignore_index={self.ignore_index})'
        )


def check_data_roots(cfg: Mapping, loaders: Sequence[str] = LOADERS) -> None:
    """Check that every data set of a config is there and not empty.

    Without it, a missing folder ends in a bare traceback after the model was built, an empty one in
    a sampler that never returns, and a missing label file in a crash in the middle of a run.

    Looks at local paths only, and reads no image: ``data_root``, each path of ``data_prefix``, and
    ``ann_file``; for the segmentation data sets also that every image has its label file.

    Raises:
        InputError: If something is missing: one message with all paths and the options that set
            them.
    """
    problems: dict[str, list[str]] = {}
    layouts: dict[str, str] = {}
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        for loader in loaders:
            section = cfg.get(loader) or {}
            if not isinstance(section, Mapping):
                raise InputError(f'{loader} must be a dict with a dataset, got {section!r}')
            for key, dataset in dataset_entries(section.get('dataset'), f'{loader}.dataset'):
                if (problem := dataset_problem(dataset)) is not None:
                    problems.setdefault(problem, []).append(key)
                    layouts[problem] = describe_layout(dataset, dataset_class(dataset))
    if problems:
        lines = [
            f'{problem} (set by {", ".join(keys)})\n{layouts[problem]}'
            for problem, keys in problems.items()
        ]
        key = next(iter(problems.values()))[0]
        lines.append(
            'Put the data there, or say where they are with --cfg-options data_root=PATH '
            f'(for one data set alone: {key}.data_root=PATH).'
        )
        raise InputError('\n'.join(lines))


def dataset_entries(dataset: Any, key: str) -> Iterator[tuple[str, dict]]:
    """Yield (key in the config, config) of each data set that wraps no other."""
    if isinstance(dataset, list | tuple):
        for index, inner in enumerate(dataset):
            yield from dataset_entries(inner, f'{key}.{index}')
    elif isinstance(dataset, dict):
        name = next((name for name in ('dataset', 'datasets') if dataset.get(name)), None)
        if name is None:
            yield key, dataset
        else:
            yield from dataset_entries(dataset[name], f'{key}.{name}')


def dataset_class(cfg: Mapping) -> Any:
    """The class of a data set; ``None`` if its name is not known."""
    if not isinstance(cfg['type'], str):
        return cfg['type']
    with DATASETS.switch_scope_and_registry(None) as registry:
        return registry.get(cfg['type'])


def dataset_problem(cfg: Mapping) -> str | None:
    """What is missing of one data set, by its config; ``None`` if nothing is."""
    root, ann_file = cfg.get('data_root') or '', cfg.get('ann_file') or ''
    prefix = cfg.get('data_prefix') or {}
    prefixes = list(prefix.values()) if isinstance(prefix, Mapping) else [prefix]
    paths = [root, *prefixes, ann_file]
    for path in paths:
        if not isinstance(path, str | os.PathLike | None):
            return f'data_root, data_prefix and ann_file must be paths, got {path!r}'
    if any('://' in str(path) for path in paths):
        return None
    cls, name = dataset_class(cfg), getattr(cfg['type'], '__name__', cfg['type'])
    if (
        isinstance(cls, type)
        and 'download' in inspect.signature(cls).parameters
        and cfg.get('download', True)
    ):
        return None  # it fetches what is missing
    for path in filter(None, (root, *(os.path.join(root, p) for p in (*prefixes, ann_file) if p))):
        if not os.path.exists(path):
            return f'The path {path!r} of {name} does not exist'
        refuse_special_file(path)
    if not (isinstance(cls, type) and issubclass(cls, BaseDataset)):
        return None  # a class that we know nothing of, or none: the Runner says so
    try:  # only now, since some classes assert in their constructor that paths exist
        dataset = DATASETS.build(dict(cfg, pipeline=[], lazy_init=True))
    except TypeError:
        return None  # a user's class with other arguments; what lies below its paths is its own
    for folder in filter(None, dataset.data_prefix.values()):
        entries = _walk(folder)
        is_readable = os.path.isdir(folder) and os.access(folder, os.R_OK)
        if not is_readable or all(is_folder for *_, is_folder in entries):
            return f'The folder {folder!r} of {name} does not exist or holds no file'
        if not _has_list(dataset):
            deque(entries, maxlen=0)  # the class lists all of it: no link may lead back
    if (problem := _dropped_images(dataset, name)) or not hasattr(dataset, 'seg_map_suffix'):
        return problem
    unlabeled = isinstance(prefix, Mapping) and not prefix.get('seg_map_path', True)
    return _missing_samples(dataset, name, unlabeled)


def _dropped_images(dataset: BaseDataset, name: str) -> str | None:
    """What the data sets that list a folder pass over without a word."""
    suffix = getattr(dataset, 'img_suffix', None) or getattr(dataset, 'extensions', None)
    folder = dataset.data_prefix.get('img_path')
    if not suffix or not folder or not _lists_folder(dataset):
        return None
    suffixes = (suffix,) if isinstance(suffix, str) else tuple(suffix)
    for path, is_file in _files(folder):
        if not path.lower().endswith(tuple(end.lower() for end in suffixes)):
            continue
        if not is_file:
            return f'{path!r}, in a folder of {name}, {_fault(path)}'
        if isinstance(suffix, str) and not path.endswith(suffix):
            return (
                f'{path!r} would be left out, for the img_suffix of {name} is {suffix!r}: rename it'
            )
    return None


def _lists_folder(dataset: BaseDataset) -> bool:
    """Whether all files of a folder count, as mmseg and mmpretrain have it, not those of a list."""
    owner = type(dataset).load_data_list.__qualname__.partition('.')[0]
    return owner in ('BaseSegDataset', 'CustomDataset') and not _has_list(dataset)


def _has_list(dataset: BaseDataset) -> bool:
    return bool(dataset.ann_file) and not os.path.isdir(dataset.ann_file)


def _entries(folder: str) -> Iterator[tuple[str, bool, bool]]:
    """Path of each entry of a folder, whether it is a file, and whether it is a folder.

    Only links are looked up: on network disks that is slow, and folders hold millions of images.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():  # where it is one to itself, the entry raises OSError
                yield entry.path, os.path.isfile(entry.path), os.path.isdir(entry.path)
            else:
                yield entry.path, entry.is_file(), entry.is_dir()


def _walk(folder: str, above: tuple[str, ...] = ()) -> Iterator[tuple[str, bool, bool]]:
    """The :func:`_entries` of a folder and all below it; links are followed.

    Raises:
        InputError: If a link leads back to a folder that it stands in: the walk would not end.
    """
    real = os.path.realpath(folder)
    if any(f'{path}{os.sep}'.startswith(f'{real.rstrip(os.sep)}{os.sep}') for path in above):
        raise InputError(
            f'{folder!r} is a link back to {real!r}, in which it stands: a listing of the data '
            'would not end; remove the link'
        )
    for path, is_file, is_folder in _entries(folder):
        yield path, is_file, is_folder
        if is_folder:
            yield from _walk(path, (*above, real))


def _files(folder: str) -> Iterator[tuple[str, bool]]:
    """All paths below a folder but hidden ones, and whether each is a file."""
    for path, is_file, _ in _walk(folder):
        if not os.path.basename(path).startswith('.'):
            yield path, is_file


def _fault(path: str) -> str:
    if os.path.isdir(path):
        return 'is a folder'
    if os.path.islink(path) and not os.path.exists(path):
        return f'is a link to {os.readlink(path)!r}, which does not exist'
    return 'is a FIFO, a socket or a device' if os.path.exists(path) else 'does not exist'


def _missing_samples(dataset: BaseDataset, name: str, unlabeled: bool) -> str | None:
    """Which images or label files of a segmentation data set are not there."""
    try:
        samples = dataset.load_data_list()
    except Exception as error:  # a list that is no text, or a class of the user's own that fails
        where = f'the list {dataset.ann_file!r}' if dataset.ann_file else 'the samples'
        return f'{where} of {name} cannot be read: {type(error).__name__}: {error}'
    if not samples:
        return (
            f'The folder {dataset.data_prefix["img_path"]!r} of {name} holds no file '
            f'*{dataset.img_suffix}'
        )

    @cache
    def names_in(folder: str) -> set[str]:
        if not os.path.isdir(folder):
            return set()
        return {os.path.basename(path) for path, *is_read in _entries(folder) if any(is_read)}

    for key, what in (('img_path', 'image'), ('seg_map_path', 'labels')):
        if key == 'seg_map_path' and unlabeled:
            return None
        paths = [sample[key] for sample in samples if sample.get(key)]
        missing = [
            path for path in paths if os.path.basename(path) not in names_in(os.path.dirname(path))
        ]
        if missing:
            return (
                f'{len(missing)} of {len(samples)} samples of {name} lack {what}, first '
                f'{missing[0]!r}, which {_fault(missing[0])}'
            )
    folder = dataset.data_prefix.get('seg_map_path')
    # Classes with a list, and those that make up their samples in another way, may leave some out.
    if not folder or not _lists_folder(dataset):
        return None
    extra = {path for path, _ in _files(folder) if path.endswith(dataset.seg_map_suffix)}
    extra -= {sample['seg_map_path'] for sample in samples}
    if not extra:
        return None
    return (
        f'{len(extra)} labels of {name} have no image *{dataset.img_suffix} in '
        f'{dataset.data_prefix["img_path"]!r}, first {min(extra)!r}: put the images there, take '
        'the labels away, or name the images that count in ann_file'
    )
