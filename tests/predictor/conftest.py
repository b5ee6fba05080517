"""Predictors of tiny models."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from tiny_models import pattern

import mmvars


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
            if name.endswith(('prototypes', 'center', 'texts')):
                torch.nn.init.normal_(value)
        words = (f'{key} = {value!r}\n' for key, value in cfg.to_dict().items())
        (tmp_path / 'config.py').write_text(''.join(words))  # Config.dump formats, which takes time
        torch.save(dict(state_dict=model.state_dict()), tmp_path / 'weights.pth')
        return mmvars.Predictor(tmp_path / 'config.py', tmp_path / 'weights.pth', **options)

    return build


@pytest.fixture
def picture() -> np.ndarray:
    """75 x 130, so that it is shrunk, and padded below."""
    return pattern(75, 130)
