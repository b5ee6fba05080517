"""The corrupted images of a protocol as files: Cityscapes-C, ADE20K-C, or that of own data."""

import os
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, init_default_scope

from mmvars.datasets.corrupt import Corrupt, insert_corrupt
from mmvars.robustness.protocols import Protocol
from mmvars.robustness.runner import Images, imagenet_c_pipeline, leaves
from mmvars.robustness.write import write_corrupted

__all__ = ['store_images']


def store_images(
    cfg: Config, protocol: Protocol, out: str | Path, on_setting: Callable[[str, int], None]
) -> None:
    """Write ``OUT/CORRUPTION/SEVERITY/PATH.png`` for the test images of a config.

    ``PATH`` is that below ``data_root``: with labels linked beside it, a folder of a severity is
    the ``data_root`` of a corrupted set. As ImageNet-C, ``PATH`` is ``WNID/IMAGE``, and images are
    prepared as those are. What is there is not made again.

    Args:
        cfg: Its ``test_dataloader`` says which images, and how they are loaded.
        protocol: Its corruptions, severities, images and seed.
        out: The folder.
        on_setting: Called with the name of each setting that is written, and the number of images.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    images = Images(dataset, protocol.images)  # those that a test has, whose leaves may be many
    tested = {dataset.get_data_info(index)['img_path'] for index in images.indices}
    parts = []
    for leaf in leaves(dataset):
        listed = [leaf.get_data_info(index)['img_path'] for index in range(len(leaf))]
        if not (paths := [path for path in listed if path in tested]):
            continue
        root = getattr(leaf, 'data_root', None) or os.path.commonpath(map(os.path.dirname, paths))
        if protocol.imagenet_c:
            root = leaf.data_prefix['img_path']
        parts.append((paths, root, leaf.pipeline.transforms))
    for setting in protocol.settings[1:]:
        folder = Path(out, str(setting.change), f'{setting.level:g}')
        corrupt = Corrupt(str(setting.change), int(setting.level), protocol.seed)
        files = []
        for paths, root, transforms in parts:
            if protocol.imagenet_c:
                steps = imagenet_c_pipeline(transforms, corrupt)
                at = steps.index(corrupt)
                load, finish = Compose(steps[:at]), Compose(steps[at + 1 : -1])
            else:
                steps = insert_corrupt(transforms, corrupt)
                load, finish = steps[steps.index(corrupt) - 1], None
            files += write_corrupted(paths, root, str(folder), corrupt, load, finish)
        on_setting(setting.name, len(files))
