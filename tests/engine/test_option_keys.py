"""Typing errors in --cfg-options are found; legitimate new keys are not."""

import pytest
from mmengine.config import Config

from mmvars.engine.options import check_options
from mmvars.errors import InputError


@pytest.fixture
def cfg() -> Config:
    return Config(
        dict(
            model=dict(
                type='mmvars.EncoderDecoder',
                backbone=dict(type='mmvars.AbSViT', arch='base', drop_path_rate=0.1),
                neck=None,
                train_cfg=dict(),
                test_cfg=dict(mode='whole'),
            ),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=10),
            val_cfg=dict(),
            train_dataloader=dict(
                batch_size=2,
                dataset=dict(
                    type='ADE20KDataset',
                    data_prefix=dict(img_path='a'),
                    pipeline=[dict(type='LoadImageFromFile'), dict(type='PackSegInputs')],
                ),
            ),
            optim_wrapper=dict(
                type='OptimWrapper',
                optimizer=dict(type='AdamW', lr=1.0),
                clip_grad=None,
                paramwise_cfg=dict(custom_keys=dict()),
            ),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
            env_cfg=dict(cudnn_benchmark=True),
        )
    )


@pytest.mark.parametrize(
    'option',
    [
        'model.backbone.arch',
        'train_dataloader.dataset.pipeline.1.type',
        'train_cfg.max_iters',
        # shorthands, and what the Runner reads though the config lacks it
        'data_root',
        'max_iters',
        'arch',
        'load_from',
        'randomness.seed',
        'custom_hooks',
        'find_unused_parameters',
        # arguments of a class: it checks them itself
        'model.backbone.with_cp',
        'model.backbone.init_cfg.checkpoint',
        'train_dataloader.num_workers',
        'default_hooks.checkpoint.max_keep_ckpts',
        'train_dataloader.dataset.indices',
        # dicts with free or optional keys, and parts that were off
        'model.test_cfg.crop_size',
        'model.test_cfg.stride',
        'model.test_cfg.window_batch',
        'optim_wrapper.clip_grad.max_norm',
        'optim_wrapper.paramwise_cfg.custom_keys.head.lr_mult',
        'optim_wrapper.paramwise_cfg.layer_decay_rate',
        'train_dataloader.dataset.data_prefix.seg_map_path',
        'env_cfg.dist_cfg.timeout',
        'model.neck.type',
        'val_cfg.fp16',
    ],
)
def test_real_keys_are_accepted(cfg, option) -> None:
    options = {option: _like(cfg, option)}
    check_options(cfg, options)


def _like(cfg, option):
    try:
        value = cfg
        for key in option.split('.'):
            value = value[int(key)] if isinstance(value, list) else value[key]
        return value
    except (KeyError, TypeError):  # absent, or below a part that is switched off
        return 1


READ = {
    'Runner': {'compile', 'compile.backend', 'activation_checkpointing', 'efficient_conv_bn_eval',
               'find_unused_parameters', 'sync_bn', 'model_wrapper_cfg.type'},
    'FlexibleRunner': {'strategy.type', 'init_weights_for_test_or_val'},
}  # fmt: skip


@pytest.mark.parametrize('runner_type', READ)
def test_keys_that_the_runner_of_this_config_reads(cfg, runner_type) -> None:
    """The others would do nothing."""
    check_options(cfg, dict.fromkeys(READ['Runner'], True))  # the one of a config without
    every = set.union(*READ.values())
    for option in every:
        options = {'runner_type': runner_type, option: True}
        if option in READ[runner_type]:
            check_options(cfg, options)
        else:
            with pytest.raises(InputError, match=f"{runner_type}' nothing reads"):
                check_options(cfg, options)
    cfg.runner_type = 'RunnerOfMine'  # it may read any of them
    check_options(cfg, dict.fromkeys(every, True))


@pytest.mark.parametrize(
    'option, value',
    [
        ('train_cfg.max_iters', 'abc'),
        ('env_cfg.cudnn_benchmark', 'yes'),
        ('model', 'abc'),
        ('train_dataloader', 5),
        ('model.backbone', 'abc'),
        ('train_dataloader.dataset.pipeline', 'abc'),
    ],
)
def test_values_that_cannot_stand_there_are_refused(cfg, option, value) -> None:
    with pytest.raises(InputError, match=f"'{option}': the config has .*; give .*, not "):
        check_options(cfg, {option: value})


@pytest.mark.parametrize(
    'option, value',
    [
        ('model.backbone.arch', dict(embed_dims=48)),
        ('model.backbone.drop_path_rate', 0),
        ('train_dataloader.dataset.data_prefix', 'images'),
        ('train_dataloader', None),
        ('train_dataloader.dataset.pipeline', [dict(type='LoadImageFromFile')]),
        ('val_cfg', None),
        ('env_cfg.cudnn_benchmark', False),
    ],
)
def test_values_of_another_kind_that_can_be_used(cfg, option, value) -> None:
    check_options(cfg, {option: value})


@pytest.mark.parametrize(
    'option',
    [
        'optim_wrapper.paramwise_cfg.norm_decay_mult',
        'default_hooks.checkpoint.save_last',
        'optim_wrapper.paramwise_cfg.custom_keys.norm2',
    ],
)
def test_keys_that_are_only_similar_are_accepted(cfg, option) -> None:
    cfg.optim_wrapper.paramwise_cfg = dict(bias_decay_mult=0.0, custom_keys=dict(norm1=dict()))
    cfg.default_hooks.checkpoint.save_best = 'mIoU'
    check_options(cfg, {option: 1})


def test_a_hook_may_be_added(cfg) -> None:
    check_options(cfg, {'default_hooks.visualization.type': 'mmseg.SegVisualizationHook'})


@pytest.mark.parametrize(
    'option, hint',
    [
        ('modle.backbone.arch', 'did you mean model'),
        ('max_iter', 'did you mean max_iters'),
        ('train_cfg.max_iter', 'did you mean max_iters'),
        ('model.bakbone.arch', 'did you mean backbone'),
        ('model.backbone.drop_path_rat', 'did you mean drop_path_rate'),
        ('backbone.arch', 'stands at model.backbone.arch'),
        ('batch_size', 'stands at train_dataloader.batch_size'),
        ('train_dataloader.batchsize', 'did you mean batch_size'),
        ('train_dataloader.dataset.pipeline.2.type', 'index from 0 to 1'),
        ('train_dataloader.dataset.pipeline.type', 'is a list of 2'),
        ('model.backbone.arch.embed_dims', "is 'base', which has no entries"),
        ('default_hooks.chekpoint.interval', 'did you mean checkpoint'),
        ('default_hooks.interval', 'stands at default_hooks.checkpoint.interval'),
        ('optim_wrapper.paramwise_cfg.layer_decay', 'did you mean layer_decay_rate'),
        ('model.test_cfg.crop', 'did you mean crop_size'),
        ('env_cfg.cudnn', 'did you mean cudnn_benchmark'),
        ('xyzzy', 'known there: '),
        ('launcher', 'the flag --launcher sets it'),
        ('cfg.model', "has no 'cfg'"),
        ('train_dataloader.dataset.data_prefix.img', 'did you mean img_path'),
    ],
)
def test_a_typing_error_brings_what_was_meant(cfg, option, hint) -> None:
    with pytest.raises(InputError) as caught:
        check_options(cfg, {option: 1})
    assert repr(option) in str(caught.value)
    assert hint in str(caught.value)


def test_all_errors_come_at_once(cfg) -> None:
    with pytest.raises(InputError, match=r"(?s)'a_typo'.*'train_cfg.max_iter'"):
        check_options(cfg, {'a_typo': 1, 'train_cfg.max_iters': 3, 'train_cfg.max_iter': 2})


def test_options_of_our_segmentor_are_refused_where_nothing_reads_them(cfg) -> None:
    cfg.model.type = 'mmseg.EncoderDecoder'
    with pytest.raises(InputError, match='mmseg.EncoderDecoder would not read it'):
        check_options(cfg, {'model.test_cfg.keep_logits': False})


def test_weights_of_timm_may_be_a_file_where_the_config_asks_for_those_of_timm(cfg):
    cfg.model.backbone.pretrained = True
    check_options(cfg, {'model.backbone.pretrained': 'dinov2.pth'})
    with pytest.raises(InputError, match='give True or False'):
        check_options(cfg, {'env_cfg.cudnn_benchmark': 'dinov2.pth'})
