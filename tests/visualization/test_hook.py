"""The hook draws a few images during validation, in both frameworks, and otherwise does nothing."""

from itertools import count
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from PIL import Image

from mmvars.errors import InputError
from mmvars.visualization import AttentionVisualizationHook

NUM_IMAGES = 3
NUMBERS = count()  # mmengine keeps one visualizer for each experiment name


@pytest.fixture
def make_runner(make_config, tmp_path):
    """A Runner that can validate on three random images, with the hook as given."""

    def make(task: str, kind: str = 'AbSViT', **hook) -> Runner:
        cfg = make_config(task, kind)
        dataset = cfg.test_dataloader.dataset
        dataset.update(
            _segmentation_files(tmp_path)
            if task == 'segmentation'
            else _classification_files(tmp_path)
        )
        dataset.pipeline[0] = dict(type='LoadImageFromFile')
        evaluator = (
            dict(type='mmseg.IoUMetric')
            if task == 'segmentation'
            else dict(type='mmpretrain.Accuracy', topk=1)
        )
        loader = dict(
            batch_size=1 if task == 'segmentation' else 2,
            num_workers=0,
            dataset=dataset,
            sampler=dict(type='DefaultSampler', shuffle=False),
        )
        if task == 'classification':  # stacked inputs, as in our configs
            loader['collate_fn'] = dict(type='default_collate')
        number = next(NUMBERS)
        return Runner(
            cfg.model,
            work_dir=str(tmp_path / f'work{number}'),
            val_dataloader=loader,
            val_cfg=dict(),
            val_evaluator=evaluator,
            test_dataloader=loader,
            test_cfg=dict(),
            test_evaluator=evaluator,
            default_scope=cfg.default_scope,
            experiment_name=f'attention_hook_{number}',
            visualizer=dict(
                type='mmengine.Visualizer', vis_backends=[dict(type='LocalVisBackend')]
            ),
            custom_hooks=[dict(type='mmvars.AttentionVisualizationHook', **hook)],
            log_level='WARNING',
        )

    return make


def _segmentation_files(folder):
    for i in range(NUM_IMAGES):
        image, label = folder / 'images' / 'city', folder / 'labels' / 'city'
        image.mkdir(parents=True, exist_ok=True)
        label.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (60, 100, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(image / f'{i}_leftImg8bit.png')
        Image.fromarray(pixels[..., 0] % 19).save(label / f'{i}_gtFine_labelTrainIds.png')
    return dict(data_root=str(folder), data_prefix=dict(img_path='images', seg_map_path='labels'))


def _classification_files(folder):
    names = ('tench, Tinca tinca', 'golden retriever', 'tabby', 'crane', 'pier', 'bubble')
    for i, name in enumerate(names):
        (folder / 'images' / name).mkdir(parents=True, exist_ok=True)
        if i < NUM_IMAGES:
            pixels = np.random.default_rng(i).integers(0, 255, (80, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / 'images' / name / 'photo.png')
    return dict(data_root=str(folder / 'images'), data_prefix='', with_label=True)


def pictures(runner):
    return sorted(path.name for path in Path(runner.log_dir).rglob('*.png'))


def count_forwards(runner):
    calls = []
    runner.model.backbone.network.register_forward_hook(lambda *args: calls.append(1))
    return calls


def test_it_builds_from_any_framework_by_its_name():
    hook = HOOKS.build(dict(type='mmvars.AttentionVisualizationHook', draw=False, interval=3))
    assert isinstance(hook, AttentionVisualizationHook)


def test_a_validation_leaves_pictures_and_the_metrics_as_they_are(task, make_runner):
    runner = make_runner(task, num_images=2)
    calls = count_forwards(runner)
    metrics = runner.val()
    assert metrics
    names = ['0_leftImg8bit', '1_leftImg8bit'] if task == 'segmentation' else ['photo', 'photo']
    assert pictures(runner) == [f'attention_{i + 1}_{name}_0.png' for i, name in enumerate(names)]
    batches = NUM_IMAGES if task == 'segmentation' else 2
    assert len(calls) == batches + 2
    other = make_runner(task, draw=False)
    other.model.load_state_dict(runner.model.state_dict())
    assert metrics == other.val() and pictures(other) == []


def test_the_picture_is_the_figure_of_the_image(make_runner):
    runner = make_runner('segmentation', num_images=1, class_attention=True)
    runner.val()
    path = next(Path(runner.log_dir).rglob('*.png'))
    picture = cv2.imread(str(path))
    assert picture.shape[1] > 5 * picture.shape[0] and picture.std() > 10


def test_only_every_so_many_validations_are_drawn(make_runner):
    runner = make_runner('segmentation', num_images=1, interval=2)
    calls = count_forwards(runner)
    counts = []
    for _ in range(4):
        runner.val_loop.run()
        counts.append(len(calls) - sum(counts))
    assert counts == [NUM_IMAGES + 1, NUM_IMAGES] * 2


def test_a_backbone_of_two_stages_is_drawn_at_either(make_runner):
    for layer in (1, 2):
        runner = make_runner('segmentation', 'rvt:vars_s', num_images=1, layer=layer)
        runner.call_hook('before_run')
        runner.val()
        assert pictures(runner) == ['attention_1_0_leftImg8bit_0.png']


@pytest.mark.parametrize('off', ['draw', 'rank'])
def test_off_means_not_one_forward_more_and_no_picture(make_runner, off):
    runner = make_runner('segmentation', draw=off != 'draw')
    runner._rank = 1 if off == 'rank' else 0
    calls = count_forwards(runner)
    runner.val_loop.run()
    assert len(calls) == NUM_IMAGES and pictures(runner) == []


def test_a_test_run_is_drawn_too(make_runner):
    runner = make_runner('classification', 'ViT', num_images=1)
    runner.test()
    assert pictures(runner) == ['attention_1_photo_0.png']


@pytest.mark.parametrize(
    'arguments,message',
    [
        (dict(interval=0), 'interval must be a whole number of at least 1, got 0'),
        (dict(num_images=1.5), 'num_images must be .* got 1.5'),
    ],
)
def test_bad_numbers_are_refused_at_construction(arguments, message):
    with pytest.raises(InputError, match=message):
        AttentionVisualizationHook(**arguments)


@pytest.mark.parametrize(
    'kind,arguments,message',
    [
        ('AbSViT', dict(layer=7), 'layer must be a block index from 0 to 2'),
        ('rvt:vars_d', dict(class_attention=True), 'this RVT has no class token'),
        ('ViT', dict(alpha=2.0), 'this model has no feedback'),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_training_starts(
    make_runner, kind, arguments, message
):
    runner = make_runner('segmentation', kind, **arguments)
    with pytest.raises(InputError, match=message):
        runner.call_hook('before_run')


def test_a_model_of_somebody_else_is_refused_before_training_starts():
    class Runnerlike:
        model = torch.nn.Linear(1, 1)

    with pytest.raises(InputError, match='mmvars.AbSViT'):
        AttentionVisualizationHook().before_run(Runnerlike())
    AttentionVisualizationHook(draw=False).before_run(Runnerlike())
