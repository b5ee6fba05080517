"""The table of adapters: tool x backbone x form (eval, fused, training).

Whatever replaces, wraps, hooks or computes the weight of a linear layer must act as the network
with the resulting weights does, in every pass. ``pytest -m '' -s`` of this file prints, for each
tool and backbone, the largest relative difference of outputs (and in training of gradients).
"""

import copy
import warnings
from collections.abc import Iterator

import pytest
import tiny_timm
import torch
from mmengine.registry import MODELS as ROOT
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import mmvars.models

FLAT = dict(embed_dims=16, num_layers=2, num_heads=2)
STAGES = dict(embed_dims=[8, 16], num_layers=[1, 1], num_heads=[2, 2], trunk='rvt')
DEIT = dict(FLAT, trunk='deit_convstem')
BACKBONES = {
    'vit': ('ViT', dict(arch=FLAT)),
    'absvit': ('AbSViT', dict(arch=FLAT)),
    'absvit_qkv': ('AbSViT', dict(arch=FLAT, design='absvit_qkv')),
    'absvit_one_bias': ('AbSViT', dict(arch=FLAT, double_value_bias=False)),
    'absvit_feedback': ('AbSViT', dict(arch=FLAT, design='feedback')),
    'absvit_mask': ('AbSViT', dict(arch=FLAT, design='mask_attention')),
    'absvit_rvt': ('AbSViT', dict(arch=STAGES)),
    'absvit_rvt_plus': ('AbSViT', dict(arch=STAGES, mixer='masked_attention')),
    'absvit_fan': ('AbSViT', dict(arch=dict(FLAT, trunk='fan'))),
    'absvit_deit_vars_d': ('AbSViT', dict(arch=DEIT, mixer='vars_d')),
    'absvit_deit_performer': ('AbSViT', dict(arch=DEIT, mixer='performer')),
    'absvit_rvt_vars_sd': ('AbSViT', dict(arch=STAGES, mixer='vars_sd')),
    'absvit_rvt_vars_s': (
        'AbSViT',
        dict(arch=STAGES, mixer='vars_s', mixer_cfg=dict(sparsity=0.1)),
    ),
    'absvit_timm_vit': ('AbSViT', dict(arch='timm/tiny_dinov2_reg')),
    'absvit_timm_eva': ('AbSViT', dict(arch='timm/tiny_eva02_clip')),
    'absvit_timm_rope': ('AbSViT', dict(arch='timm/tiny_sapiens2')),
    'absvit_timm_beit': ('AbSViT', dict(arch='timm/tiny_beit')),
    'vit_timm_beit': ('ViT', dict(arch='timm/tiny_beit_shared')),
    'rvt': ('VARS', dict(arch=STAGES, mixer=None)),
    'performer': ('VARS', dict(arch=STAGES, mixer='performer')),
    'vars_d': ('VARS', dict(arch=STAGES, mixer='vars_d')),
    'vars_sd': ('VARS', dict(arch=STAGES, mixer='vars_sd')),
    'vars_s': ('VARS', dict(arch=STAGES, mixer='vars_s', mixer_cfg=dict(sparsity=0.1))),
    'gfnet': ('GFNet', dict(arch=FLAT)),
    'fan': ('FAN', dict(arch=FLAT)),
}
FEW = ('absvit', 'absvit_fan', 'absvit_rvt_vars_s')
TABLE: dict[tuple[str, str], list[str]] = {}


def build(name):
    """In float64, so that only what is wrong differs, and with every path making a difference."""
    cls, arguments = BACKBONES[name]
    torch.manual_seed(1)
    backbone = getattr(mmvars.models, cls)(img_size=64, out_type='pooled', **arguments).double()
    if hasattr(getattr(backbone.network, 'feedback', None), 'decoders'):
        backbone.reconstruction_loss_weight = 0.1
        for decoder in backbone.network.feedback.decoders:
            nn.init.constant_(getattr(decoder, 'gate', torch.zeros(1)), 0.7)
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.mul_(4)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
    if 'timm' in name:
        tiny_timm.randomize(backbone.trunk)
    if getattr(backbone.network, 'prior', None) is not None:  # one that most tokens have a part of
        with torch.no_grad():
            tokens = backbone.trunk(images()).tokens
            backbone.network.prior.query.copy_(tokens.mean(dim=(0, 1)) + 0.1)
    return backbone


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


def with_layers(backbone, make):
    for name, linear in linear_layers(backbone).items():
        replace(backbone, name, make(linear))
    return backbone


@torch.no_grad()
def doubled_weights(backbone):
    for linear in linear_layers(backbone).values():
        for parameter in linear.parameters():
            parameter.mul_(2)
    return backbone


@torch.no_grad()
def computed_weights(backbone, adapted):
    """``backbone`` with the weights that the layers of ``adapted`` compute when called."""
    adapted.eval()(images())
    layers = linear_layers(adapted)
    for name, linear in linear_layers(backbone).items():
        linear.weight.copy_(layers[name].weight)
    return backbone


class Doubled(nn.Module):
    """Has no ``weight``."""

    def __init__(self, linear):
        super().__init__()
        self.inside = linear

    def forward(self, x):
        return 2 * self.inside(x)


class DoubledLinear(nn.Linear):
    """Has a ``weight``, which is not all that acts."""

    def forward(self, x):
        return 2 * super().forward(x)

    @classmethod
    def of(cls, linear):
        linear.__class__ = cls
        return linear


def wrapped(backbone):
    twin = doubled_weights(copy.deepcopy(backbone))
    return with_layers(backbone, Doubled), twin


def subclassed(backbone):
    twin = doubled_weights(copy.deepcopy(backbone))
    return with_layers(backbone, DoubledLinear.of), twin


def in_sequential(backbone):
    twin = doubled_weights(copy.deepcopy(backbone))
    return with_layers(doubled_weights(backbone), nn.Sequential), twin


def without_bias(backbone):
    twin = copy.deepcopy(backbone)
    for linear, other in zip(
        linear_layers(backbone).values(), linear_layers(twin).values(), strict=True
    ):
        if linear.bias is not None:
            linear.bias = None
            nn.init.zeros_(other.bias)
    return backbone, twin


def hooked(backbone):
    twin = doubled_weights(copy.deepcopy(backbone))
    for linear in linear_layers(backbone).values():
        linear.register_forward_hook(lambda module, args, output: 2 * output)
    return backbone, twin


def pre_hooked(backbone):
    twin = copy.deepcopy(backbone)
    for linear, other in zip(
        linear_layers(backbone).values(), linear_layers(twin).values(), strict=True
    ):
        linear.register_forward_pre_hook(lambda module, args: (2 * args[0],))
        other.weight.data.mul_(2)
    return backbone, twin


def computing(register):
    def tool(backbone):
        twin = copy.deepcopy(backbone)
        for linear in linear_layers(backbone).values():
            register(linear)
        return backbone, computed_weights(twin, backbone)

    return tool


def compiled(backbone):
    twin = doubled_weights(copy.deepcopy(backbone))
    doubled_weights(backbone)
    return with_layers(backbone, lambda linear: torch.compile(linear, backend='eager')), twin


def pruned(linear):
    prune.l1_unstructured(linear, 'weight', amount=0.3)


def half_length(linear):
    weight_norm(linear)
    linear.weight_g.data.mul_(0.5)


def half_length_parametrized(linear):
    parametrizations.weight_norm(linear)
    linear.parametrizations.weight.original0.data.mul_(0.5)


def mmpretrain_lora(backbone):
    pytest.importorskip('mmpretrain.models', exc_type=ImportError)
    twin = copy.deepcopy(backbone)
    backbone._is_init = True  # LoRAModel initializes it otherwise
    names = ('qkv', 'attn.*', 'to_below', 'to_value', 'mlp.fc1')
    model = ROOT.build(
        dict(
            type='mmpretrain.LoRAModel',
            module=dict(type=lambda: backbone),
            alpha=8,
            rank=4,
            targets=[dict(type=f'.*{name}') for name in names],
        )
    ).double()
    for key, parameter in model.named_parameters():
        if 'lora_up' in key:
            nn.init.normal_(parameter, std=0.3)
    for key, module in model.module.named_modules():
        if type(module).__name__ == 'LoRALinear':
            product = module.scaling * module.lora_up.weight @ module.lora_down.weight
            twin.get_submodule(key).weight.data.add_(product.detach())
    return model, twin


def peft_lora(*names):
    def tool(backbone):
        peft = pytest.importorskip('peft')
        targets = [
            key
            for key in linear_layers(backbone)
            if not names or any(name in key for name in names)
        ]
        config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
        model = peft.get_peft_model(backbone, config).double()
        return model, copy.deepcopy(model).merge_and_unload()

    return tool


TOOLS = {
    'wrapped': wrapped,
    'subclass of Linear': subclassed,
    'in nn.Sequential': in_sequential,
    'bias=None': without_bias,
    'torch.compile of each layer': compiled,
    'forward hook': hooked,
    'forward pre-hook': pre_hooked,
    'prune': computing(pruned),
    'weight_norm by hook': computing(half_length),
    'spectral_norm by hook': computing(spectral_norm),
    'weight_norm parametrized': computing(half_length_parametrized),
    'spectral_norm parametrized': computing(parametrizations.spectral_norm),
    'LoRA of mmpretrain': mmpretrain_lora,
    'LoRA of peft, attention': peft_lora('attn.', 'blocks.0.mlp.fc1'),
    'LoRA of peft, all linear': peft_lora(),
}
EACH_LAYER = 'torch.compile of each layer'
SLOW = (EACH_LAYER, 'LoRA of peft, attention', 'LoRA of peft, all linear')  # peft is slow to import
CASES = [
    pytest.param(tool, name, marks=() if name in FEW and tool not in SLOW else pytest.mark.slow)
    for tool in TOOLS
    for name in BACKBONES
    if name in FEW or tool != EACH_LAYER
]
every_backbone = pytest.mark.parametrize(
    'name',
    [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in BACKBONES],
)


@pytest.fixture(scope='module', autouse=True)
def table() -> Iterator[None]:
    yield
    width = max(map(len, TOOLS)) + 2
    print(f'\n{"":{width}}{"":24}eval    fused   training')
    for (tool, name), results in TABLE.items():
        print(f'{tool:{width}}{name:24}{" ".join(results)}')


def difference(a, b) -> float:
    """The largest of tensors, relative to the largest entry of the second."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        assert x.isfinite().all()
        worst = max(worst, ((x - y).abs().max() / y.abs().max().clamp_min(1e-9)).item())
    return worst


def train(backbone, model):
    """Outputs of both passes, and gradients of what is in no linear layer."""
    parts = (backbone.trunk.patch_embed, *(block.norm2 for block in backbone.trunk.blocks))
    for part in parts:
        part.requires_grad_()  # which LoRA freezes
    torch.manual_seed(3)  # random features are drawn in the forward
    output = model.train()(images(), return_losses=True)
    feats = (*output.feats, *(output.first_pass_feats or ()))
    (sum(x.square().sum() for x in feats) + sum(output.losses.values())).backward()
    gradients = [p.grad for part in parts for p in part.parameters() if p.grad is not None]
    return [x.detach() for x in feats], gradients


@pytest.mark.parametrize(('tool', 'name'), CASES)
def test_adapters(tool, name):
    plain = build(name).eval()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # of hook-based norms
        adapted, merged = TOOLS[tool](copy.deepcopy(plain))
    backbone = next(m for m in adapted.modules() if isinstance(m, mmvars.models.base.Backbone))
    with torch.no_grad():
        expected = merged.eval()(images())
        results = [difference(adapted.eval()(images()), expected)]
        assert difference(expected, plain(images())) > 1e-2, 'the tool does nothing'
        backbone.fuse()
        results.append(difference(adapted(images()), expected))
    feats, gradients = train(backbone, adapted)
    if 'spectral_norm' not in tool:  # whose weights move in training mode
        results.append(difference(feats + gradients, sum(train(merged, merged), [])))
    if 'hook' in tool or tool == 'prune':  # what hooks compute is computed anew in each step
        train(backbone, adapted)
    TABLE[tool, name] = [f'{result:.0e}' for result in results]
    assert max(results) < 1e-6, results
    linear = ('lora', 'qkv', 'attn.', 'to_value', 'to_below', 'mlp.')
    for key, parameter in adapted.named_parameters():
        if parameter.requires_grad and any(part in key for part in linear):
            assert parameter.grad is not None, key
            assert parameter.grad.any() or key.endswith('bias'), key


@every_backbone
@torch.no_grad()
def test_dynamic_quantization(name):
    """torch.ao: int8 weights and activations in every linear layer; close to float32."""
    backbone = build(name).float().eval()
    expected = backbone(images().float())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        small = torch.ao.quantization.quantize_dynamic(copy.deepcopy(backbone), {nn.Linear})
    kinds = [type(m).__module__ for m in small.modules()]
    quantized = [kind for kind in kinds if kind.endswith('quantized.dynamic.modules.linear')]
    assert len(quantized) == len(linear_layers(backbone))
    worst = []
    for _ in ('eval', 'fused'):
        for x, y in zip(small(images().float()), expected, strict=True):
            worst.append(((x - y).norm() / y.norm()).item())
        small.fuse()
    TABLE['int8 of torch.ao', name] = [f'{result:.0e}' for result in worst]
    assert all(0 < result < 0.25 for result in worst), worst


@every_backbone
@torch.no_grad()
def test_weight_only_quantization(name):
    """torchao: int8 weights as tensor subclasses."""
    quantization = pytest.importorskip('torchao.quantization')
    backbone = build(name).float().eval()
    expected = backbone(images().float())
    quantization.quantize_(backbone, quantization.Int8WeightOnlyConfig())
    for _ in ('eval', 'fused'):
        for x, y in zip(backbone(images().float()), expected, strict=True):
            assert 0 < (x - y).norm() < 0.25 * y.norm()
        backbone.fuse()


@every_backbone
@torch.no_grad()
def test_offloading(name):
    """accelerate: weights that are on the device during a forward only."""
    offload = pytest.importorskip('accelerate').cpu_offload
    backbone = build(name).eval()
    expected = backbone(images())
    # The forward of timm's network, whose tokens and positions a trunk reads, is not called.
    offload(backbone, 'cpu', preload_module_classes=['AbSViT', 'TimmTrunk'])
    assert {parameter.device.type for parameter in backbone.parameters()} == {'meta'}
    torch.testing.assert_close(backbone(images()), expected)


@every_backbone
def test_hooks_are_called_in_every_pass(name):
    """In training, evaluation and fused."""
    backbone = build(name)
    layers = linear_layers(backbone)
    passes = 2 if name.startswith('absvit') else 1
    before: list[str] = []
    after: list[str] = []

    def run():
        before.clear(), after.clear()
        output = backbone(images(), return_losses=backbone.training)
        for key in layers:
            expected = 1 if 'feedback' in key or 'cls_attn' in key else passes
            assert before.count(key) == after.count(key) >= expected, key
        return output

    backbone.eval().fuse()
    for key, linear in layers.items():
        linear.register_forward_pre_hook(lambda *_, key=key: before.append(key))
        linear.register_forward_hook(lambda *_, key=key: after.append(key))
    seen: list = []
    backbone.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        fused = run()
    evaluated = run()
    backbone.train()
    trained = run()
    assert seen == [fused, evaluated, trained]  # as a hook on the backbone sees them


@torch.no_grad()
def test_decoders_that_are_hooked_or_replaced_are_called_also_when_fused():
    backbone, calls = build('absvit').eval(), []
    before = backbone(images())
    decoders = backbone.network.feedback.decoders
    decoders[0].register_forward_hook(lambda module, *_: calls.append(module))
    backbone.fuse()
    backbone(images())
    assert calls == [decoders[0]]

    class Silent(type(decoders[0])):
        def forward(self, tokens):
            return tuple(0 * x for x in super().forward(tokens))

    decoders[0]._forward_hooks.clear()
    decoders[1].__class__ = Silent
    backbone.fuse()
    assert difference(backbone(images()), before) > 1e-2
