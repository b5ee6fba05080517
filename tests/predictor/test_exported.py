"""A file of ``mmvars export`` as a predictor without prompts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from tiny_models import by_the_model, classifier, pattern, segmentor

import mmvars
from mmvars.errors import InputError
from mmvars.export import main as export

SIZE = '64x96'


def exported(predictor: mmvars.Predictor, folder: Path, suffix: str, *options: str) -> Path:
    path = folder / f'model{suffix}'
    files = [str(folder / 'config.py'), str(folder / 'weights.pth')]
    export([*files, '--output', str(path), '--size', SIZE, *options])
    return path


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['.onnx', '.pt2'])
@pytest.mark.parametrize(
    ('build', 'options'), [(segmentor, []), (segmentor, ['--dynamic']), (classifier, [])]
)
def test_the_prediction_is_that_of_the_model(
    make: Callable, tmp_path: Path, suffix: str, build: Callable[[], Config], options: list[str]
) -> None:
    cfg = build()
    if build is classifier:
        cfg.test_dataloader.dataset.pipeline[1:3] = []  # images as they are
    predictor = make(cfg)
    path = exported(predictor, tmp_path, suffix, '--normalize', *options)
    picture = pattern(64, 96)
    own = by_the_model(predictor, picture)
    file = mmvars.Predictor(path)
    assert not file.is_steerable and file.classes == predictor.classes and file.model is None
    file.set_image(picture)
    result = file.predict()
    if build is classifier:
        assert np.allclose(result.probabilities, own.pred_score, atol=1e-5)
        assert result.labels == int(own.pred_label)
    else:
        expected = own.seg_logits.data.softmax(dim=0)
        assert np.allclose(result.probabilities, expected, atol=1e-5)
        assert (result.labels == own.pred_sem_seg.data[0].numpy()).mean() > 0.99
        file.set_image(pattern(75, 130))
        assert file.predict().labels.shape == (75, 130)
        if options:  # images as they are: 75 x 130 has other patches than 64 x 96
            assert file._engine.size is None
    assert not result.shift.classes.any() and result.heatmap is None
    for call in (
        lambda: file.predict((3, 4)),
        lambda: file.predict(alpha=1.0),
        lambda: file.prior_vector((3, 4)),
        lambda: file.save_state(tmp_path / 'a.safetensors'),
        lambda: file.load_state(tmp_path / 'a.safetensors'),
    ):
        with pytest.raises(InputError, match='takes no prompts'):
            call()


@pytest.mark.slow
def test_files_that_give_no_probabilities(make: Callable, tmp_path: Path) -> None:
    predictor = make(segmentor())
    for options, message in (
        ([], 'export the model with --normalize'),
        (['--normalize', '--labels'], 'export without --labels'),
        (['--normalize', '--part', 'backbone'], 'gives backbone'),
    ):
        path = exported(predictor, tmp_path, '.pt2', *options, '--overwrite')
        with pytest.raises(InputError, match=message):
            mmvars.Predictor(path)


@pytest.mark.parametrize('suffix', ['.onnx', '.pt2'])
def test_what_is_no_exported_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f'file{suffix}'
    with pytest.raises(InputError, match='cannot be read'):
        mmvars.Predictor(path)
    path.write_bytes(b'no program')
    with pytest.raises(InputError, match='cannot be read'):
        mmvars.Predictor(path)
    with pytest.raises(InputError, match='leave out checkpoint'):
        mmvars.Predictor(path, 'weights.pth')


def test_a_program_of_somebody_else(tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(1, 3, 8, 8),))
    torch.export.save(program, tmp_path / 'relu.pt2')
    with pytest.raises(InputError, match='--normalize'):
        mmvars.Predictor(tmp_path / 'relu.pt2')
