"""The tables of names."""

import pytest
import torch

from mmvars.checkpoints.fit import named_state
from mmvars.checkpoints.formats import (
    FORMATS,
    GFNET,
    MMVARS,
    RELEASE,
    RELEASE_SEGMENTOR,
    RVT,
    RVT_VARS_D,
    RVT_VARS_S,
    TIMM,
    detect_format,
    target_format,
)
from mmvars.checkpoints.key_mapping import Format, first_match, table
from mmvars.networks import MODELS, create_model

SIZES = [
    ('vit_tiny', {}),
    ('vit_tiny_patch8_gap', {}),
    ('absvit_tiny', {}),
    ('absvit_tiny_patch8_gap', {}),
    ('absvit_tiny', dict(num_prompt_tokens=4)),
]


def _names(name, options):
    with torch.device('meta'):
        return list(named_state(create_model(name, **options)))


def _key(target, name):
    return target.from_network(name)[0]


def test_a_row_renames_in_both_directions():
    rows = table('stages.#.blocks.#.*>blocks.#.of.#.* norm.weight>x')
    assert rows[1] == ('norm.weight', 'trunk.x')
    form = Format('t', rows)
    key, name = 'stages.2.blocks.11.mlp.fc1.weight', 'trunk.blocks.2.of.11.mlp.fc1.weight'
    assert form.to_network(key) == (name, ())
    assert form.from_network(name) == (key, ())
    assert form.to_network('stages.two.blocks.11.x') is None
    assert form.to_network('module.stages.2.blocks.11.x') is None
    assert form.to_network('normXweight') is None  # dots of a template are dots


def test_a_word_without_a_name_keeps_or_has_none():
    assert table('a.# b>', 's.', 't.') == (('s.a.#', 't.a.#'), ('s.b', ''))


@pytest.mark.parametrize('target', [MMVARS, RELEASE, RELEASE_SEGMENTOR], ids=lambda f: f.title)
@pytest.mark.parametrize(('name', 'options'), SIZES)
def test_every_name_goes_there_and_back(target: Format, name, options):
    names = _names(name, options)
    assert len(names) > 150
    keys = [_key(target, name) for name in names]
    assert len(set(keys)) == len(names)
    assert [target.to_network(key)[0] for key in keys] == names


def test_timm_has_no_name_for_what_only_absvit_has():
    nameless = [n for n in _names('absvit_tiny', {}) if TIMM.from_network(n) is None]
    assert len(nameless) == 25
    assert all(n.startswith(('prior.', 'feedback.')) for n in nameless)


@pytest.mark.parametrize(
    ('to', 'name', 'options', 'written'),
    [
        ('mmvars', 'absvit_tiny', {}, MMVARS),
        ('timm', 'vit_tiny', {}, TIMM),
        ('timm', 'deit_convstem_tiny', {}, TIMM),
        ('release', 'absvit_tiny', {}, RELEASE),
        ('release', 'gfnet_tiny', {}, GFNET),
        ('release', 'rvt_tiny', {}, RVT),
        ('release', 'rvt_tiny_plus', {}, RVT),
        ('release', 'rvt_tiny', dict(mixer='performer'), RVT),
        ('release', 'rvt_tiny', dict(mixer='vars_d'), RVT_VARS_D),
        ('release', 'rvt_tiny', dict(mixer='vars_sd'), RVT_VARS_D),
        ('release', 'rvt_base', dict(mixer='vars_s'), RVT_VARS_S),
    ],
)
def test_a_written_file_is_recognised(to, name, options, written):
    names = _names(name, options)
    assert target_format(to, names) is written
    keys = [_key(written, n) for n in names]
    assert len(set(keys)) == len(names)
    assert detect_format(keys) is written
    assert [written.to_network(key)[0] for key in keys] == names


def test_a_segmentor_of_the_release_is_recognised():
    keys = [_key(RELEASE_SEGMENTOR, n) for n in _names('absvit_tiny', {})]
    assert detect_format([*keys, 'decode_head.conv_seg.weight']) is RELEASE_SEGMENTOR


def test_foreign_names_are_not_recognised():
    assert detect_format(['layer1.0.conv1.weight', 'fc.bias']) is None


def test_formats_have_distinct_titles():
    assert len({f.title for f in FORMATS}) == len(FORMATS) == 15
    assert len(MODELS) >= 18


def test_the_first_template_wins_and_none_is_made_up():
    assert first_match(['a.*', 'a.b'], 'a.b') == 'a.*'
    assert first_match(['a.*'], 'b') == ''


def test_axes_of_length_one_go_with_the_row():
    form = Format('t', table('kernel>dictionary', target=''), singletons={'kernel': (1, 3)})
    assert form.to_network('kernel') == ('dictionary', (1, 3))
    assert form.from_network('dictionary') == ('kernel', (1, 3))


def test_a_constant_stands_beside_the_tensor_that_calls_for_it():
    form = Format(
        'f',
        rows=table('b.#.L> b.#.*>x.#.*', target=''),
        constants={'b.#.L': ('x.#.gram', lambda gram: torch.full(gram.shape[:1], 25.0))},
    )
    ((key, tensor, reason),) = form.unread({'x.3.gram': torch.zeros(4, 2), 'x.4.f': torch.zeros(3)})
    assert (key, tensor.tolist()) == ('b.3.L', [25.0] * 4)
    assert reason == form.reason_to_ignore('b.3.L') != form.reason_to_ignore('b.3.gram') == ''
    assert sorted(['b.1.gram', 'b.0.z', 'b.0.L'], key=form.position) == [
        'b.0.L',
        'b.0.z',
        'b.1.gram',
    ]
