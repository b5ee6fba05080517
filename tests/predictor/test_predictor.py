"""Laws of the predictor: what it gives is what the model itself gives."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

import mmvars
from mmvars.errors import InputError
from mmvars.predictor import run_files

WIDTH, NUM_CLASSES = 24, 5
SLIDE = dict(mode='slide', crop_size=(48, 48), stride=(32, 32))
BATCHED = SLIDE | dict(window_batch=3)
MISSING = object()


def segmentor(
    design: str = 'absvit', timm: bool = False, test_cfg: Any = None, **backbone: Any
) -> Config:
    """A segmentor whose images are resized to 96 pixels at most, and padded to 64 at least."""
    arch: dict = dict(embed_dims=WIDTH, num_layers=3, num_heads=2, patch_size=16, global_pool='avg')
    if timm:
        arch = dict(trunk='timm/vit_small_patch14_reg4_dinov2.lvd142m', num_layers=3)
    features = dict(type='mmvars.AbSViT', arch=arch, design=design, img_size=64)
    if design == 'none':
        features = dict(type='mmvars.ViT', arch=arch, img_size=64)
    pipeline = [
        dict(type='mmvars.LoadImageFromFile'),
        dict(type='Resize', scale=(96, 64), keep_ratio=True),
        dict(type='LoadAnnotations'),
        dict(type='mmseg.PackSegInputs'),
    ]
    names = ('road', 'sidewalk', 'building', 'wall', 'fence')
    dataset = dict(type='mmseg.BaseSegDataset', metainfo=dict(classes=names), pipeline=pipeline)
    head = dict(
        type='mmseg.FCNHead',
        channels=8,
        num_convs=1,
        concat_input=False,
        num_classes=NUM_CLASSES,
        in_index=0,
        in_channels=None,
        align_corners=False,
    )
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(
                type='mmvars.EncoderDecoder',
                data_preprocessor=dict(
                    type='mmseg.SegDataPreProcessor',
                    mean=[123.675, 116.28, 103.53],
                    std=[58.395, 57.12, 57.375],
                    bgr_to_rgb=True,
                    size=(64, 64),
                    pad_val=0,
                    seg_pad_val=255,
                    test_cfg=dict(size_divisor=16),
                ),
                backbone=features | backbone,
                decode_head=head,
                test_cfg=test_cfg or dict(mode='whole'),
            ),
            test_dataloader=dict(dataset=dataset),
        )
    )


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., mmvars.Predictor]:
    """From a config to a predictor with random weights, in which all that is zero is not."""

    def build(cfg: Config, **options: Any) -> mmvars.Predictor:
        init_default_scope(cfg.default_scope)
        model = MODELS.build(copy.deepcopy(cfg.model))
        for name, value in model.named_parameters():
            if name.endswith('.gate'):
                torch.nn.init.constant_(value, 0.5)
        for name, value in model.named_buffers():
            if name.endswith(('prototypes', 'center')):
                torch.nn.init.normal_(value)
        cfg.dump(tmp_path / 'config.py')
        torch.save(dict(state_dict=model.state_dict()), tmp_path / 'weights.pth')
        return mmvars.Predictor(tmp_path / 'config.py', tmp_path / 'weights.pth', **options)

    return build


@pytest.fixture
def picture() -> np.ndarray:
    """75 x 130, so that it is shrunk, and padded below."""
    return np.random.default_rng(0).integers(0, 255, (75, 130, 3), dtype=np.uint8)


@torch.no_grad()
def by_the_model(predictor: mmvars.Predictor, picture: np.ndarray, prior: Any = MISSING) -> Tensor:
    """Logits of the model's own ``predict``, through its own pipeline."""
    packed = predictor._pipeline(dict(img=np.ascontiguousarray(picture[..., ::-1])))
    if prior is not MISSING:
        packed['data_samples'].set_field(prior, 'prior')
    data = dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']])
    return predictor.model.test_step(data)[0].seg_logits.data


@pytest.mark.parametrize('design', ['absvit', 'feedback', 'mask_attention', 'perceiver_io', 'none'])
@pytest.mark.parametrize('test_cfg', [None, SLIDE, BATCHED], ids=['whole', 'slide', 'batched'])
def test_without_a_prompt_it_is_the_model_itself(
    make: Callable, picture: np.ndarray, design: str, test_cfg: dict | None
) -> None:
    predictor = make(segmentor(design, test_cfg=test_cfg))
    predictor.set_image(picture)
    result = predictor.predict()
    logits = by_the_model(predictor, picture)
    assert torch.equal(result._scores, logits)
    assert result.labels.shape == (75, 130)
    assert np.array_equal(result.labels, logits.argmax(dim=0).numpy())
    assert not result.shift.pixels.any()


@pytest.mark.parametrize('test_cfg', [None, SLIDE, BATCHED], ids=['whole', 'slide', 'batched'])
@pytest.mark.parametrize('options', [{}, dict(num_passes=3), dict(first_pass_scale=0.5)])
def test_two_prompts_are_two_forwards(
    make: Callable, picture: np.ndarray, test_cfg: dict | None, options: dict
) -> None:
    predictor = make(segmentor(test_cfg=test_cfg, **options))
    predictor.set_image(picture)
    priors = torch.randn(2, WIDTH)
    for prior in priors:
        result = predictor.predict(prior)
        assert torch.equal(result._scores, by_the_model(predictor, picture, prior))
        assert result.heatmap.shape == result.attention.shape == result.bottom_up.shape == (75, 130)


@pytest.mark.parametrize('files', [[], ['a.py', 'b.py'], ['a.py']])
def test_a_folder_that_is_no_run(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        (tmp_path / name).write_text('')
    with pytest.raises(InputError, match='must hold one config|holds no checkpoint'):
        run_files(tmp_path)


def test_a_run_folder_gives_its_best_checkpoint_else_its_last(tmp_path: Path) -> None:
    for name in ('config.py', 'iter_1.pth', 'iter_2.pth'):
        (tmp_path / name).write_text('')
    (tmp_path / 'last_checkpoint').write_text('/moved/since/iter_1.pth\n')
    assert run_files(tmp_path)[1] == tmp_path / 'iter_1.pth'
    (tmp_path / 'best_mIoU_iter_1.pth').write_text('')
    assert run_files(tmp_path)[1] == tmp_path / 'best_mIoU_iter_1.pth'
