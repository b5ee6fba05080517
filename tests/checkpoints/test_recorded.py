"""Parity with the recorded networks and layouts of the release, through the converter."""

import json
from pathlib import Path

import pytest
import torch

from mmvars.checkpoints import convert_checkpoint, convert_state_dict
from mmvars.checkpoints.io import read_checkpoint
from mmvars.checkpoints.report import Status
from mmvars.networks import MODELS, create_model

FACTS = Path(__file__).resolve().parents[2].parent / 'shared' / 'facts' / 'keys'
GOLDEN = {
    'absvit_cls': 'absvit_base',
    'absvit_gap': 'absvit_tiny_patch8_gap',
    'absvit_seg': 'absvit_base',
    'absvit_seg_prompt': 'absvit_base',
    'vit_bottom_up_seg': 'vit_base',
    'vit_cls': 'vit_base',
    'vit_gap': 'vit_tiny_patch8_gap',
}


def _same(found, expected):
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def _same_light(found, expected):
    # Each tensor of `light` holds its own number, so one element tells which it is.
    assert list(found) == list(expected)
    assert [t.shape for t in found.values()] == [t.shape for t in expected.values()]
    for key, tensor in expected.items():
        assert found[key][(0,) * tensor.ndim] == tensor[(0,) * tensor.ndim]


def _close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize('name', GOLDEN)
def test_recorded_outputs(golden, small, network_names, name):
    record, arch = golden(name), GOLDEN[name]
    hyper, outputs = record['meta']['hyper'], record['outputs']
    tensors, report, *_ = convert_state_dict(record['state_dict'], arch, **small)
    assert len(tensors) == len(record['state_dict']) == len(report.of(Status.USED))
    size = small | dict(img_size=hyper['img_size'], num_classes=max(hyper['num_classes'], 0))
    if 'prompt_embeddings' in record['state_dict']:
        size |= dict(num_prompt_tokens=hyper['prompt_config']['num_tokens'])
    network = create_model(arch, **size).eval()
    network.load_state_dict(network_names(tensors), strict=True)
    with torch.no_grad():
        for key, image in record['inputs'].items():
            if not key.startswith('image'):
                continue
            found = network(image, out_indices=(0, 1, 2))
            suffix = key.removeprefix('image')
            if 'logits' in outputs:
                _close(network.forward_head(found), outputs['logits'])
                _close(found.tokens, outputs['tokens'])
            elif 'logits_pass1' in outputs:
                for number, each in enumerate((found.first, found.second), start=1):
                    _close(network.forward_head(each), outputs[f'logits_pass{number}'])
                    _close(each.tokens, outputs[f'tokens_pass{number}'])
                _close(found.token_weights, outputs['mask'])
            else:
                final = getattr(found, 'second', found)
                *maps, _ = (final.grid.to_map(t) for t in final.intermediates)
                maps.append(final.grid.to_map(final.tokens))
                for index, feature in enumerate(maps):
                    _close(feature, outputs[f'feat{suffix}.{index}'])


@pytest.mark.parametrize('name', ['absvit_seg', 'absvit_seg_prompt', 'vit_bottom_up_seg'])
@pytest.mark.parametrize('grid', [(6, 6), (6, 4)])
def test_recorded_positions(golden, small, name, grid):
    record = golden(name)
    size = tuple(16 * side for side in grid)
    tensors, report, *_ = convert_state_dict(
        record['state_dict'], GOLDEN[name], img_size=size, **small
    )
    start = 'backbone.network.trunk.' if name.startswith('absvit') else 'backbone.network.'
    _close(tensors[f'{start}pos_embed'], record['outputs']['pos_embed_resized_{}x{}'.format(*grid)])
    assert 'resampled from 4x4 to {}x{}'.format(*grid) in report.render()
    assert 'by VisionTransformer.resample' in report.render()


@pytest.mark.parametrize('name', GOLDEN)
def test_round_trip_to_the_last_bit_and_in_the_old_order(golden, small, tmp_path, name):
    original = golden(name)['state_dict']
    torch.save(dict(model=original, epoch=1), tmp_path / 'a.pth')
    to = 'timm' if name in ('vit_cls', 'vit_gap') else 'release'
    convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth', GOLDEN[name], **small)
    convert_checkpoint(tmp_path / 'b.pth', tmp_path / 'c.pth', GOLDEN[name], to=to, **small)
    back = read_checkpoint(tmp_path / 'c.pth')
    _same(back['model'] if to == 'release' else back, original)


@pytest.mark.parametrize(
    'arch',
    [
        pytest.param(arch, marks=pytest.mark.slow if 'small' in arch or 'base' in arch else ())
        for arch in MODELS
        if not arch.startswith(('rvt', 'fan'))
    ],
)
def test_released_files_at_their_real_size(layout, light, network_names, arch):
    source = light(layout(arch))
    tensors, report, *_ = convert_state_dict(source, arch)
    extra = {'absvit': 25, 'gfnet': -37}.get(arch.split('_')[0], 0) + 7 * ('convstem' in arch)
    assert len(tensors) == len(source) == 152 + extra
    assert [line.status for line in report.entries] == [Status.USED] * len(source)
    with torch.device('meta'):
        expected = create_model(arch).state_dict()
    assert {key: value.shape for key, value in network_names(tensors).items()} == {
        key: value.shape for key, value in expected.items()
    }
    _same_light(convert_state_dict(tensors, arch, to='release').tensors, source)


@pytest.mark.parametrize('family', ['vit', 'absvit'])
@pytest.mark.parametrize('prompts', [0, 50])
def test_released_segmentation_backbones(layout, light, network_names, family, prompts):
    arch = f'{family}_base'
    source = light(layout(arch, classes=0, grid=32, prompts=prompts))
    tensors, report, *_ = convert_state_dict(source, arch)
    assert len(report.of(Status.USED)) == len(tensors) == len(source)
    assert network_names(tensors)[('trunk.' if family == 'absvit' else '') + 'pos_embed'].shape == (
        1,
        1025,
        768,
    )
    _same_light(convert_state_dict(tensors, arch, to='release').tensors, source)


@pytest.mark.parametrize(
    'file',
    [
        *(
            f'{family}_{size}_patch16_224'
            for family in ('vit', 'absvit')
            for size in ('tiny', 'small', 'base')
        ),
        'vit_tiny_patch8_224_gap',
        'absvit_tiny_patch8_224_gap',
        *(
            f'seg_{way}_b16_512_{mode}'
            for way in ('bottom_up', 'top_down')
            for mode in ('end2end', 'prompt')
        ),
    ],
)
def test_recorded_key_lists(layout, light, file):
    path = FACTS / f'{file}.json'
    if not path.is_file():
        pytest.skip(f'{path} with the recorded keys is not there')
    recorded = {key: tuple(shape) for key, shape, *_ in json.loads(path.read_text())['entries']}
    if file.startswith('seg'):
        arch = 'absvit_base' if 'top_down' in file else 'vit_base'
        options = dict(classes=0, grid=32, prompts=50 if 'prompt' in file else 0)
    else:
        arch, options = file.replace('_patch16', '').replace('_224', ''), {}
    assert list(recorded.items()) == list(layout(arch, **options).items())
    tensors = convert_state_dict(light(recorded), arch).tensors
    back = convert_state_dict(tensors, arch, to='release').tensors
    assert [(key, tuple(t.shape)) for key, t in back.items()] == list(recorded.items())
