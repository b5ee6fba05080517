"""What may be given as the prior of a call."""

import pytest
import torch

from mmvars.errors import InputError
from mmvars.networks import build_network
from mmvars.networks.prior import token_mask

SMALL = dict(embed_dim=16, depth=2, num_heads=2, img_size=32, num_classes=5)
IMAGES = torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize('prior', ['learned_query', 'class_prototype', 'given'])
@pytest.mark.parametrize('given', ['query', 3, [1.] * 16, torch.tensor(True),
                                   torch.ones(16, dtype=torch.complex64)])
def test_what_is_no_vector_and_no_class_is_refused(prior, given):
    network = build_network('absvit_tiny_patch16', prior=prior, **SMALL).eval()
    with pytest.raises(InputError, match='prior must be a tensor, a float vector of width 16'):
        network(IMAGES, prior=given)


@pytest.mark.parametrize('design', ['absvit', 'absvit_qkv', 'mask_attention', 'perceiver_io'])
def test_a_prior_may_have_another_precision(design):
    network = build_network('vit_tiny_patch16', top_down=design, **SMALL).eval()
    vector = torch.randn(16)
    expected = network(IMAGES, prior=vector).final.tokens
    found = network(IMAGES, prior=vector.double()).final.tokens
    torch.testing.assert_close(found, expected)
    network.bfloat16()
    assert network(IMAGES.bfloat16(), prior=vector).final.tokens.dtype == torch.bfloat16


def test_the_mask_has_the_precision_of_the_tokens():
    tokens, vector = torch.randn(2, 3, 4), torch.randn(2, 4)
    assert token_mask(tokens.half(), vector).dtype == torch.float16
    assert token_mask(tokens, vector.double()).dtype == torch.float32
    torch.testing.assert_close(token_mask(tokens, vector.double()), token_mask(tokens, vector))
