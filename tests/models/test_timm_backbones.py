"""timm's vision transformers as backbones: what trains, what comes out, layer depths, adapters."""

import copy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from tiny_timm import PATCH, TINY, randomize

from mmvars.errors import InputError
from mmvars.models import AbSViT, ViT, base
from mmvars.networks import TOP_DOWN_DESIGNS

IMAGES = (2, 3, 37, 18)
FEW = ('dinov2_reg', 'siglip', 'beit_shared')
every_network = pytest.mark.parametrize(
    'name', [pytest.param(n, marks=[pytest.mark.slow] * (n not in FEW)) for n in TINY]
)


def build(cls, name, **options):
    backbone = cls(arch=f'timm/tiny_{name}', **options)
    randomize(backbone.trunk)
    feedback = getattr(backbone.network, 'feedback', None)
    for decoder in getattr(feedback, 'decoders', ()):
        torch.nn.init.constant_(decoder.gate, 0.5)
    return backbone


OPTIONS = {
    'default': {},
    'earlier': dict(out_indices=0),
    'both': dict(out_indices=(0, 1)),
    'earlier, 3 passes': dict(out_indices=0, num_passes=3),
    'unnormalized': dict(final_norm=False),
    'frozen': dict(frozen_stages=1),
    'checkpointed': dict(with_cp=True),
    'cls_token': dict(out_type='cls_token'),
    'cls_token, earlier': dict(out_type='cls_token', out_indices=0),
    'avg_featmap': dict(out_type='avg_featmap'),
    'pooled': dict(out_type='pooled'),
    'featmap_cls_token': dict(out_type='featmap_cls_token', out_indices=(0, 1)),
    'linear': dict(transfer='linear'),
    'bias': dict(transfer='bias'),
    'top-down': dict(transfer='top-down'),
}


@pytest.mark.parametrize('options', OPTIONS)
@pytest.mark.parametrize(
    'design',
    [None, 'absvit', *(pytest.param(d, marks=pytest.mark.slow) for d in TOP_DOWN_DESIGNS[1:])],
)
@every_network
def test_what_trains_is_what_a_loss_reaches(name, design, options):
    arguments = dict(OPTIONS[options])
    if design is None and ('num_passes' in arguments or options == 'top-down'):
        pytest.skip('has one pass')
    cls = ViT if design is None else AbSViT
    if design is not None:
        arguments['design'] = design
    try:
        backbone = build(cls, name, **arguments).train()
    except InputError as error:
        words = str(error)
        has_class_token = not name.startswith(('siglip', 'gap_reg'))
        assert (
            ('class token' in words and not has_class_token)
            or (design == 'perceiver_io' and 'perceiver_io' in words)
            or (design == 'mask_attention' and options == 'top-down')
        ), words
        return
    assert 'class' not in options or backbone.trunk.has_class_token
    output = backbone(torch.randn(IMAGES), return_losses=True)
    loss = sum(
        part.square().sum()
        for feat in output.feats
        for part in (feat if isinstance(feat, tuple) else (feat,))
    )
    if loss.requires_grad:
        loss.backward()
    for key, parameter in backbone.network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), key
    trained = {key for key, p in backbone.network.named_parameters() if p.requires_grad}
    assert bool(trained) == (options != 'linear')


@every_network
@torch.no_grad()
def test_outputs(name):
    images = torch.randn(IMAGES)
    grid = -(-IMAGES[2] // PATCH), -(-IMAGES[3] // PATCH)
    backbone = build(AbSViT, name, out_indices=(0, 1)).eval()
    trunk = backbone.trunk
    output = backbone.network(images, out_indices=(0, 1)).second
    tokens = [output.intermediates[0], trunk.fc_norm(output.tokens)]
    patches = [t[:, trunk.num_prefix :] for t in tokens]
    for feat, expected in zip(backbone(images), patches, strict=True):
        assert feat.shape == (2, 24, *grid) and feat.is_contiguous()
        torch.testing.assert_close(feat.flatten(2).transpose(1, 2), expected)
    assert backbone.out_channels == (24, 24) and backbone.out_strides == (PATCH, PATCH)

    def other(**options):
        twin = AbSViT(arch=f'timm/tiny_{name}', **options).eval()
        twin.load_state_dict(backbone.state_dict())
        return twin(images)

    (pooled,) = other(out_type='pooled')
    torch.testing.assert_close(pooled, trunk.pool(output))
    averages = other(out_type='avg_featmap', out_indices=(0, 1))
    for feat, expected in zip(averages, patches, strict=True):
        last = expected is patches[1]
        mean = output.tokens[:, trunk.num_prefix :].mean(1) if last else expected.mean(1)
        torch.testing.assert_close(feat, trunk.fc_norm(mean) if last else mean)
    if trunk.has_class_token:
        (token,) = other(out_type='cls_token')
        torch.testing.assert_close(token, output.tokens[:, 0])
        pairs = other(out_type='featmap_cls_token', out_indices=(0, 1))
        for (maps, token), expected in zip(pairs, tokens, strict=True):
            torch.testing.assert_close(token, expected[:, 0])
            torch.testing.assert_close(
                maps.flatten(2).transpose(1, 2), expected[:, trunk.num_prefix :]
            )
    else:
        for out_type in ('cls_token', 'featmap_cls_token'):
            with pytest.raises(InputError, match='class token.*avg_featmap'):
                other(out_type=out_type)


@every_network
def test_frozen_stages_and_layer_depths(name):
    backbone = build(AbSViT, name, frozen_stages=1, drop_path_rate=0.5).train()
    trainable = {k for k, p in backbone.network.named_parameters() if p.requires_grad}
    late = ('trunk.model.blocks.1.', 'trunk.model.norm.', 'trunk.model.fc_norm.')
    assert all(key.startswith(('prior.', 'feedback.', *late)) for key in trainable), trainable
    assert any(key.startswith(late[0]) for key in trainable)
    model = backbone.trunk.model
    assert not model.patch_embed.training and not model.blocks[0].training
    assert model.blocks[1].training
    depths = {
        key: backbone.get_layer_depth(f'backbone.{key}', 'backbone.')
        for key, _ in backbone.named_parameters()
    }
    assert {total for _, total in depths.values()} == {4}
    for key, (depth, _) in depths.items():
        if '.blocks.' in key or 'decoders' in key:
            assert (
                depth == int(key.split('blocks.' if '.blocks.' in key else 'decoders.')[1][0]) + 1
            )
        elif 'prior' in key or '.norm.' in key or 'fc_norm' in key or 'attn_pool' in key:
            assert depth == 3, key
        else:
            assert depth == 0, key


def test_weight_decay_spares_positions_and_tokens():
    optimizer = pytest.importorskip('mmpretrain.engine', exc_type=ImportError)
    backbone = build(ViT, 'dinov2_reg')
    constructor = optimizer.LearningRateDecayOptimWrapperConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05)),
        dict(layer_decay_rate=0.5),
    )
    model = torch.nn.Module()
    model.backbone = backbone
    model.get_layer_depth = lambda name, prefix='': backbone.get_layer_depth(name, 'backbone.')
    wrapper = constructor(model)
    rates = {id(p): group['lr'] for group in wrapper.param_groups for p in group['params']}
    trunk = backbone.trunk.model
    assert rates[id(trunk.pos_embed)] == rates[id(trunk.reg_token)] == 0.5**3
    assert rates[id(trunk.blocks[0].attn.qkv.weight)] == 0.5**2
    assert rates[id(trunk.blocks[1].ls1.gamma)] == 0.5
    assert rates[id(trunk.norm.weight)] == 1


@pytest.mark.parametrize('name', ['dinov3', 'beit'])
@torch.no_grad()
def test_many_priors_and_frames_share_a_pass(name):
    backbone = build(AbSViT, name, prior='given', alpha=2.0).eval()
    images, priors = torch.randn(IMAGES), torch.randn(3, 24)
    calls: list[int] = []
    backbone.trunk.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    results = list(backbone.forward_priors(images, priors))
    assert len(calls) == 4
    for (result,), prior in zip(results, priors, strict=True):
        torch.testing.assert_close(result, backbone(images, prior)[0])
    calls.clear()
    feats, state = backbone.forward_frame(images, prior=priors[0])
    torch.testing.assert_close(feats[0], results[0][0])
    again, _ = backbone.forward_frame(images, state, prior=priors[0])
    assert len(calls) == 3 and not torch.allclose(again[0], feats[0])


@pytest.mark.parametrize('name', ['dinov2_reg', 'eva02', 'beit', 'sapiens2'])
def test_bfloat16(name):
    backbone = build(AbSViT, name)
    images = torch.randn(4, 3, 32, 24)
    with torch.no_grad():
        expected = backbone.eval()(images)[0]
        with torch.autocast('cpu', torch.bfloat16):
            low = backbone(images)[0]
        whole = copy.deepcopy(backbone).bfloat16()(images.bfloat16())[0]
    for output in (low, whole):
        assert ((output.float() - expected).norm() / expected.norm()) < 0.1
    with torch.autocast('cpu', torch.bfloat16):
        backbone.train()(images)[0].float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in backbone.parameters() if p.requires_grad)


def test_averaged_weights():
    backbone = build(AbSViT, 'dinov3')
    average = ExponentialMovingAverage(backbone, momentum=0.5, update_buffers=True)
    average.update_parameters(backbone)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(1)
    average.update_parameters(backbone)
    for a, b in zip(average.module.parameters(), backbone.parameters(), strict=True):
        torch.testing.assert_close(a, b - 0.5)


@pytest.mark.parametrize('transfer', ['linear', 'top-down', 'end2end'])
def test_a_frozen_trunk_of_random_weights_is_warned_of(transfer, monkeypatch, tmp_path):
    lines: list[str] = []
    monkeypatch.setattr(base, 'print_log', lambda line, **_: lines.append(line))
    backbone = build(AbSViT, 'dinov2', transfer=transfer)
    backbone.init_weights()
    assert any('random weights' in line for line in lines) == (transfer != 'end2end')
    lines.clear()
    torch.save(backbone.trunk.model.state_dict(), tmp_path / 'weights.pth')
    build(
        AbSViT, 'dinov2', transfer=transfer, pretrained=str(tmp_path / 'weights.pth')
    ).init_weights()
    assert lines and not any('random weights' in line for line in lines)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(arch='timm/tiny_vitt'), 'no network.*tiny_vit'),
        (dict(arch=dict(trunk='timm/tiny_vit', num_layers=3)), 'num_layers.*2'),
        (dict(arch=dict(trunk='timm/tiny_vit', embed_dims=3)), 'embed_dims'),
        (dict(arch='timm/tiny_siglip', out_type='pooled', out_indices=(0, 1)), 'out_indices=-1'),
        (dict(arch='timm/tiny_vit', out_indices=2), 'out_indices'),
        (dict(arch='timm/tiny_vit', frozen_stages=3), 'frozen_stages'),
        (dict(arch='timm/tiny_vit', img_size=4), 'img_size'),
        (dict(arch='timm/tiny_vit', pretrained=3), 'pretrained'),
        (dict(arch='timm/tiny_vit', mixer='vars_d'), 'mixer'),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises(InputError, match=words):
        AbSViT(**options)


def test_closed_gates_that_do_not_train_are_reported(monkeypatch):
    """Where nothing can open them, the second pass costs and changes nothing."""
    logged = []
    monkeypatch.setattr('mmvars.models.base.print_log', lambda text, **_: logged.append(text))
    for transfer, warns in (('bias', True), ('linear', True), ('top-down', False)):
        logged.clear()
        arch = dict(trunk='timm/vit_tiny_patch16_224', num_layers=1)
        backbone = AbSViT(arch, img_size=32, transfer=transfer)
        backbone.init_weights()
        assert any('gates of the feedback closed' in text for text in logged) == warns
    with torch.no_grad():
        backbone.network.feedback.decoders[0].gate.fill_(1)
    backbone.network.requires_grad_(False)
    backbone.init_weights()
    assert not any('gates of the feedback closed' in text for text in logged)


def test_a_forgotten_prefix_and_a_transfer_without_feedback_get_their_remedy():
    with pytest.raises(InputError, match="write arch='timm/vit_tiny_patch16_224'"):
        ViT(arch='vit_tiny_patch16_224')
    with pytest.raises(
        InputError, match="got 'top-down', which trains the feedback of mmvars.AbSViT"
    ):
        ViT(arch='tiny', transfer='top-down')
