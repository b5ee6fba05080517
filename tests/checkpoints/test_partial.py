"""Files that hold a part of a network load on the trunk that they name, and on no other."""

import json

import pytest
import torch

from mmvars.checkpoints import load_pretrained, read_checkpoint, trunk_record, write_partial
from mmvars.checkpoints.io import read_meta
from mmvars.checkpoints.partial import recorded_trunk
from mmvars.checkpoints.report import CheckpointError
from mmvars.errors import InputError
from mmvars.networks import create_model

SIZE = dict(embed_dim=8, depth=2, num_heads=2, img_size=32, num_classes=0)


def _network(seed=0, name='absvit_tiny', **options):
    torch.manual_seed(seed)
    return create_model(name, **SIZE | options)


def _with_trunk_of(network, seed=1, **options):
    """Another network with the same trunk."""
    other = _network(seed, **options)
    other.trunk.load_state_dict(network.trunk.state_dict(), strict=False)
    return other


def _feedback(network):
    return {
        name: value for name, value in network.state_dict().items() if name.startswith('feedback.')
    }


@pytest.fixture(params=['decoders.pth', 'decoders.safetensors'])
def decoders(request, tmp_path):
    """A file with the decoders of a network, and the network."""
    network = _network()
    write_partial(tmp_path / request.param, network, _feedback(network), dict(note='law'))
    return tmp_path / request.param, network


def test_a_part_loads_on_its_trunk_and_all_else_stays(decoders):
    path, network = decoders
    other = _with_trunk_of(network)
    query = other.prior.query.clone()
    images = torch.randn(2, 3, 32, 48)
    assert not torch.equal(network(images, query)[0].tokens, other(images)[0].tokens)
    load_pretrained(other, path)
    assert torch.equal(other.prior.query, query)
    assert torch.equal(network(images, query)[0].tokens, other(images)[0].tokens)
    assert set(read_checkpoint(path).get('state_dict', read_checkpoint(path))) == {
        f'backbone.network.{name}' for name in _feedback(network)
    }
    assert read_meta(path, read_checkpoint(path))['note'] == 'law'


@pytest.mark.parametrize(
    'options',
    [
        dict(img_size=(64, 32)),
        dict(num_classes=5),
        dict(num_prompt_tokens=3, deep_prompts=True),
        dict(top_down='feedback', name='vit_tiny'),
    ],
    ids=lambda options: next(iter(options)),
)
def test_image_size_classifier_and_prompts_make_no_other_trunk(decoders, options):
    path, network = decoders
    other = _network(1, **options)
    grown = other.trunk.state_dict()
    for name, value in network.trunk.state_dict().items():
        if name != 'pos_embed':
            grown[name] = value
    other.trunk.load_state_dict(grown)
    load_pretrained(other, path)
    assert all(torch.equal(other.state_dict()[k], v) for k, v in _feedback(network).items())


@pytest.mark.parametrize('change', ['weight', 'bias of one', 'dtype', 'depth', 'seed'])
def test_another_trunk_is_refused_and_left_alone(decoders, change):
    path, network = decoders
    other = _with_trunk_of(network) if change in ('weight', 'bias of one', 'dtype') else None
    if change == 'weight':
        with torch.no_grad():
            other.trunk.blocks[1].attn.qkv.weight[3, 5] += 1e-7
    elif change == 'bias of one':
        torch.nn.init.constant_(other.trunk.blocks[0].mlp.fc1.bias, -0.0)  # as bytes: not +0.0
    elif change == 'dtype':
        other.trunk.double()
    else:
        other = _network(1, **(dict(depth=1) if change == 'depth' else {}))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(InputError, match=r'on the trunk vit_tiny \(weights .* pretrained='):
        load_pretrained(other, path)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_what_the_file_holds_of_the_trunk_itself_is_not_counted(tmp_path):
    network = _network()
    biases = {k: v for k, v in network.state_dict().items() if k.endswith('.bias')}
    assert any(name.startswith('trunk.') for name in biases)
    write_partial(tmp_path / 'biases.pth', network, biases)
    other = _with_trunk_of(network)
    for module in other.trunk.modules():
        if getattr(module, 'bias', None) is not None:
            torch.nn.init.constant_(module.bias, 7.0)
    load_pretrained(other, tmp_path / 'biases.pth')
    assert trunk_record(other) == trunk_record(network)


def test_a_layer_that_peft_has_wrapped_counts_as_before():
    network = _network()
    record = trunk_record(network)
    attention = network.trunk.blocks[0].attn
    wrapped = torch.nn.Module()  # by the names of peft.tuners.lora.Linear
    wrapped.base_layer = attention.qkv
    wrapped.lora_A = torch.nn.ModuleDict({'default': torch.nn.Linear(8, 2, bias=False)})
    attention.qkv = wrapped
    assert any('.lora_A.' in name for name in network.state_dict())
    assert trunk_record(network) == record


def test_the_name_is_the_one_that_was_typed():
    record = trunk_record(_network())
    assert record['name'] == 'vit_tiny' and len(record['sha256']) == 64
    assert trunk_record(_network().trunk) == record


def test_a_plain_trunk_has_no_place_for_decoders(decoders):
    path, network = decoders
    plain = _network(name='vit_tiny')
    plain.load_state_dict(network.trunk.state_dict())
    with pytest.raises(CheckpointError, match=r'UNEXPECTED in the file: 4\n.*feedback\.decoders'):
        load_pretrained(plain, path)


@pytest.mark.parametrize('record', ['', '[]', '{"name": "x"}', 3, '[' * 10_000])
def test_a_damaged_record_is_named(record):
    with pytest.raises(InputError, match='entry trunk of its meta is damaged'):
        recorded_trunk(dict(trunk=record), 'x.pth')


def test_a_record_may_be_a_dict():
    record = dict(name='vit_tiny', sha256='0')
    assert recorded_trunk(dict(trunk=record), 'x.pth') == record
    assert recorded_trunk(dict(trunk=json.dumps(record)), 'x.pth') == record
    assert recorded_trunk({}, 'x.pth') is None


@pytest.mark.parametrize('design', [None, 'mask_attention'])
def test_decoders_for_a_network_without_are_refused_with_the_reason(decoders, design):
    path, network = decoders
    other = _with_trunk_of(network) if design is None else _with_trunk_of(network, top_down=design)
    plain = other.trunk if design is None else other
    with pytest.raises(CheckpointError, match=r"part of another network .* design='absvit'"):
        load_pretrained(plain, path)


def test_decoders_with_a_center_load_where_there_is_no_prior(tmp_path):
    network = _network()
    tensors = _feedback(network) | {'prior.center': torch.ones(8)}
    write_partial(tmp_path / 'decoders.pth', network, tensors)
    other = _with_trunk_of(network, top_down='feedback')
    load_pretrained(other, tmp_path / 'decoders.pth')
    assert all(
        torch.equal(other.state_dict()[name], _feedback(network)[name])
        for name in _feedback(network)
    )
