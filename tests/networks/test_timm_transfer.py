"""Choices of ``transfer`` on every kind of timm's vision transformers."""

import pytest
import torch
from tiny_timm import NAMES, PATCH, randomize, timm_twin

from mmvars.errors import InputError
from mmvars.networks import create_model

IMAGES = (2, 3, 5 * PATCH, 3 * PATCH)
KINDS = [
    pytest.param(n, marks=() if n in ('timm/tiny_dinov3', 'timm/tiny_eva') else pytest.mark.slow)
    for n in NAMES
]
models = pytest.importorskip('mmvars.models', exc_type=ImportError)


@pytest.mark.parametrize('transfer', ['bias', 'prompt', 'lora', 'top-down'])
@pytest.mark.parametrize('name', KINDS)
def test_what_trains_gets_a_gradient_and_nothing_else(name, transfer):
    backbone, images = build(models.AbSViT, name, transfer), torch.randn(IMAGES)
    if backbone is None:
        return
    with torch.no_grad():  # a random prior may be unlike all tokens, and then nothing is fed back
        tokens = backbone.network.forward_first_pass(images).output.tokens
        backbone.network.prior.query.copy_(tokens.mean(dim=(0, 1)))
    trained = trained_by(backbone, images)
    inside = [key for key in trained if key.startswith('trunk.')]
    assert 'prior.query' in trained and bool(inside) == (transfer != 'top-down')


@pytest.mark.parametrize('name', KINDS)
def test_no_attention_reads_past_low_rank_updates(name):
    """timm's EVA and BEiT take the weight of a layer, and not the layer, where biases are apart."""
    backbone = build(models.ViT, name, 'lora')
    attentions = [block.attn for block in backbone.trunk.blocks]
    num_layers = len(attentions) * (3 if attentions[0].qkv is None else 1)
    assert len(trained_by(backbone, torch.randn(IMAGES))) == 2 * num_layers


def build(cls, name, transfer):
    if transfer == 'lora':
        pytest.importorskip('peft')
    arguments = dict(prompt_cfg=dict(num_tokens=3)) if transfer == 'prompt' else {}
    if transfer == 'prompt' and 'beit' in name:
        with pytest.raises(InputError, match='of a BEiT have no place for prompts; use another'):
            cls(arch=name, transfer=transfer, **arguments)
        return None
    backbone = cls(arch=name, transfer=transfer, **arguments).train()
    randomize(backbone)
    return backbone


def trained_by(backbone, images):
    """Names of what got a gradient, all of them of what may train."""
    backbone(images)[0].square().mean().backward()
    for key, parameter in backbone.network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
        assert parameter.grad is None or parameter.grad.any(), key
    return [key for key, each in backbone.network.named_parameters() if each.requires_grad]


@pytest.mark.parametrize('name', ['timm/tiny_dinov2_reg', 'timm/tiny_dinov3', 'timm/tiny_siglip'])
def test_prompts_by_hand(name):
    """As tokens that timm's own blocks see after the class and register tokens."""
    network = create_model(name, num_prompt_tokens=2, num_classes=3).eval()
    randomize(network)
    model, images = network.model, torch.randn(IMAGES)
    output = network(images)
    assert output.grid.num_prefix == model.num_prefix_tokens + 2
    state = dict(model.state_dict())
    twin = timm_twin(name.removeprefix('timm/'), state, IMAGES[2:], num_classes=3)
    prefix = twin.num_prefix_tokens
    tokens = twin.patch_embed(images)
    tokens = twin._pos_embed(tokens)
    tokens, rope = tokens if isinstance(tokens, tuple) else (tokens, None)
    tokens = twin.norm_pre(tokens)
    deep = [network.prompt_embeddings, *network.deep_prompt_embeddings.split(1)]
    for block, prompts in zip(twin.blocks, deep, strict=True):
        block.attn.num_prefix_tokens = prefix + 2
        patches = tokens[:, prefix:] if block is twin.blocks[0] else tokens[:, prefix + 2 :]
        tokens = torch.cat([tokens[:, :prefix], prompts.expand(2, -1, -1), patches], dim=1)
        tokens = block(tokens) if rope is None else block(tokens, rope=rope)
    tokens = twin.norm(tokens)
    torch.testing.assert_close(output.tokens, tokens)
    pooled = torch.cat([tokens[:, :prefix], tokens[:, prefix + 2 :]], dim=1)
    torch.testing.assert_close(network.forward_head(output), twin.forward_head(pooled))


def test_prompts_and_low_rank_updates_start_anew_beside_published_weights(tmp_path):
    pytest.importorskip('peft')
    name = 'timm/tiny_eva02_clip'
    published = create_model(name, num_classes=0).model.state_dict()
    torch.save(published, tmp_path / 'published.pth')
    for options in (
        dict(transfer='lora', lora_cfg=dict(target_modules=['qkv', 'proj'])),
        dict(transfer='prompt', prompt_cfg=dict(num_tokens=3)),
    ):
        backbone = models.ViT(arch=name, pretrained=str(tmp_path / 'published.pth'), **options)
        backbone.init_weights()
        state = backbone.trunk.model.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in published.items())
