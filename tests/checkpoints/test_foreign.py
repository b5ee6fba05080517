"""Files of other libraries, whose networks are the oracle: names, layer scale, patches."""

import pytest
import torch
from torch import nn

from mmvars.checkpoints import CheckpointError, convert_state_dict, load_pretrained
from mmvars.checkpoints.report import Status
from mmvars.errors import InputError
from mmvars.networks import create_model

SIZE = dict(embed_dim=24, depth=2, num_heads=3)
OPENMMLAB = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=96)
FILE = ('cls_token', 'pos_embed', 'patch_embed.proj.weight', 'blocks.0.norm1.weight')


def _random_(module):
    """Weights of which none is degenerate, layer scales far from their usual 1e-5 included."""
    with torch.no_grad():
        for parameter in module.parameters():
            nn.init.normal_(parameter, mean=0.05, std=0.2)
    module.eval()  # returns nothing in MMPretrain
    return module


def _timm(**arguments):
    module = pytest.importorskip('timm.models.vision_transformer')
    arguments = dict(init_values=1.0, num_classes=0, img_size=56, patch_size=14) | arguments
    return _random_(module.VisionTransformer(**SIZE | arguments))


def _converted(state_dict, names, arch='vit_small', **options):
    conversion = convert_state_dict(state_dict, arch, task='segmentation', **SIZE | options)
    side = 4 * options.get('patch_size', 16)
    network = create_model(arch, num_classes=0, img_size=side, **SIZE | options)
    network.load_state_dict(names(conversion.tensors), strict=True)
    return network.eval(), conversion.report


def _assert_same(network, expected, side=56):
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        found, features = network(images).tokens, expected(images)
    assert features.std(dim=0).max() > 1e-2 * features.abs().max()  # the images do matter
    assert (found - features).abs().max() <= 1e-5 * features.abs().max()


@pytest.mark.parametrize('options', [{}, dict(no_embed_class=True)], ids=['', 'no_embed_class'])
def test_layer_scale_is_folded(network_names, options):
    """``no_embed_class``: as in DeiT III, whose class token has no position."""
    theirs = _timm(**options)
    network, report = _converted(theirs.state_dict(), network_names, patch_size=14)
    _assert_same(network, theirs.forward_features)
    merged = {entry.source: entry.note for entry in report.of(Status.MERGED)}
    assert merged == {
        f'blocks.{block}.ls{number}.gamma': f'factor of the rows of {layer}'
        for number, layer in ((1, 'attn.proj'), (2, 'mlp.fc2'))
        for block in range(2)
    }
    entries = report.of(Status.USED)
    scaled = [entry.source for entry in entries if entry.note == 'rows times the layer scale']
    assert len(scaled) == 8
    (position,) = (entry for entry in entries if entry.source == 'pos_embed')
    assert ('row of zeros' in position.note) == bool(options)


def test_names_of_deit_iii(network_names):
    theirs = _timm()
    state = {key.replace('ls1.gamma', 'gamma_1'): each for key, each in theirs.state_dict().items()}
    state = {key.replace('ls2.gamma', 'gamma_2'): each for key, each in state.items()}
    network, _ = _converted(state, network_names, patch_size=14)
    _assert_same(network, theirs.forward_features)


def test_a_layer_scale_fills_an_absvit_and_loads_into_a_plain_vit(tmp_path, network_names):
    theirs = _timm()
    tensors = convert_state_dict(theirs.state_dict(), 'absvit_small', patch_size=14, **SIZE).tensors
    weight = theirs.blocks[1].ls2.gamma[:, None] * theirs.blocks[1].mlp.fc2.weight
    assert torch.equal(tensors['backbone.network.trunk.blocks.1.mlp.fc2.weight'], weight)
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    network = create_model('vit_small', num_classes=0, patch_size=14, img_size=56, **SIZE)
    load_pretrained(network, tmp_path / 'timm.pth')
    _assert_same(network.eval(), theirs.forward_features)


@pytest.mark.parametrize('lost', ['blocks.1.attn.proj.bias', 'blocks.1.attn.proj.weight'])
def test_half_a_layer_is_not_folded(lost):
    state = _timm().state_dict()
    del state[lost]
    with pytest.raises(CheckpointError, match=r'blocks\.1\.ls1\.gamma.*does not fit') as caught:
        convert_state_dict(state, 'vit_small', patch_size=14, **SIZE)
    assert lost in str(caught.value)


def test_patches_are_resampled_as_timm_does(network_names):
    filter_fn = pytest.importorskip('timm.models.vision_transformer').checkpoint_filter_fn
    state, theirs = _timm().state_dict(), _timm(img_size=64, patch_size=16)
    theirs.load_state_dict(filter_fn(state, theirs))
    network, report = _converted(state, network_names)
    _assert_same(network, theirs.forward_features, side=64)
    assert report.remarks[1] == 'patches resampled from 14x14 to 16x16 pixels by timm'


def test_patches_are_not_resampled_on_loading(tmp_path):
    torch.save(_timm(init_values=None).state_dict(), tmp_path / 'timm.pth')
    network = create_model('vit_small', num_classes=0, img_size=56, **SIZE)
    with pytest.raises(CheckpointError, match='WRONG SHAPE(?s:.*)24x3x14x14 -> 24x3x16x16'):
        load_pretrained(network, tmp_path / 'timm.pth')


@pytest.mark.parametrize(
    ('key', 'part'),
    [
        ('reg_token', 'register tokens'),
        ('norm_pre.weight', 'norm'),
        ('attn_pool.q.bias', 'pooling'),
    ],
)
def test_parts_that_only_timm_has_are_refused_with_the_way_to_keep_them(key, part):
    state = _timm().state_dict() | {key: torch.zeros(1, 4, 24)}
    with pytest.raises(CheckpointError, match=rf'{key}.*{part}.*arch=.timm/NAME.*pretrained='):
        convert_state_dict(state, 'vit_small', patch_size=14, **SIZE)


PREFIXED = {
    'DINO': ({'backbone.': FILE, 'head.': ['mlp.0.weight', 'last_layer.weight_g']}, 'backbone.'),
    'Lightning': ({'net.vit.': FILE, 'criterion.': ['weight']}, 'net.vit.'),
    'compiled': ({'model._orig_mod.': FILE, 'loss.': ['weight']}, 'model._orig_mod.'),
    'wrapped': ({'encoder.': FILE}, 'encoder.'),
    'MoCo': ({'base_encoder.': FILE, 'predictor.': ['0.weight']}, 'base_encoder.'),
    'OpenCLIP': (
        {'visual.trunk.': FILE, 'transformer.': ['resblocks.0.ln_1.bias']},
        'visual.',
    ),
    'mmengine': (
        {'backbone.': ('patch_embed.projection.weight', 'layers.0.ln1.bias'), 'neck.': ['a.bias']},
        'backbone.',
    ),
}


@pytest.mark.parametrize('case', PREFIXED)
def test_prefixes_are_found(case):
    parts, prefix = PREFIXED[case]
    state = {start + key: torch.zeros(1) for start, keys in parts.items() for key in keys}
    with pytest.raises(CheckpointError) as caught:  # these few tensors are no network
        convert_state_dict(state, 'vit_small', **SIZE)
    report = caught.value.report
    assert any(remark.endswith(f'after {prefix!r}') for remark in report.remarks)
    (_, *others) = parts.items()
    assert {entry.source: entry.note for entry in report.of(Status.IGNORED)} == {
        start + key: f'does not start with {prefix!r}' for start, keys in others for key in keys
    }


def test_several_networks_are_a_choice():
    state = {f'{name}.{key}': torch.zeros(1) for name in ('student.net', 'teacher') for key in FILE}
    with pytest.raises(InputError, match='--prefix student.net or --prefix teacher .*prefix=.stud'):
        convert_state_dict(state, 'vit_small')


def test_names_of_no_known_network():
    with pytest.raises(InputError, match='no known source.*timm.*begin with layer1.conv.weight'):
        convert_state_dict({'layer1.conv.weight': torch.zeros(1)}, 'vit_small')


@pytest.mark.parametrize(
    ('library', 'options', 'ours'),
    [
        ('mmpretrain', {}, {}),
        (
            'mmpretrain',
            dict(layer_scale_init_value=1.0, patch_size=14, img_size=56),
            dict(patch_size=14),
        ),
        ('mmpretrain', dict(out_type='avg_featmap', final_norm=False), dict(global_pool='avg')),
        ('mmseg', {}, {}),
    ],
    ids=['plain', 'dinov2', 'avg', 'mmseg'],
)
def test_vits_of_openmmlab(network_names, library, options, ours):
    models = pytest.importorskip(f'{library}.models.backbones')
    if library == 'mmpretrain':
        theirs = models.VisionTransformer(OPENMMLAB, **dict(img_size=64) | options)
        theirs.out_type = 'raw'
    else:
        theirs = models.VisionTransformer(
            img_size=64,
            embed_dims=24,
            num_layers=2,
            num_heads=3,
            patch_bias=True,
            final_norm=True,
            output_cls_token=True,
            norm_cfg=dict(type='LN', eps=1e-6),
        )
    # A whole model: backbone, classifier, normalization.
    state = {f'backbone.{key}': each for key, each in _random_(theirs).state_dict().items()}
    state |= {'head.layers.head.weight': torch.ones(5, 24), 'head.layers.head.bias': torch.ones(5)}
    state['data_preprocessor.mean'] = torch.zeros(3)
    network, report = _converted(state, network_names, **ours)
    assert {entry.note for entry in report.of(Status.IGNORED)} == {
        'classifier, dropped for segmentation',
        'mean and std are in the config',
    }

    def features(images):
        (output,) = theirs(images)
        if library == 'mmpretrain':
            return output
        maps, class_token = output
        return torch.cat([class_token[:, None], maps.flatten(2).transpose(1, 2)], dim=1)

    _assert_same(network, features, side=4 * ours.get('patch_size', 16))


def test_a_classifier_and_heads_of_openmmlab():
    theirs = pytest.importorskip('mmpretrain.models').VisionTransformer(OPENMMLAB, img_size=64)
    backbone = {f'backbone.{key}': each for key, each in theirs.state_dict().items()}
    classifier = {
        'head.layers.head.weight': torch.ones(5, 24),
        'head.layers.head.bias': torch.ones(5),
    }
    tensors = convert_state_dict(backbone | classifier, 'vit_small', **SIZE).tensors
    assert torch.equal(tensors['head.fc.bias'], torch.ones(5))
    heads = {'decode_head.conv_seg.bias': torch.ones(3)}
    conversion = convert_state_dict(backbone | heads, 'absvit_small', **SIZE)
    assert torch.equal(conversion.tensors['decode_head.conv_seg.bias'], torch.ones(3))
    assert len(conversion.report.of(Status.PASSTHROUGH)) == 1


@pytest.mark.slow  # importing transformers takes ten seconds
@pytest.mark.parametrize('name', ['Dinov2', 'ViT'])
def test_vits_of_hugging_face(tmp_path, network_names, name):
    """``save_pretrained`` writes the published names, which are not those of its modules."""
    transformers = pytest.importorskip('transformers')
    config = getattr(transformers, f'{name}Config')(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=56,
        patch_size=14,
        layer_norm_eps=1e-6,
    )
    kind = 'Model' if name == 'Dinov2' else 'ForImageClassification'
    whole = _random_(getattr(transformers, name + kind)(config))
    whole.save_pretrained(tmp_path)
    from safetensors.torch import load_file

    state = load_file(tmp_path / 'model.safetensors')
    network, report = _converted(state, network_names, patch_size=14)
    theirs = getattr(whole, 'vit', whole)
    _assert_same(network, lambda images: theirs(images).last_hidden_state)
    assert any('query, key and value' in entry.note for entry in report.of(Status.USED))
    assert len(report.of(Status.MERGED)) == (12 if name == 'Dinov2' else 8)
