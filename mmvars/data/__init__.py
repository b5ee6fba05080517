"""The embedded data sets, with which the whole chain can be tried without a download.

``mini``: 64 rendered scenes in the layouts of the public data sets. ``photos``: 32 photographs. No
accuracy claim follows from either; their READMEs say where everything comes from.
"""

from pathlib import Path

from mmvars.errors import InputError, check_choice

__all__ = ['LAYOUTS', 'PHOTO_CLASSES', 'mini_root', 'photos_root']

LAYOUTS = ('ade20k', 'cityscapes', 'voc12', 'imagenet')
PHOTO_CLASSES = (
    'other',
    'person',
    'animal',
    'vehicle',
    'food',
    'furniture',
    'plant',
    'ground',
    'sky',
    'building',
)


def mini_root(layout: str) -> str:
    """Return the absolute path of the rendered scenes in one layout, for ``data_root``.

    Args:
        layout: ``'ade20k'``, ``'cityscapes'``, ``'voc12'`` or ``'imagenet'``.

    Raises:
        InputError: If there is no such layout, or if its files are not where they belong.
    """
    check_choice('layout', layout, LAYOUTS)
    return _folder(f'mini/{layout}')


def photos_root() -> str:
    """Return the absolute path of the photographs: ``{images,labels}/{train,val}``.

    The labels count :data:`PHOTO_CLASSES` from 0.

    Raises:
        InputError: If its files are not where they belong.
    """
    return _folder('photos')


def _folder(name: str) -> str:
    root = Path(__file__).resolve().parent / name
    if not root.is_dir():
        raise InputError(
            f'an embedded data set is missing: {str(root)!r} does not exist; install '
            'mmvars again, or make it with tools/dataset_converters'
        )
    return str(root)
