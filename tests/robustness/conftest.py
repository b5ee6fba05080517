"""Tiny data and configs of models that are not ours, as files, with a checkpoint each."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image
from robustness_models import CLASSIFICATION, FCN, RESNET, SEGMENTATION

SIZE = 40, 56


@pytest.fixture(scope='session')
def segmentation_data(tmp_path_factory) -> Path:
    """Seven images of stripes, with some pixels without label."""
    root = tmp_path_factory.mktemp('stripes')
    for folder in ('img', 'ann'):
        (root / folder).mkdir()
    for index in range(7):
        rng = np.random.default_rng(index)
        labels = np.tile(np.repeat(rng.permutation(4), 14), (40, 1)).astype(np.uint8)
        pixels = (60 * labels[..., None] + rng.integers(0, 60, (*SIZE, 3))).astype(np.uint8)
        labels[:, :2] = 255
        Image.fromarray(pixels).save(root / 'img' / f'{index}.png')
        Image.fromarray(labels).save(root / 'ann' / f'{index}.png')
    return root


@pytest.fixture(scope='session')
def classification_data(tmp_path_factory) -> Path:
    """Two images of each of five classes."""
    root = tmp_path_factory.mktemp('classes')
    for label in range(5):
        (root / f'c{label}').mkdir()
        for index in range(2):
            rng = np.random.default_rng((label, index))
            pixels = rng.integers(40 * label, 40 * label + 60, (*SIZE, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / f'c{label}' / f'{label}{index}.png')
    return root


@pytest.fixture(scope='session')
def make_model(tmp_path_factory) -> Callable[[str, Path], tuple[str, str]]:
    """Writes a config and a checkpoint with random weights, as a training would leave it."""

    def make(text: str, data: Path) -> tuple[str, str]:
        folder = tmp_path_factory.mktemp('model')
        config, checkpoint = folder / 'config.py', folder / 'epoch_1.pth'
        config.write_text(f'DATA = {str(data)!r}\n{text}')
        cfg = Config.fromfile(config)
        torch.manual_seed(0)
        model = cfg.model.copy()
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):  # it ends here
            state = MODELS.build(model).state_dict()
        for value in state.values():  # as drawn, a model says one class everywhere
            if value.ndim > 1 and value.is_floating_point():
                value += 0.2 * torch.randn_like(value)
        meta = dict(cfg=cfg.pretty_text)
        torch.save(dict(state_dict=state, meta=meta), checkpoint)
        return str(config), str(checkpoint)

    return make


@pytest.fixture(scope='session')
def segmentor(make_model, segmentation_data) -> tuple[str, str]:
    return make_model(SEGMENTATION + FCN, segmentation_data)


@pytest.fixture(scope='session')
def classifier(make_model, classification_data) -> tuple[str, str]:
    return make_model(CLASSIFICATION + RESNET, classification_data)
