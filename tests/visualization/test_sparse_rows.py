"""Steps and atoms of sparse codes, and the other maps, on all kinds of backbone."""

import numpy as np
import pytest
import torch

from mmvars.errors import InputError
from mmvars.layers import build_mixer
from mmvars.visualization.draw import (
    ViewOptions,
    atom_rows,
    attention_panels,
    check_options,
    run_model,
    step_rows,
)
from mmvars.visualization.figure import HeatMap, Panel, Picture, draw_figure, figure_to_array
from mmvars.visualization.model import ClassTable, num_classes_of
from mmvars.visualization.priors import PanelConfig

SIZE = 70, 100  # padded to 80x112: a 5x7 grid, then 3x4
VARS = ['rvt:vars_d', 'rvt:vars_sd', 'rvt:vars_s']


@pytest.fixture
def run(make_model, make_sample):
    """``run(kind, **options)``: the outputs of one forward of a segmentor, and the options."""

    def run_kind(kind, size=SIZE, task='segmentation', **options):
        options = ViewOptions(**options)
        model = make_model(task, kind)
        check_options(model, options)
        return run_model(model, make_sample(task, size), options), options

    return run_kind


@pytest.mark.parametrize('layer', [1, 2])
@pytest.mark.parametrize('kind', [*VARS, 'RVT', 'GFNet', 'rvt:performer', 'deit_convstem:vars_d'])
def test_maps_of_every_backbone_and_stage_have_the_size_of_the_image(kind, layer, run):
    outputs, _ = run(kind, layer=layer, steps='vars' in kind)
    assert [m.shape for m in outputs.norms] == [SIZE] and outputs.token_mask is None
    assert outputs.norms[0].std() > 0 and outputs.prediction.shape == SIZE
    titles = [panel.title for panel in attention_panels(outputs, ClassTable.of(19), ViewOptions())]
    assert titles == ['Input', 'Bottom-up attention', 'Segmentation']


def test_a_token_of_a_later_stage_is_drawn_over_the_pixels_it_stands_for(make_model, make_sample):
    model, sample = make_model('segmentation', 'RVT'), make_sample('segmentation', SIZE)
    block = model.backbone.trunk.blocks[2]

    def lit(module, args, output):  # one token of the 3x4 grid: row 1, column 2
        marked = torch.zeros_like(output)
        marked[:, 4 + 2] = 1.0
        return marked

    handle = block.register_forward_hook(lit)
    outputs = run_model(model, sample, ViewOptions(layer=2))
    handle.remove()
    rows, columns = np.nonzero(outputs.norms[0] >= 0.99 * outputs.norms[0].max())
    assert abs(rows.mean() - (32 + 15.5)) < 1 and abs(columns.mean() - (64 + 15.5)) < 1


def test_a_classifier_without_class_token_is_drawn(run, make_model):
    outputs, options = run('rvt:vars_sd', task='classification', steps=True)
    assert num_classes_of(make_model('classification', 'rvt:vars_sd')) == 6
    assert attention_panels(outputs, ClassTable.of(6), options)[-1].title == 'Classes'
    assert len(step_rows(outputs, options)) == 1


@pytest.mark.parametrize('kind', VARS)
def test_there_is_a_panel_for_the_start_and_each_step(kind, run):
    outputs, options = run(kind, steps=True, layer=1)
    (row,) = step_rows(outputs, options)
    steps = 3 if kind == 'rvt:vars_s' else 5
    assert [panel.title for panel in row.panels] == [
        'Input',
        'Start',
        *(f'Step {i}' for i in range(1, steps + 1)),
    ]
    assert all('near zero' in panel.note and 'energy' in panel.note for panel in row.panels[1:])
    assert len({panel.limits for panel in row.panels[1:]}) == 1


def test_the_colors_of_the_steps(run):
    norms, limits = {}, {}
    for choice in ('relative', 'shared', 'own'):
        outputs, options = run('rvt:vars_d', steps=True, layer=0, limits=choice)
        panels = step_rows(outputs, options)[0].panels[1:]
        norms[choice] = [panel.values for panel in panels]
        limits[choice] = [panel.limits for panel in panels]
    np.testing.assert_array_equal(norms['shared'], norms['own'])
    for own, relative in zip(norms['own'], norms['relative'], strict=True):
        np.testing.assert_allclose(relative, own / own.mean(), rtol=1e-5)
    assert limits['own'] == [None] * 6  # each panel's own range
    for choice in ('relative', 'shared'):
        every = np.stack(norms[choice])
        assert set(limits[choice]) == {(every.min(), every.max())}


def test_steps_of_both_passes_are_rows(make_model, make_sample):
    options = ViewOptions(steps=True, atoms=1, layer=2)
    model = make_model('segmentation', 'AbSViT')
    trunk = model.backbone.trunk
    trunk.blocks[2].attn = build_mixer('vars_d', 24, 2, trunk.grid, num_prefix=1).eval()
    outputs = run_model(model, make_sample('segmentation', SIZE), options, PanelConfig(alpha=10.0))
    rows = step_rows(outputs, options, 'label')
    assert [row.label for row in rows] == ['label\npass 1', 'label\npass 2']
    assert np.abs(rows[0].panels[-1].values - rows[1].panels[-1].values).max() > 1e-3
    assert len(atom_rows(outputs, options)) == 1


@pytest.mark.parametrize(
    'kind,labels',
    [
        ('rvt:vars_d', ['dynamic atoms']),
        ('rvt:vars_sd', ['dynamic atoms', 'static atoms']),
        ('rvt:vars_s', ['static filters']),
    ],
)
def test_the_most_used_atoms_are_drawn_by_kind(kind, labels, run):
    outputs, options = run(kind, atoms=3, layer=1)
    rows = atom_rows(outputs, options)
    assert [row.label for row in rows] == labels
    for row in rows:
        assert [type(panel) for panel in row.panels] == [Picture] + [HeatMap] * 3
        shares = [float(panel.note.strip('<').split('%')[0]) for panel in row.panels[1:]]
        assert shares == sorted(shares, reverse=True) and shares[0] > 0
        place = 'channel' if kind == 'rvt:vars_s' else 'head'
        assert all(panel.title.startswith(place) for panel in row.panels[1:])
        signed = row.label.startswith('static')
        for panel in row.panels[1:]:
            assert panel.values.shape == ((5, 7) if place == 'channel' else SIZE)
            assert panel.color_map == ('bwr' if signed else 'inferno')
            assert panel.limits[0] == (-panel.limits[1] if signed else 0)


def test_atoms_of_every_head_and_in_rows_of_eight_at_most(run):
    outputs, options = run('rvt:vars_d', atoms=2, per_head=True, layer=2)
    rows = atom_rows(outputs, options)
    assert [[panel.title[:6] for panel in row.panels[1:]] for row in rows] == [
        [f'head {h}'] * 2 for h in range(4)
    ]
    outputs, options = run('rvt:vars_d', atoms=11)
    rows = atom_rows(outputs, options)
    assert [len(row.panels) for row in rows] == [7, 7]
    assert [sum(type(panel) is Panel for panel in row.panels) for row in rows] == [0, 2]
    assert [row.label for row in rows] == ['dynamic atoms', '']
    pixels = figure_to_array(draw_figure(rows, SIZE))
    assert pixels.std() > 10


def test_what_the_average_token_looks_at(run, make_model, make_sample):
    outputs, options = run('RVT', average_attention=True, layer=1)
    whole = []
    model = make_model('segmentation', 'RVT')
    model.backbone.trunk.blocks[1].attn.register_forward_hook(
        lambda module, args, out: whole.append(module.attention_probabilities(*args[:2]))
    )
    with torch.no_grad():
        run_model(model, make_sample('segmentation', SIZE), ViewOptions())
    mean = whole[0].mean(dim=(1, 2)).reshape(5, 7)
    assert mean.sum() == pytest.approx(1)
    assert outputs.average_attention[0].max() <= mean.max() + 1e-6
    assert outputs.average_attention[0][7, 7:9].mean() == pytest.approx(float(mean[0, 0]), rel=0.02)
    titles = [panel.title for panel in attention_panels(outputs, ClassTable.of(19), options)]
    assert titles[2] == 'Average token looks at'


def test_what_the_average_token_takes_in_vars(run, make_model):
    outputs, _ = run('rvt:vars_d', average_attention=True, layer=1)
    (drawn,) = outputs.average_attention
    assert drawn.shape == SIZE and drawn.min() >= 0 and np.ptp(drawn) > 0


@pytest.mark.parametrize(
    'kind,options,message',
    [
        ('RVT', dict(class_attention=True), 'this RVT has no class token'),
        ('GFNet', dict(class_attention=True), 'no class token'),
        (
            'deit_convstem:vars_d',
            dict(class_attention=True),
            'VARSDynamic, which has no attention mat',
        ),
        ('GFNet', dict(average_attention=True), 'GlobalFilter, which has no values that could'),
        ('GFNet', dict(steps=True), 'GlobalFilter, which has no sparse code'),
        ('GFNet', dict(atoms=2), 'GlobalFilter, which has neither a dictionary nor keys'),
        ('RVT', dict(atoms=129), 'at most 128, got 129: there are 64 a head, 2 heads'),
        ('ViT', dict(steps=True), 'SelfAttention, which is a single step without sparsity'),
        ('rvt:vars_d', dict(atoms=0), 'atoms must be a whole number of at least 1, got 0'),
        ('rvt:vars_d', dict(atoms=49), 'at most 48, got 49: there are 24 a head, 2 heads'),
        ('rvt:vars_d', dict(atoms=25, per_head=True), 'at most 24, got 25: there are 24 a head$'),
        ('rvt:vars_s', dict(atoms=2, per_head=True), 'cannot be told apart by head'),
        ('rvt:vars_s', dict(atoms=121), 'at most 120, got 121: there are 5 a channel, 24 channels'),
    ],
)
def test_what_a_backbone_cannot_show_is_refused_with_the_reason(kind, options, message, run):
    with pytest.raises(InputError, match=message):
        run(kind, layer=1, **options)


@pytest.mark.parametrize('kind', ['RVT', 'rvt:performer', 'AbSViT/timm', 'AbSViT/performer'])
def test_atoms_of_attention_are_masks_by_its_keys(kind, run):
    outputs, options = run(kind, layer=1, atoms=3)
    (row,) = atom_rows(outputs, options)
    assert row.label == 'Φ(K) atoms' and isinstance(row.panels[0], Picture)
    for panel in row.panels[1:]:
        assert isinstance(panel, HeatMap) and panel.values.shape == SIZE
        assert panel.values.min() >= 0 and np.ptp(panel.values) > 0
        assert panel.title.startswith('head ') and panel.note.endswith('of the code')


def test_nothing_stays_in_the_model(run, make_model, make_sample):
    model = make_model('segmentation', 'rvt:vars_sd')
    state = {name for m in model.modules() for name in vars(m)}
    run_model(model, make_sample('segmentation', SIZE), ViewOptions(steps=True, atoms=2))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert {name for m in model.modules() for name in vars(m)} == state
