"""The same weights in timm's networks and in ours give the same numbers."""

import pytest
import torch
from torch import nn

from mmvars.checkpoints import convert_state_dict
from mmvars.networks import create_model

timm = pytest.importorskip('timm')


def _random_(module):
    """Weights of which none is degenerate: fresh biases, norms and class tokens are not enough."""
    with torch.no_grad():
        for parameter in module.parameters():
            nn.init.normal_(parameter, mean=0.02, std=0.04)
    return module.eval()


@pytest.mark.parametrize(
    ('model', 'arch'),
    [
        ('deit_tiny_patch16_224', 'vit_tiny'),
        pytest.param('vit_base_patch16_224', 'vit_base', marks=pytest.mark.slow),
    ],
)
def test_same_logits(network_names, model, arch):
    theirs = _random_(timm.create_model(model, pretrained=False))
    tensors = convert_state_dict(theirs.state_dict(), arch, task='classification').tensors
    ours = create_model(arch).eval()
    ours.load_state_dict(network_names(tensors), strict=True)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected, found = theirs(images), ours.forward_head(ours(images))
    assert expected.std(dim=0).max() > 1e-3 * expected.abs().max()  # the images do matter
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
    back = convert_state_dict(tensors, arch, to='timm').tensors
    theirs.load_state_dict(back, strict=True)
    assert list(back) == list(theirs.state_dict())


def test_a_distilled_deit_is_refused():
    theirs = timm.create_model('deit_tiny_distilled_patch16_224', pretrained=False)
    with pytest.raises(ValueError, match='distilled DeiT') as caught:
        convert_state_dict(theirs.state_dict(), 'vit_tiny')
    assert 'head_dist.weight' in str(caught.value)
