"""Maps, picture and prediction of a host model come from one forward, at the image's size."""

import numpy as np
import pytest
import torch

from mmvars.analysis import HeatMap, LabelMap, Picture, TopClasses
from mmvars.errors import InputError
from mmvars.visualization.host import ClassTable, network_of, num_classes_of
from mmvars.visualization.views import ViewOptions, observe, panels_of

SIZE = 40, 56  # padded to 48x64 by the network


def test_everything_has_the_size_of_the_image_not_of_the_padding(task, make_model, make_sample):
    seen = observe(make_model(task), make_sample(task, SIZE), ViewOptions(class_attention=True))
    assert seen.image.shape == (*SIZE, 3) and seen.image.dtype == np.uint8
    assert [m.shape for m in (*seen.norms, seen.token_mask, *seen.class_attention)] == [SIZE] * 5
    assert seen.prediction.shape == (SIZE if task == 'segmentation' else (6, ))
    assert seen.norms[0].std() > 0 and np.abs(seen.norms[0] - seen.norms[1]).max() > 1e-3


def test_the_picture_is_the_packed_image_in_rgb(task, make_model, make_sample):
    sample = make_sample(task, SIZE)
    seen = observe(make_model(task), sample, ViewOptions())
    np.testing.assert_array_equal(seen.image, sample.inputs.numpy()[::-1].transpose(1, 2, 0))


def test_the_prediction_is_that_of_the_model_s_own_test_path(task, make_model, make_sample):
    model, sample = make_model(task), make_sample(task, SIZE)
    seen = observe(model, sample, ViewOptions())
    with torch.no_grad():
        result = model.test_step({'inputs': [sample.inputs], 'data_samples': [sample.data_sample]})
    if task == 'segmentation':
        np.testing.assert_array_equal(seen.prediction, result[0].pred_sem_seg.data[0].numpy())
        assert len(np.unique(seen.prediction)) > 1
    else:
        np.testing.assert_allclose(seen.prediction, result[0].pred_score.numpy(), rtol=1e-5)


def test_the_prediction_is_the_one_under_the_given_prior_and_scale(task, make_model, make_sample):
    model, sample = make_model(task), make_sample(task, SIZE)
    prior = torch.randn(24)
    own = observe(model, sample, ViewOptions())
    steered = observe(model, sample, ViewOptions(), prior=prior, alpha=10.)
    images = sample.prepared(model)
    with torch.no_grad():
        feats = model.backbone(images, prior=prior, alpha=10.)
        if task == 'segmentation':
            logits = torch.nn.functional.interpolate(model.decode_head(feats), images.shape[-2:],
                                                     mode='bilinear', align_corners=False)
            expected = logits[0].argmax(0)[:SIZE[0], :SIZE[1]].numpy()
            np.testing.assert_array_equal(steered.prediction, expected)
        else:
            np.testing.assert_allclose(steered.prediction, model.head(feats).softmax(-1)[0].numpy(),
                                       rtol=1e-5)
    assert (steered.prediction != own.prediction).any()
    np.testing.assert_allclose(steered.norms[0], own.norms[0], rtol=1e-6)  # pass 1 knows no prior


def test_with_alpha_zero_the_prior_changes_nothing(task, make_model, make_sample):
    model, sample = make_model(task), make_sample(task, SIZE)
    a, b = (observe(model, sample, ViewOptions(), prior=torch.randn(24), alpha=0.)
            for _ in range(2))
    np.testing.assert_array_equal(a.norms[1], b.norms[1])
    np.testing.assert_array_equal(a.prediction, b.prediction)
    assert (a.token_mask != b.token_mask).any()


def test_the_threshold_leaves_the_high_part_of_the_visible_map(make_model, make_sample):
    model, sample = make_model('segmentation'), make_sample('segmentation', SIZE)
    options = ViewOptions(threshold=0.7, difference=True)
    seen = observe(model, sample, options)
    whole, panels = seen.norms[0], panels_of(seen, ClassTable.of(19), options)
    cut = panels[1].values
    kept = whole >= whole.min() + 0.7 * np.ptp(whole)
    assert 0 < kept.sum() < kept.size
    np.testing.assert_array_equal(cut, np.where(kept, whole, whole.min()))
    np.testing.assert_array_equal(panels[4].values, seen.norms[1] - whole)  # nothing cut there


def test_nothing_stays_in_the_model_or_the_sample(task, make_model, make_sample):
    model, sample = make_model(task), make_sample(task, SIZE)
    keys = set(sample.data_sample.all_keys()), set(sample.data_sample.metainfo_keys())
    observe(model, sample, ViewOptions(class_attention=True), alpha=3.)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert (set(sample.data_sample.all_keys()), set(sample.data_sample.metainfo_keys())) == keys
    assert network_of(model).alpha == 1.


@pytest.mark.parametrize('kind,titles', [
    ('AbSViT', ['Input', 'Bottom-up attention', 'Token mask', 'Top-down attention', 'last']),
    ('ViT', ['Input', 'Bottom-up attention', 'last'])])
def test_the_panels_and_their_order(task, kind, titles, make_model, make_sample):
    model = make_model(task, kind)
    seen = observe(model, make_sample(task, SIZE), ViewOptions())
    panels = panels_of(seen, ClassTable.of(num_classes_of(model)), ViewOptions())
    last = dict(segmentation='Segmentation', classification='Classes')[task]
    assert [panel.title for panel in panels] == titles[:-1] + [last]
    kinds = [Picture] + [HeatMap] * (len(titles) - 2) + \
        [LabelMap if task == 'segmentation' else TopClasses]
    assert [type(panel) for panel in panels] == kinds
    assert panels[-1].note == ('pass 2' if kind == 'AbSViT' else 'pass 1')


def test_the_difference_is_drawn_on_a_scale_with_zero_in_the_middle(make_model, make_sample):
    model, options = make_model('segmentation'), ViewOptions(difference=True)
    seen = observe(model, make_sample('segmentation', SIZE), options)
    panel = panels_of(seen, ClassTable.of(19), options)[4]
    np.testing.assert_array_equal(panel.values, seen.norms[1] - seen.norms[0])
    assert panel.limits == (-np.abs(panel.values).max(), np.abs(panel.values).max())
    vit = make_model('segmentation', 'ViT')
    seen = observe(vit, make_sample('segmentation', SIZE), options)
    assert len(panels_of(seen, ClassTable.of(19), options)) == 3


def test_padding_by_the_data_preprocessor_is_cut_too(make_config, make_sample):
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, init_default_scope
    cfg = make_config('segmentation')
    cfg.model.data_preprocessor.test_cfg = dict(size_divisor=64)
    init_default_scope('mmseg')
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    sample = make_sample('segmentation', (40, 70))
    assert sample.prepared(model).shape == (1, 3, 64, 128)
    seen = observe(model, sample, ViewOptions())
    assert seen.norms[1].shape == seen.prediction.shape == (40, 70)


def test_a_backbone_without_tokens_is_refused():
    model = torch.nn.Module()
    model.backbone = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match='backbone Linear is none of mmvars.* mmvars.AbSViT'):
        network_of(model)


def test_class_names_come_from_the_first_source_that_has_as_many():
    seg = {'classes': ('road', 'sky'), 'palette': [[1, 2, 3], [4, 5, 6]]}
    assert ClassTable.of(2, None, {'classes': ('a', 'b', 'c')}, seg) == \
        ClassTable(('road', 'sky'), [[1, 2, 3], [4, 5, 6]])
    made_up = ClassTable.of(40, seg)
    assert not made_up.named and made_up.names[39] == 'class 39'
    assert len({tuple(colour) for colour in made_up.palette}) == 40
