"""Co-attention against BERT's layers of transformers, and against the order of METER."""

import pytest
import torch
from torch import nn

from mmvars.errors import InputError
from mmvars.vision_language import CoAttentionFusion, CoAttentionLayer


@pytest.fixture
def masks():
    """One text has all 5 tokens, the other 2."""
    return torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.bool)


@pytest.fixture
def as_bert(bert_names):
    """transformers' layer with cross-attention, with the weights of ours."""
    transformers = pytest.importorskip('transformers')
    from transformers.models.bert.modeling_bert import BertLayer

    def build(layer):
        config = transformers.BertConfig(
            hidden_size=layer.norm1.normalized_shape[0],
            num_attention_heads=layer.self_attn.num_heads,
            intermediate_size=layer.fc1.out_features,
            is_decoder=True,  # it refuses cross-attention without
            add_cross_attention=True,
            attn_implementation='eager',
        )
        bert = BertLayer(config).eval()
        state = {}
        for name, tensor in layer.state_dict().items():
            module, _, kind = name.rpartition('.')
            state[f'{bert_names[module]}.{kind}'] = tensor
        bert.load_state_dict(state)

        def run(x, **options):
            output = bert(x, **options)
            return output[0] if isinstance(output, tuple) else output  # before transformers 5

        return run

    return build


def additive(mask):
    return torch.where(mask, 0.0, torch.finfo(torch.float32).min)[:, None, None]


def test_a_layer_is_that_of_bert(masks, as_bert):
    """Outputs and gradients; with masks of both streams, which differ in length."""
    torch.manual_seed(0)
    layer = CoAttentionLayer(24, num_heads=3, mlp_ratio=2).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    x, context = torch.randn(2, 5, 24), torch.randn(2, 7, 24)
    context_mask = torch.arange(7) < torch.tensor([[4], [7]])
    outputs, gradients = [], []
    for run in (layer, as_bert(layer)):
        inputs = x.clone().requires_grad_(), context.clone().requires_grad_()
        if run is layer:
            output = layer(*inputs, masks, context_mask)
        else:
            output = run(
                inputs[0],
                attention_mask=additive(masks).expand(-1, -1, 5, -1),
                encoder_hidden_states=inputs[1],
                encoder_attention_mask=additive(context_mask).expand(-1, -1, 5, -1),
            )
        output.square().sum().backward()
        outputs.append(output)
        gradients.append([each.grad for each in inputs])
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_both_streams_read_what_the_other_was_before_the_layer(masks, as_bert):
    torch.manual_seed(1)
    fusion = CoAttentionFusion(10, 12, hidden_dim=24, num_layers=3, num_heads=3).eval()
    for parameter in fusion.parameters():
        nn.init.normal_(parameter, std=0.3)
    text, image = torch.randn(2, 5, 10), torch.randn(2, 4, 12)
    x = fusion.text_projection(text) + fusion.token_types.weight[0]
    y = fusion.image_projection(image) + fusion.token_types.weight[1]
    mask = additive(masks)
    for text_layer, image_layer in zip(fusion.text_layers, fusion.image_layers, strict=True):
        before = x, y
        x = as_bert(text_layer)(
            before[0],
            attention_mask=mask.expand(-1, -1, 5, -1),
            encoder_hidden_states=before[1],
        )
        y = as_bert(image_layer)(
            before[1],
            attention_mask=torch.zeros(2, 1, 4, 4),
            encoder_hidden_states=before[0],
            encoder_attention_mask=mask.expand(-1, -1, 4, -1),
        )
    pooled = torch.cat([fusion.text_pooler(x[:, 0]), fusion.image_pooler(y[:, 0])], dim=1)
    output = fusion(text, masks, image)
    torch.testing.assert_close(output.text, x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.image, y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.features, pooled.tanh(), rtol=1e-4, atol=1e-5)


def test_an_image_can_have_several_texts(masks):
    """Its tokens are projected once."""
    fusion = CoAttentionFusion(10, 12, hidden_dim=24, num_layers=1, num_heads=3).eval()
    text, image = torch.randn(4, 5, 10), torch.randn(2, 3, 12)
    masks = masks.repeat(2, 1)
    shared = fusion(text, masks, image).features
    for pair in range(4):
        alone = fusion(text[pair, None], masks[pair, None], image[pair // 2, None]).features
        torch.testing.assert_close(shared[pair, None], alone)


def test_dropout_acts_in_training_alone(masks):
    fusion = CoAttentionFusion(10, 12, hidden_dim=24, num_layers=1, num_heads=3, dropout=0.5)
    text, image = torch.randn(2, 5, 10), torch.randn(2, 3, 12)
    for layer in (fusion.text_layers[0], fusion.image_layers[0]):
        layer.dropout.p = 0.0  # what is left is that of the attention's weights
    first, second = (fusion(text, masks, image).features for _ in range(2))
    assert not torch.equal(first, second)
    fusion.eval()
    first, second = (fusion(text, masks, image).features for _ in range(2))
    assert torch.equal(first, second)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r'hidden_dim \(20\) .* multiple of num_heads \(3\)'):
        CoAttentionFusion(10, 12, hidden_dim=20, num_heads=3)
    with pytest.raises(InputError, match='num_layers of the fusion'):
        CoAttentionFusion(10, 12, num_layers=0)
    for ratio in (0.001, 0, -1.0):
        with pytest.raises(InputError, match='mlp_ratio'):
            CoAttentionFusion(10, 12, hidden_dim=12, num_heads=3, mlp_ratio=ratio)
