"""The tables of names."""

import pytest
import torch

from mmvars.checkpoints.formats import (FORMATS, GFNET, MMVARS, RELEASE, RELEASE_SEGMENTOR, RVT,
                                        RVT_VARS_D, RVT_VARS_S, TIMM, detect_format, target_format)
from mmvars.checkpoints.rules import Constant, Format, Reason, Rename, reason_for, same_names
from mmvars.networks import VARIANTS, build_network

SIZES = [('vit_tiny_patch16', {}), ('vit_tiny_patch8_gap', {}), ('absvit_tiny_patch16', {}),
         ('absvit_tiny_patch8_gap', {}), ('absvit_tiny_patch16', dict(num_prompt_tokens=4))]


def _names(name, options):
    with torch.device('meta'):
        return list(build_network(name, **options).state_dict())


def _key(target, name):
    return target.from_network(name)[0]


def test_a_row_renames_in_both_directions():
    row = Rename('stages.{i}.blocks.{j}.{path}', 'trunk.blocks.{j}.of.{i}.{path}')
    assert row.forward('stages.2.blocks.11.mlp.fc1.weight') == 'trunk.blocks.11.of.2.mlp.fc1.weight'
    assert row.backward('trunk.blocks.11.of.2.x') == 'stages.2.blocks.11.x'
    assert row.forward('stages.two.blocks.11.x') is None
    assert row.forward('module.stages.2.blocks.11.x') is None


def test_dots_of_a_template_are_dots():
    assert Rename('norm.weight', 'x').forward('normXweight') is None


@pytest.mark.parametrize('target', [MMVARS, RELEASE, RELEASE_SEGMENTOR], ids=lambda f: f.name)
@pytest.mark.parametrize(('name', 'options'), SIZES)
def test_every_name_goes_there_and_back(target: Format, name, options):
    names = _names(name, options)
    assert len(names) > 150
    keys = [_key(target, name) for name in names]
    assert len(set(keys)) == len(names)
    assert [target.to_network(key)[0] for key in keys] == names


def test_timm_has_no_name_for_what_only_absvit_has():
    nameless = [n for n in _names('absvit_tiny_patch16', {}) if TIMM.from_network(n) is None]
    assert len(nameless) == 25
    assert all(n.startswith(('prior.', 'feedback.')) for n in nameless)


@pytest.mark.parametrize(('to', 'name', 'options', 'written'), [
    ('mmvars', 'absvit_tiny_patch16', {}, MMVARS), ('timm', 'vit_tiny_patch16', {}, TIMM),
    ('timm', 'deit_convstem_tiny', {}, TIMM), ('release', 'absvit_tiny_patch16', {}, RELEASE),
    ('release', 'gfnet_tiny', {}, GFNET), ('release', 'rvt_tiny', {}, RVT),
    ('release', 'rvt_tiny_plus', {}, RVT), ('release', 'rvt_tiny', dict(mixer='performer'), RVT),
    ('release', 'rvt_tiny', dict(mixer='vars_d'), RVT_VARS_D),
    ('release', 'rvt_tiny', dict(mixer='vars_sd'), RVT_VARS_D),
    ('release', 'rvt_base', dict(mixer='vars_s'), RVT_VARS_S)])
def test_a_written_file_is_recognised(to, name, options, written):
    names = _names(name, options)
    assert target_format(to, names) is written
    keys = [_key(written, n) for n in names]
    assert len(set(keys)) == len(names)
    assert detect_format(keys) is written
    assert [written.to_network(key)[0] for key in keys] == names


def test_a_segmentor_of_the_release_is_recognised():
    keys = [_key(RELEASE_SEGMENTOR, n) for n in _names('absvit_tiny_patch16', {})]
    assert detect_format([*keys, 'decode_head.conv_seg.weight']) is RELEASE_SEGMENTOR


def test_foreign_names_are_not_recognised():
    assert detect_format(['layer1.0.conv1.weight', 'fc.bias']) is None


def test_formats_have_distinct_names():
    assert len({f.name for f in FORMATS}) == len(FORMATS) == 9
    assert len(VARIANTS) >= 18


def test_the_first_reason_wins_and_none_is_made_up():
    reasons = (Reason('a.{path}', 'first'), Reason('a.b', 'second'))
    assert reason_for(reasons, 'a.b') == 'first'
    assert reason_for(reasons, 'b') is None


def test_same_names_only_gain_a_prefix():
    assert same_names('t.', 'a.{i}') == (Rename('a.{i}', 't.a.{i}'), )


def test_a_row_drops_and_restores_axes_of_length_one():
    row = Rename('kernel', 'dictionary', singletons=(1, 3))
    stored = torch.arange(6.).reshape(2, 1, 3, 1)
    assert row.to_network(stored).shape == (2, 3)
    assert torch.equal(row.from_network(row.to_network(stored)), stored)
    for other in (torch.zeros(2, 2, 3, 1), torch.zeros(2, 1, 3), torch.zeros(())):
        assert row.to_network(other) is other  # its shape is for the account to report
    assert Rename('a', 'b').to_network(stored) is stored


def test_a_constant_stands_beside_the_tensor_that_calls_for_it():
    row = Constant('b.{i}.L', 'x.{i}.gram', 25., 'dead', length_of='x.{i}.features')
    tensors = {'x.3.gram': torch.zeros(5, 5), 'x.3.features': torch.zeros(4, 2, 7),
               'x.4.features': torch.zeros(3, 2, 7)}
    (key, tensor), = row.entries(tensors)
    assert key == 'b.3.L'
    assert tensor.tolist() == [25.] * 4
    scalar = Constant('b.{i}.n', 'x.{i}.gram', 1., 'dead')
    (key, tensor), = scalar.entries(tensors)
    assert (key, tensor.shape, tensor.item()) == ('b.3.n', (), 1.)
    both = Format('f', 'f', rows=(row, Rename('b.{i}.{path}', 'x.{i}.{path}')))
    assert both.reason_to_ignore('b.3.L') == 'dead'
    assert both.reason_to_ignore('b.3.gram') is None
    assert sorted(['b.1.gram', 'b.0.z', 'b.0.L'], key=both.position) == ['b.0.L', 'b.0.z',
                                                                         'b.1.gram']
