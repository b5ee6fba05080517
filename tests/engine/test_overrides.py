"""``--cfg-options`` reach everything that a config computed from the value they change."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config, DictAction

from mmvars.engine.cfg_options import check_options
from mmvars.engine.overrides import SHORTHANDS, apply_overrides
from mmvars.errors import InputError

CONFIGS = Path(__file__).parents[2] / 'configs'
CITYSCAPES = CONFIGS / 'absvit_upernet_cityscapes.py'
IMAGENET = CONFIGS / 'absvit' / 'absvit-base-p16_8xb128-coslr-300e_in1k.py'


@pytest.fixture
def cityscapes() -> Config:
    return Config.fromfile(CITYSCAPES)


@pytest.fixture
def imagenet() -> Config:
    return Config.fromfile(IMAGENET)


def _transforms(pipeline: list) -> dict:
    return {t.type.rpartition('.')[2]: t for t in pipeline}


def test_nothing_given_changes_nothing(cityscapes):
    before = cityscapes.to_dict()
    assert apply_overrides(cityscapes, None) == []
    assert apply_overrides(cityscapes, {}) == []
    assert cityscapes.to_dict() == before


def test_plain_options_are_merged_without_a_note(cityscapes):
    notes = apply_overrides(cityscapes, {'train_dataloader.batch_size': 2})
    assert cityscapes.train_dataloader.batch_size == 2
    assert notes == []


def test_the_switches_of_the_readme_exist(cityscapes):
    """Each option of configs/README.md is accepted as it stands there."""
    text = (CONFIGS / 'README.md').read_text()
    options = dict(re.findall(r'[` ]([a-z_]+(?:\.[a-z0-9_]+)+)=(\w+)', text))
    assert len(options) >= 7
    options = {key: DictAction._parse_iterable(value) for key, value in options.items()}
    check_options(cityscapes, options)
    apply_overrides(cityscapes, options)
    assert cityscapes.model.backbone.init_cfg.type == 'Pretrained'
    assert cityscapes.custom_hooks[0].type == 'mmvars.AttentionVisualizationHook'
    assert 'draw' in cityscapes.custom_hooks[0]


def test_data_root_reaches_every_dataset(cityscapes):
    notes = apply_overrides(cityscapes, {'data_root': '/there'})
    for split in ('train', 'val', 'test'):
        assert cityscapes[f'{split}_dataloader'].dataset.data_root == '/there'
    assert cityscapes.data_root == '/there'
    assert any('val_dataloader.dataset.data_root' in note for note in notes)
    assert 'data/cityscapes' not in cityscapes.pretty_text


def test_data_root_reaches_concatenated_sets():
    cfg = Config.fromfile(next((CONFIGS / 'resnet').glob('*voc12aug*')))
    apply_overrides(cfg, {'data_root': '/there'})
    assert [d.data_root for d in cfg.train_dataloader.dataset.datasets] == ['/there'] * 2


def test_a_second_root_is_left_alone(cityscapes):
    cityscapes.test_dataloader.dataset.data_root = 'data/foggy'
    apply_overrides(cityscapes, {'data_root': '/there'})
    assert cityscapes.test_dataloader.dataset.data_root == 'data/foggy'
    assert cityscapes.val_dataloader.dataset.data_root == '/there'


def test_crop_size_reaches_crop_padding_and_backbone(cityscapes):
    apply_overrides(cityscapes, {'crop_size': [144, 192]})
    assert _transforms(cityscapes.train_dataloader.dataset.pipeline)['RandomCrop'].crop_size == (
        144, 192)
    assert _transforms(cityscapes.train_pipeline)['RandomCrop'].crop_size == (144, 192)
    assert cityscapes.model.data_preprocessor.size == (144, 192)
    assert cityscapes.model.backbone.img_size == (144, 192)


def test_an_entry_named_by_the_user_wins(cityscapes):
    notes = apply_overrides(cityscapes, {
        'crop_size': [144, 192], 'model.backbone.img_size': 64, 'max_iters': 100,
        'train_cfg.val_interval': 7})
    assert cityscapes.model.backbone.img_size == 64
    assert cityscapes.train_cfg.val_interval == 7
    assert not any('img_size' in note or 'val_interval' in note for note in notes)


def test_img_scale_reaches_training_and_tests_but_not_tta_factors(cityscapes):
    apply_overrides(cityscapes, {'img_scale': [192, 144]})
    assert _transforms(cityscapes.train_dataloader.dataset.pipeline)['RandomResize'].scale == (
        192, 144)
    for split in ('val', 'test'):
        pipeline = cityscapes[f'{split}_dataloader'].dataset.pipeline
        assert _transforms(pipeline)['Resize'].scale == (192, 144)
    assert 'scale' not in cityscapes.tta_pipeline[1].transforms[0][0]


@pytest.mark.parametrize('key', ['arch', 'model.backbone.arch'])
def test_arch_reaches_the_heads(cityscapes, key):
    notes = apply_overrides(cityscapes, {key: 'tiny'})
    assert cityscapes.model.backbone.arch == 'tiny'
    assert cityscapes.model.decode_head.in_channels == [192] * 4
    assert cityscapes.model.auxiliary_head.in_channels == 192
    assert 'arch' not in cityscapes
    assert any('decode_head.in_channels: [768, 768, 768, 768] -> [192, 192, 192, 192]' in note
               for note in notes)


def test_arch_reaches_a_classifier(imagenet):
    apply_overrides(imagenet, {'arch': 'tiny_patch8_gap'})
    assert imagenet.model.head.in_channels == 192
    assert imagenet.model.backbone.out_type == 'avg_featmap'


@pytest.mark.parametrize('key', ['max_iters', 'train_cfg.max_iters'])
def test_max_iters_reaches_schedule_and_intervals(cityscapes, key):
    apply_overrides(cityscapes, {key: 2000})
    warmup, poly = cityscapes.param_scheduler
    assert cityscapes.train_cfg.max_iters == 2000
    assert (warmup.begin, warmup.end, poly.begin, poly.end) == (0, 200, 200, 2000)
    assert cityscapes.train_cfg.val_interval == 500
    assert cityscapes.default_hooks.checkpoint.interval == 500
    assert cityscapes.default_hooks.logger.interval == 50
    assert 'max_iters' not in cityscapes


def test_a_warmup_that_fits_keeps_its_length(cityscapes):
    apply_overrides(cityscapes, {'max_iters': 20000})
    warmup, poly = cityscapes.param_scheduler
    assert (warmup.end, poly.begin, poly.end) == (1500, 1500, 20000)


def test_intervals_keep_their_share_of_a_long_run(cityscapes):
    apply_overrides(cityscapes, {'max_iters': 20000})
    assert cityscapes.train_cfg.val_interval == 2000
    assert cityscapes.default_hooks.checkpoint.interval == 1000


@pytest.mark.parametrize('max_iters', [1, 2, 3, 9])
def test_the_shortest_runs_have_valid_schedules(cityscapes, max_iters):
    apply_overrides(cityscapes, {'max_iters': max_iters})
    assert all(0 <= s.begin < s.end <= max_iters for s in cityscapes.param_scheduler)
    assert cityscapes.param_scheduler[-1].end == max_iters
    assert 1 <= cityscapes.train_cfg.val_interval <= max_iters
    assert 1 <= cityscapes.default_hooks.logger.interval <= max_iters


@pytest.mark.parametrize('max_epochs', [1, 2, 31, 100])
def test_max_epochs_reaches_every_schedule(imagenet, max_epochs):
    apply_overrides(imagenet, {'max_epochs': max_epochs})
    assert imagenet.train_cfg.max_epochs == max_epochs
    assert imagenet.param_scheduler[-1].end == max_epochs
    assert all(s.get('begin', 0) < s.end <= max_epochs for s in imagenet.param_scheduler)


def test_classification_crop_takes_the_test_resize_along(imagenet):
    apply_overrides(imagenet, {'crop_size': 112})
    train = _transforms(imagenet.train_dataloader.dataset.pipeline)
    test = _transforms(imagenet.test_dataloader.dataset.pipeline)
    assert train['RandomResizedCrop'].scale == 112
    assert (test['ResizeEdge'].scale, test['CenterCrop'].crop_size) == (128, 112)
    assert imagenet.model.backbone.img_size == 112


def test_no_workers_means_no_persistent_workers(cityscapes):
    notes = apply_overrides(cityscapes, {'train_dataloader.num_workers': 0})
    assert cityscapes.train_dataloader.persistent_workers is False
    assert cityscapes.val_dataloader.persistent_workers is True
    assert len(notes) == 1


def test_the_options_are_not_changed(cityscapes):
    options = {'crop_size': [144, 192], 'arch': 'tiny', 'max_iters': 10}
    apply_overrides(cityscapes, options)
    assert options == {'crop_size': [144, 192], 'arch': 'tiny', 'max_iters': 10}


@pytest.mark.parametrize('options, words', [
    ({'arch': 'huge'}, ['arch', 'huge', 'tiny_patch8_gap']),
    ({'crop_size': 'big'}, ['crop_size', 'big', 'HEIGHT,WIDTH']),
    ({'crop_size': [0, 10]}, ['crop_size', '[0, 10]']),
    ({'crop_size': [1, 2, 3]}, ['crop_size', '[1, 2, 3]']),
    ({'img_scale': 1.5}, ['img_scale', '1.5', 'WIDTH,HEIGHT']),
    ({'max_iters': 0}, ['max_iters', '0']),
    ({'max_iters': '10k'}, ['max_iters', '10k']),
    ({'max_epochs': 3}, ['max_epochs', 'give max_iters']),
    ({'data_root': ['a', 'b']}, ['data_root', "['a', 'b']"]),
    ({'arch': 'tiny', 'model.backbone.arch': 'tiny'}, ['arch', 'model.backbone.arch']),
])
def test_bad_values_are_named(cityscapes, options, words):
    with pytest.raises(InputError) as error:
        apply_overrides(cityscapes, options)
    assert all(word in str(error.value) for word in words)


def test_arch_of_a_foreign_backbone_is_refused():
    cfg = Config.fromfile(next((CONFIGS / 'resnet').glob('*ade20k*')))
    with pytest.raises(InputError, match='mmseg.ResNetV1c'):
        apply_overrides(cfg, {'arch': 'tiny'})


def test_a_classifier_takes_no_oblong_crop(imagenet):
    with pytest.raises(InputError, match='one side'):
        apply_overrides(imagenet, {'crop_size': [112, 224]})


def test_every_shorthand_is_described():
    assert set(SHORTHANDS) == {
        'data_root', 'crop_size', 'img_scale', 'arch', 'mixer', 'max_iters', 'max_epochs'}
    assert all(SHORTHANDS.values())
