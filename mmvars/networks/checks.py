"""Checks of arguments that all trunks take."""

from mmvars.errors import InputError, check_number

__all__ = ['check_trunk']


def check_trunk(in_chans: int, patch_size: int, num_classes: int, embed_dim: int, depth: int,
                num_heads: int, mlp_ratio: float, drop_path_rate: float) -> None:
    """Refuse sizes that no trunk can have.

    Raises:
        InputError: Naming the argument.
    """
    for name, number in dict(in_chans=in_chans, patch_size=patch_size, embed_dim=embed_dim,
                             depth=depth, num_heads=num_heads).items():
        check_number(name, number, 1, whole=True)
    check_number('num_classes', num_classes, 0, whole=True)
    check_number('mlp_ratio', mlp_ratio, 0)
    check_number('drop_path_rate', drop_path_rate, 0, 1)
    if drop_path_rate == 1:
        raise InputError('drop_path_rate must be below 1, or nothing is left of a block')
