"""Checks of arguments that all trunks take."""

from collections.abc import Mapping
from typing import Any

from mmvars.errors import InputError, check_number

__all__ = ['check_top_down', 'check_trunk']

_MOST = dict(in_chans=1000, patch_size=1000, embed_dim=32_768, depth=1000, num_heads=32_768)
"""Far beyond any network: what is larger is a slip, and would end in a hang or without memory."""


def check_trunk(in_chans: int, patch_size: int, num_classes: int, embed_dim: int, depth: int,
                num_heads: int, mlp_ratio: float, drop_path_rate: float) -> None:
    """Refuse sizes that no trunk can have.

    Raises:
        InputError: Naming the argument.
    """
    for name, number in dict(in_chans=in_chans, patch_size=patch_size, embed_dim=embed_dim,
                             depth=depth, num_heads=num_heads).items():
        check_number(name, number, 1, _MOST[name], whole=True)
    check_number('num_classes', num_classes, 0, 1_000_000, whole=True)
    check_number('mlp_ratio', mlp_ratio, 0, 1000)
    if int(embed_dim * mlp_ratio) < 1:
        raise InputError(f'mlp_ratio must leave the perceptron a hidden channel, but {mlp_ratio} x '
                         f'embed_dim ({embed_dim}) is less than one; 4 is usual')
    check_number('drop_path_rate', drop_path_rate, 0, 1)
    if drop_path_rate == 1:
        raise InputError('drop_path_rate must be below 1, or nothing is left of a block')


def check_top_down(parts: Mapping[str, Any], prior: Any, alpha: Any, num_passes: Any) -> None:
    """Refuse options that a design of top-down attention has no use for, and absurd numbers.

    Args:
        parts: One of :data:`mmvars.networks.DESIGNS`.
        prior, alpha, num_passes: As :func:`mmvars.networks.build_network` takes them.

    Raises:
        InputError: Naming the option.
    """
    check_number('alpha', alpha)
    check_number('num_passes', num_passes, 2, 100, whole=True)
    if 'prior' in parts:  # the design's own: none
        if prior not in (None, 'learned_query'):
            raise InputError(f"prior has no place in top_down='feedback', which sends the tokens "
                             f'back as they are: leave it out, got {prior!r}')
    elif prior is None:
        raise InputError("prior=None leaves nothing to look for; feedback without a prior is "
                         "top_down='feedback'")
    sent = parts.get('feedback', 'decoders')
    if sent == 'mask' and alpha != 1:
        raise InputError(f"alpha scales the tokens that are sent back, and "
                         f"top_down='mask_attention' sends the mask alone: leave it at 1, got "
                         f'{alpha!r}')
    if sent is None and num_passes != 2:
        raise InputError(f"num_passes counts rounds of feedback, and top_down='perceiver_io' has "
                         f'none: leave it out, got {num_passes!r}')
