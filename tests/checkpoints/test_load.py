"""Strict loading into networks and backbones."""

import logging

import pytest
import torch
from torch import nn

from mmvars.checkpoints import (
    CheckpointError,
    convert_checkpoint,
    load_heads,
    load_pretrained,
    read_checkpoint,
)
from mmvars.checkpoints.report import Status
from mmvars.checkpoints.write import write_checkpoint
from mmvars.errors import InputError
from mmvars.layers import resample_pos_embed
from mmvars.networks import create_model

SIZE = dict(embed_dim=48, depth=3, num_heads=3, img_size=64)
ARCH = 'absvit_base'


@pytest.fixture
def network():
    return create_model(ARCH, num_classes=0, **SIZE)


@pytest.fixture
def converted(golden, tmp_path):
    """A converted classifier: backbone and head."""
    torch.save(dict(model=golden('absvit_cls')['state_dict']), tmp_path / 'release.pth')
    size = {key: SIZE[key] for key in ('embed_dim', 'depth')}
    convert_checkpoint(tmp_path / 'release.pth', tmp_path / 'mmvars.pth', ARCH, **size)
    return tmp_path / 'mmvars.pth'


def _state(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def _unchanged(module, before):
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize('prefix', [None, 'backbone.', 'backbone', 'backbone.network.'])
def test_fills_every_tensor(golden, network, converted, prefix, caplog):
    before = _state(network)
    with caplog.at_level(logging.INFO, logger='mmvars'):
        report = load_pretrained(network, converted, prefix)
    state = golden('absvit_cls')['state_dict']
    found = network.state_dict()
    assert len(report.of(Status.USED)) == len(found) == len(before) == 49
    assert all(not torch.equal(found[key], before[key]) for key in found if 'norm' not in key)
    assert torch.equal(found['prior.query'], state['prompt'])
    assert torch.equal(
        found['feedback.decoders.1.to_value.weight'], state['decoders.1.linear2.weight']
    )
    assert '49 used' in caplog.text


def test_the_classifier_comes_along_where_there_is_one(golden, converted):
    network = create_model(ARCH, num_classes=7, **SIZE)
    load_pretrained(network, converted)
    assert torch.equal(network.trunk.head.bias, golden('absvit_cls')['state_dict']['head.bias'])


def test_positions_follow_the_module_and_it_is_logged(golden, converted, caplog):
    network = create_model(ARCH, num_classes=0, **SIZE | dict(img_size=(32, 128)))
    with caplog.at_level(logging.INFO, logger='mmvars'):
        load_pretrained(network, converted)
    table = golden('absvit_cls')['state_dict']['pos_embed']
    assert torch.equal(network.trunk.pos_embed, resample_pos_embed(table, (4, 4), (2, 8)))
    assert 'resampled from 4x4 to 2x8' in caplog.text


@pytest.mark.parametrize('keys', ['backbone.network.', 'network.', ''])
def test_checkpoints_of_a_runner(tmp_path, network, keys):
    donor = _state(create_model(ARCH, num_classes=0, **SIZE))
    content = dict(
        state_dict={keys + k: v for k, v in donor.items()}, meta={}, optimizer={}, message_hub={}
    )
    if keys.startswith('backbone.'):
        content['state_dict'] |= {
            'decode_head.conv_seg.bias': torch.zeros(2),
            'neck.x.weight': torch.zeros(2),
        }
    torch.save(content, tmp_path / 'iter_3.pth')
    load_pretrained(network, tmp_path / 'iter_3.pth')
    _unchanged(network, donor)


def test_a_timm_file_fills_a_plain_vit_as_it_is(golden, tmp_path):
    torch.save(golden('vit_cls')['state_dict'], tmp_path / 'timm.pth')
    network = create_model('vit_base', num_classes=7, **SIZE)
    load_pretrained(network, tmp_path / 'timm.pth')
    _unchanged(network, golden('vit_cls')['state_dict'])


def test_a_plain_trunk_in_its_own_names(tmp_path):
    size = dict(embed_dim=(8, 16), depth=(1, 1), num_heads=(1, 2), img_size=64)
    donor = _state(create_model('rvt_tiny', **size))
    torch.save(donor, tmp_path / 'rvt.pth')
    network = create_model('rvt_tiny', **size)
    load_pretrained(network, tmp_path / 'rvt.pth', map_location='cpu')
    _unchanged(network, donor)


def test_parameters_that_are_not_contiguous_are_written_contiguous(tmp_path):
    network = create_model('vit_base', channels_last=True, **SIZE)
    assert not network.patch_embed.proj.weight.is_contiguous()
    write_checkpoint(tmp_path / 'x.safetensors', network.state_dict())
    write_checkpoint(tmp_path / 'x.pth', network.state_dict())
    for name in ('x.safetensors', 'x.pth'):
        read = read_checkpoint(tmp_path / name)
        assert all(value.is_contiguous() for value in read.values())
        _unchanged(network, read)


def test_heads_are_filled_as_strictly(tmp_path):
    model = nn.ModuleDict(dict(backbone=nn.Linear(2, 2), head=nn.Linear(2, 3)))
    donor = _state(nn.ModuleDict(dict(backbone=nn.Linear(2, 2), head=nn.Linear(2, 3))))
    torch.save(dict(state_dict=donor, meta=dict(dataset_meta={})), tmp_path / 'x.pth')
    before = _state(model)
    assert load_heads(model, tmp_path / 'x.pth') == dict(dataset_meta={})
    _unchanged(model.head, {key.removeprefix('head.'): value for key, value in donor.items()})
    _unchanged(model.backbone, {key.removeprefix('backbone.'): v for key, v in before.items()})
    torch.save(donor | {'head.bias': torch.zeros(4)}, tmp_path / 'y.pth')
    with pytest.raises(CheckpointError, match='head.bias  4 -> 3'):
        load_heads(model, tmp_path / 'y.pth')
    torch.save({'backbone.weight': torch.zeros(2, 2)}, tmp_path / 'z.pth')
    with pytest.raises(InputError, match='holds a backbone alone'):
        load_heads(model, tmp_path / 'z.pth')


def test_safetensors(tmp_path, network):
    donor = _state(create_model(ARCH, num_classes=0, **SIZE))
    write_checkpoint(
        tmp_path / 'x.safetensors', {f'backbone.network.{k}': v for k, v in donor.items()}
    )
    load_pretrained(network, tmp_path / 'x.safetensors')
    _unchanged(network, donor)


def test_a_file_of_the_release_names_the_converter(converted, network):
    before = _state(network)
    with pytest.raises(InputError, match='mmvars convert'):
        load_pretrained(network, converted.with_name('release.pth'))
    _unchanged(network, before)


@pytest.mark.parametrize('damage', ['missing', 'unexpected', 'shape', 'nan'])
def test_what_does_not_fit_changes_nothing(tmp_path, network, damage):
    donor = {f'backbone.network.{k}': v for k, v in _state(network).items()}
    key = 'backbone.network.trunk.blocks.2.mlp.fc2.bias'
    if damage == 'missing':
        del donor[key]
    else:
        donor |= {
            'unexpected': {'backbone.network.trunk.extra': torch.zeros(1)},
            'shape': {key: torch.zeros(49)},
            'nan': {key: donor[key] / 0},
        }[damage]
    torch.save(donor, tmp_path / 'x.pth')
    nn.init.ones_(network.trunk.cls_token)
    before = _state(network)
    with pytest.raises(CheckpointError, match='mmvars convert') as caught:
        load_pretrained(network, tmp_path / 'x.pth')
    assert len(caught.value.report.problems) == 1
    _unchanged(network, before)


def test_new_parts_need_leave(tmp_path, network):
    plain = {
        f'backbone.network.{k}': v + 1
        for k, v in create_model('vit_base', num_classes=0, **SIZE).state_dict().items()
    }
    torch.save(plain, tmp_path / 'vit.pth')
    with pytest.raises(CheckpointError, match='allow_new'):
        load_pretrained(network, tmp_path / 'vit.pth')
    before = _state(network)
    report = load_pretrained(network, tmp_path / 'vit.pth', allow_new=('prior', 'feedback'))
    assert len(report.of(Status.NEW)) == 7
    for key, value in network.state_dict().items():
        own = key.startswith(('prior', 'feedback'))
        name = key.replace('trunk.', 'backbone.network.')
        assert torch.equal(value, before[key] if own else plain[name])


def test_a_twin_may_share_the_leave(tmp_path):
    twin = create_model('vit_base', num_classes=0, **SIZE)
    torch.save(_state(twin), tmp_path / 'vit.pth')
    assert not load_pretrained(twin, tmp_path / 'vit.pth', allow_new=('prior', 'feedback')).of(
        Status.NEW
    )


def test_leave_for_a_part_is_no_leave_for_half_of_it(tmp_path, network):
    donor = _state(network)
    del donor['feedback.decoders.0.to_below.weight']
    torch.save(donor, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match='MISSING'):
        load_pretrained(network, tmp_path / 'x.pth', allow_new=('feedback',))


def test_arguments(network, converted):
    with pytest.raises(InputError, match="'feedbakc'"):
        load_pretrained(network, converted, allow_new=('feedbakc',))
    with pytest.raises(InputError, match="no key starts with prefix 'model.'"):
        load_pretrained(network, converted, prefix='model.')
    with pytest.raises(TypeError, match='Linear'):
        load_pretrained(nn.Linear(1, 1), converted)


def test_a_bfloat16_network_stays_one(network, converted):
    load_pretrained(network.bfloat16(), converted)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize('task', ['segmentation', 'classification'])
def test_one_file_serves_init_cfg_and_load_from(golden, tmp_path, converted, task, tiny_arch):
    load_checkpoint = pytest.importorskip('mmengine.runner').load_checkpoint
    from mmvars.models import AbSViT

    if task == 'segmentation':
        convert_checkpoint(converted, tmp_path / 'seg.pth', ARCH, task=task, embed_dim=48, depth=3)
        converted = tmp_path / 'seg.pth'
    backbone = AbSViT(
        arch=tiny_arch, img_size=64, init_cfg=dict(type='Pretrained', checkpoint=str(converted))
    )
    backbone.init_weights()
    host = nn.Module()
    host.backbone = AbSViT(arch=tiny_arch, img_size=64)
    host.head = nn.Module()
    host.head.fc = nn.Linear(48, 7)
    load_checkpoint(host, str(converted), strict=task == 'classification')
    state = golden('absvit_cls')['state_dict']
    for each in (backbone, host.backbone):
        assert torch.equal(each.network.prior.query, state['prompt'])
        assert torch.equal(
            each.network.trunk.blocks[2].mlp.fc2.weight, state['blocks.2.mlp.fc2.weight']
        )
        assert torch.equal(each.network.trunk.pos_embed, state['pos_embed'])
    assert torch.equal(host.head.fc.bias, state['head.bias']) == (task == 'classification')


def test_a_text_prior_starts_from_a_network_that_has_a_query(tmp_path, network):
    """METER's vision backbone from ImageNet: the map of the text is new, and the query gone."""
    torch.save(_state(network), tmp_path / 'in1k.pth')
    asked = create_model(ARCH, num_classes=0, prior=dict(type='text', text_dim=8), **SIZE)
    with pytest.raises(CheckpointError, match='prior.projection.weight'):
        load_pretrained(asked, tmp_path / 'in1k.pth')
    report = load_pretrained(asked, tmp_path / 'in1k.pth', allow_new=('prior',))
    assert len(report.of(Status.NEW)) == 2
    for name, value in asked.state_dict().items():
        assert name.startswith('prior.') or torch.equal(value, network.state_dict()[name])
