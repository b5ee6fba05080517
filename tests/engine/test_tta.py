"""``mmvars test --tta``: which pipeline the images of a config with data of its own go through."""

import pytest
from mmengine.config import Config

from mmvars.engine.test import _set_tta
from mmvars.errors import InputError

LOAD = dict(type='LoadImageFromFile')
LABELS = dict(type='LoadAnnotations', reduce_zero_label=True)
SCALES = [dict(type='Resize', scale_factor=s) for s in (0.5, 1.0)]
FLIPS = [dict(type='RandomFlip', prob=p) for p in (0.0, 1.0)]
PACK = dict(type='mmseg.PackSegInputs')


def _augment(*branches: list) -> dict:
    return dict(type='TestTimeAug', transforms=list(branches))


def _config(test: list, augmented: list | None, **model) -> Config:
    dataset = dict(type='ConcatDataset', datasets=[dict(type='Own', pipeline=test)] * 2)
    return Config(
        dict(test_dataloader=dict(dataset=dataset), tta_pipeline=augmented, model=dict(**model))
    )


def _pipelines(cfg: Config) -> list:
    return [inner.pipeline for inner in cfg.test_dataloader.dataset.datasets]


@pytest.mark.parametrize(
    'load, labels', [(LOAD, [LABELS]), (dict(type='own.LoadBands', count=4), [LABELS]), (LOAD, [])]
)
def test_an_inherited_pipeline_loads_as_the_test_data_do(load, labels) -> None:
    inherited = [LOAD, _augment(SCALES, FLIPS, [dict(type='mmseg.LoadAnnotations')], [PACK])]
    cfg = _config([load, dict(type='Resize', scale=(64, 64)), *labels, PACK], inherited)
    notes = _set_tta(cfg, segmentation=True)
    expected = [load, _augment(SCALES, FLIPS, *[[step] for step in labels], [PACK])]
    assert _pipelines(cfg) == [expected, expected]
    assert len(notes) == 2 and 'test_dataloader.dataset.datasets.1.pipeline' in notes[1]
    assert cfg.model.type == 'mmvars.SegTTAModel'


def test_a_pipeline_that_agrees_is_taken_as_it_is() -> None:
    augmented = [LOAD, _augment(SCALES, FLIPS, [LABELS], [PACK])]
    cfg = _config([LOAD, dict(type='Resize', scale=(64, 64)), LABELS, PACK], augmented)
    assert _set_tta(cfg, segmentation=True) == []
    assert _pipelines(cfg) == [augmented, augmented]


def test_classification_takes_the_sizes_of_the_test_pipeline() -> None:
    def prepared(size: int) -> list:
        return [LOAD, dict(type='ResizeEdge', scale=size), dict(type='CenterCrop', crop_size=size)]

    pack = dict(type='PackInputs')
    cfg = _config([*prepared(96), pack], [*prepared(224), _augment(FLIPS, [pack])])
    assert _set_tta(cfg, segmentation=False)
    assert _pipelines(cfg)[0] == [*prepared(96), _augment(FLIPS, [pack])]
    # One that augments the sizes themselves is another matter.
    scales = [dict(type='ResizeEdge', scale=size) for size in (224, 256)]
    augmented = [LOAD, _augment(scales, [pack])]
    cfg = _config([*prepared(96), pack], augmented)
    assert _set_tta(cfg, segmentation=False) == []
    assert _pipelines(cfg)[0] == augmented


def test_without_a_pipeline_the_message_says_what_to_write() -> None:
    with pytest.raises(InputError, match='tta_pipeline = ') as error:
        _set_tta(_config([LOAD, LABELS, PACK], None), segmentation=True)
    written = str(error.value).partition('tta_pipeline = ')[2]
    cfg = _config([LOAD, LABELS, PACK], eval(written))
    _set_tta(cfg, segmentation=True)
    assert [step.type for step in _pipelines(cfg)[0]] == ['LoadImageFromFile', 'TestTimeAug']
