"""Softmax attention with a top-down input, against the equations written out."""

import pytest
import torch
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.layers import SelfAttention, TokenGrid

GRID = TokenGrid(2, 3, 1)


def textbook(attn: SelfAttention, x: torch.Tensor, top_down: torch.Tensor | None) -> torch.Tensor:
    """The equations, one head at a time, with a whole projection of the top-down input."""
    batch, num_tokens, channels = x.shape
    width = channels // attn.num_heads
    q, k, v = F.linear(x, attn.qkv.weight, attn.qkv.bias).split(channels, dim=-1)
    if attn.injection == 'mask':
        v = v * top_down
    elif top_down is not None:
        bias = attn.qkv.bias if attn.double_value_bias else None
        parts = F.linear(top_down, attn.qkv.weight, bias).split(channels, dim=-1)
        v = v + parts[2]
        if attn.injection == 'qkv':
            q, k = q + parts[0], k + parts[1]
    heads = []
    for head in range(attn.num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / width**0.5
        heads.append(scores.softmax(-1) @ v[..., part])
    return attn.proj(torch.cat(heads, dim=-1))


@pytest.mark.parametrize('injection', [None, 'value', 'qkv', 'mask'])
@pytest.mark.parametrize('double_value_bias', [False, True])
@pytest.mark.parametrize('qkv_bias', [False, True])
@pytest.mark.parametrize('num_heads', [1, 3])
def test_equals_the_equations(injection, double_value_bias, qkv_bias, num_heads):
    attn = SelfAttention(
        24,
        num_heads,
        qkv_bias=qkv_bias,
        injection=injection or 'value',
        double_value_bias=double_value_bias,
    ).double()
    assert (attn.qkv.bias is not None) == qkv_bias
    x = torch.randn(2, 7, 24, dtype=torch.double)
    top_down = torch.randn_like(x) if injection else None
    if injection == 'mask':
        top_down = top_down[..., :1]
    torch.testing.assert_close(attn(x, GRID, top_down), textbook(attn, x, top_down))


@pytest.mark.parametrize('num_queries', [1, 4, 7])
def test_some_queries_of_all_tokens(num_queries):
    attn = SelfAttention(24, 3).double()
    x, top_down = torch.randn(2, 2, 7, 24, dtype=torch.double)
    torch.testing.assert_close(
        attn(x, GRID, top_down, num_queries), attn(x, GRID, top_down)[:, :num_queries]
    )


@pytest.mark.parametrize('double_value_bias', [False, True])
def test_an_input_of_zeros_adds_the_value_bias_once_more_or_nothing(double_value_bias):
    attn = SelfAttention(24, 3, double_value_bias=double_value_bias).double()
    x = torch.randn(1, 7, 24, dtype=torch.double)
    torch.nn.init.normal_(attn.qkv.bias)
    # Rows of the attention matrix sum to one: a constant added to every value comes out as it is.
    expected = attn(x, GRID)
    if double_value_bias:
        expected = expected + attn.qkv.bias[48:] @ attn.proj.weight.T
    torch.testing.assert_close(attn(x, GRID, torch.zeros_like(x)), expected)


def test_permuting_tokens_permutes_the_output():
    attn = SelfAttention(24, 3)
    x, top_down, order = torch.randn(1, 7, 24), torch.randn(1, 7, 24), torch.randperm(7)
    torch.testing.assert_close(
        attn(x, GRID, top_down)[:, order], attn(x[:, order], GRID, top_down[:, order])
    )


def test_probabilities_reproduce_the_fused_output():
    attn = SelfAttention(24, 3)
    x = torch.randn(2, 7, 24)
    probabilities = attn.attention_probabilities(x)
    assert probabilities.shape == (2, 3, 7, 7)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 3, 7))
    values = attn.qkv(x)[..., 48:].unflatten(2, (3, 8)).transpose(1, 2)
    out = attn.proj((probabilities @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, attn(x, GRID))


def test_the_top_down_input_costs_no_projection_of_its_own():
    """As many multiply-adds as without: it is added before the value projection."""
    from torch.utils.flop_counter import FlopCounterMode

    attn, x = SelfAttention(24, 3), torch.randn(1, 7, 24)
    counts = []
    for top_down in (None, torch.randn_like(x)):
        with FlopCounterMode(display=False) as counter:
            attn(x, GRID, top_down)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize('num_heads', [0, 5, -1])
def test_heads_must_divide_the_width(num_heads):
    with pytest.raises(InputError, match='embed_dim .24. must be divisible by num_heads'):
        SelfAttention(24, num_heads)
