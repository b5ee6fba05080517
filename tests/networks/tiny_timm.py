"""Every kind of timm's vision transformers at 24 channels and two blocks, registered with timm.

Importing this makes ``'timm/tiny_NAME'`` of each of :data:`TINY` known. Their sizes differ from
real ones, their classes and options do not.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import SwiGLUPacked
from timm.models import beit, deit, eva, vision_transformer
from torch import Tensor, nn

PATCH = 8
_SIZE = dict(patch_size=PATCH, img_size=32, embed_dim=24, depth=2, num_heads=2, mlp_ratio=2)
_REG = dict(reg_tokens=3, no_embed_class=True, init_values=1e-5)
_ROPE = dict(use_rot_pos_emb=True, num_heads=3, ref_feat_shape=(4, 4))
_ROPE_ATTENTION = _ROPE | dict(attn_type='rope', qkv_bias=True)

TINY: dict[str, tuple[Callable, dict[str, Any]]] = {
    'vit': (vision_transformer._create_vision_transformer, {}),  # AugReg, DINO, MAE
    'vit_gap': (vision_transformer._create_vision_transformer, dict(global_pool='avg')),
    'dinov2': (vision_transformer._create_vision_transformer, dict(init_values=1e-5)),
    'dinov2_reg': (vision_transformer._create_vision_transformer, _REG),
    'dinov2_swiglu': (
        vision_transformer._create_vision_transformer,
        _REG | dict(mlp_layer=SwiGLUPacked),
    ),
    'deit3': (
        vision_transformer._create_vision_transformer,
        dict(no_embed_class=True, init_values=1e-6),
    ),
    'deit_distilled': (partial(deit._create_deit, distilled=True), {}),
    'clip': (vision_transformer._create_vision_transformer, dict(pre_norm=True)),
    'siglip': (
        vision_transformer._create_vision_transformer,
        dict(class_token=False, global_pool='map'),
    ),
    'gap_reg': (  # registers and no class token, as timm's own small networks
        vision_transformer._create_vision_transformer,
        dict(class_token=False, reg_tokens=2, global_pool='avg', init_values=1e-5),
    ),
    'qk_norm': (
        vision_transformer._create_vision_transformer,
        dict(qk_norm=True, scale_attn_norm=True, scale_mlp_norm=True, qkv_bias=False),
    ),
    'post_norm': (
        vision_transformer._create_vision_transformer,
        dict(block_fn=vision_transformer.ResPostBlock, init_values=1e-5, global_pool='avg'),
    ),
    'eva': (eva._create_eva, dict(global_pool='token')),
    'eva_post_norm': (eva._create_eva, dict(use_post_norm=True, global_pool='token')),
    'eva02': (
        eva._create_eva,
        _ROPE | dict(qkv_fused=False, swiglu_mlp=True, scale_mlp=True),
    ),
    'eva02_clip': (
        eva._create_eva,
        _ROPE | dict(swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True, global_pool='token'),
    ),
    'dinov3': (
        eva._create_eva,
        dict(
            num_heads=3,
            use_rot_pos_emb=True,
            rope_type='dinov3',
            rope_temperature=100,
            rope_rotate_half=True,
            use_abs_pos_emb=False,
            num_reg_tokens=3,
            init_values=1e-5,
            use_fc_norm=False,
            qkv_bias=False,
        ),
    ),
    'pe': (
        eva._create_eva,
        _ROPE_ATTENTION
        | dict(use_pre_transformer_norm=True, global_pool='map', rope_grid_indexing='xy'),
    ),
    'rope_mixed': (
        eva._create_eva,
        _ROPE_ATTENTION | dict(rope_type='mixed', init_values=1e-5, global_pool='token'),
    ),
    'sapiens2': (  # grouped keys and values, layer scale on the attention alone
        eva._create_eva,
        _ROPE_ATTENTION
        | dict(
            num_kv_heads=1,
            qkv_fused=False,
            qk_norm=True,
            init_values=1e-5,
            attn_only_layer_scale=True,
            rope_type='dinov3',
            rope_rotate_half=True,
            global_pool='token',
        ),
    ),
    'beit': (
        beit._create_beit,
        dict(use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1),
    ),
    'beit_shared': (
        beit._create_beit,
        dict(use_rel_pos_bias=True, use_shared_rel_pos_bias=True, global_pool='token'),
    ),
}
"""Name -> timm's builder, and what differs from :data:`_SIZE`."""

UNKNOWN: dict[str, tuple[Callable, dict[str, Any]]] = {
    'parallel': (
        vision_transformer._create_vision_transformer,
        dict(block_fn=vision_transformer.ParallelThingsBlock),
    ),
    'diff': (vision_transformer._create_vision_transformer, dict(attn_layer='diff')),
}
"""Networks of timm with blocks of other kinds."""

NAMES = tuple(f'timm/tiny_{name}' for name in TINY)


def _register(name: str, create: Callable, arguments: dict[str, Any]) -> None:
    heads = ('head', 'head_dist') if name == 'deit_distilled' else 'head'
    record = dict(num_classes=1000, classifier=heads, first_conv='patch_embed.proj')

    def entrypoint(pretrained: bool = False, **options: Any) -> nn.Module:
        options['pretrained_cfg'] = options.get('pretrained_cfg') or record
        return create(f'tiny_{name}', pretrained, **_SIZE | arguments | options)

    function = create.func if isinstance(create, partial) else create
    entrypoint.__name__, entrypoint.__module__ = f'tiny_{name}', function.__module__
    timm.models.register_model(entrypoint)


for _name, (_create, _arguments) in (TINY | UNKNOWN).items():
    if not timm.is_model(f'tiny_{_name}'):
        _register(_name, _create, _arguments)


@torch.no_grad()
def randomize(network: nn.Module, seed: int = 0) -> None:
    """Random numbers in every parameter, of sizes that let each one count.

    Layer scale, relative positions, tokens and biases start near zero or one, where a mistake in
    them would not show.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        is_matrix = parameter.ndim > 1 and not name.endswith(('token', 'embed', 'table', 'freqs'))
        if is_matrix:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        elif name.endswith('bias') or parameter.ndim > 1:
            parameter.copy_(0.3 * noise)
        else:  # norms and layer scale
            parameter.copy_(1 + 0.3 * noise)


def timm_twin(name: str, state: dict[str, Tensor], size: tuple[int, int], **options: Any) -> Any:
    """timm's own network for images of a size, with weights of a network of the same name."""
    is_beit = timm.models.is_model_in_modules(name, ['beit'])
    dynamic = {} if is_beit else dict(dynamic_img_size=True, dynamic_img_pad=True)
    model: Any = timm.create_model(name, **options, **dynamic)
    model.load_state_dict(state)
    if is_beit:  # it has one size at a time
        patch = model.patch_embed.patch_size[0]
        model.set_input_size(img_size=tuple(-(-side // patch) * patch for side in size))
        model.patch_embed.strict_img_size, model.patch_embed.dynamic_img_pad = False, True
    return model.eval()
