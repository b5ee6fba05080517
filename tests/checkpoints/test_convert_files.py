"""Conversion of positions, of whole models, and of files."""

import pytest
import torch

from mmvars.checkpoints import CheckpointError, convert_checkpoint, convert_state_dict
from mmvars.checkpoints.io import read_checkpoint
from mmvars.checkpoints.report import Status
from mmvars.checkpoints.write import write_checkpoint
from mmvars.errors import InputError
from mmvars.layers import resample_pos_embed


def _same(found, expected):
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def _keys(report, *statuses):
    return [line.source or line.target for line in report.of(*statuses)]


def test_grids_are_compared_not_token_counts(golden, small):
    source = golden('vit_cls')['state_dict']  # 4x4 patches
    name = 'backbone.network.pos_embed'
    wide = convert_state_dict(source, 'vit_base', img_size=(32, 128), **small).tensors
    assert wide[name].shape == source['pos_embed'].shape
    assert torch.equal(wide[name], resample_pos_embed(source['pos_embed'], (4, 4), (2, 8)))
    assert wide['backbone.network.trained_grid'].tolist() == [2, 8]
    back = convert_state_dict(wide, 'vit_base', img_size=64, **small)
    assert back.tensors[name].shape == (1, 17, 48)
    assert _keys(back.report, Status.IGNORED) == ['backbone.network.trained_grid']


def test_a_grid_that_is_not_square(golden, small):
    source = golden('vit_cls')['state_dict']
    wide = convert_state_dict(source, 'vit_base', img_size=(32, 128), **small).tensors
    with pytest.raises(CheckpointError, match='--to release has no name for it'):
        convert_state_dict(wide, 'vit_base', to='release', **small)
    timm, report, *_ = convert_state_dict(wide, 'vit_base', to='timm', **small)
    assert list(timm) == list(source)
    assert 'img_size' in report.of(Status.IGNORED)[0].note
    again = convert_state_dict(timm, 'vit_base', source_grid=(2, 8), **small)
    _same(again.tensors, wide)
    assert _keys(again.report, Status.NEW) == ['backbone.network.trained_grid']


@pytest.mark.parametrize(
    ('rows', 'given', 'said'),
    [
        (15, None, 'no square grid'),
        (18, None, 'no square grid'),
        (17, (3, 5), 'a grid of 3x5 patches needs shape'),
    ],
)
def test_positions_that_fit_no_grid(golden, small, rows, given, said):
    source = golden('vit_cls')['state_dict'] | {'pos_embed': torch.zeros(1, rows, 48)}
    with pytest.raises(CheckpointError, match=said):
        convert_state_dict(source, 'vit_base', source_grid=given, **small)


def test_a_segmentor_of_the_release_keeps_its_heads(golden, small, tmp_path):
    heads = {
        'decode_head.conv_seg.weight': torch.ones(2, 4, 1, 1),
        'auxiliary_head.b': torch.ones(1),
    }
    original = {f'backbone.{k}': v for k, v in golden('absvit_seg')['state_dict'].items()} | heads
    torch.save(dict(state_dict=original, meta=dict(iter=5)), tmp_path / 'a.pth')
    arch = 'absvit_base'
    report = convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth', arch, **small)
    assert _keys(report, Status.PASSTHROUGH) == list(heads)
    convert_checkpoint(tmp_path / 'b.pth', tmp_path / 'c.pth', arch, to='release', **small)
    _same(read_checkpoint(tmp_path / 'c.pth')['state_dict'], original)


def test_a_broken_head_that_is_carried_is_refused(golden, small):
    source = {f'backbone.{k}': v for k, v in golden('absvit_seg')['state_dict'].items()}
    source['decode_head.b'] = torch.tensor([float('nan')])
    with pytest.raises(CheckpointError, match=r'decode_head\.b.*NaN'):
        convert_state_dict(source, 'absvit_base', **small)


def test_safetensors_both_ways(golden, small, tmp_path):
    original = golden('absvit_cls')['state_dict']
    write_checkpoint(tmp_path / 'a.safetensors', original)
    arch = 'absvit_base'
    convert_checkpoint(tmp_path / 'a.safetensors', tmp_path / 'b.safetensors', arch, **small)
    convert_checkpoint(
        tmp_path / 'b.safetensors', tmp_path / 'c.safetensors', arch, to='release', **small
    )
    back = read_checkpoint(tmp_path / 'c.safetensors')
    _same({key: back[key] for key in original}, original)
    assert len(back) == len(original)


def test_averages_of_timm(golden, small, tmp_path):
    raw = golden('vit_cls')['state_dict']
    content = dict(state_dict=raw, state_dict_ema={f'module.{k}': v + 1 for k, v in raw.items()})
    torch.save(content, tmp_path / 'a.pth')
    for weights, shift in (('auto', 0), ('model', 0), ('ema', 1)):
        report = convert_checkpoint(
            tmp_path / 'a.pth',
            tmp_path / 'b.pth',
            'vit_base',
            weights=weights,
            overwrite=True,
            **small,
        )
        found = read_checkpoint(tmp_path / 'b.pth')['state_dict']
        assert torch.equal(found['head.fc.bias'], raw['head.bias'] + shift)
        assert len(report.of(Status.IGNORED)) == 1


def test_what_fails_writes_nothing_and_keeps_what_is_there(golden, tmp_path):
    torch.save(golden('vit_cls')['state_dict'], tmp_path / 'a.pth')
    with pytest.raises(CheckpointError):
        convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth', 'vit_base')
    assert not (tmp_path / 'b.pth').exists()
    (tmp_path / 'b.pth').write_bytes(b'precious')
    with pytest.raises(CheckpointError):
        convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth', 'vit_base', overwrite=True)
    assert (tmp_path / 'b.pth').read_bytes() == b'precious'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.pth', 'b.pth']


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (dict(arch='absvit_huge'), 'arch must be one of vit_tiny'),
        (dict(to='onnx'), 'to must be'),
        (dict(task='detection'), 'task must be'),
        (dict(weights='best'), 'weights must be'),
        (dict(nonsense=1), 'takes no argument nonsense'),
        (dict(img_size=8), 'img_size must be'),
    ],
)
def test_arguments(golden, tmp_path, small, options, said):
    torch.save(golden('vit_cls')['state_dict'], tmp_path / 'a.pth')
    with pytest.raises(InputError, match=said):
        convert_checkpoint(
            tmp_path / 'a.pth',
            tmp_path / 'b.pth',
            **dict(arch='vit_base') | small | options,
        )
