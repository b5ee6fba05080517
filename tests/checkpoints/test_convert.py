"""Conversion of state dicts: everything arrives or is named, with its reason."""

import json

import pytest
import torch

from mmvars.checkpoints import CheckpointError, convert_state_dict
from mmvars.checkpoints.report import Status
from mmvars.errors import InputError
from mmvars.networks import ARCH_ZOO, MODELS


def _same(found, expected):
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def _keys(report, *statuses):
    return [line.source or line.target for line in report.of(*statuses)]


def test_segmentation_drops_the_head_and_says_so(layout, light):
    tensors, report, *_ = convert_state_dict(
        light(layout('vit_tiny')), 'vit_tiny', task='segmentation'
    )
    assert all(key.startswith('backbone.network.') for key in tensors)
    assert _keys(report, Status.IGNORED) == ['head.weight', 'head.bias']
    assert all('classifier' in line.note for line in report.of(Status.IGNORED))


def test_classification_demands_a_head_or_leave_to_start_one(layout, light):
    source = light(layout('vit_tiny', classes=0))
    with pytest.raises(InputError, match='has none.*--for segmentation'):
        convert_state_dict(source, 'vit_tiny', task='classification')
    with pytest.raises(CheckpointError, match=r'MISSING(?s:.*)head\.fc\.bias'):
        convert_state_dict(source, 'vit_tiny', task='classification', num_classes=5)
    tensors, report, *_ = convert_state_dict(
        source, 'vit_tiny', task='classification', num_classes=5, allow_new=['trunk.head']
    )
    assert _keys(report, Status.NEW) == ['head.fc.weight', 'head.fc.bias']
    assert tensors['head.fc.weight'].shape == (5, 192)


def test_a_plain_vit_starts_an_absvit(layout, light):
    source = light(layout('vit_tiny'))
    state = torch.random.get_rng_state()
    tensors, report, *_ = convert_state_dict(source, 'absvit_tiny', seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    new = report.of(Status.NEW)
    assert len(new) == 25
    assert all('initialized as for training from scratch' in line.note for line in new)
    assert 'seed 3' in report.render()
    prior = tensors['backbone.network.prior.query']
    chains = torch.stack([v for k, v in tensors.items() if 'feedback' in k])
    assert 0.7 < prior.std() < 1.3
    assert 0.018 < chains.std() < 0.022
    again = convert_state_dict(source, 'absvit_tiny', seed=3).tensors
    other = convert_state_dict(source, 'absvit_tiny', seed=4).tensors
    _same(again, tensors)
    assert not torch.equal(other['backbone.network.prior.query'], prior)


def test_half_a_feedback_path_is_no_plain_vit(layout, light):
    source = light(layout('absvit_tiny'))
    del source['decoders.3.linear.weight']
    with pytest.raises(CheckpointError) as caught:
        convert_state_dict(source, 'absvit_tiny')
    assert _keys(caught.value.report, Status.MISSING) == [
        'backbone.network.feedback.decoders.3.to_below.weight'
    ]


def test_all_faults_are_listed_at_once_with_shapes(layout, light):
    source = light(layout('vit_tiny'))
    del source['norm.bias']
    source['extra.weight'] = torch.zeros(3, 4)
    source['norm.weight'] = torch.zeros(5)
    source['cls_token'] = torch.full((1, 1, 192), float('nan'))
    source['head.bias'] = torch.full((1000,), float('inf'))
    source['blocks.0.norm1.bias'] = torch.zeros(192, dtype=torch.int64)
    source['blocks.0.norm1.weight'] = 'text'
    with pytest.raises(CheckpointError) as caught:
        convert_state_dict(source, 'vit_tiny')
    message = str(caught.value)
    for part in (
        'norm.bias',
        '192',
        'extra.weight  3x4',
        '5 -> 192',
        'cls_token',
        '192 NaN and 0 infinite of 192',
        '0 NaN and 1000 infinite',
        'torch.int64',
        'a str, not a tensor',
        'Nothing was written',
    ):
        assert part in message
    assert len(caught.value.report.problems) == 7


def test_nan_in_what_is_dropped_does_not_matter(layout, light):
    source = light(layout('vit_tiny'))
    source['head.bias'] = torch.full((1000,), float('nan'))
    convert_state_dict(source, 'vit_tiny', task='segmentation')


@pytest.mark.parametrize('true', [arch for arch in MODELS if not arch.startswith('fan')])
def test_width_depth_and_patch_of_the_file_are_named(layout, light, true):
    wrong = 'vit_tiny' if true != 'vit_tiny' else 'absvit_tiny_patch8_gap'
    with pytest.raises(InputError) as caught:
        convert_state_dict(light(layout(true)), wrong)
    advice = str(caught.value).splitlines()[-1]
    size = ARCH_ZOO[true.replace('absvit', 'vit')][1]
    width, depth = (str(size[name]).strip('()').replace(',', '') for name in ('embed_dim', 'depth'))
    assert f'The file has embed_dim {width}, depth {depth}' in advice
    assert ('patch_size' in advice) == (true.startswith(('vit', 'absvit')) or true == 'gfnet_tiny')
    assert true in advice.partition(', as --arch ')[2]


def test_sizes_are_told_where_no_name_fits(golden):
    with pytest.raises(
        CheckpointError,
        match='embed_dim 48, depth 3, patch_size 16, which no named size has.*--embed-dim',
    ):
        convert_state_dict(golden('vit_cls')['state_dict'], 'vit_base')


@pytest.mark.parametrize(
    'key',
    ['dist_token', 'head_dist.weight', 'blocks.3.ls1.gamma', 'reg_token', 'register_tokens'],
)
def test_networks_that_mmvars_does_not_have(layout, light, key):
    source = light(layout('vit_tiny')) | {key: torch.zeros(1, 1, 192)}
    with pytest.raises(CheckpointError) as caught:
        convert_state_dict(source, 'vit_tiny')
    (line,) = caught.value.report.of(Status.REFUSED)
    assert line.source == key
    assert line.note


def test_ignoring_is_possible_but_not_silent(layout, light):
    source = light(layout('absvit_tiny'))
    tensors, report, *_ = convert_state_dict(
        source, 'vit_tiny', to='timm', ignore=['prompt', 'decoders.*']
    )
    assert len(tensors) == 152
    assert {line.note for line in report.of(Status.IGNORED)} == {'as requested'}
    assert len(report.of(Status.IGNORED)) == 25


def test_more_than_the_encoder_names_the_way_to_leave_it_out(layout, light):
    source = light(layout('vit_tiny', classes=0)) | {  # as of MAE
        'decoder_embed.weight': torch.zeros(512, 192),
    }
    with pytest.raises(CheckpointError, match='decoder_embed(?s:.*)--ignore PATTERN leaves keys'):
        convert_state_dict(source, 'vit_tiny')
    convert_state_dict(source, 'vit_tiny', ignore=['decoder_*'])


def test_timm_names_hold_no_top_down_part(layout, light):
    with pytest.raises(CheckpointError) as caught:
        convert_state_dict(light(layout('absvit_tiny')), 'absvit_tiny', to='timm')
    assert len(caught.value.report.of(Status.REFUSED)) == 25


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32_and_it_is_said(golden, small, dtype):
    source = {k: v.to(dtype) for k, v in golden('vit_cls')['state_dict'].items()}
    tensors, report, *_ = convert_state_dict(source, 'vit_base', **small)
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert {line.note for line in report.of(Status.USED)} == {
        f'{dtype} -> float32'.replace('torch.', '')
    }
    assert torch.equal(tensors['head.fc.bias'], source['head.bias'].float())


def test_the_account_hides_no_key_and_serves_json(layout, light):
    source = light(layout('vit_tiny'))
    report = convert_state_dict(source, 'absvit_tiny', task='segmentation').report
    content = json.loads(json.dumps(report.to_dict()))
    told = {line['source'] for line in content['entries']} - {None}
    assert told == set(source)
    assert content['ok'] is True
    assert len([line for line in content['entries'] if line['status'] == 'new']) == 25
    text = report.render()
    assert 'blocks.{0..11}.attn.qkv.weight -> backbone.network.trunk.blocks.{0..11}' in text
    assert len(text.splitlines()) < 40


def test_an_account_with_a_hole_is_a_fault(layout, light):
    report = convert_state_dict(light(layout('vit_tiny')), 'vit_tiny').report
    lost = report.entries.pop(5)
    with pytest.raises(RuntimeError, match=lost.source):
        report.check_complete([lost.source], [])
    report.entries += 2 * [lost]
    with pytest.raises(RuntimeError, match='number of their entries.*: 2'):
        report.check_complete([], [lost.target])


def test_numbers_with_gaps_are_told_one_by_one(layout, light):
    source = light(layout('vit_tiny'))
    for i in (2, 3, 7):
        del source[f'blocks.{i}.norm1.weight']
    with pytest.raises(CheckpointError, match=r'blocks\.\{2,3,7\}\.norm1\.weight  192'):
        convert_state_dict(source, 'vit_tiny')
