"""LabelMapHook: colors for the label maps of a metric; pixel values and bit depth stay."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.dataset import BaseDataset
from mmengine.structures import BaseDataElement
from PIL import Image

from mmvars.engine.hooks import LabelMapHook
from mmvars.errors import InputError

COLORS = [[10 * i, 5, 255 - i] for i in range(20)]
LABELS = np.arange(20, dtype=np.uint8).reshape(4, 5)


def _runner(images=('x/a.jpg', 'b.jpg'), classes=20, **metainfo) -> SimpleNamespace:
    dataset = BaseDataset(metainfo=dict(classes=range(classes), **metainfo), lazy_init=True)
    dataset.data_list = [dict(img_path=path) for path in images]
    dataset.serialize_data, dataset._fully_initialized = False, True
    return SimpleNamespace(test_dataloader=SimpleNamespace(dataset=dataset))


@pytest.mark.parametrize('reduce_zero_label', [False, True])
def test_values_stay_and_colors_are_those_of_the_classes(reduce_zero_label, tmp_path) -> None:
    shift = int(reduce_zero_label)
    Image.fromarray(LABELS + shift).save(tmp_path / 'a.png')
    metainfo = dict(img_path='x/a.jpg', reduce_zero_label=reduce_zero_label)
    hook = LabelMapHook(str(tmp_path))
    runner = _runner(palette=COLORS)
    hook.before_test_epoch(runner)
    hook.after_test_iter(runner, 0, outputs=[BaseDataElement(metainfo=metainfo)])
    image = Image.open(tmp_path / 'a.png')
    assert image.mode == 'P'
    np.testing.assert_array_equal(np.asarray(image), LABELS + shift)
    np.testing.assert_array_equal(np.asarray(image.convert('RGB')), np.array(COLORS)[LABELS])
    depth = (tmp_path / 'a.png').read_bytes()[24]
    assert depth == 8


def test_maps_that_the_metric_has_colored_stay(tmp_path) -> None:
    image = Image.fromarray(LABELS).convert('P')
    image.save(tmp_path / 'a.png')
    before = (tmp_path / 'a.png').read_bytes()
    sample = BaseDataElement(metainfo=dict(img_path='a.jpg'))
    LabelMapHook(str(tmp_path)).after_test_iter(_runner(palette=COLORS), 0, outputs=[sample])
    assert (tmp_path / 'a.png').read_bytes() == before


def test_what_would_be_lost_is_refused_before_the_test(tmp_path) -> None:
    hook = LabelMapHook(str(tmp_path))
    with pytest.raises(InputError, match="'x/a.jpg' and 'y/a.png' are named alike"):
        hook.before_test_epoch(_runner(['x/a.jpg', 'y/a.png']))
    hook.before_test_epoch(_runner(classes=256))
    with pytest.raises(InputError, match='8 bits, and the data set has 256 classes'):
        hook.before_test_epoch(_runner(classes=256, reduce_zero_label=True))


def test_a_full_disk_leaves_the_map_of_the_metric(tmp_path, monkeypatch) -> None:
    Image.fromarray(LABELS).save(tmp_path / 'a.png')
    before = (tmp_path / 'a.png').read_bytes()

    def refuse(file: int) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', refuse)
    sample = BaseDataElement(metainfo=dict(img_path='a.jpg'))
    with pytest.raises(InputError, match='cannot be written'):
        LabelMapHook(str(tmp_path)).after_test_iter(_runner(palette=COLORS), 0, outputs=[sample])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {'a.png': before}
