"""The tables of names."""

import pytest
import torch

from mmvars.checkpoints.formats import (FORMATS, MMVARS, RELEASE, RELEASE_SEGMENTOR, TARGETS, TIMM,
                                        detect_format)
from mmvars.checkpoints.rules import Format, Reason, Rename, reason_for, same_names
from mmvars.networks import VARIANTS, build_network

SIZES = [('vit_tiny_patch16', {}), ('vit_tiny_patch8_gap', {}), ('absvit_tiny_patch16', {}),
         ('absvit_tiny_patch8_gap', {}), ('absvit_tiny_patch16', dict(num_prompt_tokens=4))]


def _names(name, options):
    with torch.device('meta'):
        return list(build_network(name, **options).state_dict())


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
    keys = [target.from_network(name) for name in names]
    assert None not in keys
    assert len(set(keys)) == len(names)
    assert [target.to_network(key) for key in keys] == names


def test_timm_has_no_name_for_what_only_absvit_has():
    nameless = [n for n in _names('absvit_tiny_patch16', {}) if TIMM.from_network(n) is None]
    assert len(nameless) == 25
    assert all(n.startswith(('prior.', 'feedback.')) for n in nameless)


@pytest.mark.parametrize('written', TARGETS.values(), ids=lambda f: f.name)
def test_a_written_file_is_recognised(written):
    name = 'vit_tiny_patch16' if written is TIMM else 'absvit_tiny_patch16'
    assert detect_format([written.from_network(n) for n in _names(name, {})]) is written


def test_a_segmentor_of_the_release_is_recognised():
    keys = [RELEASE_SEGMENTOR.from_network(n) for n in _names('absvit_tiny_patch16', {})]
    assert detect_format([*keys, 'decode_head.conv_seg.weight']) is RELEASE_SEGMENTOR


def test_foreign_names_are_not_recognised():
    assert detect_format(['layer1.0.conv1.weight', 'fc.bias']) is None


def test_formats_have_distinct_names():
    assert len({f.name for f in FORMATS}) == len(FORMATS) == 4
    assert len(VARIANTS) == 8


def test_the_first_reason_wins_and_none_is_made_up():
    reasons = (Reason('a.{path}', 'first'), Reason('a.b', 'second'))
    assert reason_for(reasons, 'a.b') == 'first'
    assert reason_for(reasons, 'b') is None


def test_same_names_only_gain_a_prefix():
    assert same_names('t.', 'a.{i}') == (Rename('a.{i}', 't.a.{i}'), )
