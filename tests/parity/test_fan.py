"""The released FAN, as a ViT and hybrid, part by part."""

import pytest
import torch

from mmvars.layers import TokenGrid
from mmvars.networks.fan import FAN


def close(result, expected, tolerance=2e-5):
    assert result.shape == expected.shape
    assert (result - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.fixture(params=['fan_vit', 'fan_hybrid'])
def fan(request, golden):
    record = golden(request.param)
    hyper = record['meta']['hyper']
    names = (
        'img_size',
        'patch_size',
        'embed_dim',
        'depth',
        'num_heads',
        'mlp_ratio',
        'num_classes',
    )
    sizes = {name: hyper[name] for name in names}
    if 'hybrid_backbone' in hyper:
        stem = hyper['hybrid_backbone']
        sizes |= dict(stem_widths=stem['dims'], stem_depths=stem['depths'])
    trunk = FAN(**sizes, num_class_blocks=hyper['cls_attn_layers'])
    trunk.load_state_dict(record['state_dict'], strict=True)
    return trunk.eval(), record


def test_outputs_and_parts(fan):
    trunk, record = fan
    outputs = record['outputs']
    for key, image in record['inputs'].items():
        size = key.removeprefix('image')
        with torch.no_grad():
            patches, grid = trunk.patch_embed(image)
            close(patches, outputs['patch_embed' + size])
            positions = trunk.pos_embed(grid, patches).transpose(1, 2).unflatten(2, grid)
            close(positions, outputs['pos' + size])
            tokens, token_grid = trunk.forward_embed(image)
            first = trunk.blocks[0]
            mixed = first.attn(first.norm1(tokens), token_grid)
            close(mixed, outputs['block0.token_mixing' + size])
            after = tokens + first.gamma1 * mixed
            close(first.mlp(first.norm2(after), token_grid), outputs['block0.channel' + size])
            output = trunk.forward_blocks(tokens, token_grid, out_indices=(0, 1))
            for index, tokens in enumerate(output.intermediates):
                close(tokens, outputs[f'block.{index}{size}'])
            staged = torch.cat(
                [trunk.cls_token.expand(len(image), -1, -1), output.intermediates[-1]], dim=1
            )
            for index, block in enumerate(trunk.cls_attn_blocks):
                staged = block(staged)
                close(staged, outputs[f'cls_block.{index}{size}'])
            close(trunk.forward_head(output), outputs['logits' + size])
            assert output.grid == TokenGrid(*grid, 1)
