"""Parity with the recorded networks and layouts of the release, through the converter."""

import json
from pathlib import Path

import pytest
import torch

from mmvars.checkpoints import convert_checkpoint, convert_state_dict
from mmvars.checkpoints.account import Status
from mmvars.checkpoints.files import read_checkpoint
from mmvars.networks import VARIANTS, build_network

FACTS = Path(__file__).resolve().parents[2].parent / 'shared' / 'facts' / 'keys'
GOLDEN = {'absvit_cls': 'absvit_base_patch16', 'absvit_gap': 'absvit_tiny_patch8_gap',
          'absvit_seg': 'absvit_base_patch16', 'absvit_seg_prompt': 'absvit_base_patch16',
          'vit_bottom_up_seg': 'vit_base_patch16', 'vit_cls': 'vit_base_patch16',
          'vit_gap': 'vit_tiny_patch8_gap'}


def _same(found, expected):
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def _same_light(found, expected):
    # Each tensor of `light` holds its own number, so one element tells which it is.
    assert list(found) == list(expected)
    assert [t.shape for t in found.values()] == [t.shape for t in expected.values()]
    for key, tensor in expected.items():
        assert found[key][(0, ) * tensor.ndim] == tensor[(0, ) * tensor.ndim]


def _loaded(tensors, arch, **size):
    """A network filled strictly from tensors in mmvars names."""
    network = build_network(arch, **size).eval()
    names = {key.replace('head.fc.', 'trunk.head.').replace('backbone.network.', ''): value
             for key, value in tensors.items()}
    network.load_state_dict(names, strict=True)
    return network


def _close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize('name', GOLDEN)
def test_recorded_outputs(golden, small, name):
    record, arch = golden(name), GOLDEN[name]
    hyper, outputs = record['meta']['hyper'], record['outputs']
    tensors, account, *_ = convert_state_dict(record['state_dict'], arch, **small)
    assert len(tensors) == len(record['state_dict']) == len(account.of(Status.USED))
    size = small | dict(img_size=hyper['img_size'], num_classes=max(hyper['num_classes'], 0))
    if 'prompt_embeddings' in record['state_dict']:
        size |= dict(num_prompt_tokens=hyper['prompt_config']['num_tokens'])
    network = _loaded(tensors, arch, **size)
    with torch.no_grad():
        for key, image in record['inputs'].items():
            if not key.startswith('image'):
                continue
            found = network(image, out_indices=(0, 1, 2))
            suffix = key.removeprefix('image')
            if 'logits' in outputs:
                _close(network.logits(found.final), outputs['logits'])
                _close(found.final.tokens, outputs['tokens'])
            elif 'logits_pass1' in outputs:
                for number, each in enumerate((found.bottom_up, found.top_down), start=1):
                    _close(network.logits(each), outputs[f'logits_pass{number}'])
                    _close(each.tokens, outputs[f'tokens_pass{number}'])
                _close(found.token_mask, outputs['mask'])
            else:
                *maps, _ = (found.final.grid.to_map(t) for t in found.final.intermediates)
                maps.append(found.final.grid.to_map(found.final.tokens))
                for index, feature in enumerate(maps):
                    _close(feature, outputs[f'feat{suffix}.{index}'])


@pytest.mark.parametrize('name', ['absvit_seg', 'absvit_seg_prompt', 'vit_bottom_up_seg'])
@pytest.mark.parametrize('grid', [(6, 6), (6, 4)])
def test_recorded_positions(golden, small, name, grid):
    record = golden(name)
    size = tuple(16 * side for side in grid)
    tensors, account, *_ = convert_state_dict(record['state_dict'], GOLDEN[name], img_size=size,
                                             **small)
    _close(tensors['backbone.network.trunk.pos_embed'],
           record['outputs']['pos_embed_resized_{}x{}'.format(*grid)])
    assert 'resampled from 4x4 to {}x{}'.format(*grid) in account.render()
    assert 'align_corners=False' in account.render()


@pytest.mark.parametrize('name', GOLDEN)
def test_round_trip_to_the_last_bit_and_in_the_old_order(golden, small, tmp_path, name):
    original = golden(name)['state_dict']
    torch.save(dict(model=original, epoch=1), tmp_path / 'a.pth')
    to = 'timm' if name in ('vit_cls', 'vit_gap') else 'release'
    convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth', GOLDEN[name], **small)
    convert_checkpoint(tmp_path / 'b.pth', tmp_path / 'c.pth', GOLDEN[name], to=to, **small)
    back = read_checkpoint(tmp_path / 'c.pth')
    _same(back['model'] if to == 'release' else back, original)


@pytest.mark.parametrize('arch', [arch for arch in VARIANTS
                                  if not arch.startswith(('rvt', 'fan'))])
def test_released_files_at_their_real_size(layout, light, arch):
    source = light(layout(arch))
    tensors, account, *_ = convert_state_dict(source, arch)
    extra = {'absvit': 25, 'gfnet': -37}.get(arch.split('_')[0], 0) + 7 * ('convstem' in arch)
    assert len(tensors) == len(source) == 152 + extra
    assert [line.status for line in account.lines] == [Status.USED] * len(source)
    with torch.device('meta'):
        expected = build_network(arch).state_dict()
    assert {key.replace('backbone.network.', '').replace('head.fc', 'trunk.head'): value.shape
            for key, value in tensors.items()} == {k: v.shape for k, v in expected.items()}
    _same_light(convert_state_dict(tensors, arch, to='release').tensors, source)


@pytest.mark.parametrize('family', ['vit', 'absvit'])
@pytest.mark.parametrize('prompts', [0, 50])
def test_released_segmentation_backbones(layout, light, family, prompts):
    arch = f'{family}_base_patch16'
    source = light(layout(arch, classes=0, grid=32, prompts=prompts))
    tensors, account, *_ = convert_state_dict(source, arch)
    assert len(account.of(Status.USED)) == len(tensors) == len(source)
    assert tensors['backbone.network.trunk.pos_embed'].shape == (1, 1025, 768)
    _same_light(convert_state_dict(tensors, arch, to='release').tensors, source)


@pytest.mark.parametrize('file', [
    *(f'{family}_{size}_patch16_224' for family in ('vit', 'absvit')
      for size in ('tiny', 'small', 'base')), 'vit_tiny_patch8_224_gap',
    'absvit_tiny_patch8_224_gap', *(f'seg_{way}_b16_512_{mode}'
                                    for way in ('bottom_up', 'top_down')
                                    for mode in ('end2end', 'prompt'))])
def test_recorded_key_lists(layout, light, file):
    path = FACTS / f'{file}.json'
    if not path.is_file():
        pytest.skip(f'{path} with the recorded keys is not there')
    recorded = {key: tuple(shape) for key, shape, *_ in json.loads(path.read_text())['entries']}
    if file.startswith('seg'):
        arch = 'absvit_base_patch16' if 'top_down' in file else 'vit_base_patch16'
        options = dict(classes=0, grid=32, prompts=50 if 'prompt' in file else 0)
    else:
        arch, options = file.replace('_224', ''), {}
    assert list(recorded.items()) == list(layout(arch, **options).items())
    tensors = convert_state_dict(light(recorded), arch).tensors
    back = convert_state_dict(tensors, arch, to='release').tensors
    assert [(key, tuple(t.shape)) for key, t in back.items()] == list(recorded.items())
