"""Conversion of state dicts: everything arrives, everything is accounted for."""

import json
from pathlib import Path

import pytest
import torch

from mmvars.checkpoints import CheckpointError, convert_checkpoint, convert_state_dict
from mmvars.checkpoints.account import Status
from mmvars.checkpoints.files import read_checkpoint, write_checkpoint
from mmvars.errors import InputError
from mmvars.layers import resample_positions
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
    assert [t[(0, ) * t.ndim] for t in found.values()] == [t[(0, ) * t.ndim] for t in expected.values()]


def _keys(account, *statuses):
    return [line.source or line.target for line in account.of(*statuses)]


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


# ---- parity with the recorded networks, through the converter -----------------------------------


@pytest.mark.parametrize('name', GOLDEN)
def test_recorded_outputs(golden, small, name):
    record, arch = golden(name), GOLDEN[name]
    hyper, outputs = record['meta']['hyper'], record['outputs']
    tensors, account, _ = convert_state_dict(record['state_dict'], arch, **small)
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


@pytest.mark.parametrize('name', ['absvit_seg', 'vit_bottom_up_seg'])
@pytest.mark.parametrize('grid', [(6, 6), (6, 4)])
def test_recorded_positions(golden, small, name, grid):
    record = golden(name)
    size = tuple(16 * side for side in grid)
    tensors, account, _ = convert_state_dict(record['state_dict'], GOLDEN[name], img_size=size,
                                             **small)
    _close(tensors['backbone.network.trunk.pos_embed'],
           record['outputs']['pos_embed_resized_{}x{}'.format(*grid)])
    assert 'resampled from 4x4 to {}x{}'.format(*grid) in account.render()
    assert 'align_corners=False' in account.render()


# ---- there and back --------------------------------------------------------------------------------


@pytest.mark.parametrize('name', GOLDEN)
def test_round_trip_to_the_last_bit_and_in_the_old_order(golden, small, tmp_path, name):
    original = golden(name)['state_dict']
    torch.save(dict(model=original, epoch=1), tmp_path / 'a.pth')
    to = 'timm' if name in ('vit_cls', 'vit_gap') else 'release'
    convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth', GOLDEN[name], **small)
    convert_checkpoint(tmp_path / 'b.pth', tmp_path / 'c.pth', GOLDEN[name], to=to, **small)
    back = read_checkpoint(tmp_path / 'c.pth')
    _same(back['model'] if to == 'release' else back, original)


@pytest.mark.parametrize('arch', VARIANTS)
def test_released_files_at_their_real_size(layout, light, arch):
    source = light(layout(arch))
    tensors, account, _ = convert_state_dict(source, arch)
    assert len(tensors) == len(source) == (177 if arch.startswith('absvit') else 152)
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
    tensors, account, _ = convert_state_dict(source, arch)
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


# ---- what is dropped, new, refused ----------------------------------------------------------------


def test_segmentation_drops_the_head_and_says_so(layout, light):
    tensors, account, _ = convert_state_dict(light(layout('vit_tiny_patch16')), 'vit_tiny_patch16',
                                             task='segmentation')
    assert all(key.startswith('backbone.network.trunk.') for key in tensors)
    assert _keys(account, Status.IGNORED) == ['head.weight', 'head.bias']
    assert all('classifier' in line.note for line in account.of(Status.IGNORED))


def test_classification_demands_a_head_or_leave_to_start_one(layout, light):
    source = light(layout('vit_tiny_patch16', classes=0))
    with pytest.raises(InputError, match='has none.*--for segmentation'):
        convert_state_dict(source, 'vit_tiny_patch16', task='classification')
    with pytest.raises(CheckpointError, match=r'MISSING(?s:.*)head\.fc\.bias'):
        convert_state_dict(source, 'vit_tiny_patch16', task='classification', num_classes=5)
    tensors, account, _ = convert_state_dict(source, 'vit_tiny_patch16', task='classification',
                                             num_classes=5, allow_new=['trunk.head'])
    assert _keys(account, Status.NEW) == ['head.fc.weight', 'head.fc.bias']
    assert tensors['head.fc.weight'].shape == (5, 192)


def test_a_plain_vit_starts_an_absvit(layout, light):
    source = light(layout('vit_tiny_patch16'))
    state = torch.random.get_rng_state()
    tensors, account, _ = convert_state_dict(source, 'absvit_tiny_patch16', seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    new = account.of(Status.NEW)
    assert len(new) == 25
    assert all('initialised as for training from scratch' in line.note for line in new)
    assert 'seed 3' in account.render()
    prior = tensors['backbone.network.prior.query']
    chains = torch.stack([v for k, v in tensors.items() if 'feedback' in k])
    assert .7 < prior.std() < 1.3
    assert .018 < chains.std() < .022
    again = convert_state_dict(source, 'absvit_tiny_patch16', seed=3).tensors
    other = convert_state_dict(source, 'absvit_tiny_patch16', seed=4).tensors
    _same(again, tensors)
    assert not torch.equal(other['backbone.network.prior.query'], prior)


def test_half_a_feedback_path_is_no_plain_vit(layout, light):
    source = light(layout('absvit_tiny_patch16'))
    del source['decoders.3.linear.weight']
    with pytest.raises(CheckpointError) as caught:
        convert_state_dict(source, 'absvit_tiny_patch16')
    assert _keys(caught.value.account, Status.MISSING) == [
        'backbone.network.feedback.decoders.3.chain.weight']


def test_all_faults_are_listed_at_once_with_shapes(layout, light):
    source = light(layout('vit_tiny_patch16'))
    del source['norm.bias']
    source['extra.weight'] = torch.zeros(3, 4)
    source['norm.weight'] = torch.zeros(5)
    source['cls_token'] = torch.full((1, 1, 192), float('nan'))
    source['head.bias'] = torch.full((1000, ), float('inf'))
    source['blocks.0.norm1.bias'] = torch.zeros(192, dtype=torch.int64)
    source['blocks.0.norm1.weight'] = 'text'
    with pytest.raises(CheckpointError) as caught:
        convert_state_dict(source, 'vit_tiny_patch16')
    message = str(caught.value)
    for part in ('norm.bias', '192', 'extra.weight  3x4', '5 -> 192', 'cls_token',
                 '192 NaN and 0 infinite of 192', '0 NaN and 1000 infinite', 'torch.int64',
                 'a str, not a tensor', 'Nothing was written'):
        assert part in message
    assert len(caught.value.account.problems) == 7


def test_nan_in_what_is_dropped_does_not_matter(layout, light):
    source = light(layout('vit_tiny_patch16'))
    source['head.bias'] = torch.full((1000, ), float('nan'))
    convert_state_dict(source, 'vit_tiny_patch16', task='segmentation')


@pytest.mark.parametrize('true', VARIANTS)
def test_the_right_arch_is_guessed(layout, light, true):
    wrong = 'vit_tiny_patch16' if true != 'vit_tiny_patch16' else 'absvit_tiny_patch8_gap'
    with pytest.raises(CheckpointError) as caught:
        convert_state_dict(light(layout(true)), wrong)
    fits = str(caught.value).splitlines()[-1]
    assert f'The tensors fit --arch {true}' in fits
    # a plain file also starts an AbSViT of its size, and nothing else
    assert fits.count('patch') == (1 if true.startswith('absvit') else 2)


def test_sizes_are_told_where_no_name_fits(golden):
    with pytest.raises(CheckpointError, match='embed_dim 48, depth 3, patch_size 16.*--embed-dim'):
        convert_state_dict(golden('vit_cls')['state_dict'], 'vit_base_patch16')


@pytest.mark.parametrize('key', ['dist_token', 'head_dist.weight', 'blocks.3.ls1.gamma',
                                 'reg_token'])
def test_networks_that_mmvars_does_not_have(layout, light, key):
    source = light(layout('vit_tiny_patch16')) | {key: torch.zeros(1, 1, 192)}
    with pytest.raises(CheckpointError) as caught:
        convert_state_dict(source, 'vit_tiny_patch16')
    (line, ) = caught.value.account.of(Status.REFUSED)
    assert line.source == key
    assert line.note


def test_ignoring_is_possible_but_not_silent(layout, light):
    source = light(layout('absvit_tiny_patch16'))
    tensors, account, _ = convert_state_dict(source, 'vit_tiny_patch16', to='timm',
                                             ignore=['prompt', 'decoders.*'])
    assert len(tensors) == 152
    assert {line.note for line in account.of(Status.IGNORED)} == {'as asked'}
    assert len(account.of(Status.IGNORED)) == 25


def test_timm_names_hold_no_top_down_part(layout, light):
    with pytest.raises(CheckpointError) as caught:
        convert_state_dict(light(layout('absvit_tiny_patch16')), 'absvit_tiny_patch16', to='timm')
    assert len(caught.value.account.of(Status.REFUSED)) == 25


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32_and_it_is_said(golden, small, dtype):
    source = {k: v.to(dtype) for k, v in golden('vit_cls')['state_dict'].items()}
    tensors, account, _ = convert_state_dict(source, 'vit_base_patch16', **small)
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert {line.note for line in account.of(Status.USED)} == {
        f'{dtype} -> float32'.replace('torch.', '')}
    assert torch.equal(tensors['head.fc.bias'], source['head.bias'].float())


# ---- positions ------------------------------------------------------------------------------------


def test_grids_are_compared_not_token_counts(golden, small):
    source = golden('vit_cls')['state_dict']  # 4x4 patches
    name = 'backbone.network.trunk.pos_embed'
    wide = convert_state_dict(source, 'vit_base_patch16', img_size=(32, 128), **small).tensors
    assert wide[name].shape == source['pos_embed'].shape
    assert torch.equal(wide[name], resample_positions(source['pos_embed'], (4, 4), (2, 8)))
    assert wide['backbone.network.trunk.pos_grid'].tolist() == [2, 8]
    back = convert_state_dict(wide, 'vit_base_patch16', img_size=64, **small)
    assert back.tensors[name].shape == (1, 17, 48)
    assert _keys(back.account, Status.IGNORED) == ['backbone.network.trunk.pos_grid']


def test_a_grid_that_is_not_square(golden, small):
    source = golden('vit_cls')['state_dict']
    wide = convert_state_dict(source, 'vit_base_patch16', img_size=(32, 128), **small).tensors
    with pytest.raises(CheckpointError, match='--to release has no name for it'):
        convert_state_dict(wide, 'vit_base_patch16', to='release', **small)
    timm, account, _ = convert_state_dict(wide, 'vit_base_patch16', to='timm', **small)
    assert list(timm) == list(source)
    assert 'img_size' in account.of(Status.IGNORED)[0].note
    again = convert_state_dict(timm, 'vit_base_patch16', source_grid=(2, 8), **small)
    _same(again.tensors, wide)
    assert _keys(again.account, Status.NEW) == ['backbone.network.trunk.pos_grid']


@pytest.mark.parametrize(('rows', 'given', 'said'), [
    (16, None, 'no square grid'), (18, None, 'no square grid'), (17, (3, 5), 'are not one class')])
def test_positions_that_fit_no_grid(golden, small, rows, given, said):
    source = golden('vit_cls')['state_dict'] | {'pos_embed': torch.zeros(1, rows, 48)}
    with pytest.raises(CheckpointError, match=said):
        convert_state_dict(source, 'vit_base_patch16', source_grid=given, **small)


# ---- whole models ------------------------------------------------------------------------------------


def test_a_segmentor_of_the_release_keeps_its_heads(golden, small, tmp_path):
    heads = {'decode_head.conv_seg.weight': torch.ones(2, 4, 1, 1), 'auxiliary_head.b': torch.ones(1)}
    original = {f'backbone.{k}': v for k, v in golden('absvit_seg')['state_dict'].items()} | heads
    torch.save(dict(state_dict=original, meta=dict(iter=5)), tmp_path / 'a.pth')
    arch = 'absvit_base_patch16'
    account = convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth', arch, **small)
    assert _keys(account, Status.CARRIED) == list(heads)
    convert_checkpoint(tmp_path / 'b.pth', tmp_path / 'c.pth', arch, to='release', **small)
    _same(read_checkpoint(tmp_path / 'c.pth')['state_dict'], original)


def test_a_broken_head_that_is_carried_is_refused(golden, small):
    source = {f'backbone.{k}': v for k, v in golden('absvit_seg')['state_dict'].items()}
    source['decode_head.b'] = torch.tensor([float('nan')])
    with pytest.raises(CheckpointError, match=r'decode_head\.b.*NaN'):
        convert_state_dict(source, 'absvit_base_patch16', **small)


# ---- files ----------------------------------------------------------------------------------------------


def test_safetensors_both_ways(golden, small, tmp_path):
    original = golden('absvit_cls')['state_dict']
    write_checkpoint(tmp_path / 'a.safetensors', original)
    arch = 'absvit_base_patch16'
    convert_checkpoint(tmp_path / 'a.safetensors', tmp_path / 'b.safetensors', arch, **small)
    convert_checkpoint(tmp_path / 'b.safetensors', tmp_path / 'c.safetensors', arch, to='release',
                       **small)
    back = read_checkpoint(tmp_path / 'c.safetensors')
    _same({key: back[key] for key in original}, original)
    assert len(back) == len(original)


def test_averages_of_timm(golden, small, tmp_path):
    raw = golden('vit_cls')['state_dict']
    content = dict(state_dict=raw, state_dict_ema={f'module.{k}': v + 1 for k, v in raw.items()})
    torch.save(content, tmp_path / 'a.pth')
    for weights, shift in (('auto', 0), ('model', 0), ('ema', 1)):
        account = convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth', 'vit_base_patch16',
                                     weights=weights, overwrite=True, **small)
        found = read_checkpoint(tmp_path / 'b.pth')['state_dict']
        assert torch.equal(found['head.fc.bias'], raw['head.bias'] + shift)
        assert len(account.of(Status.IGNORED)) == 1


def test_what_fails_writes_nothing_and_keeps_what_is_there(golden, tmp_path):
    torch.save(golden('vit_cls')['state_dict'], tmp_path / 'a.pth')
    with pytest.raises(CheckpointError):
        convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth', 'vit_base_patch16')
    assert not (tmp_path / 'b.pth').exists()
    (tmp_path / 'b.pth').write_bytes(b'precious')
    with pytest.raises(CheckpointError):
        convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth', 'vit_base_patch16',
                           overwrite=True)
    assert (tmp_path / 'b.pth').read_bytes() == b'precious'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.pth', 'b.pth']


@pytest.mark.parametrize(('options', 'said'), [
    (dict(arch='absvit_huge'), 'arch must be one of vit_tiny'), (dict(to='onnx'), 'to must be'),
    (dict(task='detection'), 'task must be'), (dict(weights='best'), 'weights must be'),
    (dict(nonsense=1), 'takes no argument nonsense'), (dict(img_size=8), 'img_size must be')])
def test_arguments(golden, tmp_path, small, options, said):
    torch.save(golden('vit_cls')['state_dict'], tmp_path / 'a.pth')
    with pytest.raises(InputError, match=said):
        convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth',
                           **dict(arch='vit_base_patch16') | small | options)


def test_the_account_hides_no_key_and_serves_json(layout, light):
    source = light(layout('vit_tiny_patch16'))
    account = convert_state_dict(source, 'absvit_tiny_patch16', task='segmentation').account
    report = json.loads(json.dumps(account.to_dict()))
    told = {line['source'] for line in report['lines']} - {None}
    assert told == set(source)
    assert report['ok'] is True
    assert len([line for line in report['lines'] if line['status'] == 'new']) == 25
    text = account.render()
    assert 'blocks.{0..11}.attn.qkv.weight -> backbone.network.trunk.blocks.{0..11}' in text
    assert len(text.splitlines()) < 40


def test_an_account_with_a_hole_is_a_fault(layout, light):
    account = convert_state_dict(light(layout('vit_tiny_patch16')), 'vit_tiny_patch16').account
    lost = account.lines.pop(5)
    with pytest.raises(RuntimeError, match=lost.source):
        account.check_complete([lost.source], [])
    account.lines += 2 * [lost]
    with pytest.raises(RuntimeError, match='with several'):
        account.check_complete([], [lost.target])


def test_numbers_with_gaps_are_told_one_by_one(layout, light):
    source = light(layout('vit_tiny_patch16'))
    for i in (2, 3, 7):
        del source[f'blocks.{i}.norm1.weight']
    with pytest.raises(CheckpointError, match=r'blocks\.\{2,3,7\}\.norm1\.weight  192'):
        convert_state_dict(source, 'vit_tiny_patch16')
