"""What made the mini set: its writers, its refusals, and, where pybullet is there, its scenes."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmvars.data import mini_root

TOOLS = Path(__file__).resolve().parents[2] / 'tools' / 'dataset_converters'


@pytest.fixture
def load(monkeypatch):
    """Import a script of the folder, which import each other by their bare names."""
    monkeypatch.syspath_prepend(str(TOOLS))
    before = set(sys.modules)

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name, TOOLS / f'{name}.py')
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    yield load
    for name in set(sys.modules) - before:
        if name.startswith(('mini_', 'make_mini')):
            del sys.modules[name]


def test_border_is_on_both_sides_of_an_edge(load):
    labels = np.zeros((6, 7), np.uint8)
    labels[2:, 3:] = 7
    expected = labels.copy()
    expected[2:, 2:4] = expected[1:3, 3:] = 255
    np.testing.assert_array_equal(load('mini_layouts').with_border(labels), expected)


def test_official_ids(load):
    datasets = pytest.importorskip('mmseg.datasets')
    layouts = load('mini_layouts')
    words = {'tree': ('tree', 'vegetation', 'background'), 'table': ('table', None, 'diningtable')}
    for name, (ade, city, voc) in layouts.IDS.items():
        in_ade, in_city, in_voc = words.get(name, (name, name, name))
        if ade:  # the files count from 1
            assert datasets.ADE20KDataset.METAINFO['classes'][ade - 1] == in_ade
        if city != 255:
            assert datasets.CityscapesDataset.METAINFO['classes'][city] == in_city
        if voc:
            assert datasets.PascalVOCDataset.METAINFO['classes'][voc] == in_voc


def test_palette_is_that_of_voc(load):
    classes = pytest.importorskip('mmseg.datasets').PascalVOCDataset.METAINFO['palette']
    assert load('mini_layouts').voc_palette()[: 3 * 21] == np.ravel(classes).tolist()


def test_one_scene_in_three_layouts(load, tmp_path):
    layouts = load('mini_layouts')
    labels = (
        np.random.default_rng(0).integers(0, 10, (16, 32), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    )
    image = labels[..., None] * np.uint8(20) + np.zeros(3, np.uint8)
    layouts.write_scene(tmp_path, 'val', 3, image, labels)
    layouts.write_lists(tmp_path, {'val': 3})
    town = 'val/minihaven/minihaven_000003_000019'
    ids = np.array(list(layouts.IDS.values()))[labels]
    for path, expected in {
        f'cityscapes/leftImg8bit/{town}_leftImg8bit.png': image,
        f'cityscapes/gtFine/{town}_gtFine_labelTrainIds.png': ids[..., 1],
        'ade20k/annotations/validation/ADE_val_00000003.png': ids[:, 64:192, 0],
    }.items():
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / path)), expected)
    names = (tmp_path / 'voc12/ImageSets/Segmentation/val.txt').read_text().split()
    assert (tmp_path / 'voc12/SegmentationClass' / f'{names[2]}.png').is_file()
    assert Image.open(tmp_path / 'voc12/JPEGImages' / f'{names[2]}.jpg').size == (128, 128)


def test_nothing_is_overwritten(load, tmp_path, capsys):
    (tmp_path / 'mine.txt').write_text('mine')
    assert load('make_mini').main([str(tmp_path)]) == 2
    assert 'not an empty folder' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']


def test_without_pybullet_it_says_what_to_install(load, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pybullet', None)
    assert load('make_mini').main([str(tmp_path / 'out')]) == 2
    assert '--help' in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_a_scene_is_what_was_committed(load, tmp_path):
    pybullet = pytest.importorskip('pybullet', reason='pybullet, needed to make the set anew')
    scenes, layouts = load('mini_scenes'), load('mini_layouts')
    assert scenes.LABELS == layouts.NAMES and set(scenes.WNIDS.values()) == set(layouts.WNIDS)
    client = pybullet.connect(pybullet.DIRECT)
    scratch = tmp_path / 'scratch'
    scratch.mkdir()
    scene = scenes.Scene(0, scratch)
    layouts.write_scene(tmp_path, 'train', 1, *scene.render(scene.view, 128, 256))
    pybullet.disconnect(client)
    made = sorted((tmp_path / 'cityscapes').rglob('*.png'))
    assert len(made) == 2
    for path in made:
        committed = Path(mini_root('cityscapes')) / path.relative_to(tmp_path / 'cityscapes')
        np.testing.assert_array_equal(
            np.asarray(Image.open(path)), np.asarray(Image.open(committed))
        )
