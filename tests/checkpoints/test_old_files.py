"""Checkpoints that mmvars 0.1 wrote (``old/record.py``) load in every way, to the same outputs."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mmvars.checkpoints import convert_checkpoint, load_pretrained, read_checkpoint
from mmvars.checkpoints.fit import trunk_of
from mmvars.checkpoints.report import Status
from mmvars.errors import InputError
from mmvars.networks import create_model

OLD = Path(__file__).parent / 'old'
VIT = dict(embed_dim=8, depth=2, num_heads=2, patch_size=8)
RVT = dict(embed_dim=(4, 8), depth=(1, 1), num_heads=(1, 2), mlp_ratio=1)
NETWORKS = {  # arch, sizes, arguments that a converter need not know
    'vit': ('vit_tiny', VIT, {}),
    'absvit': ('absvit_tiny', VIT, {}),
    'abs_rvt': (
        'rvt_tiny',
        RVT,
        dict(top_down='absvit', mixer='vars_d', mixer_cfg=dict(num_steps=2)),
    ),
    'rvt_vars_s': ('rvt_tiny', RVT, dict(mixer='vars_s')),
    'rvt_vars_sd': ('rvt_tiny', RVT, dict(mixer='vars_sd')),
    'rvt_vars_sd_thesis': ('rvt_tiny', RVT, dict(mixer='vars_sd', mixer_cfg=dict(preset='thesis'))),
}


def _network(name):
    arch, sizes, more = NETWORKS[name]
    return create_model(arch, img_size=32, num_classes=0, **sizes, **more).eval()


def _images():
    return (torch.arange(3 * 24 * 40) * 0.37).sin().mul(2).reshape(1, 3, 24, 40)


@torch.no_grad()
def _check_outputs(network, name):
    recorded = read_checkpoint(OLD / f'{name}.pth')['meta']['recorded']
    output = network(_images(), out_indices=(0,))
    output = getattr(output, 'second', output)
    maps = [
        output.grids[0].to_map(output.intermediates[0]),
        output.grid.to_map(trunk_of(network).fc_norm(output.tokens)),
    ]
    for feature, expected in zip(maps, recorded, strict=True):
        torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', NETWORKS)
def test_init_cfg(name):
    network = _network(name)
    report = load_pretrained(network, OLD / f'{name}.pth')
    _check_outputs(network, name)
    assert len(report.of(Status.USED)) == len(network.state_dict())


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('by', ['mmengine', 'torch'])
def test_loaders_of_others(name, by):
    """What ``load_from``, ``--resume`` and ``mmvars test`` call."""
    model, state = nn.Module(), read_checkpoint(OLD / f'{name}.pth')['state_dict']
    model.backbone = nn.Module()
    model.backbone.network = _network(name)
    state = {key: value for key, value in state.items() if key.startswith('backbone.')}
    if by == 'torch':
        model.load_state_dict(state, strict=True)
    else:
        pytest.importorskip('mmengine.runner.checkpoint').load_state_dict(model, state, strict=True)
    _check_outputs(model.backbone.network, name)


@pytest.mark.parametrize('name', [name for name in NETWORKS if name != 'abs_rvt'])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_conversion(name, suffix, tmp_path):
    arch, sizes, more = NETWORKS[name]
    path = tmp_path / f'new{suffix}'
    report = convert_checkpoint(
        OLD / f'{name}.pth', path, arch, task='segmentation', ignore=['decode_head.*'], **sizes
    )
    network = _network(name)
    assert len(report.of(Status.USED)) == len(network.state_dict())
    load_pretrained(network, path)
    _check_outputs(network, name)


def test_present_names_are_written(tmp_path):
    convert_checkpoint(
        OLD / 'absvit.pth',
        tmp_path / 'new.pth',
        'absvit_tiny',
        ignore=['decode_head.*'],
        **VIT,
    )
    keys = read_checkpoint(tmp_path / 'new.pth')['state_dict'].keys()
    assert 'backbone.network.feedback.decoders.0.to_below.weight' in keys
    assert not any(old in key for key in keys for old in ('chain', 'readout'))
    convert_checkpoint(
        OLD / 'vit.pth', tmp_path / 'vit.pth', 'vit_tiny', ignore=['decode_head.*'], **VIT
    )
    keys = read_checkpoint(tmp_path / 'vit.pth')['state_dict'].keys()
    assert 'backbone.network.blocks.0.attn.qkv.weight' in keys


def test_an_old_plain_vit_starts_an_absvit():
    network = create_model('absvit_tiny', img_size=32, num_classes=0, **VIT)
    load_pretrained(network, OLD / 'vit.pth', allow_new=('prior', 'feedback'))
    plain = _network('vit')
    load_pretrained(plain, OLD / 'vit.pth')
    assert all(
        torch.equal(value, network.trunk.state_dict()[key])
        for key, value in plain.state_dict().items()
    )


def test_options_of_old_files_are_those_of_a_preset(tmp_path):
    content = read_checkpoint(OLD / 'rvt_vars_sd.pth')
    options = json.loads(content['meta']['mixer_options'])
    assert options['shrinkage'] == 'gelu' and 'preset' not in options
    with pytest.raises(InputError, match=r'num_steps=2 \(network: 5\)'):
        load_pretrained(
            create_model(
                'rvt_tiny', img_size=32, top_down='absvit', mixer='vars_d', num_classes=0, **RVT
            ),
            OLD / 'abs_rvt.pth',
        )
    content['meta']['mixer_options'] = json.dumps(options | dict(shrinkage='soft'))
    torch.save({key: content[key] for key in ('state_dict', 'meta')}, tmp_path / 'mixed.pth')
    with pytest.raises(InputError, match="made by mmvars 0.1 with .*shrinkage='soft'.*mixture"):
        load_pretrained(_network('rvt_vars_sd'), tmp_path / 'mixed.pth')
