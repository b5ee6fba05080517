"""Tensors tied to a patch grid: a file made for one grid serves another, and says so."""

import pytest
import torch

from mmvars.checkpoints import CheckpointError, convert_state_dict, load_pretrained
from mmvars.checkpoints.report import Status
from mmvars.networks import create_model

RVT_SIZE = dict(embed_dim=(24, 48), depth=(2, 1))
TRUNKS = {  # arch, mixer, size, further arguments of the network, tied tensors in the names
    'vars_sd': ('rvt_tiny', 'vars_sd', RVT_SIZE, dict(num_heads=(2, 4)), 3),
    'vars_s': ('rvt_tiny', 'vars_s', RVT_SIZE, dict(num_heads=(2, 4)), 6),
    'masked': ('rvt_tiny_plus', None, RVT_SIZE, dict(num_heads=(2, 4), num_masked_blocks=1), 1),
    'gfnet': ('gfnet_tiny', None, dict(embed_dim=40, depth=3), {}, 4),
    'deit': ('deit_convstem_tiny', 'vars_sd', dict(embed_dim=24, depth=2), dict(num_heads=2), 3),
}
OTHER = (160, 64)  # pixels: 10x4 patches, and 5x2 after a pooling


def _build(name, img_size):
    arch, mixer, size, more, _ = TRUNKS[name]
    return create_model(arch, mixer=mixer, img_size=img_size, num_classes=7, **size, **more).eval()


def _convert(name, tensors, **options):
    arch, mixer, size, more, _ = TRUNKS[name]
    more = {key: value for key, value in more.items() if key == 'num_masked_blocks'}
    return convert_state_dict(tensors, arch, mixer=mixer, **size, **more, **options)


@torch.no_grad()
def _logits(network, images):
    return network.forward_head(network(images))


@pytest.mark.parametrize('name', TRUNKS)
def test_three_ways_to_another_grid_are_one(network_names, name, tmp_path):
    """Resampled by the converter, on loading, or at each forward: the same network."""
    small = _build(name, 96)
    with torch.no_grad():
        for parameter in small.parameters():  # no zeros or ones left where an error could hide
            parameter.add_(0.1 * torch.randn_like(parameter))
    images = torch.randn(2, 3, *OTHER)
    expected = _logits(small, images)
    converted = _convert(name, small.state_dict(), img_size=OTHER)
    large = _build(name, OTHER)
    large.load_state_dict(network_names(converted.tensors), strict=True)
    assert torch.equal(_logits(large, images), expected)
    torch.save(
        {f'network.{key}': value for key, value in small.state_dict().items()}, tmp_path / 'x.pth'
    )
    by_loading = _build(name, OTHER)
    load_pretrained(by_loading, tmp_path / 'x.pth')
    assert torch.equal(_logits(by_loading, images), expected)
    by_hook = _build(name, OTHER)
    by_hook.load_state_dict(small.state_dict())
    assert torch.equal(_logits(by_hook, images), expected)

    resampled = [line for line in converted.report.of(Status.USED) if 'resampled' in line.note]
    assert len(resampled) == TRUNKS[name][-1]
    assert 'resampled from 6x6 to 10x4 patches (height x width) by ' in converted.report.render()
    assert ('lipschitz computed anew' in converted.report.summary()) == (name == 'vars_s')
    records = [key for key in converted.tensors if key.endswith('.trained_grid')]
    assert [line.target for line in converted.report.of(Status.NEW)] == records
    assert records and all(converted.tensors[key].tolist() in ([10, 4], [5, 2]) for key in records)
    again = _convert(name, converted.tensors)  # the file says its grids itself
    assert list(again.tensors) == list(converted.tensors)
    assert all(torch.equal(again.tensors[key], value) for key, value in converted.tensors.items())
    assert not [line for line in again.report.entries if 'resampled' in line.note]


@pytest.mark.parametrize('name', TRUNKS)
def test_files_of_the_release_are_for_square_grids(name):
    wide = _build(name, OTHER).state_dict()
    if name != 'deit':  # which no release has with this mixer at any grid
        with pytest.raises(CheckpointError, match='trained_grid(?s:.*)say --img-size'):
            _convert(name, wide, to='release')
        tensors = _convert(name, wide, to='release', img_size=96).tensors
        assert not any('grid' in key for key in tensors)
        back = _convert(name, tensors)
        assert not back.report.of(Status.NEW)


@pytest.mark.parametrize(
    'record',
    [
        torch.tensor([10, 3]),
        torch.tensor([10, 4, 1]),
        torch.tensor([0, 40]),
        torch.tensor([10.0, 4.0]),
        'text',
    ],
)
def test_a_record_that_is_not_true(record):
    wide = _build('vars_sd', OTHER).state_dict()
    wide['stages.0.blocks.0.attn.trained_grid'] = record
    with pytest.raises(CheckpointError, match='static_atoms(?s:.*)(height, width)|10x3 patches'):
        _convert('vars_sd', wide)


def test_a_spectrum_of_no_square_grid():
    tensors = _build('vars_s', 96).state_dict()
    tensors['stages.0.blocks.0.attn.dictionary'] = torch.zeros(24, 5, 6, 5, 2)
    with pytest.raises(CheckpointError, match='6 rows and 5 columns.*no square grid'):
        _convert('vars_s', tensors)


def test_the_grid_of_a_released_file_is_seen(golden):
    for name in ('rvt_vars_sd', 'rvt_vars_s'):
        found = convert_state_dict(golden(name)['state_dict'], 'rvt_tiny', **RVT_SIZE)
        assert not [line for line in found.report.entries if 'resampled' in line.note]
        found = convert_state_dict(golden(name)['state_dict'], 'rvt_tiny', img_size=128, **RVT_SIZE)
        summary = found.report.summary()
        assert 'from 6x6 to 8x8' in summary and 'from 3x3 to 4x4' in summary


def test_a_grid_that_the_user_states_holds_for_all_stages(golden):
    """2x8 patches are 1x4 after a pooling, which a length of 4 does not tell from 2x2."""
    wide = {
        key: value
        for key, value in _build('vars_sd', (32, 128)).state_dict().items()
        if not key.endswith('trained_grid')
    }
    found = _convert('vars_sd', wide, img_size=(32, 128), source_grid=(2, 8)).tensors
    key = 'stages.1.blocks.0.attn.static_atoms'
    assert torch.equal(found[f'backbone.network.{key}'], wide[key])
    with pytest.raises(CheckpointError, match='2x5 patches'):  # 4x9 is 36 patches, 3x3 is not 2x5
        convert_state_dict(
            golden('rvt_vars_sd')['state_dict'], 'rvt_tiny', source_grid=(4, 9), **RVT_SIZE
        )
