import pytest
import torch
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.layers import SelfAttention, TokenGrid

GRID = TokenGrid(2, 3, 1)


def textbook(attn: SelfAttention, x: torch.Tensor, top_down: torch.Tensor | None) -> torch.Tensor:
    """The equations, one head at a time, with a whole projection of the top-down signal."""
    batch, num_tokens, channels = x.shape
    width = channels // attn.num_heads
    q, k, v = F.linear(x, attn.qkv.weight, attn.qkv.bias).split(channels, dim=-1)
    if top_down is not None:
        v = v + F.linear(top_down, attn.qkv.weight, attn.qkv.bias).split(channels, dim=-1)[2]
    heads = []
    for head in range(attn.num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / width**.5
        heads.append(scores.softmax(-1) @ v[..., part])
    return attn.proj(torch.cat(heads, dim=-1))


@pytest.mark.parametrize('with_signal', [False, True])
@pytest.mark.parametrize('qkv_bias', [False, True])
@pytest.mark.parametrize('num_heads', [1, 3])
def test_equals_the_equations(with_signal, qkv_bias, num_heads):
    attn = SelfAttention(24, num_heads, qkv_bias).double()
    x = torch.randn(2, 7, 24, dtype=torch.double)
    signal = torch.randn_like(x) if with_signal else None
    torch.testing.assert_close(attn(x, GRID, signal), textbook(attn, x, signal))


def test_zero_signal_adds_the_value_bias_once_more():
    attn = SelfAttention(24, 3).double()
    x = torch.randn(1, 7, 24, dtype=torch.double)
    torch.nn.init.normal_(attn.qkv.bias)
    # Rows of the attention matrix sum to one: a constant added to every value comes out as it is.
    expected = attn(x, GRID) + attn.qkv.bias[48:] @ attn.proj.weight.T
    torch.testing.assert_close(attn(x, GRID, torch.zeros_like(x)), expected)


def test_permuting_tokens_permutes_the_output():
    attn = SelfAttention(24, 3)
    x, signal, order = torch.randn(1, 7, 24), torch.randn(1, 7, 24), torch.randperm(7)
    torch.testing.assert_close(attn(x, GRID, signal)[:, order],
                               attn(x[:, order], GRID, signal[:, order]))


def test_probabilities_reproduce_the_fused_output():
    attn = SelfAttention(24, 3)
    x = torch.randn(2, 7, 24)
    probabilities = attn.attention_probabilities(x)
    assert probabilities.shape == (2, 3, 7, 7)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 3, 7))
    values = attn.qkv(x)[..., 48:].unflatten(2, (3, 8)).transpose(1, 2)
    out = attn.proj((probabilities @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, attn(x, GRID))


def test_the_signal_costs_no_projection_of_its_own():
    """Multiply-adds with a signal equal those without: it is added before the value projection."""
    from torch.utils.flop_counter import FlopCounterMode
    attn, x = SelfAttention(24, 3), torch.randn(1, 7, 24)
    counts = []
    for signal in (None, torch.randn_like(x)):
        with FlopCounterMode(display=False) as counter:
            attn(x, GRID, signal)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize('num_heads', [0, 5, -1])
def test_heads_must_divide_the_width(num_heads):
    with pytest.raises(InputError, match='embed_dim .24. must be divisible by num_heads'):
        SelfAttention(24, num_heads)
