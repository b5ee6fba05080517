"""Are the data where the config says? Asked before anything is built, answered in one message."""

import os
from collections.abc import Iterator, Mapping, Sequence

from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope

from mmvars.errors import InputError

__all__ = ['check_data_roots']

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def check_data_roots(cfg: Mapping, loaders: Sequence[str] = LOADERS) -> None:
    """Check that every data set of a config is there and not empty.

    Left alone, a missing folder ends in a bare traceback after the model was built, an empty one
    in a sampler that never returns, and a missing label file in a crash in mid-training.

    Looks at local paths only, and reads no image. Checked are ``data_root``, each path of
    ``data_prefix``, and ``ann_file``; for the segmentation data sets also that every image has its
    label file.

    Args:
        cfg: The config as the runner takes it (mmengine's ``Config`` or a dict); data sets wrapped
            in others (``dataset``, ``datasets``) are found. ``cfg.default_scope`` applies.
        loaders: Which dataloaders to look at; those that are absent or None are passed over.

    Raises:
        InputError: If something is missing: one message with all paths and the options that set
            them.
    """
    problems = {}
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        for loader in loaders:
            section = cfg.get(loader) or {}
            if not isinstance(section, Mapping):
                raise InputError(f'{loader} must be a dict with a dataset, got {section!r}')
            wrapped = section.get('dataset')
            for key, dataset in _datasets(wrapped, f'{loader}.dataset'):
                problem = _problem(dataset)
                if problem is not None:
                    problems.setdefault(problem, []).append(key)
    if problems:
        lines = [f'{problem} (set by {", ".join(keys)})' for problem, keys in problems.items()]
        key = next(iter(problems.values()))[0]
        lines.append('Put the data there, or say where they are with --cfg-options data_root=PATH '
                     f'(for one data set alone: {key}.data_root=PATH).')
        raise InputError('\n'.join(lines))


def _datasets(dataset, key: str) -> Iterator[tuple[str, Mapping]]:
    """Yield (key in the config, config) of each data set that holds samples itself."""
    if isinstance(dataset, (list, tuple)):
        for index, inner in enumerate(dataset):
            yield from _datasets(inner, f'{key}.{index}')
    elif isinstance(dataset, Mapping):
        wrapped = [name for name in ('dataset', 'datasets') if dataset.get(name) is not None]
        for name in wrapped:
            yield from _datasets(dataset[name], f'{key}.{name}')
        if not wrapped:
            yield key, dataset


def _problem(cfg: Mapping) -> str | None:
    """Say what is missing of one data set, or None."""
    root = cfg.get('data_root') or ''
    prefix = cfg.get('data_prefix') or {}
    prefixes = list(prefix.values()) if isinstance(prefix, Mapping) else [prefix]
    paths = [root, *prefixes, cfg.get('ann_file') or '']
    strange = [path for path in paths if not isinstance(path, str | os.PathLike | None)]
    if strange:
        return f'data_root, data_prefix and ann_file must be paths, got {strange[0]!r}'
    if any('://' in str(path) for path in paths):
        return None
    name = cfg['type'] if isinstance(cfg['type'], str) else cfg['type'].__name__
    if root and not os.path.isdir(root):
        return f'The data root {root!r} of {name} does not exist or is no folder'
    for folder in (os.path.join(root, path) for path in prefixes if path):
        if not os.path.isdir(folder):
            return f'The folder {folder!r} of {name} does not exist'
    ann_file = os.path.join(root, cfg.get('ann_file') or '')
    if cfg.get('ann_file') and not os.path.exists(ann_file):
        return f'The list of files {ann_file!r} of {name} does not exist'
    # Only now, since some classes assert in their constructor, without a word, that paths exist.
    with DATASETS.switch_scope_and_registry(None) as registry:
        cls = registry.get(cfg['type']) if isinstance(cfg['type'], str) else cfg['type']
    if not (isinstance(cls, type) and issubclass(cls, BaseDataset)):
        return None  # a class that we know nothing of, or none: the Runner says so
    try:
        dataset = DATASETS.build(dict(cfg, pipeline=[], lazy_init=True))
    except TypeError:
        return None  # a user's class with other arguments; what lies below its paths is its own
    return _problem_inside(dataset, name)


def _problem_inside(dataset: BaseDataset, name: str) -> str | None:
    """Look below the paths that the data set made out of its arguments."""
    for folder in dataset.data_prefix.values():
        if folder and not os.path.isdir(folder):
            return f'The folder {folder!r} of {name} does not exist'
        if folder and not any(files for _, _, files in os.walk(folder, followlinks=True)):
            return f'The folder {folder!r} of {name} holds no file'
    if not hasattr(dataset, 'seg_map_suffix'):
        return None
    samples = dataset.load_data_list()
    if not samples:
        return (f'The folder {dataset.data_prefix["img_path"]!r} of {name} holds no file '
                f'*{dataset.img_suffix}')
    listed = {}  # one listing a folder, since a look-up a file is slow on network disks
    for key in ('img_path', 'seg_map_path'):
        lost = [path for path in (sample.get(key) for sample in samples)
                if path and not _listed(path, listed)]
        if lost:
            what = 'labels' if key == 'seg_map_path' else 'image'
            return f'{len(lost)} of {len(samples)} samples of {name} lack {what}, first {lost[0]!r}'
    return None


def _listed(path: str, listed: dict[str, set[str]]) -> bool:
    folder, name = os.path.split(path)
    if folder not in listed:
        listed[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    return name in listed[folder]
