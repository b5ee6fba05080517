"""Tools of others on every backbone: what replaces, wraps or hooks a layer acts in every pass.

The networks call their linear layers instead of reading their weights, except where a layer is
exactly ``nn.Linear`` without hooks; their parameters lie in memory as usual.
"""

import copy
import io

import pytest
import torch
from mmengine.registry import MODELS as ROOT
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from mmengine.structures import PixelData
from torch import nn
from torch.nn.utils import parametrizations, prune

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
QUERY_KEY_VALUE = {
    'vars_d': ['qv'],
    'vars_sd': ['qv'],
    'absvit_vars_sd': ['qv'],
    'vars_s': ['attn.proj'],
    'gfnet': ['mlp.fc1'],
    'fan': ['q', 'kv'],
    'absvit_fan': ['q', 'kv'],
}
"""Names of the layers that a user of LoRA would choose, where they are not ``qkv``."""

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


def linear_layers(backbone):
    return {
        name: module for name, module in backbone.named_modules() if isinstance(module, nn.Linear)
    }


def replace(backbone, name, module):
    parent, _, child = name.rpartition('.')
    setattr(backbone.get_submodule(parent), child, module)


def close(a, b, tolerance=1e-5):
    for x, y in zip(a, b, strict=True):
        assert x.isfinite().all()
        assert ((x - y).abs().max() / y.abs().max()).item() <= tolerance


def different(a, b):
    return any((x - y).abs().max() > 1e-2 * y.abs().max() for x, y in zip(a, b, strict=True))


class Doubled(nn.Module):
    """Stands for whatever wraps a linear layer: it has no ``weight``."""

    def __init__(self, linear):
        super().__init__()
        self.inside = linear

    def forward(self, x):
        return 2 * self.inside(x)


@every_backbone
@torch.no_grad()
def test_a_layer_that_is_wrapped_acts_like_one_with_other_weights(name):
    wrapped, weighted = build(name).eval(), build(name).eval()
    before = wrapped(images())
    for key, linear in linear_layers(weighted).items():
        replace(wrapped, key, Doubled(wrapped.get_submodule(key)))
        linear.weight.mul_(2)
        if linear.bias is not None:
            linear.bias.mul_(2)
    close(wrapped(images()), weighted(images()))
    assert different(before, weighted(images()))
    wrapped.fuse()
    close(wrapped(images()), weighted(images()))


@pytest.mark.parametrize(
    'name, feedback',
    [
        (name, feedback)
        for name in BACKBONES
        for feedback in (False, True)
        if name.startswith('absvit') or not feedback
    ],
)
def test_peft_lora(name, feedback):
    peft = pytest.importorskip('peft')
    targets = ['to_below', 'to_value'] if feedback else QUERY_KEY_VALUE.get(name, ['qkv'])
    backbone = build(name, out_type='pooled').eval()
    plain = backbone(images())
    model = peft.get_peft_model(
        backbone,
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False),
    )
    for key, parameter in model.named_parameters():
        if 'lora_B' in key:
            parameter.data.mul_(8)
    model.double().train()
    sum(x.square().sum() for x in model(images())).backward()
    adapters = {key: p for key, p in model.named_parameters() if 'lora_' in key}
    assert adapters and all(p.grad is not None and p.grad.any() for p in adapters.values())
    assert {key for key, p in model.named_parameters() if p.requires_grad} == set(adapters)
    model.eval()
    with torch.no_grad():
        before = model(images())
        merged = model.merge_and_unload().eval()
        close(merged(images()), before)
        merged.fuse()
        close(merged(images()), before)
    assert different(before, plain)


@every_backbone
def test_mmpretrain_lora(name):
    pytest.importorskip('mmpretrain.models', exc_type=ImportError)
    cls, arguments = BACKBONES[name]
    targets = [dict(type=f'.*{target}') for target in QUERY_KEY_VALUE.get(name, ['qkv'])]
    torch.manual_seed(1)
    model = (
        ROOT.build(
            dict(
                type='mmpretrain.LoRAModel',
                alpha=8,
                rank=4,
                targets=targets,
                module=dict(
                    type=f'mmvars.{cls.__name__}', img_size=64, out_type='pooled', **arguments
                ),
            )
        )
        .double()
        .train()
    )
    for key, parameter in model.named_parameters():
        if 'lora_up' in key:
            nn.init.normal_(parameter)
    sum(x.square().sum() for x in model(images())).backward()
    adapters = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert adapters and all(p.grad.any() for p in adapters.values())
    model.eval()
    with torch.no_grad():
        before = model(images())
        for key, module in list(model.module.named_modules()):
            if type(module).__name__ == 'LoRALinear':
                linear = module.original_layer
                linear.weight.add_(module.scaling * module.lora_up.weight @ module.lora_down.weight)
                replace(model.module, key, linear)
        close(model(images()), before)


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
@torch.no_grad()
def test_dynamic_quantization(name):
    backbone = build(name).float().eval()
    small = torch.ao.quantization.quantize_dynamic(copy.deepcopy(backbone), {nn.Linear})
    layers = [
        m
        for m in small.modules()
        if type(m).__module__.endswith('quantized.dynamic.modules.linear')
    ]
    assert len(layers) == len(linear_layers(backbone))
    for x, y in zip(small(images().float()), backbone(images().float()), strict=True):
        assert x.isfinite().all() and (x - y).norm() < 0.25 * y.norm()


@every_backbone
def test_pruning_and_weight_norm_then_training(name):
    """Masks act by hooks before a layer's call, weight norm by a property in place of a weight."""
    backbone = build(name).train()
    for linear in linear_layers(backbone).values():
        prune.l1_unstructured(linear, 'weight', amount=0.3)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1e-4)
    for _ in range(2):
        optimizer.zero_grad()
        sum(x.square().mean() for x in backbone(images())).backward()
        optimizer.step()
    backbone.eval()
    with torch.no_grad():
        before = backbone(images())
        for linear in linear_layers(backbone).values():
            prune.remove(linear, 'weight')
            assert (linear.weight == 0).float().mean() > 0.25
        close(backbone(images()), before)
    for linear in linear_layers(backbone).values():
        parametrizations.weight_norm(linear)
    close(backbone(images()), before)
    sum(x.square().mean() for x in backbone.train()(images())).backward()
    assert all(
        linear.parametrizations.weight.original0.grad is not None
        for linear in linear_layers(backbone).values()
    )


@every_backbone
def test_hooks_are_called_in_training(name):
    """On the backbone and on every linear layer: once a pass, and what they return is used."""
    backbone = build(name).train()
    passes = 2 if name.startswith('absvit') else 1
    calls = dict.fromkeys(linear_layers(backbone), 0)

    def count(key):
        def hook(module, args, output):
            calls[key] += 1

        return hook

    for key, linear in linear_layers(backbone).items():
        linear.register_forward_hook(count(key))
    outputs = []
    backbone.register_forward_hook(lambda module, args, output: outputs.append(output))
    feats = backbone(images(), return_losses=True).feats
    assert outputs[0].feats is feats
    assert all(number >= (1 if 'feedback' in key else passes) for key, number in calls.items())
    before = [feat.detach() for feat in feats]
    for linear in linear_layers(backbone).values():
        linear.register_forward_hook(lambda module, args, output: 2 * output)
    assert different(before, backbone(images()))


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
