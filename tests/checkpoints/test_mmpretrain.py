"""MMPretrain's VisionTransformer, the oracle, as a trunk of timm that loads its files."""

import pytest
import torch
from torch import nn

from mmvars.checkpoints import CheckpointError, load_timm_weights
from mmvars.errors import InputError
from mmvars.networks import create_model

backbones = pytest.importorskip('mmpretrain.models.backbones')
TINY = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=96)


@pytest.fixture
def zoo(monkeypatch):
    """The table of names, with the sizes of :data:`TINY`."""
    from mmvars.networks import mmpretrain_zoo

    tiny = dict(embed_dim=24, depth=2, num_heads=3)
    for name in ('base', 'dinov2-small', 'dinov2-giant'):
        sizes = tiny | (dict(mlp_ratio=128 / 24) if name == 'dinov2-giant' else {})
        monkeypatch.setitem(mmpretrain_zoo._ZOO, name, mmpretrain_zoo._ZOO[name] | sizes)


def _theirs(arch=TINY, **options):
    network = backbones.VisionTransformer(arch, out_type='raw', **options)
    with torch.no_grad():
        for parameter in network.parameters():
            nn.init.normal_(parameter, mean=0.05, std=0.2 if arch is TINY else 0.05)
    network.eval()
    return network


def test_names_and_sizes():
    from mmvars.networks.mmpretrain_zoo import _ZOO

    arch_zoo = backbones.VisionTransformer.arch_zoo
    assert _ZOO.keys() == arch_zoo.keys()
    for name, sizes in arch_zoo.items():
        ours = _ZOO[name]
        expected = [sizes[key] for key in ('embed_dims', 'num_layers', 'num_heads')]
        assert [ours[key] for key in ('embed_dim', 'depth', 'num_heads')] == expected, name
        # Of a gated MLP two thirds, for the gate and the value.
        hidden = sizes['feedforward_channels'] * (4 / 3 if 'mlp_layer' in ours else 1)
        assert ours['embed_dim'] * ours.get('mlp_ratio', 4) == pytest.approx(hidden), name


@pytest.mark.usefixtures('zoo')
@pytest.mark.parametrize(
    ('name', 'ours', 'theirs'),
    [
        ('base', {}, {}),
        ('base', dict(pre_norm=True, patch_size=8), dict(pre_norm=True, patch_size=8)),
        ('dinov2-small', {}, dict(patch_size=14, layer_scale_init_value=1.0)),
        (
            'dinov2-giant',
            {},
            dict(
                patch_size=14,
                layer_scale_init_value=1.0,
                layer_cfgs=dict(ffn_type='swiglu_fused'),
            ),
        ),
    ],
    ids=['plain', 'pre_norm', 'layer scale', 'gated'],
)
def test_same_features(tmp_path, name, ours, theirs):
    patch_size = theirs.get('patch_size', 16)
    size = 4 * patch_size
    expected = _theirs(img_size=size, **theirs)
    # A file of a whole classifier.
    state = {f'backbone.{key}': value for key, value in expected.state_dict().items()}
    state['head.layers.head.weight'] = torch.ones(3, 24)
    torch.save(dict(state_dict=state, meta={}), tmp_path / 'file.pth')
    network = create_model(
        f'mmpretrain/{name}', pretrained=tmp_path / 'file.pth', img_size=size, **ours
    ).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        (tokens,), found = expected(images), network(images).tokens
    assert tokens.std(dim=0).max() > 1e-2 * tokens.abs().max()
    assert (found - tokens).abs().max() <= 1e-5 * tokens.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['deit-tiny', 'dinov2-small'])
def test_same_features_at_the_real_size(tmp_path, name):
    patch = dict(patch_size=14, layer_scale_init_value=1.0) if name == 'dinov2-small' else {}
    expected = _theirs(name, img_size=224, **patch)
    torch.save(expected.state_dict(), tmp_path / 'file.pth')
    network = create_model(
        f'mmpretrain/{name}', 'absvit', pretrained=str(tmp_path / 'file.pth'), img_size=224
    ).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        (tokens,), output = expected(images), network(images)
    for found in (output.first.tokens, output.second.tokens):  # a fresh wrap
        assert (found - tokens).abs().max() <= 1e-5 * tokens.abs().max()


@pytest.mark.usefixtures('zoo')
def test_as_a_backbone(tmp_path):
    from mmvars.models import AbSViT

    expected = _theirs(img_size=32, patch_size=8)
    torch.save(expected.state_dict(), tmp_path / 'file.pth')
    backbone = AbSViT(
        arch=dict(trunk='mmpretrain/base', patch_size=8, num_layers=1),
        img_size=32,
        pretrained=str(tmp_path / 'file.pth'),
    )
    backbone.init_weights()
    assert torch.equal(backbone.trunk.model.pos_embed, expected.pos_embed)
    assert backbone.out_strides == (8,)
    assert backbone.num_layers == 1


@pytest.mark.usefixtures('zoo')
def test_bad_input(tmp_path):
    torch.save(_theirs(layer_scale_init_value=1.0).state_dict(), tmp_path / 'file.pth')
    with pytest.raises(CheckpointError, match=r'UNEXPECTED(?s:.*)layers\..*gamma1\.weight'):
        create_model('mmpretrain/base', pretrained=tmp_path / 'file.pth')
    with pytest.raises(InputError, match="has s, small, b, .*did you mean 'huge'"):
        create_model('mmpretrain/hugo')
    with pytest.raises(InputError, match='no weights of this name are known; give pretrained=FILE'):
        create_model('mmpretrain/base', pretrained=True)
    with pytest.raises(InputError, match='takes no argument patchsize.*did you mean .patch_size'):
        create_model('mmpretrain/base', patchsize=8)


def test_other_patches_are_said(tmp_path):
    """Patch embeddings of another size are resampled, which the log says."""
    from timm.models.vision_transformer import VisionTransformer

    from mmvars.networks.timm_trunk import TimmTrunk

    size = dict(embed_dim=24, depth=1, num_heads=3, num_classes=0)
    state = VisionTransformer(img_size=56, patch_size=14, **size).state_dict()
    torch.save(state, tmp_path / 'file.pth')
    trunk = TimmTrunk(VisionTransformer(img_size=64, patch_size=16, **size), 'timm/tiny')
    summary = load_timm_weights(trunk, tmp_path / 'file.pth').summary()
    assert 'patch_embed.proj.weight resampled by timm: 24x3x14x14 -> 24x3x16x16' in summary
