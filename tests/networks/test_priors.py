"""What can be the prior of a call."""

import pytest
import torch

from mmvars.errors import InputError
from mmvars.networks import create_model
from mmvars.networks.feedback import token_weights

SMALL = dict(embed_dim=16, depth=2, num_heads=2, img_size=32, num_classes=5)
IMAGES = torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize('prior', ['learned_query', 'class_prototype', 'given'])
@pytest.mark.parametrize(
    'value', ['query', 3, [1.0] * 16, torch.tensor(True), torch.ones(16, dtype=torch.complex64)]
)
def test_what_is_no_vector_and_no_class_is_refused(prior, value):
    network = create_model('absvit_tiny_patch16', prior=prior, **SMALL).eval()
    with pytest.raises(InputError, match='prior must be a tensor, a float vector of width 16'):
        network(IMAGES, prior=value)


@pytest.mark.parametrize('design', ['absvit', 'absvit_qkv', 'mask_attention', 'perceiver_io'])
def test_a_prior_may_have_another_precision(design):
    network = create_model('vit_tiny_patch16', top_down=design, **SMALL).eval()
    vector = torch.randn(16)
    expected = network(IMAGES, prior=vector).second.tokens
    output = network(IMAGES, prior=vector.double())
    torch.testing.assert_close(output.second.tokens, expected)
    network.bfloat16()
    assert network(IMAGES.bfloat16(), prior=vector).second.tokens.dtype == torch.bfloat16


def test_the_weights_have_the_precision_of_the_tokens():
    tokens, vector = torch.randn(2, 3, 4), torch.randn(2, 4)
    assert token_weights(tokens.half(), vector).dtype == torch.float16
    assert token_weights(tokens, vector.double()).dtype == torch.float32
    expected = token_weights(tokens, vector)
    torch.testing.assert_close(token_weights(tokens, vector.double()), expected)
