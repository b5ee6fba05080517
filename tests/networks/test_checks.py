"""Options of create_model that a design of top-down attention has no use for."""

import pytest
import torch

from mmvars.errors import InputError
from mmvars.networks import create_model

SMALL = dict(embed_dim=16, depth=2, num_heads=2, img_size=32, num_classes=5)


@pytest.mark.parametrize(
    ('top_down', 'option', 'message'),
    [
        (
            'mask_attention',
            dict(alpha=10.0),
            'feeds back their weights alone: leave it at 1, got 10.0',
        ),
        ('perceiver_io', dict(num_passes=3), 'has none: leave it out, got 3'),
        ('feedback', dict(prior='given'), "leave it out, got 'given'"),
        ('absvit', dict(prior=None), "feedback without a prior is design 'feedback'"),
        ('absvit', dict(alpha='1'), 'alpha must be a number'),
        ('absvit', dict(num_passes=101), r'num_passes must be a whole number in \[2, 100\]'),
    ],
)
def test_no_option_is_without_effect(top_down, option, message):
    with pytest.raises(InputError, match=message):
        create_model('vit_tiny_patch16', top_down=top_down, **SMALL, **option)


@pytest.mark.parametrize(
    ('top_down', 'alpha', 'message'),
    [
        ('mask_attention', 10.0, 'feeds back their weights alone: leave alpha out'),
        ('mask_attention', torch.ones(2), 'feeds back their weights alone: leave alpha out'),
        ('absvit', '1', 'alpha must be a number or a tensor'),
        ('perceiver_io', [1.0, 2.0], 'alpha must be a number or a tensor'),
        ('absvit', float('nan'), 'alpha must be a finite number, got nan'),
        ('perceiver_io', float('inf'), 'alpha must be a finite number, got inf'),
    ],
)
def test_no_alpha_of_a_call_is_without_effect(top_down, alpha, message):
    network = create_model('vit_tiny_patch16', top_down=top_down, **SMALL).eval()
    with pytest.raises(InputError, match=message):
        network(torch.randn(2, 3, 32, 32), alpha=alpha)
