"""Released FAN files, through the converter and back."""

import json
from pathlib import Path

import pytest
import torch

from mmvars.checkpoints import convert_state_dict
from mmvars.checkpoints.formats import FAN
from mmvars.networks import create_model

FACTS = Path(__file__).resolve().parents[2].parent / 'shared' / 'facts' / 'keys'
SIZES = {
    'fan_vit': ('fan_tiny', dict(embed_dim=48, depth=2, num_heads=4)),
    'fan_hybrid': (
        'fan_tiny_hybrid',
        dict(embed_dim=32, depth=2, num_heads=4, stem_widths=(12, 24), stem_depths=(1, 1)),
    ),
}
RECORDED = {
    'fan_tiny_12_p16_224': 'fan_tiny',
    'fan_small_12_p16_224': 'fan_small',
    'fan_base_18_p16_224': 'fan_base',
    'fan_large_24_p16_224': 'fan_large',
    'fan_tiny_8_p4_hybrid': 'fan_tiny_hybrid',
    'fan_small_12_p4_hybrid': 'fan_small_hybrid',
    'fan_base_16_p4_hybrid': 'fan_base_hybrid',
}


@pytest.mark.parametrize('name', SIZES)
def test_recorded_outputs_and_the_way_back(golden, network_names, name):
    record, (arch, size) = golden(name), SIZES[name]
    tensors, report, _, *_ = convert_state_dict(record['state_dict'], arch, **size)
    network = create_model(arch, num_classes=7, **size).eval()
    network.load_state_dict(network_names(tensors), strict=True)
    with torch.no_grad():
        logits = network.forward_head(network(record['inputs']['image_64x64']))
    expected = record['outputs']['logits_64x64']
    assert (logits - expected).abs().max() <= 2e-5 * expected.abs().max()
    back = convert_state_dict(tensors, arch, to='release', **size).tensors
    assert list(back) == list(record['state_dict'])
    assert all(torch.equal(back[key], value) for key, value in record['state_dict'].items())


@pytest.mark.parametrize('file', RECORDED)
def test_key_lists_of_the_released_sizes(file):
    path = FACTS / f'{file}.json'
    if not path.is_file():
        pytest.skip(f'{path} with the recorded keys is not there')
    recorded = {key: tuple(shape) for key, shape, *_ in json.loads(path.read_text())['entries']}
    with torch.device('meta'):
        trunk = create_model(RECORDED[file])
    assert {key: tuple(t.shape) for key, t in trunk.state_dict().items()} == recorded
    assert sorted(recorded, key=FAN.position) == list(recorded)
