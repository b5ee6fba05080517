"""Released RVT, Performer, VARS and GFNet files: recorded outputs, layouts, and back again."""

import json
from pathlib import Path

import pytest
import torch

from mmvars.checkpoints import convert_checkpoint, convert_state_dict
from mmvars.checkpoints.io import read_checkpoint
from mmvars.checkpoints.report import Status
from mmvars.layers import TokenGrid
from mmvars.networks import create_model

FACTS = Path(__file__).resolve().parents[2].parent / 'shared' / 'facts' / 'keys'
RVT_SIZE = dict(embed_dim=(24, 48), depth=(2, 1))
GOLDEN = {
    'rvt_selfatt': ('rvt_tiny', 'self_attention', RVT_SIZE),
    'rvt_perf': ('rvt_tiny', 'performer', RVT_SIZE),
    'rvt_vars_d': ('rvt_tiny', 'vars_d', RVT_SIZE),
    'rvt_vars_sd': ('rvt_tiny', 'vars_sd', RVT_SIZE),
    'rvt_vars_s': ('rvt_tiny', 'vars_s', RVT_SIZE),
    'gfnet': ('gfnet_tiny', 'global_filter', dict(embed_dim=40, depth=3)),
}
ATTENTION = {
    'self-att': 'self_attention',
    'perf': 'performer',
    'vars_d': 'vars_d',
    'vars_sd': 'vars_sd',
    'vars_s': 'vars_s',
}
DEAD = {'attn.L': 25.0, 'kernel_norm': 1.0}
TOLERANCE = 2e-5


def _close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


def _is_dead(key):
    return key.endswith(tuple(DEAD))


def _value_of_dead(key):
    return next(value for end, value in DEAD.items() if key.endswith(end))


def _network(record, name, network_names):
    """The recorded network, converted and loaded strictly."""
    arch, mixer, size = GOLDEN[name]
    tensors, report, *_ = convert_state_dict(record['state_dict'], arch, mixer=mixer, **size)
    live = [key for key in record['state_dict'] if not _is_dead(key)]
    assert len(tensors) == len(live) == len(report.of(Status.USED))
    heads = dict(num_heads=(2, 4)) if name != 'gfnet' else {}
    pixels = record['meta']['hyper'].get('image_size') or record['meta']['hyper']['img_size']
    network = create_model(arch, mixer=mixer, **size, **heads, img_size=pixels, num_classes=7)
    network.load_state_dict(network_names(tensors), strict=True)
    return network.eval()


def _record_parts(block, seen):
    block.register_forward_hook(lambda _, args, out: seen.update({'in': args[0], 'out': out}))
    block.attn.register_forward_hook(
        lambda _, args, out: seen.update({'attn.in': args[0], 'attn.out': out})
    )


@pytest.mark.parametrize('name', [name for name in GOLDEN if name != 'gfnet'])
@torch.no_grad()
def test_recorded_outputs(golden, network_names, name):
    record = golden(name)
    outputs, image, seen = dict(record['outputs']), record['inputs']['image'], {}
    network = _network(record, name, network_names)
    block = network.blocks[0]
    _record_parts(block, seen)
    found = network(image, out_indices=(1, 2))
    embedded, grid = network.forward_embed(image)
    parts = {
        'logits': network.forward_head(found),
        'patch_embed': grid.to_map(embedded),
        **{f'stage{i}': found.grids[i].to_map(found.intermediates[i]) for i in range(2)},
        **{f'block0.{part}': value for part, value in seen.items()},
    }
    if name.startswith('rvt_vars'):
        code = block.attn.trace(seen['attn.in'], TokenGrid(6, 6)).codes[-1]
        parts['block0.code'] = code.flatten(3).flatten(1, 2) if name == 'rvt_vars_s' else code
    if name == 'rvt_vars_s':  # the release has no module where ours has the mixer
        del parts['block0.attn.in'], parts['block0.attn.out']
    parts['logits_single'] = network.forward_head(network(image[:1]))[0]
    assert set(parts) == set(outputs)
    for part, expected in outputs.items():
        _close(parts[part], expected)


@torch.no_grad()
def test_recorded_gfnet(golden, network_names):
    record, seen = golden('gfnet'), {}
    network = _network(record, 'gfnet', network_names)
    _record_parts(network.blocks[0], seen)
    found = network(record['inputs']['image'])
    parts = {
        'logits': network.forward_head(found),
        'features': network.pool(found),
        'block0.filter.in': seen['attn.in'],
        'block0.filter.out': seen['attn.out'],
    }
    assert set(parts) == set(record['outputs'])
    for part, expected in record['outputs'].items():
        _close(parts[part], expected)


@pytest.mark.parametrize('name', GOLDEN)
def test_round_trip_of_a_file(golden, tmp_path, name):
    """Live tensors to the last bit, dead ones as the release sets them, all in its order."""
    (arch, _, size), original = GOLDEN[name], golden(name)['state_dict']
    torch.save(dict(model=original, epoch=1), tmp_path / 'a.pth')
    convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth', arch, **size)
    report = convert_checkpoint(tmp_path / 'b.pth', tmp_path / 'c.pth', arch, to='release', **size)
    back = read_checkpoint(tmp_path / 'c.pth')['model']
    assert list(back) == list(original)
    dead = [key for key in original if _is_dead(key)]
    assert len(dead) == {'rvt_vars_d': 3, 'rvt_vars_sd': 3, 'rvt_vars_s': 3}.get(name, 0)
    for key, tensor in original.items():
        if key in dead:
            assert back[key].shape == tensor.shape
            assert (back[key] == _value_of_dead(key)).all()
        else:
            assert torch.equal(back[key], tensor)
            assert back[key].dtype == tensor.dtype
    assert {line.target for line in report.of(Status.NEW)} == set(dead)
    assert all('nothing reads it' in line.note for line in report.of(Status.NEW))


def _check_layout(light, network_names, shapes, arch, mixer):
    source = light(shapes)
    tensors, report, *_ = convert_state_dict(source, arch, mixer=mixer)
    ignored = report.of(Status.IGNORED)
    assert {line.source for line in ignored} == {key for key in source if _is_dead(key)}
    assert all(line.note for line in ignored)
    assert len(report.of(Status.USED)) == len(tensors) == len(source) - len(ignored)
    with torch.device('meta'):
        expected = create_model(arch, mixer=mixer).state_dict()
    assert {key: value.shape for key, value in network_names(tensors).items()} == {
        key: value.shape for key, value in expected.items()
    }
    back = convert_state_dict(tensors, arch, to='release').tensors
    assert [(key, tuple(t.shape)) for key, t in back.items()] == list(shapes.items())
    for key, tensor in source.items():  # each holds its own number, so one element tells it
        first = back[key][(0,) * tensor.ndim]
        assert first == (_value_of_dead(key) if _is_dead(key) else tensor[(0,) * tensor.ndim])


@pytest.mark.parametrize('attention', ATTENTION)
@pytest.mark.parametrize(
    'arch',
    ['rvt_tiny', *(pytest.param(a, marks=pytest.mark.slow) for a in ('rvt_small', 'rvt_base'))],
)
def test_released_files_at_their_real_size(layout, light, network_names, arch, attention):
    _check_layout(
        light, network_names, layout(arch, attention=attention), arch, ATTENTION[attention]
    )


@pytest.mark.parametrize('arch', ['rvt_tiny_plus', 'rvt_small_plus', 'rvt_base_plus'])
def test_released_plus_files(layout, light, network_names, arch):
    _check_layout(light, network_names, layout(arch), arch, None)


@pytest.mark.parametrize(
    'file',
    [
        *(
            f'rvt_{size}{end}'
            for size in ('tiny', 'small', 'base')
            for end in ('', '_plus', *(f'__{attention}' for attention in ATTENTION))
        ),
        'gfnet_ti',
    ],
)
def test_recorded_key_lists(layout, file):
    """The layouts that the tests above are held to are those of the release."""
    path = FACTS / f'{file}.json'
    if not path.is_file():
        pytest.skip(f'{path} with the recorded keys is not there')
    recorded = {key: tuple(shape) for key, shape, *_ in json.loads(path.read_text())['entries']}
    arch, _, attention = file.partition('__')
    expected = layout(
        'gfnet_tiny' if file == 'gfnet_ti' else arch, attention=attention or 'self-att'
    )
    assert list(recorded.items()) == list(expected.items())
