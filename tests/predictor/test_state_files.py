"""A state is the first pass of one image by one model, or it is refused."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import BATCHED, SLIDE, pattern, segmentor

import mmvars
from mmvars.errors import InputError

PROMPT = (40, 20)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / 'image.safetensors'


@pytest.mark.parametrize(
    'options',
    [
        dict(test_cfg=BATCHED),
        dict(first_pass_scale=0.5),
        dict(design='perceiver_io', out_indices=(0, -1)),
    ],
)
def test_a_state_gives_the_same_answers_without_a_first_pass(
    make: Callable, file: Path, picture: np.ndarray, options: dict
) -> None:
    predictor = make(segmentor(**options))
    predictor.set_image(picture)
    before = [predictor.predict(prior) for prior in (None, PROMPT)]
    predictor.save_state(file)
    other = type(predictor)(*file.parent.glob('config.py'), file.parent / 'weights.pth')
    calls: list[int] = []
    other.model.backbone.trunk.blocks[0].register_forward_hook(lambda *args: calls.append(1))
    other.load_state(file)
    assert not calls
    assert np.array_equal(other.image, picture)
    for first, prior in zip(before, (None, PROMPT), strict=True):
        second = other.predict(prior)
        for name in ('probabilities', 'token_weights', 'attention', 'bottom_up', 'heatmap'):
            assert np.array_equal(getattr(first, name), getattr(second, name)), name
    other.load_state(file)  # of the image that is set


def test_a_state_of_another_image_or_model_is_refused(
    make: Callable, file: Path, picture: np.ndarray
) -> None:
    predictor = make(segmentor())
    predictor.set_image(picture)
    predictor.save_state(file)
    with pytest.raises(InputError, match='exists and is kept'):
        predictor.save_state(file)
    predictor.save_state(file, overwrite=True)
    changed = picture.copy()
    changed[0, 0, 0] ^= 1
    predictor.set_image(changed)
    answer = predictor.predict(PROMPT)
    with pytest.raises(InputError, match=r'of another image .* reset_image\(\)'):
        predictor.load_state(file)
    assert np.array_equal(predictor.predict(PROMPT).probabilities, answer.probabilities)
    predictor.reset_image()
    predictor.load_state(file)
    normalized = segmentor()
    normalized.model.data_preprocessor.mean = [0, 0, 0]
    resized = segmentor()
    resized.test_dataloader.dataset.pipeline[1].scale = (95, 64)
    weights = file.parent / 'same.pth'
    torch.save(dict(state_dict=predictor.model.state_dict()), weights)
    others = [segmentor(num_passes=3), segmentor(test_cfg=SLIDE), normalized, resized]
    for number, cfg in enumerate(others):
        cfg.dump(file.parent / f'other{number}.py')
        other = mmvars.Predictor(file.parent / f'other{number}.py', weights)
        with pytest.raises(InputError, match='made with another model .* make it again'):
            other.load_state(file)
        assert other.image_size is None
    with pytest.raises(InputError, match='made with another model'):
        make(segmentor()).load_state(file)  # other random weights


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 100)


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-50] ^= 1
    file.write_bytes(content)


def _rewrite(change: Callable[[dict, dict], Any]) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        with safe_open(file, 'pt') as opened:
            meta = dict(opened.metadata())
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        change(tensors, meta)
        save_file(tensors, file, meta)

    return write


DAMAGES = [
    (_cut, 'truncated or damaged'),
    (_flip, 'is damaged: copy it again'),
    (_rewrite(lambda tensors, meta: tensors.pop('0.norms')), 'is damaged'),
    (_rewrite(lambda tensors, meta: meta.update(grids='[]')), 'is damaged'),
    (_rewrite(lambda tensors, meta: meta.update(mmvars_state='9')), 'no state of this version'),
    (_rewrite(lambda tensors, meta: meta.clear()), 'no state of this version'),
    (lambda file: file.write_bytes(b'no tensors'), 'is no checkpoint|damaged'),
    (lambda file: file.unlink(), 'does not exist'),
]


def test_a_damaged_state_is_refused_and_nothing_is_lost(
    make: Callable, file: Path, picture: np.ndarray
) -> None:
    predictor = make(segmentor())
    predictor.set_image(picture)
    answer = predictor.predict(PROMPT).probabilities
    for damage, message in DAMAGES:
        predictor.save_state(file, overwrite=True)
        damage(file)
        with pytest.raises(InputError, match=message):
            predictor.load_state(file)
    assert np.array_equal(predictor.predict(PROMPT).probabilities, answer)


def test_what_has_no_state(make: Callable, file: Path, picture: np.ndarray) -> None:
    predictor = make(segmentor('none'))
    with pytest.raises(InputError, match='no image is set'):
        predictor.save_state(file)
    predictor.set_image(picture)
    with pytest.raises(InputError, match='no feedback, so that nothing'):
        predictor.save_state(file)
    with pytest.raises(InputError, match='.safetensors'):
        predictor.save_state(file.with_suffix('.png'))
    predictor.set_image_batch([picture, pattern(40, 50)])
    with pytest.raises(InputError, match='2 images are set'):
        predictor.save_state(file)
    assert not file.exists()
