"""Maps, picture and prediction of a model come from one forward, at the size of the image."""

import numpy as np
import pytest
import torch

from mmvars.visualization.draw import (
    ViewOptions,
    atom_rows,
    attention_panels,
    attention_rows,
    run_model,
    step_rows,
)
from mmvars.visualization.figure import HeatMap, LabelMap, Picture, TopClasses
from mmvars.visualization.model import ClassTable, network_of, num_classes_of
from mmvars.visualization.priors import PanelConfig

SIZE = 40, 56  # padded to 48x64 by the network


def test_everything_has_the_size_of_the_image_not_of_the_padding(task, make_model, make_sample):
    outputs = run_model(
        make_model(task), make_sample(task, SIZE), ViewOptions(class_attention=True)
    )
    assert outputs.image.shape == (*SIZE, 3) and outputs.image.dtype == np.uint8
    maps = [*outputs.norms, outputs.token_mask, *outputs.class_attention]
    assert [m.shape for m in maps] == [SIZE] * 5
    assert outputs.prediction.shape == (SIZE if task == 'segmentation' else (6,))
    assert outputs.norms[0].std() > 0 and np.abs(outputs.norms[0] - outputs.norms[1]).max() > 1e-3


@pytest.mark.parametrize('kind', ['AbSViT/timm', 'AbSViT/timm/half'])
def test_maps_of_a_trunk_of_timm(kind, make_model, make_sample):
    """Its blocks are given positions where others are given a grid."""
    model, sample = make_model('segmentation', kind), make_sample('segmentation', SIZE)
    options = ViewOptions(layer=1, class_attention=True, average_attention=True)
    outputs = run_model(model, sample, options)
    maps = [*outputs.norms, outputs.token_mask]
    maps += [*outputs.class_attention, *outputs.average_attention]
    assert [m.shape for m in maps] == [SIZE] * 7
    images = sample.preprocessed(model)
    with torch.no_grad():
        output = model.backbone.network(images, out_indices=(1,)).second
    norms = output.intermediates[0][0, 5:].norm(dim=-1).unflatten(0, (3, 4))
    expected = norms.repeat_interleave(14, 0).repeat_interleave(14, 1)
    assert outputs.grids[-1] == output.grid == (3, 4, 5)
    got = outputs.norms[-1][7:40:14, 7:56:14]  # the middles of the patches
    np.testing.assert_allclose(got, expected[7:40:14, 7:56:14].numpy(), rtol=0.02)


def test_the_picture_is_the_packed_image_in_rgb(task, make_model, make_sample):
    sample = make_sample(task, SIZE)
    outputs = run_model(make_model(task), sample, ViewOptions())
    np.testing.assert_array_equal(outputs.image, sample.inputs.numpy()[::-1].transpose(1, 2, 0))


def test_the_prediction_is_that_of_the_model_s_own_test_path(task, make_model, make_sample):
    model, sample = make_model(task), make_sample(task, SIZE)
    outputs = run_model(model, sample, ViewOptions())
    with torch.no_grad():
        result = model.test_step({'inputs': [sample.inputs], 'data_samples': [sample.data_sample]})
    if task == 'segmentation':
        np.testing.assert_array_equal(outputs.prediction, result[0].pred_sem_seg.data[0].numpy())
        assert len(np.unique(outputs.prediction)) > 1
    else:
        np.testing.assert_allclose(outputs.prediction, result[0].pred_score.numpy(), rtol=1e-5)


def test_the_prediction_is_the_one_under_the_given_prior_and_scale(task, make_model, make_sample):
    model, sample = make_model(task), make_sample(task, SIZE)
    prior = torch.randn(24)
    own = run_model(model, sample, ViewOptions())
    steered = run_model(model, sample, ViewOptions(), PanelConfig('', prior, alpha=10.0))
    images = sample.preprocessed(model)
    with torch.no_grad():
        feats = model.backbone(images, prior=prior, alpha=10.0)
        if task == 'segmentation':
            logits = torch.nn.functional.interpolate(
                model.decode_head(feats), images.shape[-2:], mode='bilinear', align_corners=False
            )
            expected = logits[0].argmax(0)[: SIZE[0], : SIZE[1]].numpy()
            np.testing.assert_array_equal(steered.prediction, expected)
        else:
            np.testing.assert_allclose(
                steered.prediction, model.head(feats).softmax(-1)[0].numpy(), rtol=1e-5
            )
    assert (steered.prediction != own.prediction).any()
    np.testing.assert_allclose(steered.norms[0], own.norms[0], rtol=1e-6)  # pass 1 knows no prior


def test_with_alpha_zero_the_prior_changes_nothing(task, make_model, make_sample):
    model, sample = make_model(task), make_sample(task, SIZE)
    a, b = (
        run_model(model, sample, ViewOptions(), PanelConfig('', torch.randn(24), alpha=0.0))
        for _ in range(2)
    )
    np.testing.assert_array_equal(a.norms[1], b.norms[1])
    np.testing.assert_array_equal(a.prediction, b.prediction)
    assert (a.token_mask != b.token_mask).any()


def test_the_threshold_leaves_the_high_part_of_the_visible_map(make_model, make_sample):
    model, sample = make_model('segmentation'), make_sample('segmentation', SIZE)
    options = ViewOptions(threshold=0.7, difference=True, limits='own')
    outputs = run_model(model, sample, options)
    whole, panels = outputs.norms[0], attention_panels(outputs, ClassTable.of(19), options)
    cut = panels[1].values
    kept = whole >= whole.min() + 0.7 * np.ptp(whole)
    assert 0 < kept.sum() < kept.size
    np.testing.assert_array_equal(cut, np.where(kept, whole, whole.min()))
    np.testing.assert_array_equal(panels[4].values, outputs.norms[1] - whole)  # nothing cut there


def test_nothing_stays_in_the_model_or_the_sample(task, make_model, make_sample):
    model, sample = make_model(task), make_sample(task, SIZE)
    keys = set(sample.data_sample.all_keys()), set(sample.data_sample.metainfo_keys())
    run_model(model, sample, ViewOptions(class_attention=True), PanelConfig(alpha=3.0))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert (set(sample.data_sample.all_keys()), set(sample.data_sample.metainfo_keys())) == keys
    assert network_of(model).alpha == 1.0


@pytest.mark.parametrize(
    'kind,titles',
    [
        ('AbSViT', ['Input', 'Bottom-up attention', 'Token mask', 'Top-down attention', 'last']),
        ('ViT', ['Input', 'Bottom-up attention', 'last']),
    ],
)
def test_the_panels_and_their_order(task, kind, titles, make_model, make_sample):
    model = make_model(task, kind)
    outputs = run_model(model, make_sample(task, SIZE), ViewOptions())
    panels = attention_panels(outputs, ClassTable.of(num_classes_of(model)), ViewOptions())
    last = dict(segmentation='Segmentation', classification='Classes')[task]
    assert [panel.title for panel in panels] == titles[:-1] + [last]
    kinds = (
        [Picture]
        + [HeatMap] * (len(titles) - 2)
        + [LabelMap if task == 'segmentation' else TopClasses]
    )
    assert [type(panel) for panel in panels] == kinds
    notes = [panel.note for panel in panels]
    assert notes[1] == ('token norms, block 0' + ', pass 1' * (kind == 'AbSViT'))
    assert notes[-1] == ('pass 2' if kind == 'AbSViT' else '')


def test_the_difference_is_drawn_on_a_scale_with_zero_in_the_middle(make_model, make_sample):
    model = make_model('segmentation')
    for limits, unit in (('shared', lambda m: 1), ('relative', np.mean)):
        options = ViewOptions(difference=True, limits=limits)
        outputs = run_model(model, make_sample('segmentation', SIZE), options)
        panel = attention_panels(outputs, ClassTable.of(19), options)[4]
        before, after = (norms / unit(norms) for norms in outputs.norms)
        np.testing.assert_allclose(panel.values, after - before, rtol=1e-5, atol=1e-6)
        assert panel.limits == (-np.abs(panel.values).max(), np.abs(panel.values).max())
    vit = make_model('segmentation', 'ViT')
    outputs = run_model(vit, make_sample('segmentation', SIZE), options)
    assert len(attention_panels(outputs, ClassTable.of(19), options)) == 3


@pytest.mark.parametrize('limits', ['relative', 'shared', 'own'])
def test_rows_share_ranges_and_what_depends_on_no_prior(limits, task, make_model, make_sample):
    model, options = make_model(task), ViewOptions(limits=limits, difference=True)
    sample = make_sample(task, SIZE)
    configs = [PanelConfig('', torch.randn(24), alpha=alpha) for alpha in (1.0, 10.0)]
    outputs = [run_model(model, sample, options, config) for config in configs]
    classes = ClassTable.of(num_classes_of(model))
    rows = attention_rows(outputs, classes, options, configs, ['a', 'b'])
    last = dict(segmentation='Segmentation', classification='Classes')[task]
    steered = ['Token mask', 'Top-down attention', 'Top-down − bottom-up', last]
    assert [[panel.title for panel in row.panels if panel.title] for row in rows] == [
        ['Input', 'Bottom-up attention'],
        steered,
        steered,
    ]
    assert {len(row.panels) for row in rows} == {4}
    assert [row.label for row in rows] == ['', 'a', 'b']
    norms = [rows[0].panels[1], rows[1].panels[1], rows[2].panels[1]]
    if limits == 'own':
        assert [panel.limits for panel in norms] == [None] * 3
    else:
        values = np.stack([panel.values for panel in norms])
        assert {panel.limits for panel in norms} == {(values.min(), values.max())}
        assert rows[1].panels[0].limits == rows[2].panels[0].limits
        assert rows[1].panels[2].limits == rows[2].panels[2].limits
    means = [panel.values.mean() for panel in norms]
    assert (np.ptp(means) < 1e-5) == (limits == 'relative')


def test_the_truth_is_beside_the_input_or_marked_among_the_classes(make_model, make_sample):
    from mmengine.structures import PixelData

    sample = make_sample('segmentation', SIZE)
    labels = torch.arange(4).view(1, 2, 2).repeat_interleave(10, 1).repeat_interleave(14, 2)
    sample.data_sample.gt_sem_seg = PixelData(data=labels)  # at half the size
    outputs = run_model(make_model('segmentation'), sample, ViewOptions())
    panels = attention_panels(outputs, ClassTable.of(19), ViewOptions())
    assert [panel.title for panel in panels[-2:]] == ['Ground truth', 'Segmentation']
    expected = np.repeat(np.repeat([[0, 1], [2, 3]], 20, 0), 28, 1)
    np.testing.assert_array_equal(panels[-2].labels, expected)
    rows = attention_rows(
        [outputs] * 2, ClassTable.of(19), ViewOptions(), [PanelConfig()] * 2, ['a', 'b']
    )
    assert [row.panels[-1].title for row in rows] == ['Ground truth', *['Segmentation'] * 2]
    sample = make_sample('classification', SIZE)
    sample.data_sample.set_gt_label(4)
    outputs = run_model(make_model('classification'), sample, ViewOptions())
    panel = attention_panels(outputs, ClassTable.of(6), ViewOptions())[-1]
    assert panel.truth == (4,) and 4 in [index for index, _ in panel.visible(1)]


def test_padding_by_the_data_preprocessor_is_cut_too(make_config, make_sample):
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, init_default_scope

    cfg = make_config('segmentation')
    cfg.model.data_preprocessor.test_cfg = dict(size_divisor=64)
    init_default_scope('mmseg')
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    sample = make_sample('segmentation', (40, 70))
    assert sample.preprocessed(model).shape == (1, 3, 64, 128)
    outputs = run_model(model, sample, ViewOptions())
    assert outputs.norms[1].shape == outputs.prediction.shape == (40, 70)


@pytest.mark.parametrize('kind', ['AbSViT/half', 'AbSViT/rvt/vars_d/half', 'AbSViT/fan/half'])
def test_a_first_pass_at_half_the_resolution_is_drawn_like_the_second(
    kind, make_model, make_sample
):
    model, sample = make_model('classification', kind), make_sample('classification', (64, 96))
    options = ViewOptions(
        class_attention='rvt' not in kind,
        average_attention='rvt' not in kind,
        steps='rvt' in kind,
        atoms=2 if 'rvt' in kind else None,
    )
    outputs = run_model(model, sample, options)
    panels = attention_panels(outputs, ClassTable.of(6), options)
    assert sum(panel.title == 'Top-down attention' for panel in panels) == 1
    assert all(norms.shape == (64, 96) and norms.std() > 0 for norms in outputs.norms)
    if 'rvt' in kind:
        assert [(grid.height, grid.width) for grid in outputs.grids] == [(2, 3), (4, 6)]
        assert len(step_rows(outputs, options)) == 2 and len(atom_rows(outputs, options)) == 1
    else:
        assert len(outputs.class_attention) == len(outputs.average_attention) == 2
