"""The embedded mini data set: 64 rendered scenes in the layouts of the public data sets.

Synthetic, so that the whole chain can be tried within minutes and without a download. No accuracy
claim follows from it; ``mini/README.md`` says where everything comes from.
"""

from pathlib import Path

from mmvars.errors import InputError, check_choice

__all__ = ['LAYOUTS', 'mini_root']

LAYOUTS = ('ade20k', 'cityscapes', 'voc12', 'imagenet')


def mini_root(layout: str) -> str:
    """Return the absolute path of the embedded set in one layout, for ``data_root``.

    Args:
        layout: ``'ade20k'``, ``'cityscapes'``, ``'voc12'`` or ``'imagenet'``.

    Raises:
        InputError: If there is no such layout, or if its files are not where they belong.
    """
    check_choice('layout', layout, LAYOUTS)
    root = Path(__file__).resolve().parent / 'mini' / layout
    if not root.is_dir():
        raise InputError(
            f'the mini data set is missing: {str(root)!r} does not exist; install '
            'mmvars again, or make it with tools/dataset_converters'
        )
    return str(root)
