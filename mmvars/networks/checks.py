"""Checks of arguments that all trunks take."""

from mmvars.errors import InputError, check_number

__all__ = ['check_trunk']

_LIMITS = dict(in_chans=1000, patch_size=1000, embed_dim=32_768, depth=1000, num_heads=32_768)
"""Far above any real network. A larger number is a typing error that would hang or use up the
memory."""


def check_trunk(
    in_chans: int,
    patch_size: int,
    num_classes: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
    drop_path_rate: float,
) -> None:
    """Refuse sizes that no trunk can have.

    Raises:
        InputError: Naming the argument.
    """
    for name, number in dict(
        in_chans=in_chans,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
    ).items():
        check_number(name, number, 1, _LIMITS[name], whole=True)
    check_number('num_classes', num_classes, 0, 1_000_000, whole=True)
    check_number('mlp_ratio', mlp_ratio, 0, 1000)
    if int(embed_dim * mlp_ratio) < 1:
        raise InputError(
            f'mlp_ratio must leave the perceptron a hidden channel, but {mlp_ratio} x '
            f'embed_dim ({embed_dim}) is less than one; 4 is usual'
        )
    check_number('drop_path_rate', drop_path_rate, 0, 1)
    if drop_path_rate == 1:
        raise InputError('drop_path_rate must be below 1, or nothing is left of a block')
