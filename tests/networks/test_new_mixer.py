"""A mixer written by somebody else, to the documented contract and nothing more."""

import pytest
import torch
from torch import nn

from mmvars.errors import InputError
from mmvars.layers import MIXERS
from mmvars.networks import create_model

SMALL = dict(embed_dim=24, depth=2, num_heads=2, img_size=64, num_classes=5)


class MeanMixer(nn.Module):
    """Every token gets the mean of all values."""

    def __init__(self, embed_dim, num_heads, grid, num_prefix=0, qkv_bias=True, gain=1.0):
        super().__init__()
        self.value = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
        self.gain = gain

    def forward(self, x, grid, top_down=None):
        value = self.value(x if top_down is None else x + top_down)
        return self.gain * value.mean(dim=1, keepdim=True).expand_as(x)


@pytest.fixture(autouse=True)
def mean_mixer(monkeypatch):
    monkeypatch.setitem(MIXERS, 'mean', MeanMixer)


NETWORKS = {
    'vit': ('vit_tiny_patch16', None),
    'absvit': ('vit_tiny_patch16', 'absvit'),
    'feedback': ('vit_tiny_patch16', 'feedback'),
    'deit': ('deit_convstem_tiny', 'absvit'),
    'gfnet': ('gfnet_tiny', 'absvit'),
    'rvt': ('rvt_tiny', 'absvit'),
}


def build(name, **options):
    model, top_down = NETWORKS[name]
    size = SMALL | (
        dict(embed_dim=(24, 48), depth=(1, 1), num_heads=(2, 4)) if name == 'rvt' else {}
    )
    return create_model(model, top_down, mixer='mean', **size | options)


def tokens_of(output):
    return getattr(output, 'second', output).tokens


def scores(network, images):
    output = network(images)
    return network.forward_head(getattr(output, 'second', output))


@pytest.mark.parametrize('name', NETWORKS)
@torch.no_grad()
def test_inference(name):
    network = build(name).eval()
    for size in ((64, 64), (50, 100)):
        assert scores(network, torch.randn(1, 3, *size)).isfinite().all()
    if name != 'vit':
        output = network(torch.randn(2, 3, 64, 64))
        assert not torch.allclose(output.first.tokens, output.second.tokens)


@torch.no_grad()
def test_the_second_pass_by_hand():
    network, images = build('absvit').eval(), torch.randn(2, 3, 48, 80)
    output, tokens = network(images), network.trunk.forward_embed(images)[0]
    for block, top_down in zip(network.trunk.blocks, output.top_down, strict=True):
        value = block.attn.value(block.norm1(tokens) + top_down)
        tokens = tokens + value.mean(dim=1, keepdim=True)
        tokens = tokens + block.mlp(block.norm2(tokens))
    torch.testing.assert_close(output.second.tokens, network.trunk.norm(tokens))


@pytest.mark.parametrize('grad_checkpointing', [False, True])
@pytest.mark.parametrize('name', NETWORKS)
def test_training(name, grad_checkpointing):
    network = build(name, grad_checkpointing=grad_checkpointing).train()
    images = torch.randn(4, 3, 64, 64)
    if hasattr(network, 'prior') and network.prior is not None:
        with torch.no_grad():  # a prior that the tokens have a part of
            network.prior.query.copy_(network.trunk(images).tokens.mean(dim=(0, 1)) + 0.1)
    scores(network, images).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize(
    'name',
    [
        pytest.param('vit', marks=pytest.mark.slow),
        'absvit',
        pytest.param('rvt', marks=pytest.mark.slow),
    ],
)
def test_compiled_to_one_graph(name, training):
    network, images = build(name).train(training), torch.randn(2, 3, 64, 80)
    if name == 'rvt':
        network.eval()  # batch norms would count the batch of each call
    torch._dynamo.reset()
    run = torch.compile(network, backend='eager', fullgraph=True)
    results = []
    for forward in (network, run):
        network.zero_grad()
        tokens = tokens_of(forward(images))
        tokens.square().sum().backward()
        results.append(
            [tokens.detach(), *(p.grad for p in network.parameters() if p.grad is not None)]
        )
    assert len(results[0]) == len(results[1]) > 2
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(tokens_of(run(images)), tokens_of(network(images)))


@torch.no_grad()
def test_fuse_and_the_class_token_alone():
    network, images = build('absvit').eval(), torch.randn(1, 3, 64, 64)
    expected = scores(network, images)
    output = network.fuse()(images, pooled_only=True)
    assert output.second.tokens.shape == (1, 1, 24)
    torch.testing.assert_close(network.forward_head(output.second), expected, rtol=1e-5, atol=1e-5)


def test_its_options_are_known_and_others_refused():
    network = build('vit', mixer_cfg=dict(gain=2.0))
    assert network.mixer == 'mean' and network.mixer_cfg['gain'] == 2
    assert network.blocks[1].attn.gain == 2
    with pytest.raises(InputError, match="mixer 'mean' takes no option gian; it takes gain"):
        build('vit', mixer_cfg=dict(gian=2.0))


@pytest.mark.parametrize(
    ('options', 'remedy'),
    [
        (dict(top_down='absvit_qkv'), "the design 'absvit'"),
        (dict(top_down='mask_attention'), "the design 'absvit'"),
    ],
)
def test_what_it_does_not_know_is_not_asked_of_it(options, remedy):
    with pytest.raises(InputError, match=f"mixer 'mean' has no argument.*use {remedy}"):
        create_model('vit_tiny_patch16', mixer='mean', **SMALL, **options)
