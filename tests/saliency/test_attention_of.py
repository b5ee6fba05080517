"""Attention of vision transformers of timm and MMPretrain, seen beside their fused forward."""

from functools import partial

import mmseg.models
import pytest
import timm
import torch
from mmpretrain.models import VisionTransformer
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.saliency.attention import attention_of

SMALL = dict(img_size=(32, 48), patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=0)
TIMM = {
    'class token': lambda: TimmViT(**SMALL),
    'registers, layer scale': lambda: TimmViT(**SMALL, reg_tokens=4, init_values=1e-1),
    'average pooling': lambda: TimmViT(**SMALL, class_token=False, global_pool='avg'),
    'normalized queries': lambda: TimmViT(**SMALL, qk_norm=True),
    'attention pooling': lambda: TimmViT(**SMALL, global_pool='map', class_token=False),
    'rotary': lambda: Eva(**SMALL, use_rot_pos_emb=True, use_abs_pos_emb=False),
    'relative positions': lambda: Beit(**SMALL, use_rel_pos_bias=True),
}


def _randomized(model: nn.Module) -> nn.Module:
    """As a training leaves it: biases and tables are not zero."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.eval()  # which MMPretrain's do not return
    return model


@pytest.mark.parametrize('kind', TIMM)
@torch.no_grad()
def test_timm_it_is_what_the_slow_path_multiplies_with(kind) -> None:
    model, images = _randomized(TIMM[kind]()), torch.randn(2, 3, 32, 48)
    layers = attention_of(model, images)
    expected: list[torch.Tensor] = []
    for block in model.blocks:
        assert block.attn.fused_attn
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda _, args: expected.append(args[0]))
    model(images)
    assert len(layers) == len(expected) == 2
    num_prefix = getattr(model, 'num_prefix_tokens', 1)
    for layer, matrix in zip(layers, expected, strict=True):
        assert layer.grid == (4, 6, num_prefix)
        torch.testing.assert_close(layer.mean, matrix.mean(dim=2), rtol=0, atol=1e-6)
        torch.testing.assert_close(layer.first, matrix[:, :, 0], rtol=0, atol=1e-6)
        assert (layer.mean.std(dim=-1) > 1e-4).all()


@torch.no_grad()
def test_mmpretrain_and_the_forward_stays_as_it_is() -> None:
    arch = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48)
    model = VisionTransformer(arch, img_size=(32, 48), patch_size=8, out_type='featmap')
    model, images = _randomized(model), torch.randn(2, 3, 32, 48)
    before = model(images)[0]
    inputs: list[torch.Tensor] = []
    handle = model.layers[1].ln1.register_forward_hook(lambda *call: inputs.append(call[2]))
    skipped, layer = attention_of(model, images, layers=[1])
    handle.remove()
    assert skipped is None and layer.grid == (4, 6, 1)
    q, k, _ = model.layers[1].attn.qkv(inputs[0]).view(2, 25, 3, 3, 8).permute(2, 0, 3, 1, 4)
    matrix = (q @ k.mT / 8**0.5).softmax(dim=-1)
    torch.testing.assert_close(layer.mean, matrix.mean(dim=2), rtol=0, atol=1e-6)
    torch.testing.assert_close(layer.first, matrix[:, :, 0], rtol=0, atol=1e-6)
    assert torch.equal(model(images)[0], before)


@pytest.mark.parametrize('needs_weights', [True, False])
@torch.no_grad()
def test_mmsegmentation_whose_attention_projects_within(needs_weights) -> None:
    model = mmseg.models.VisionTransformer(
        (32, 48), 8, embed_dims=24, num_layers=2, num_heads=3, out_indices=1, with_cls_token=True
    )
    for layer in model.layers:
        forward = layer.attn.attn.forward
        layer.attn.attn.forward = partial(forward, need_weights=needs_weights)
    model, images = _randomized(model), torch.randn(2, 3, 32, 48)
    before = model(images)[0]
    inputs: list[torch.Tensor] = []
    handle = model.layers[1].ln1.register_forward_hook(lambda *call: inputs.append(call[2]))
    skipped, layer = attention_of(model, images, layers=[1])
    handle.remove()
    assert skipped is None and layer.grid == (4, 6, 1)
    inner = model.layers[1].attn.attn
    qkv = F.linear(inputs[0], inner.in_proj_weight, inner.in_proj_bias)
    q, k, _ = qkv.view(2, 25, 3, 3, 8).permute(2, 0, 3, 1, 4)
    matrix = (q @ k.mT / 8**0.5).softmax(dim=-1)
    torch.testing.assert_close(layer.mean, matrix.mean(dim=2), rtol=0, atol=1e-6)
    torch.testing.assert_close(layer.first, matrix[:, :, 0], rtol=0, atol=1e-6)
    assert torch.equal(model(images)[0], before)


class Attends(nn.Module):
    """One attention, with the arguments that a forward may give it."""

    def __init__(self, **arguments) -> None:
        super().__init__()
        self.embed, self.arguments = nn.Conv2d(3, 8, 4, 4), arguments

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(images).flatten(2).mT.unsqueeze(1).expand(-1, 4, -1, -1)
        keys = tokens[:, :2] if self.arguments.get('enable_gqa') else tokens
        return F.scaled_dot_product_attention(tokens, keys, keys, **self.arguments)


@torch.no_grad()
def test_masks_scales_and_grouped_queries() -> None:
    images, mask = torch.randn(1, 3, 8, 12), torch.rand(6, 6) > 0.3
    mask[:, 0] = True
    (layer,) = attention_of(Attends(attn_mask=mask, scale=2.0), images)
    assert torch.equal(layer.first[0, 0] > 0, mask[0])
    if 'enable_gqa' in F.scaled_dot_product_attention.__doc__:  # torch 2.5
        (grouped,) = attention_of(Attends(enable_gqa=True), images)
        assert grouped.mean.shape == (1, 4, 6)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: nn.Conv2d(3, 8, 4, 4), 'no vision transformer'),
        (lambda: Attends(is_causal=True), 'to the left'),
        (
            lambda: timm.create_model(
                'samvit_base_patch16_224',
                depth=1,
                embed_dim=32,
                num_heads=2,
                global_attn_indexes=(),
                img_size=64,
                window_size=2,
            ),
            'windows',
        ),
    ],
)
def test_what_has_no_map_is_refused(make, message) -> None:
    with pytest.raises(InputError, match=message):
        attention_of(make(), torch.randn(1, 3, 64, 64))
