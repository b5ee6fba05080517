"""Image files through the test pipeline of a config."""

import os
from collections.abc import Iterator

from mmengine.config import Config
from mmengine.dataset import Compose

from mmvars.errors import InputError
from mmvars.visualization.host import Sample

__all__ = ['find_images', 'load_sample', 'picture_files', 'test_dataset', 'test_pipeline']

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
LABEL_STEPS = ('CheckLabels', 'LoadAnnotations', 'LoadDepthAnnotation')


def find_images(paths: list[str], out_dir: str) -> list[str]:
    """The image files that ``paths`` (files and folders, searched with all they hold) name.

    Args:
        out_dir: Left out of the search: it holds our own pictures.

    Raises:
        InputError: If a path does not exist, or a folder holds no image.
    """
    found: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            inside = sorted(_images_in(path, os.path.realpath(out_dir)))
            if not inside:
                raise InputError(f'the folder {path!r} holds no image ({" ".join(SUFFIXES)})')
            found += inside
        elif os.path.exists(path):
            found.append(path)
        else:
            raise InputError(f'the image {path!r} does not exist')
    return list(dict.fromkeys(found))


def test_dataset(cfg: Config) -> dict:
    """The data set of ``test_dataloader`` (or ``val_dataloader``), unwrapped.

    Raises:
        InputError: If the config has none with a pipeline.
    """
    for name in ('test_dataloader', 'val_dataloader'):
        dataset = (cfg.get(name) or {}).get('dataset')
        while dataset and 'pipeline' not in dataset:  # ConcatDataset, RepeatDataset, ...
            dataset = dataset.get('datasets', [dataset.get('dataset')])[0]
        if dataset:
            return dataset
    raise InputError('the config has no test_dataloader (or val_dataloader) with a pipeline, so it '
                     'does not say how images are prepared')


def test_pipeline(cfg: Config) -> Compose:
    """The config's own test pipeline, for images without labels.

    Steps that load or check labels are left out, and images are read by the strict
    ``mmvars.LoadImageFromFile``.

    Raises:
        InputError: If the pipeline loads no image.
    """
    steps, loads_image = [], False
    for step in test_dataset(cfg)['pipeline']:
        name = step['type'].rpartition('.')[2]
        if name == 'LoadImageFromFile':
            loads_image = True
            allowed = {key: step[key] for key in ('allow', 'backend_args', 'to_float32')
                       if key in step}
            step = dict(type='mmvars.LoadImageFromFile', **allowed)
        if name not in LABEL_STEPS:
            steps.append(step)
    if not loads_image:
        raise InputError('the test pipeline of the config has no LoadImageFromFile, so it cannot '
                         'read image files')
    return Compose(steps)


def load_sample(path: str, pipeline: Compose, patch_size: int) -> Sample:
    """Read and prepare one image.

    Raises:
        InputError: If the file is no readable 8-bit colour image (see
            ``mmvars.LoadImageFromFile``), or is smaller than a patch.
    """
    packed = pipeline(dict(img_path=path))
    data_sample = packed['data_samples']
    original = data_sample.metainfo.get('ori_shape', packed['inputs'].shape[-2:])[:2]
    if min(original) < patch_size:
        raise InputError(f'{path!r} is {original[0]}x{original[1]} pixels (height x width), '
                         f'smaller than one patch of {patch_size}x{patch_size}: there is nothing '
                         'to tell apart in it')
    return Sample(packed['inputs'], data_sample)


def picture_files(images: list[str], out_dir: str, kinds: list[str],
                  joined: bool = False) -> list[dict[str, str]]:
    """A file for each image and kind of picture, different even where images' names are the same.

    Args:
        joined: All images are one picture, named after all of them.

    Raises:
        InputError: If a picture would overwrite one of the images.
    """
    sources = {os.path.realpath(image) for image in images}
    names = [os.path.splitext(os.path.basename(image))[0] for image in images]
    targets: list[dict[str, str]] = []
    taken: set[str] = set()
    for name in ['+'.join(names)] if joined else names:
        stem, count = name, 1
        while stem in taken:
            count += 1
            stem = f'{name}-{count}'
        taken.add(stem)
        targets.append({kind: os.path.join(out_dir, f'{stem}_{kind}.png') for kind in kinds})
        for target in targets[-1].values():
            if os.path.realpath(target) in sources:
                raise InputError(f'the picture {target!r} would overwrite an image of that name: '
                                 'give another --out-dir')
    return targets


def _images_in(folder: str, left_out: str) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders
                      if os.path.realpath(os.path.join(root, name)) != left_out]
        yield from (os.path.join(root, name) for name in files if name.lower().endswith(SUFFIXES))
