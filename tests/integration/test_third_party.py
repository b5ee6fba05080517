"""Tools of others on every backbone; those that change layers: ``test_adapters.py``."""

import copy
import io

import pytest
import torch
from mmengine.registry import MODELS as ROOT
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from mmengine.structures import PixelData
from torch import nn

from mmvars.errors import InputError
from mmvars.layers import MIXERS
from mmvars.models import FAN, RVT, VARS, AbSViT, GFNet, ViT

FLAT = dict(embed_dims=24, num_layers=3, num_heads=2)
STAGES = dict(embed_dims=[12, 24], num_layers=[2, 1], num_heads=[2, 2])
BACKBONES = {
    'vit': (ViT, dict(arch=FLAT)),
    'absvit': (AbSViT, dict(arch=FLAT)),
    'absvit_qkv': (AbSViT, dict(arch=FLAT, design='absvit_qkv')),
    'absvit_single_bias': (AbSViT, dict(arch=FLAT, double_value_bias=False)),
    'absvit_rvt': (AbSViT, dict(arch=dict(STAGES, trunk='rvt'))),
    'absvit_fan': (AbSViT, dict(arch=dict(FLAT, trunk='fan'))),
    'absvit_vars_sd': (AbSViT, dict(arch=dict(STAGES, trunk='rvt'), mixer='vars_sd')),
    'rvt': (RVT, dict(arch=STAGES)),
    'performer': (RVT, dict(arch=STAGES, mixer='performer')),
    'vars_d': (VARS, dict(arch=dict(STAGES, trunk='rvt'), mixer='vars_d')),
    'vars_sd': (VARS, dict(arch=dict(STAGES, trunk='rvt'), mixer='vars_sd')),
    'vars_s': (
        VARS,
        dict(arch=dict(STAGES, trunk='rvt'), mixer='vars_s', mixer_cfg=dict(sparsity=0.1)),
    ),
    'gfnet': (GFNet, dict(arch=FLAT)),
    'fan': (FAN, dict(arch=FLAT)),
}
every_backbone = pytest.mark.parametrize('name', BACKBONES)


def build(name, **options):
    """In float64, so that only what is wrong differs."""
    cls, arguments = BACKBONES[name]
    torch.manual_seed(1)
    backbone = cls(**arguments, img_size=64, **options)
    for parameter in backbone.parameters():  # so that every path makes a difference
        if parameter.ndim < 2:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.mul_(4)
    return backbone.double()


def images():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 3, 64, 48, generator=generator, dtype=torch.double)


def close(a, b, tolerance=1e-5):
    for x, y in zip(a, b, strict=True):
        assert x.isfinite().all()
        assert ((x - y).abs().max() / y.abs().max()).item() <= tolerance


def different(a, b):
    return any((x - y).abs().max() > 1e-2 * y.abs().max() for x, y in zip(a, b, strict=True))


def test_mmpretrain_lora_inside_our_frameworks_models():
    pytest.importorskip('mmpretrain.models', exc_type=ImportError)
    from mmpretrain.structures import DataSample

    model = ROOT.build(
        dict(
            type='mmvars.ImageClassifier',
            backbone=dict(
                type='mmpretrain.LoRAModel',
                rank=2,
                targets=[dict(type='qkv')],
                module=dict(
                    type='mmvars.AbSViT',
                    arch=FLAT,
                    img_size=64,
                    out_type='pooled',
                    reconstruction_loss_weight=0.1,
                ),
            ),
            head=dict(type='mmpretrain.LinearClsHead', num_classes=3),
        )
    )
    samples = [DataSample().set_gt_label(i) for i in range(2)]
    losses = model.loss(images().float(), samples)
    assert set(losses) == {'loss_bottom_up', 'loss_top_down', 'backbone.loss_reconstruction'}
    assert len(model.predict(images().float(), samples)) == 2


@every_backbone
@pytest.mark.parametrize('part', ['blocks.0', 'blocks.0.attn', 'blocks.1'])
def test_activation_checkpointing_of_mmengine(name, part):
    """Reentrant, around a block that runs in every pass: the gradients are the same."""
    plain, checkpointed = build(name).train(), build(name).train()
    if 'rvt' in str(BACKBONES[name]) or name in ('rvt', 'performer'):
        part = part.replace('blocks', 'stages.0.blocks')
    turn_on_activation_checkpointing(checkpointed.trunk, [part])
    for backbone in (plain, checkpointed):
        torch.manual_seed(3)  # random features are drawn in the forward
        sum(x.square().mean() for x in backbone(images())).backward()
    for (key, p), q in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, msg=key, rtol=1e-4, atol=1e-6)


@every_backbone
def test_memory_layout_is_the_usual_one(name, tmp_path):
    """safetensors, flat parameter vectors, LBFGS and ``.view`` of maps need it."""
    save_file = pytest.importorskip('safetensors.torch').save_file
    load_file = pytest.importorskip('safetensors.torch').load_file
    backbone = build(name, out_indices=(0, 2)).train()
    state = backbone.state_dict()
    save_file(state, tmp_path / 'x.safetensors')
    restored = load_file(tmp_path / 'x.safetensors')
    assert state.keys() == restored.keys()
    assert all(torch.equal(state[key], restored[key]) for key in state)
    nn.utils.parameters_to_vector(backbone.parameters())
    for feat in backbone(images()):
        feat.view(1, -1, *feat.shape[2:])
    trainable = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.LBFGS(trainable, lr=1e-6, max_iter=2)

    def closure():
        optimizer.zero_grad()
        loss = sum(x.square().mean() for x in backbone(images()))
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.save(backbone, buffer := io.BytesIO())  # pickled as a whole
    buffer.seek(0)
    assert type(torch.load(buffer, weights_only=False)) is type(backbone)


def test_channels_last_is_a_choice():
    conv = build('rvt', channels_last=True).trunk.patch_embed.proj[0]
    conv = next(m for m in conv.modules() if isinstance(m, nn.Conv2d))
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert not conv.weight.is_contiguous()


class Average(nn.Module):
    """A stranger's mixer, written from the contract of ``mmvars.layers.TokenMixer`` alone."""

    def __init__(self, embed_dim, num_heads, grid, num_prefix=0, qkv_bias=True, gain=1.0):
        super().__init__()
        self.value = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
        self.gain = gain

    def forward(self, x, grid, top_down=None):
        value = self.value(x if top_down is None else x + top_down)
        return value + self.gain * value.mean(dim=1, keepdim=True)


class TestAStrangersMixer:
    @pytest.fixture(params=[dict(arch=FLAT), dict(arch=dict(STAGES, trunk='rvt'))], ids=str)
    def backbone(self, request, monkeypatch):
        monkeypatch.setitem(MIXERS, 'average', Average)
        torch.manual_seed(1)
        return AbSViT(
            **request.param,
            mixer='average',
            mixer_cfg=dict(gain=2.0),
            img_size=64,
            out_indices=(0, 2),
            reconstruction_loss_weight=0.1,
        ).double()

    def test_eval(self, backbone):
        assert {block.attn.gain for block in backbone.trunk.blocks} == {2.0}
        with torch.no_grad():
            feats = backbone.eval()(images())
            assert different(feats, backbone(images(), alpha=50.0))
            backbone.fuse()
            close(backbone(images()), feats)

    def test_training(self, backbone):
        output = backbone.train()(images(), return_losses=True)
        loss = sum(x.square().mean() for x in (*output.feats, *output.first_pass_feats))
        (loss + output.losses['loss_reconstruction']).backward()
        assert all(
            p.grad is not None and p.grad.isfinite().all()
            for p in backbone.parameters()
            if p.requires_grad
        )

    @pytest.mark.slow
    def test_compile(self, backbone):
        compiled = torch.compile(backbone, fullgraph=True, backend='eager')
        close(compiled(images()), backbone(images()))
        backbone.eval()
        with torch.no_grad():
            close(compiled(images()), backbone(images()))


FRAMEWORK_MODELS = {
    'mmvars.EncoderDecoder': dict(
        decode_head=dict(
            type='mmseg.FCNHead',
            channels=8,
            num_classes=3,
            num_convs=1,
            in_index=1,
            norm_cfg=dict(type='GN', num_groups=2),
            dropout_ratio=0.0,
        )
    ),
    'mmvars.ImageClassifier': dict(head=dict(type='mmpretrain.LinearClsHead', num_classes=3)),
}


@pytest.mark.parametrize('type', FRAMEWORK_MODELS)
@pytest.mark.parametrize('name', ['vit', 'absvit'])
def test_frameworks_train_through_the_call_of_the_backbone(name, type):
    """Hooks, FSDP units and a compiled backbone rely on it."""
    pytest.importorskip('mmseg.models', exc_type=ImportError)
    pytest.importorskip('mmpretrain.models', exc_type=ImportError)
    from mmpretrain.structures import DataSample
    from mmseg.structures import SegDataSample

    cls, arguments = BACKBONES[name]
    options = dict(out_indices=(0, 2)) if 'Encoder' in type else dict(out_type='cls_token')
    model = ROOT.build(
        dict(
            type=type,
            backbone=dict(type=f'mmvars.{cls.__name__}', img_size=64, **arguments, **options),
            **copy.deepcopy(FRAMEWORK_MODELS[type]),
        )
    ).train()
    samples = (
        [DataSample().set_gt_label(1) for _ in range(2)]
        if 'Image' in type
        else [
            SegDataSample(gt_sem_seg=PixelData(data=torch.ones(1, 64, 48, dtype=torch.long)))
            for _ in range(2)
        ]
    )
    seen = []
    handle = model.backbone.register_forward_hook(
        lambda module, args, output: seen.append(output.feats)
    )
    losses = model.loss(images().float(), samples)
    assert len(seen) == 1 and len(seen[0]) == len(model.backbone.out_indices)
    handle.remove()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    model.backbone = torch.compile(model.backbone, backend=backend, fullgraph=True)
    for key, value in model.loss(images().float(), samples).items():
        torch.testing.assert_close(value, losses[key])
    assert graphs


@pytest.mark.parametrize('name', ['absvit', 'absvit_fan', 'absvit_rvt'])
def test_class_activation_maps_find_the_pass_that_predicts(name):
    """As pytorch-grad-cam, and with it MMPretrain's ``vis_cam.py``, reads a layer."""
    backbone = build(name, out_type='pooled', alpha=20.0).eval()
    trunk, activations, gradients, inputs = backbone.trunk, [], [], []

    def keep(module, args, output):
        activations.append(output)
        output.register_hook(lambda gradient: gradients.insert(0, gradient))

    trunk.top_down_tokens.register_forward_hook(keep)
    trunk.blocks[-1].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    backbone(images())[0].square().sum().backward()
    first, second = inputs
    assert torch.equal(activations[0], second) and different([first], [second])
    maps = (gradients[0] * activations[0])[:, backbone.num_extra_tokens :].sum(dim=2)
    side = trunk.patch_embed.patch_size * (2 if name == 'absvit_rvt' else 1)
    assert maps.shape == (2, (64 // side) * -(-48 // side))
    assert maps.any(dim=1).all()


@pytest.mark.parametrize('readout', ['ignore', 'add', 'project'])
def test_dpt_heads_read_pairs_of_map_and_class_token(readout):
    pytest.importorskip('mmseg.models', exc_type=ImportError)
    backbone = dict(
        type='mmvars.AbSViT',
        arch=dict(FLAT, num_layers=4),
        img_size=64,
        out_indices=(0, 1, 2, 3),
        out_type='featmap_cls_token',
    )
    head = dict(
        type='mmseg.DPTHead',
        in_channels=(24,) * 4,
        in_index=(0, 1, 2, 3),
        input_transform='multiple_select',
        channels=8,
        embed_dims=24,
        post_process_channels=[8] * 4,
        readout_type=readout,
        num_classes=3,
        norm_cfg=dict(type='GN', num_groups=2),
    )
    model = ROOT.build(dict(type='mmvars.EncoderDecoder', backbone=backbone, decode_head=head))
    pairs = model.backbone(images().float())
    tokens = model.backbone.network(images().float(), out_indices=(0,)).second
    for maps, token in pairs:
        assert maps.shape == (2, 24, 4, 3) and token.shape == (2, 24)
    assert torch.equal(pairs[0][1], tokens.intermediates[0][:, 0])
    assert torch.equal(pairs[-1][1], tokens.tokens[:, 0])  # normalized
    model(images().float(), mode='tensor').sum().backward()
    assert (model.backbone.trunk.cls_token.grad != 0).any()
    with pytest.raises(InputError, match="out_type='featmap_cls_token' needs a class token"):
        build('rvt', out_type='featmap_cls_token')
