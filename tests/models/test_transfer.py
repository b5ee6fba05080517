"""Every choice of ``transfer`` trains what it says and nothing else, on every trunk."""

import copy
import pickle

import pytest
import torch

from mmvars.errors import InputError
from mmvars.models import FAN, RVT, VARS, AbSViT, GFNet, ViT
from mmvars.models.transfer import BOTTOM_UP_TRANSFERS, TRANSFERS, added_names

FLAT = dict(embed_dims=16, num_layers=2, num_heads=2)
STAGES = dict(embed_dims=[8, 16], num_layers=[1, 1], num_heads=[2, 2])
BACKBONES = {
    'vit': (ViT, dict(arch=FLAT)),
    'absvit': (AbSViT, dict(arch=FLAT)),
    'absvit_rvt': (AbSViT, dict(arch=dict(STAGES, trunk='rvt'))),
    'absvit_fan': (AbSViT, dict(arch=dict(FLAT, trunk='fan'))),
    'rvt': (RVT, dict(arch=STAGES)),
    'vars_sd': (VARS, dict(arch=dict(STAGES, trunk='rvt'))),
    'vars_s': (VARS, dict(arch=dict(STAGES, trunk='rvt'), mixer='vars_s')),
    'gfnet': (GFNet, dict(arch=FLAT)),
    'fan': (FAN, dict(arch=FLAT)),
}
NO_PROMPTS = ('absvit_rvt', 'absvit_fan', 'rvt', 'vars_sd', 'vars_s', 'gfnet', 'fan')
CASES = [
    (name, transfer)
    for name, (cls, _) in BACKBONES.items()
    for transfer in (TRANSFERS if cls is AbSViT else BOTTOM_UP_TRANSFERS)
    if transfer != 'prompt' or name not in NO_PROMPTS
    if transfer != 'lora' or name != 'gfnet'  # it has no attention
]


def build(name, transfer='end2end', **options):
    if transfer in ('lora', 'top-down-lite'):
        pytest.importorskip('peft')
    cls, arguments = BACKBONES[name]
    if transfer == 'prompt' and cls in (ViT, AbSViT):
        options['prompt_cfg'] = dict(num_tokens=3)
    torch.manual_seed(1)
    return cls(**arguments, img_size=32, transfer=transfer, **options)


def images():
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(2))


def expected(transfer, name):
    """By hand, for names of parameters that start with the part."""
    part, leaf = name.split('.')[0], name.split('.')[-1]
    if transfer in ('end2end', 'linear'):
        return transfer == 'end2end'
    if part == 'prior':
        return True
    if transfer in ('top-down', 'top-down-lite'):
        return part == 'feedback' and (transfer == 'top-down' or 'lora' in name or leaf == 'gate')
    return (
        part == 'trunk'
        and {
            'bias': leaf in ('bias', 'q_bias', 'v_bias') and 'lora' not in name,
            'prompt': 'prompt_embeddings' in name,
            'lora': 'lora' in name,
        }[transfer]
    )


@pytest.mark.parametrize('name, transfer', CASES)
def test_what_trains_gets_a_gradient_and_nothing_else(name, transfer):
    backbone = build(name, transfer).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    features = backbone(images())
    loss = sum(feature.square().mean() for feature in features)
    assert loss.requires_grad == (transfer != 'linear')
    if loss.requires_grad:
        loss.backward()
    plain = name in ('vit', 'rvt', 'vars_sd', 'vars_s', 'gfnet', 'fan')
    names = []
    for key, parameter in backbone.network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
        if transfer != 'end2end':
            assert parameter.requires_grad == expected(transfer, 'trunk.' * plain + key), key
        names += [key] * parameter.requires_grad
    assert bool(names) == (transfer != 'linear')
    if transfer == 'end2end':
        return
    after = backbone.state_dict()  # batch norms and running bounds of a frozen trunk rest
    assert all(torch.equal(before[key], after[key]) for key in before)
    if transfer != 'prompt':  # prompts have no other mode
        assert all(
            torch.equal(a, b) for a, b in zip(features, backbone.eval()(images()), strict=True)
        )


@pytest.mark.parametrize('transfer', ['linear', 'bias', 'top-down', 'prompt'])
def test_a_frozen_trunk_drops_no_paths(transfer):
    backbone = build('absvit', transfer, drop_path_rate=0.5).train()
    assert torch.equal(backbone(images())[0], backbone(images())[0])
    assert backbone.trunk.training and not backbone.trunk.blocks[1].training
    assert backbone.trunk.prompt_dropout.training
    other = build('absvit', drop_path_rate=0.5).train()
    assert not torch.equal(other(images())[0], other(images())[0])


class TestLoRA:
    @pytest.fixture(params=['lora', 'top-down-lite'])
    def transfer(self, request):
        return request.param

    def test_it_starts_as_the_network_and_keeps_its_names(self, transfer):
        plain, lora = build('absvit').eval(), build('absvit', transfer).eval()
        names = plain.state_dict().keys()
        added = lora.state_dict().keys() - names
        assert names <= lora.state_dict().keys() and all('.lora_' in name for name in added)
        assert added == {f'network.{name}' for name in added_names(lora.network)}
        lora.load_state_dict(plain.state_dict(), strict=False)
        torch.testing.assert_close(plain(images())[0], lora(images())[0])
        for parameter in lora.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.5)
        plain.network.prior.load_state_dict(lora.network.prior.state_dict())
        assert not torch.allclose(plain(images())[0], lora(images())[0])
        for twin in (
            copy.deepcopy(lora),
            pickle.loads(pickle.dumps(lora)),
            build('absvit', transfer),
        ):
            twin.load_state_dict(lora.state_dict())
            assert twin.state_dict().keys() == lora.state_dict().keys()
            assert torch.equal(twin.eval()(images())[0], lora(images())[0])
        lora.fuse()
        torch.testing.assert_close(lora(images())[0], twin(images())[0])

    @pytest.mark.slow
    def test_fused_compiled_and_exported(self, transfer):
        lora = build('absvit', transfer).train()
        for parameter in lora.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.5)
        compiled = torch.compile(lora, fullgraph=True, backend='eager')
        torch.testing.assert_close(compiled(images())[0], lora(images())[0])
        with torch.no_grad():
            expected = lora.eval()(images())[0]
            lora.fuse()
            torch.testing.assert_close(lora(images())[0], expected)
            exported = torch.export.export(lora, (images(),)).module()
            torch.testing.assert_close(exported(images())[0], expected)

    def test_a_file_without_it_fills_the_rest(self, transfer, tmp_path):
        plain = build('absvit')
        torch.save(plain.state_dict(), tmp_path / 'plain.pth')
        file = dict(type='Pretrained', checkpoint=str(tmp_path / 'plain.pth'))
        lora = build('absvit', transfer, init_cfg=file)
        torch.nn.init.zeros_(lora.trunk.blocks[0].norm1.weight)
        lora.init_weights()
        state = lora.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())

    def test_dropout_is_its_own(self, transfer):
        lora = build('absvit', transfer, lora_cfg=dict(lora_dropout=0.5)).train()
        for key, parameter in lora.named_parameters():
            if 'lora_B' in key:
                torch.nn.init.normal_(parameter)
        assert not torch.equal(lora(images())[0], lora(images())[0])
        lora.eval()
        assert torch.equal(lora(images())[0], lora(images())[0])

    def test_ranks_and_layers_are_those_of_the_config(self, transfer):
        target = 'attn.proj' if transfer == 'lora' else 'to_value'
        lora = build('absvit', transfer, lora_cfg=dict(r=2, target_modules=[target]))
        added = {name: lora.network.state_dict()[name] for name in added_names(lora.network)}
        assert len(added) == 4 and all(target in name for name in added)
        assert {min(value.shape) for value in added.values()} == {2}

    def test_depth_of_its_parameters(self, transfer):
        backbone = build('absvit', transfer)
        depths = {
            backbone.get_layer_depth(name)
            for name, parameter in backbone.named_parameters()
            if parameter.requires_grad
        }
        assert depths == {(1, 4), (2, 4), (3, 4)}


@pytest.mark.parametrize(
    'name, arguments, message',
    [
        ('vit', dict(transfer='top-down-lite'), "one of end2end, .*; got 'top-down-lite'"),
        (
            'gfnet',
            dict(transfer='lora'),
            'GFNet|VisionTransformer has none of the layers .*lora_cfg=dict',
        ),
        ('rvt', dict(transfer='prompt'), "transfer='prompt' is for backbones that take prompt_cfg"),
        ('vit', dict(transfer='bias', lora_cfg=dict(r=2)), "lora_cfg needs transfer='lora' or"),
        ('vit', dict(lora_cfg={}), "lora_cfg needs transfer='lora' or"),
        ('vit', dict(transfer='lora', lora_cfg=dict(rank=2)), r"unknown: \['rank'\]"),
        ('vit', dict(transfer='lora', lora_cfg=3), 'lora_cfg must be a dict .* got 3'),
        ('vit', dict(transfer='lora', lora_cfg=dict(r=0)), 'lora_cfg=.*should be a positive'),
        (
            'vit',
            dict(transfer='lora', lora_cfg=dict(target_modules=['qv'])),
            'has none of the layers that LoRA is to update, qv: name others in lora_cfg',
        ),
        ('absvit', dict(transfer='top-down', frozen_stages=1), 'frozen_stages=1 has no use with'),
        ('absvit', dict(transfer='bias', reconstruction_loss_weight=0.1), 'needs decoders that tr'),
        (
            'absvit',
            dict(transfer='top-down-lite', design='mask_attention'),
            "'top-down-lite' updates the decoders, which this design does not have: use",
        ),
        (
            'absvit',
            dict(transfer='top-down-lite', design='perceiver_io'),
            "'top-down-lite' updates the decoders, which this design does not have: use",
        ),
    ],
)
def test_mistakes_are_named(name, arguments, message):
    if 'lora' in str(arguments):
        pytest.importorskip('peft')
    with pytest.raises(InputError, match=message):
        build(name, **arguments)


def test_without_peft_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'peft', None)
    cls, arguments = BACKBONES['vit']
    with pytest.raises(InputError, match=r'LoRA needs peft: pip install "mmvars\[lora\]"'):
        cls(**arguments, transfer='lora')
