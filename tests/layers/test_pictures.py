"""The attention matrices that pictures show are the ones that the forwards multiply with."""

import pytest
import torch

from mmvars.layers import TokenGrid
from mmvars.layers.attention import SelfAttention
from mmvars.layers.fan import ClassAttentionBlock, FANAttention
from mmvars.layers.performer import Performer
from mmvars.layers.projections import join_heads, split_heads, with_value
from mmvars.layers.signals import AddedToAll, MaskedValue

GRID = TokenGrid(3, 4, 1)


@pytest.mark.parametrize('signal', ['none', 'value', 'qkv', 'mask'])
@pytest.mark.parametrize('mixer', [Performer, SelfAttention, FANAttention])
def test_the_matrix_times_the_values_is_the_forward(mixer, signal):
    torch.manual_seed(0)
    attn, x, top = mixer(24, 3).double(), torch.randn(2, 13, 24).double(), torch.randn(2, 13, 24)
    top_down = {'none': None, 'value': top.double(), 'qkv': AddedToAll(top.double()),
                'mask': MaskedValue(top[..., :1].double())}[signal]
    probabilities = attn.attention_probabilities(x, GRID, top_down)
    assert probabilities.shape == (2, 3, 13, 13) and probabilities.min() >= 0
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 3, 13).double())
    projection = attn.kv if mixer is FANAttention else attn.qkv
    values = split_heads(with_value(projection, x, top_down)[-1], 3)
    torch.testing.assert_close(attn.proj(join_heads(probabilities @ values)),
                               attn(x, GRID, top_down))
    plain = attn.attention_probabilities(x)
    assert torch.equal(plain, probabilities) == (signal != 'qkv')


def test_fan_s_class_token_looks_at_what_its_class_attention_collects():
    torch.manual_seed(0)
    attn, x = ClassAttentionBlock(24, 3, 4.).attn, torch.randn(2, 13, 24)
    probabilities = attn.attention_probabilities(x)
    assert probabilities.shape == (2, 3, 1, 13)
    torch.testing.assert_close(attn.proj(join_heads(probabilities @ split_heads(attn.v(x), 3))),
                               attn(x))
