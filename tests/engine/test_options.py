"""``--cfg-options`` reach everything that a config computed from the value they change."""

import re
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config

from mmvars.engine.options import apply_options, check_options, parse_cfg_options
from mmvars.errors import InputError

CONFIGS = Path(__file__).parents[2] / 'configs'
CITYSCAPES = CONFIGS / 'absvit_upernet_cityscapes.py'
IMAGENET = CONFIGS / 'absvit' / 'absvit-base-p16_8xb128-coslr-300e_in1k.py'


read = cache(Config.fromfile)  # takes longer than the tests


@pytest.fixture
def cityscapes() -> Config:
    cfg = deepcopy(read(CITYSCAPES))
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
        dict(type='PolyLR', power=1.0, by_epoch=False, begin=1500, end=160000),
    ]
    cfg.param_scheduler[1].end = cfg.train_cfg.max_iters
    return cfg


@pytest.fixture
def imagenet() -> Config:
    return deepcopy(read(IMAGENET))


def _transforms(pipeline: list) -> dict:
    return {t.type.rpartition('.')[2]: t for t in pipeline}


def test_nothing_given_changes_nothing(cityscapes):
    before = cityscapes.to_dict()
    assert apply_options(cityscapes, None) == []
    assert apply_options(cityscapes, {}) == []
    assert cityscapes.to_dict() == before


def test_plain_options_are_merged_without_a_note(cityscapes):
    notes = apply_options(cityscapes, {'train_dataloader.batch_size': 2})
    assert cityscapes.train_dataloader.batch_size == 2
    assert notes == []


def test_the_switches_of_the_readme_exist(cityscapes):
    """Each option of configs/README.md is accepted as it stands there."""
    text = (CONFIGS / 'README.md').read_text()
    options = dict(re.findall(r'[` ]([a-z_]+(?:\.[a-z0-9_]+)+)=(\w+)', text))
    assert len(options) >= 7
    options = parse_cfg_options([f'{key}={value}' for key, value in options.items()])
    check_options(cityscapes, options)
    apply_options(cityscapes, options)
    assert cityscapes.model.backbone.init_cfg.type == 'Pretrained'
    assert cityscapes.custom_hooks[0].type == 'mmvars.AttentionVisualizationHook'
    assert 'draw' in cityscapes.custom_hooks[0]


def test_data_root_reaches_every_dataset(cityscapes):
    notes = apply_options(cityscapes, {'data_root': '/there'})
    for split in ('train', 'val', 'test'):
        assert cityscapes[f'{split}_dataloader'].dataset.data_root == '/there'
    assert cityscapes.data_root == '/there'
    assert any('val_dataloader.dataset.data_root' in note for note in notes)
    assert 'data/cityscapes' not in cityscapes.pretty_text


def test_data_root_reaches_concatenated_sets():
    cfg = Config.fromfile(next((CONFIGS / 'resnet').glob('*voc12aug*')))
    apply_options(cfg, {'data_root': '/there'})
    assert [d.data_root for d in cfg.train_dataloader.dataset.datasets] == ['/there'] * 2


def test_a_resize_of_the_size_of_the_crop_is_none(cityscapes):
    """Images are resized to img_scale; that it equals crop_size in a config is chance."""
    resize, crop, pad = (
        dict(type=kind, **{key: (512, 512)})
        for kind, key in (('Resize', 'scale'), ('RandomCrop', 'crop_size'), ('Pad', 'size'))
    )
    cityscapes.crop_size = cityscapes.img_scale = (512, 512)
    cityscapes.train_dataloader.dataset.pipeline = [resize, crop, pad]
    apply_options(cityscapes, {'crop_size': 256})
    pipeline = cityscapes.train_dataloader.dataset.pipeline
    assert [pipeline[0].scale, pipeline[1].crop_size, pipeline[2].size] == [
        (512, 512),
        (256, 256),
        (256, 256),
    ]


def test_a_shorthand_needs_the_variable_that_it_changes(cityscapes):
    cityscapes.pop('img_scale')
    with pytest.raises(InputError, match='img_scale does not apply: the config states none'):
        apply_options(cityscapes, {'img_scale': [192, 144]})


def test_data_root_reaches_sets_of_a_root_that_is_not_the_variable_s(cityscapes):
    """As in a config that inherits the variable and states its own root in the data sets."""
    for split, end in (('train', ''), ('val', '/'), ('test', '/')):
        cityscapes[f'{split}_dataloader'].dataset.data_root = f'data/mine{end}'
        cityscapes[f'{split}_dataloader'].dataset.ann_file = f'data/mine/{split}.txt'
    apply_options(cityscapes, {'data_root': '/there'})
    for split in ('train', 'val', 'test'):
        dataset = cityscapes[f'{split}_dataloader'].dataset
        assert (dataset.data_root, dataset.ann_file) == ('/there', f'/there/{split}.txt')


@pytest.mark.parametrize('other', ['data/cityscapes_foggy', None])
def test_data_root_for_some_of_the_data_sets_alone_is_refused(cityscapes, other):
    foggy = cityscapes.test_dataloader.dataset
    foggy.data_root = other
    if other is None:
        del foggy['data_root']
    with pytest.raises(InputError, match='test_dataloader.dataset.data_root=') as error:
        apply_options(cityscapes, {'data_root': '/there'})
    assert 'train_dataloader.dataset.data_root=data/cityscapes, val_datal' in str(error.value)
    assert cityscapes.train_dataloader.dataset.data_root == 'data/cityscapes'
    key = 'test_dataloader.dataset.data_root'  # the remedy of the message
    apply_options(cityscapes, {'data_root': '/there', key: 'data/foggy'})
    assert cityscapes.test_dataloader.dataset.data_root == 'data/foggy'
    assert cityscapes.val_dataloader.dataset.data_root == '/there'


def test_data_root_of_data_sets_without_any_is_refused(cityscapes):
    for split in ('train', 'val', 'test'):
        del cityscapes[f'{split}_dataloader'].dataset['data_root']
    with pytest.raises(InputError, match='this config has train_dataloader.dataset.data_root=None'):
        apply_options(cityscapes, {'data_root': '/there'})


@pytest.mark.parametrize(
    'key, value, place',
    [
        ('norm_cfg.type', 'BN', 'model.decode_head.norm_cfg.type'),
        ('train_pipeline', [], 'the entries that were computed from it'),
        ('pool_scales', [1], 'model.decode_head.pool_scales'),
        ('bgr_mean', [0, 0, 0], 'the entries that were computed from it'),
    ],
)
def test_variables_of_the_config_file_are_refused(cityscapes, key, value, place):
    cityscapes.merge_from_dict(
        dict(norm_cfg=dict(type='SyncBN'), pool_scales=[1, 2], bgr_mean=[1, 2, 3])
    )
    with pytest.raises(InputError, match=f'{key}.*nothing but the config file itself.*{place}'):
        apply_options(cityscapes, {key: value})


def test_a_plus_adds_a_key_unchecked(cityscapes):
    apply_options(
        cityscapes,
        {
            '+compilation': True,
            '+env_cfg.cudnn_benchmarks': 1,
            '+data_root': '/there',
            '+train_cfg.max_iters': 100,
        },
    )
    assert cityscapes.compilation is True and cityscapes.env_cfg.cudnn_benchmarks == 1
    assert cityscapes.train_dataloader.dataset.data_root != '/there'  # nothing follows from it
    assert cityscapes.train_cfg.val_interval > 100


def test_crop_size_reaches_crop_padding_and_backbone(cityscapes):
    notes = apply_options(cityscapes, {'crop_size': [144, 192]})
    assert _transforms(cityscapes.train_dataloader.dataset.pipeline)['RandomCrop'].crop_size == (
        144,
        192,
    )
    assert 'model.data_preprocessor.size: [512, 1024] -> [144, 192]' in notes
    assert not any('size.0' in note for note in notes)
    assert _transforms(cityscapes.train_pipeline)['RandomCrop'].crop_size == (144, 192)
    assert cityscapes.model.data_preprocessor.size == (144, 192)
    assert cityscapes.model.backbone.img_size == (144, 192)


def test_an_entry_named_by_the_user_wins(cityscapes):
    notes = apply_options(
        cityscapes,
        {
            'crop_size': [144, 192],
            'model.backbone.img_size': 64,
            'max_iters': 100,
            'train_cfg.val_interval': 7,
        },
    )
    assert cityscapes.model.backbone.img_size == 64
    assert cityscapes.train_cfg.val_interval == 7
    assert not any('img_size' in note or 'val_interval' in note for note in notes)


def test_img_scale_reaches_training_and_tests_but_not_tta_factors(cityscapes):
    apply_options(cityscapes, {'img_scale': [192, 144]})
    assert _transforms(cityscapes.train_dataloader.dataset.pipeline)['RandomResize'].scale == (
        192,
        144,
    )
    for split in ('val', 'test'):
        pipeline = cityscapes[f'{split}_dataloader'].dataset.pipeline
        assert _transforms(pipeline)['Resize'].scale == (192, 144)
    assert 'scale' not in cityscapes.tta_pipeline[1].transforms[0][0]


@pytest.mark.parametrize('key', ['max_iters', 'train_cfg.max_iters'])
def test_max_iters_reaches_schedule_and_intervals(cityscapes, key):
    apply_options(cityscapes, {key: 2000})
    warmup, poly = cityscapes.param_scheduler
    assert cityscapes.train_cfg.max_iters == 2000
    assert (warmup.begin, warmup.end, poly.begin, poly.end) == (0, 200, 200, 2000)
    assert cityscapes.train_cfg.val_interval == 500
    assert cityscapes.default_hooks.checkpoint.interval == 500
    assert cityscapes.default_hooks.logger.interval == 50
    assert 'max_iters' not in cityscapes


def test_a_warmup_that_fits_keeps_its_length(cityscapes):
    apply_options(cityscapes, {'max_iters': 20000})
    warmup, poly = cityscapes.param_scheduler
    assert (warmup.end, poly.begin, poly.end) == (1500, 1500, 20000)


def test_intervals_keep_their_share_of_a_long_run(cityscapes):
    apply_options(cityscapes, {'max_iters': 20000})
    assert cityscapes.train_cfg.val_interval == 2000
    assert cityscapes.default_hooks.checkpoint.interval == 1000


@pytest.mark.parametrize('max_iters', [1, 2, 3, 9, 16, 19, 20, 25])
def test_the_shortest_runs_have_valid_schedules(cityscapes, max_iters):
    apply_options(cityscapes, {'max_iters': max_iters})
    assert all(0 <= s.begin < s.end <= max_iters for s in cityscapes.param_scheduler)
    assert cityscapes.param_scheduler[-1].end == max_iters
    assert cityscapes.param_scheduler[0].begin == 0
    assert 1 <= cityscapes.train_cfg.val_interval <= max_iters
    assert 1 <= cityscapes.default_hooks.logger.interval <= max_iters


@pytest.mark.parametrize('max_epochs', [1, 2, 31, 100])
def test_max_epochs_reaches_every_schedule(imagenet, max_epochs):
    apply_options(imagenet, {'max_epochs': max_epochs})
    assert imagenet.train_cfg.max_epochs == max_epochs
    assert imagenet.param_scheduler[-1].end == max_epochs
    assert all(s.get('begin', 0) < s.end <= max_epochs for s in imagenet.param_scheduler)


@pytest.mark.parametrize('form', ['list', 'dict', 'of optimizers'])
def test_schedules_without_an_end_and_in_every_form(imagenet, form):
    """As MMPretrain's: the cosine begins after the warm-up and ends with the run."""
    warmup, cosine = imagenet.param_scheduler
    warmup.end = cosine.begin = 20
    del cosine['end']
    imagenet.param_scheduler = {
        'list': [warmup, cosine],
        'dict': cosine,
        'of optimizers': dict(first=[warmup], second=[cosine]),
    }[form]
    apply_options(imagenet, {'max_epochs': 1})
    schedules = imagenet.param_scheduler
    if form == 'dict':
        assert schedules.begin == 0
    else:
        first, second = schedules if form == 'list' else (schedules.first[0], schedules.second[0])
        assert (first.end, second.begin) == (1, 0) and 'end' not in second


def test_classification_crop_takes_the_test_resize_along(imagenet):
    apply_options(imagenet, {'crop_size': 112})
    train = _transforms(imagenet.train_dataloader.dataset.pipeline)
    test = _transforms(imagenet.test_dataloader.dataset.pipeline)
    assert train['RandomResizedCrop'].scale == 112
    assert (test['ResizeEdge'].scale, test['CenterCrop'].crop_size) == (128, 112)
    assert imagenet.model.backbone.img_size == 112


def test_no_workers_means_no_persistent_workers(cityscapes):
    notes = apply_options(cityscapes, {'train_dataloader.num_workers': 0})
    assert cityscapes.train_dataloader.persistent_workers is False
    assert cityscapes.val_dataloader.persistent_workers is True
    assert len(notes) == 1


def test_the_options_are_not_changed(cityscapes):
    options = {'crop_size': [144, 192], 'arch': 'tiny', 'max_iters': 10}
    apply_options(cityscapes, options)
    assert options == {'crop_size': [144, 192], 'arch': 'tiny', 'max_iters': 10}


@pytest.mark.parametrize(
    'options, words',
    [
        ({'crop_size': 'big'}, ['crop_size', 'big', 'HEIGHT,WIDTH']),
        ({'crop_size': [0, 10]}, ['crop_size', '[0, 10]']),
        ({'crop_size': [1, 2, 3]}, ['crop_size', '[1, 2, 3]']),
        ({'img_scale': 1.5}, ['img_scale', '1.5', 'WIDTH,HEIGHT']),
        ({'max_iters': 0}, ['max_iters', '0']),
        ({'max_iters': '10k'}, ['max_iters', '10k']),
        ({'max_epochs': 3}, ['max_epochs', 'give max_iters']),
        ({'data_root': ['a', 'b']}, ['data_root', "['a', 'b']"]),
        ({'arch': 'tiny', 'model.backbone.arch': 'tiny'}, ['arch', 'model.backbone.arch']),
    ],
)
def test_bad_values_are_named(cityscapes, options, words):
    with pytest.raises(InputError) as error:
        apply_options(cityscapes, options)
    assert all(word in str(error.value) for word in words)


def test_arch_of_a_foreign_backbone_is_refused():
    cfg = Config.fromfile(next((CONFIGS / 'resnet').glob('*ade20k*')))
    with pytest.raises(InputError, match='mmseg.ResNetV1c'):
        apply_options(cfg, {'arch': 'tiny'})


def test_a_classifier_takes_no_oblong_crop(imagenet):
    with pytest.raises(InputError, match='one side'):
        apply_options(imagenet, {'crop_size': [112, 224]})


class TestNumClasses:
    def test_heads_and_label_checks_of_a_segmentor(self, cityscapes):
        cityscapes.model.decode_head.out_channels = 19
        notes = apply_options(cityscapes, {'num_classes': 3})
        heads = cityscapes.model.decode_head, cityscapes.model.auxiliary_head
        assert [head.num_classes for head in heads] == [3, 3]
        assert cityscapes.model.decode_head.out_channels == 3
        for split in ('train', 'val', 'test'):
            pipeline = cityscapes[f'{split}_dataloader'].dataset.pipeline
            assert _transforms(pipeline)['CheckLabels'].num_classes == 3
        assert 'model.decode_head.num_classes: 19 -> 3' in notes

    def test_head_loss_preprocessor_and_metric_of_a_classifier(self, imagenet):
        apply_options(imagenet, {'num_classes': 3})
        model = imagenet.model
        parts = model.head, model.head.loss, model.data_preprocessor
        assert [part.num_classes for part in parts] == [3, 3, 3]
        assert imagenet.val_evaluator.topk == [1]  # of (1, 5)
        assert imagenet.num_classes == 3
        imagenet.pop('num_classes')  # a config without the variable stays one
        apply_options(imagenet, {'num_classes': 4})
        assert 'num_classes' not in imagenet

    def test_prototypes_of_the_same_classes(self, cityscapes):
        prior = dict(type='class_prototype', num_classes=19)
        cityscapes.model.backbone.prior = prior
        apply_options(cityscapes, {'num_classes': 3})
        assert cityscapes.model.backbone.prior.num_classes == 3
        cityscapes.model.backbone.prior.num_classes = 1000
        apply_options(cityscapes, {'num_classes': 4})
        assert cityscapes.model.backbone.prior.num_classes == 1000

    def test_an_entry_in_full_wins(self, cityscapes):
        apply_options(cityscapes, {'num_classes': 3, 'model.auxiliary_head.num_classes': 5})
        assert cityscapes.model.auxiliary_head.num_classes == 5

    def test_weights_of_the_old_classes_are_refused(self, cityscapes):
        loss = cityscapes.model.decode_head.loss_decode
        loss.class_weight = [1.0] * 19
        key = 'model.decode_head.loss_decode.class_weight'
        with pytest.raises(InputError, match=f'{key} has 19 numbers; set .* to 3 numbers or None'):
            apply_options(cityscapes, {'num_classes': 3})
        apply_options(cityscapes, {'num_classes': 3, key: [1.0] * 3})
        apply_options(cityscapes, {'num_classes': 4, key: None})
        cityscapes.model.decode_head.loss_cls = dict(class_weight=[1.0] * 4 + [0.1])
        with pytest.raises(InputError, match='loss_cls.class_weight has 5 numbers; .* to 7 numb'):
            apply_options(cityscapes, {'num_classes': 6})

    def test_what_cannot_be_used_is_refused(self, cityscapes):
        for value in (0, 2.5, 'three', True):
            with pytest.raises(InputError, match='num_classes must be a whole number of at least'):
                apply_options(cityscapes, {'num_classes': value})
        cityscapes.model = dict(type='mmpretrain.SimCLR', head=dict(type='ContrastiveHead'))
        with pytest.raises(InputError, match='num_classes does not apply'):
            apply_options(cityscapes, {'num_classes': 3})


def test_a_preprocessor_that_the_model_has_itself_is_not_read_at_the_top(cityscapes):
    with pytest.raises(InputError, match='the model has its own: set model.data_preprocessor.size'):
        apply_options(cityscapes, {'data_preprocessor.size': [64, 64]})


def test_brackets_that_do_not_match_are_refused():
    with pytest.raises(InputError, match=r'--cfg-options a=\[1,\(2\]: .*brackets'):
        parse_cfg_options(['b=1', 'a=[1,(2]'])


def test_dicts_are_read_as_json_or_python(cityscapes):
    words = [
        'a={"type": "LN", "eps": [1, 2], "x": true}',
        "b=[{'c': (1, 2)}]",
        'c={}',
        'd=x_{}.pth',
    ]
    options = parse_cfg_options(words)
    assert options == {
        'a': dict(type='LN', eps=[1, 2], x=True),
        'b': [dict(c=(1, 2))],
        'c': {},
        'd': 'x_{}.pth',
    }
    norm = parse_cfg_options(['model.backbone.norm_cfg={"type": "LN", "eps": 1e-3}'])
    apply_options(cityscapes, norm)
    assert cityscapes.model.backbone.norm_cfg == dict(type='LN', eps=1e-3)
    for word, message in (
        ('a={type:LN,eps:[1,2]}', 'no dict of JSON or Python'),
        ('a=x(1,2)', r'give entries one by one, as in a\.0=VALUE'),
    ):
        with pytest.raises(InputError, match=message):
            parse_cfg_options([word])
