"""State dicts of mmvars 0.1 load into every network, strictly."""

import copy

import pytest
import torch
from torch import nn

from mmvars.networks import create_model, rename_old_keys

SMALL = {
    'vit_tiny_patch16': dict(embed_dim=24, depth=2, num_heads=2),
    'rvt_tiny': dict(embed_dim=(24, 48), depth=(2, 1), num_heads=(2, 4)),
    'fan_tiny': dict(embed_dim=24, depth=2, num_heads=2),
}
CASES = [
    (name, top_down, mixer)
    for name in SMALL
    for top_down in (None, 'absvit', 'absvit_qkv', 'feedback', 'mask_attention', 'perceiver_io')
    for mixer in ((None, 'vars_s') if name == 'rvt_tiny' else (None,))
]


def small(name, top_down, mixer):
    return create_model(
        name, top_down, mixer=mixer, num_classes=5, img_size=64, **SMALL[name]
    ).eval()


def old_key(key: str, plain: bool) -> str:
    """The name in 0.1, written out by hand."""
    if key.startswith('feedback.decoders.'):
        return key.replace('.to_below.weight', '.chain.weight').replace(
            '.to_value.weight', '.readout.weight'
        )
    if key.startswith('feedback.upsamples.'):
        return key.replace('feedback.upsamples.', 'feedback.crossings.')
    if key.endswith('.attn.lipschitz'):
        key = key.replace('.attn.lipschitz', '.attn.step_bound')
    return f'trunk.{key}' if plain else key


def old_state(network, plain: bool) -> dict:
    return {
        old_key(key, plain): value + torch.rand(()).to(value.dtype)
        for key, value in network.state_dict().items()
    }


@pytest.mark.parametrize(('name', 'top_down', 'mixer'), CASES)
def test_old_state_dicts_load_strictly(name, top_down, mixer):
    network, plain = small(name, top_down, mixer), top_down is None
    state = old_state(network, plain)
    keys = list(state)
    assert (set(keys) != set(network.state_dict())) == (
        plain or 'feedback.decoders.0.chain.weight' in keys or mixer == 'vars_s'
    )
    network.load_state_dict(state, strict=True)
    assert list(state) == keys  # the file's own dict is left as it is
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[old_key(key, plain)]), key
    again = small(name, top_down, mixer)
    again.load_state_dict(network.state_dict(), strict=True)
    for key, value in again.state_dict().items():
        assert torch.equal(value, network.state_dict()[key])


@pytest.mark.parametrize(('name', 'top_down', 'mixer'), CASES)
def test_inside_another_module_and_by_assignment(name, top_down, mixer):
    model = nn.ModuleDict(dict(network=small(name, top_down, mixer), head=nn.Linear(3, 3)))
    plain = top_down is None
    state = {f'network.{key}': value for key, value in old_state(model['network'], plain).items()}
    state |= copy.deepcopy(model['head']).state_dict(prefix='head.')
    model.load_state_dict(state, strict=True, assign=True)
    for key, value in model['network'].state_dict().items():
        assert torch.equal(value, state['network.' + old_key(key, plain)])


@pytest.mark.parametrize('top_down', [None, 'absvit'])
def test_missing_and_foreign_keys_are_named(top_down):
    network = small('rvt_tiny', top_down, 'vars_s')
    state = old_state(network, top_down is None)
    dropped = next(key for key in state if key.endswith(('.step_bound', '.chain.weight')))
    new_name = rename_old_keys([dropped], top_down is None)[dropped]
    del state[dropped]
    state['trunk.mystery.chain.weight'] = torch.ones(1)
    with pytest.raises(RuntimeError) as error:
        network.load_state_dict(state)
    assert 'mystery' in str(error.value) and new_name in str(error.value)
    assert new_name.endswith(('.lipschitz', '.to_below.weight'))


def test_renaming():
    names = {
        'feedback.decoders.11.chain.weight': 'feedback.decoders.11.to_below.weight',
        'feedback.decoders.0.readout.weight': 'feedback.decoders.0.to_value.weight',
        'feedback.crossings.9.conv.bias': 'feedback.upsamples.9.conv.bias',
        'trunk.stages.1.blocks.0.attn.step_bound': 'trunk.stages.1.blocks.0.attn.lipschitz',
        'trunk.blocks.3.attn.qkv.weight': 'trunk.blocks.3.attn.qkv.weight',
        'prior.query': 'prior.query',
    }
    assert rename_old_keys(names, plain=False) == names
    assert rename_old_keys(names.values(), plain=False) == {name: name for name in names.values()}
    assert rename_old_keys(
        ['trunk.blocks.3.attn.step_bound', 'trunk.cls_token', 'norm.bias'], plain=True
    ) == {
        'trunk.blocks.3.attn.step_bound': 'blocks.3.attn.lipschitz',
        'trunk.cls_token': 'cls_token',
        'norm.bias': 'norm.bias',
    }
