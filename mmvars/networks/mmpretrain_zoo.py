"""MMPretrain's VisionTransformer by its names, as networks of timm, which have its layout."""

from collections.abc import Sequence
from typing import Any

from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mmvars.errors import InputError, check_choice, check_flag, check_number, did_you_mean
from mmvars.layers import patch_grid
from mmvars.networks.timm_trunk import TimmTrunk, model_arguments, trunk_of_model

__all__ = ['PREFIX', 'build_mmpretrain_trunk']

PREFIX = 'mmpretrain/'
"""What stands before MMPretrain's own name in ``arch``."""

_SMALL = dict(embed_dim=384, depth=12, num_heads=6)
_BASE = dict(embed_dim=768, depth=12, num_heads=12)
_DINOV2 = dict(patch_size=14, init_values=1e-5, img_size=518)
_NARROW = dict(embed_dim=768, depth=8, num_heads=8, mlp_ratio=3)
_LARGE = dict(embed_dim=1024, depth=24, num_heads=16)
_HUGE = dict(embed_dim=1280, depth=32, num_heads=16)
_EVA = dict(embed_dim=1408, depth=40, num_heads=16, mlp_ratio=6144 / 1408, patch_size=14)
_GIANT = _DINOV2 | dict(
    embed_dim=1536,
    depth=40,
    num_heads=24,
    mlp_ratio=8192 / 1536,
    mlp_layer=SwiGLUPacked,
    act_layer=nn.SiLU,
)
_ZOO: dict[str, dict[str, Any]] = {
    **dict.fromkeys(('s', 'small'), _NARROW),
    **dict.fromkeys(('b', 'base', 'deit-b', 'deit-base'), _BASE),
    **dict.fromkeys(('l', 'large'), _LARGE),
    **dict.fromkeys(('h', 'huge'), _HUGE),
    **dict.fromkeys(('eva-g', 'eva-giant'), _EVA),
    **dict.fromkeys(('deit-t', 'deit-tiny'), dict(embed_dim=192, depth=12, num_heads=3)),
    **dict.fromkeys(('deit-s', 'deit-small'), _SMALL),
    **dict.fromkeys(('dinov2-s', 'dinov2-small'), _SMALL | _DINOV2),
    **dict.fromkeys(('dinov2-g', 'dinov2-giant'), _GIANT),
}
"""Names of MMPretrain -> arguments of timm. Those of DINOv2 and EVA include what MMPretrain's
configs set beside them."""


def build_mmpretrain_trunk(
    name: str,
    injection: str = 'value',
    img_size: int | Sequence[int] | None = None,
    in_chans: int = 3,
    num_classes: int | None = 0,
    drop_path_rate: float = 0.0,
    grad_checkpointing: bool = False,
    depth: int | None = None,
    patch_size: int | None = None,
    layer_scale_init_value: float | None = None,
    pre_norm: bool | None = None,
    global_pool: str = 'token',
) -> TimmTrunk:
    """A network of MMPretrain's VisionTransformer by its name there, with random weights.

    Args:
        name: ``'mmpretrain/'`` and a name of its ``arch_zoo``.
        patch_size: Side of a patch; ``None``: 16, for DINOv2 and EVA 14.
        layer_scale_init_value: Start of layer scale; ``None``: no layer scale, for DINOv2 1e-5.
        pre_norm: Whether there is a norm before the blocks, and no bias of the patches (CLIP).
        global_pool: ``'token'``, or ``'avg'`` for ``out_type='avg_featmap', final_norm=False``.
        injection, img_size, in_chans, num_classes, drop_path_rate, grad_checkpointing, depth: See
            :func:`~mmvars.networks.timm_trunk.build_timm_trunk`; ``img_size=None``: 224, for
            DINOv2 518.

    Raises:
        InputError: On a name that MMPretrain's VisionTransformer does not have, or a value that
            cannot be used.
    """
    short = name.removeprefix(PREFIX)
    if short not in _ZOO:
        raise InputError(
            f"arch={name!r}: MMPretrain's VisionTransformer has {', '.join(_ZOO)}"
            f'{did_you_mean(short, _ZOO)}; networks of its other classes are trunks of timm by '
            f'their names there'
        )
    arguments = _ZOO[short] | model_arguments(img_size, in_chans, num_classes, drop_path_rate)
    check_choice('global_pool', global_pool, ('token', 'avg'))
    arguments |= dict(global_pool=global_pool, dynamic_img_size=True, dynamic_img_pad=True)
    if patch_size is not None:
        check_number('patch_size', patch_size, 1, whole=True)
        arguments['patch_size'] = patch_size
    if layer_scale_init_value is not None:
        check_number('layer_scale_init_value', layer_scale_init_value)
        arguments['init_values'] = layer_scale_init_value or None
    if pre_norm is not None:
        check_flag('pre_norm', pre_norm)
        arguments['pre_norm'] = pre_norm
    if img_size is not None:
        patch_grid(img_size, arguments.get('patch_size', 16))
    model = VisionTransformer(**arguments)
    return trunk_of_model(model, name, injection, grad_checkpointing, depth)
