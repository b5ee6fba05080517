"""The attention of the average token: one definition for every mixer."""

import pytest
import torch

from mmvars.layers import TokenGrid, build_mixer
from mmvars.layers.attention import MaskedAttention, SelfAttention, mean_row
from mmvars.layers.fan import FANAttention
from mmvars.layers.performer import Performer
from mmvars.layers.sparse_coding import linearized_attention
from mmvars.layers.vars_attention import VARSDynamic
from mmvars.layers.vars_static import VARSStatic

GRID = TokenGrid(3, 4)
VARS = [
    (name, preset) for name in ('vars_s', 'vars_d', 'vars_sd') for preset in ('release', 'thesis')
]


@pytest.mark.parametrize('mixer', [Performer, SelfAttention, MaskedAttention, FANAttention])
def test_it_is_the_mean_row_of_the_matrix(mixer) -> None:
    attn = mixer(24, 3, **({} if mixer is FANAttention else dict(grid=GRID[:2]))).double()
    x = torch.randn(2, 12, 24).double()
    if mixer is MaskedAttention:
        torch.nn.init.normal_(attn.attention_mask)
    matrix = attn.attention_probabilities(x, GRID)
    torch.testing.assert_close(attn.mean_attention(x, GRID), matrix.mean(dim=2))
    # And it is what the definition that holds for all mixers gives.
    values = torch.randn(2, 3, 12, 8).double()
    (by_definition,) = linearized_attention(lambda v: [matrix @ v], values)
    torch.testing.assert_close(attn.mean_attention(x, GRID), by_definition)


def test_queries_are_taken_in_parts(monkeypatch) -> None:
    q, k, bias = torch.randn(2, 3, 7, 5), torch.randn(2, 3, 11, 5), torch.randn(3, 7, 11)
    whole = mean_row(q, k, bias, scale=0.3)
    torch.testing.assert_close(whole, (0.3 * q @ k.mT + bias).softmax(dim=-1).mean(dim=2))
    monkeypatch.setattr('mmvars.layers.attention._CHUNK_SIZE', 2 * 2 * 3 * 11)
    torch.testing.assert_close(mean_row(q, k, bias, scale=0.3), whole)
    torch.testing.assert_close(mean_row(q, k), mean_row(q, k, torch.zeros(1, 1, 11)))


@pytest.mark.parametrize(('name', 'preset'), VARS)
def test_of_vars_it_is_what_small_changes_of_the_values_change(name, preset) -> None:
    grid = TokenGrid(2, 3)
    attn = build_mixer(name, 8, 2, grid[:2], preset=preset, num_steps=2, sparsity=0.1).double()
    attn.eval().requires_grad_(False)
    x, step = torch.randn(1, 6, 8).double(), 1e-6
    steps = attn.attention_steps(x, grid)
    assert len(steps) == 3 and torch.equal(attn.mean_attention(x, grid), steps[-1])
    # By the forward itself, less the skip of the thesis; each image has one value changed.
    is_static = isinstance(attn, VARSStatic)
    value = attn._value(x, None) if is_static else attn._query_value(x, None)[1]
    query = None if is_static else attn._query_value(x, None)[0].expand(96, -1, -1)
    changes = step * torch.eye(48).double().view(48, 6, 8)
    values = value + torch.cat([changes, -changes])
    attn.proj = attn.norm = torch.nn.Identity()
    attn._value, attn._query_value = (lambda *_: values), (lambda *_: (query, values))
    out = attn(x.expand(96, -1, -1), grid) - (values if preset == 'thesis' else 0)
    plus, minus = out.mean(dim=1).sum(dim=1).chunk(2)
    measured = (plus - minus) / (2 * step)
    measured = measured.view(1, 6, steps.shape[2], -1).abs().mean(dim=-1).transpose(1, 2)
    torch.testing.assert_close(steps[-1], measured, rtol=1e-5, atol=1e-8)


def test_without_steps_and_sparsity_vars_d_is_the_kernel_s_self_attention() -> None:
    attn = VARSDynamic(24, 3, GRID[:2], preset='thesis', num_steps=0, sparsity=0.0).double()
    x = torch.randn(2, 12, 24).double()
    features = attn._features(attn.qv(x).unflatten(2, (3, 8)).transpose(1, 2))
    kernel = features @ features.mT  # Eq. 1.14
    torch.testing.assert_close(attn.mean_attention(x, GRID), kernel.mean(dim=2))
