"""The attention matrices that figures show are the ones that the forwards multiply with."""

import pytest
import torch

from mmvars.layers import TokenGrid
from mmvars.layers.attention import (
    MaskedAttention,
    SelfAttention,
    merge_heads,
    project_with_top_down,
    split_heads,
)
from mmvars.layers.fan import ClassAttentionBlock, FANAttention
from mmvars.layers.performer import Performer

GRID = TokenGrid(3, 4)


@pytest.mark.parametrize('double_value_bias', [True, False])
@pytest.mark.parametrize('injection', [None, 'value', 'qkv', 'mask'])
@pytest.mark.parametrize('mixer', [Performer, SelfAttention, MaskedAttention, FANAttention])
def test_the_matrix_times_the_values_is_the_forward(mixer, injection, double_value_bias):
    arguments = dict(injection=injection or 'value', double_value_bias=double_value_bias)
    if mixer is not FANAttention:
        arguments['grid'] = GRID[:2]
    attn, x = mixer(24, 3, **arguments).double(), torch.randn(2, 12, 24).double()
    if mixer is MaskedAttention:
        torch.nn.init.normal_(attn.attention_mask)
    top_down = torch.randn(2, 12, 24).double() if injection else None
    if injection == 'mask':
        top_down = top_down[..., :1]
    probabilities = attn.attention_probabilities(x, GRID, top_down)
    assert probabilities.shape == (2, 3, 12, 12) and probabilities.min() >= 0
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 3, 12).double())
    projection = attn.kv if mixer is FANAttention else attn.qkv
    values = split_heads(
        project_with_top_down(
            projection,
            x,
            top_down,
            **{key: arguments[key] for key in ('injection', 'double_value_bias')},
        )[-1],
        3,
    )
    torch.testing.assert_close(
        attn.proj(merge_heads(probabilities @ values)), attn(x, GRID, top_down)
    )
    plain = attn.attention_probabilities(x, GRID)
    assert torch.equal(plain, probabilities) == (injection != 'qkv')


def test_the_matrix_of_class_attention():
    attn, x = ClassAttentionBlock(24, 3, 4.0).attn, torch.randn(2, 13, 24)
    probabilities = attn.attention_probabilities(x)
    assert probabilities.shape == (2, 3, 1, 13)
    torch.testing.assert_close(
        attn.proj(merge_heads(probabilities @ split_heads(attn.v(x), 3))), attn(x)
    )
