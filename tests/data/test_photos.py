"""The embedded photographs: licenses are complete, the stock data set takes them as they are."""

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmvars.data import PHOTO_CLASSES, photos_root

ROOT = Path(photos_root())
SPLITS = {'train': 23, 'val': 9}
LICENSES = {
    'CC BY 2.0': 'https://creativecommons.org/licenses/by/2.0/',
    'no known copyright restrictions': 'https://www.flickr.com/commons/usage/',
}


@pytest.fixture(scope='module')
def make_photos():
    path = Path(__file__).resolve().parents[2] / 'tools/dataset_converters/make_photos.py'
    spec = importlib.util.spec_from_file_location('make_photos', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_photo_has_its_license_and_source():
    with (ROOT / 'attribution.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    photos = sorted(p.relative_to(ROOT / 'images').as_posix() for p in ROOT.glob('images/*/*'))
    assert sorted(row['file'] for row in rows) == photos
    for row in rows:
        assert row['license_url'] == LICENSES[row['license']]
        assert row['source'].startswith('https://www.flickr.com/photo.gne?id=')
    readme = (ROOT / 'README.md').read_text()
    for words in ('No accuracy claim', 'CC BY 2.0', 'CC BY 4.0', 'attribution.csv'):
        assert words in readme


@pytest.mark.parametrize('split', SPLITS)
def test_the_stock_data_set_reads_them(split):
    datasets = pytest.importorskip('mmseg.datasets')
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = datasets.BaseSegDataset(
            data_root=str(ROOT),
            metainfo=dict(classes=PHOTO_CLASSES),
            data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'labels/{split}'),
            pipeline=[
                dict(type='mmvars.LoadImageFromFile'),
                dict(type='LoadAnnotations'),
                dict(type='mmvars.CheckLabels', num_classes=len(PHOTO_CLASSES)),
            ],
            test_mode=True,
        )
    assert len(dataset) == SPLITS[split]
    counts = np.zeros(256, int)
    for sample in dataset:
        assert max(sample['img'].shape) == 448
        assert sample['img'].shape[:2] == sample['gt_seg_map'].shape
        counts += np.bincount(sample['gt_seg_map'].ravel(), minlength=256)
    assert (counts[: len(PHOTO_CLASSES)] > 0).all()  # every class is in both halves
    assert counts[0] / counts.sum() < 0.3


def test_size_in_the_wheel():
    assert sum(path.stat().st_size for path in ROOT.rglob('*') if path.is_file()) < 2e6


def test_made_from_a_folder_of_coco(make_photos, tmp_path, capsys):
    source, out = tmp_path / 'source', tmp_path / 'out'
    entries = []
    for number, license_name in enumerate(('CC BY 2.0', 'CC BY-SA 2.0', 'CC BY 2.0')):
        for kind in ('images', 'masks'):
            (source / kind / 'train').mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (4, 2)).save(source / f'images/train/{number}.jpg')
        labels = np.array([[0, 1, 187, 193], [23, 27, 171, 178]], np.uint8)
        Image.fromarray(labels).save(source / f'masks/train/{number}.png')
        page = f'https://www.flickr.com/photo.gne?id={number}'
        entries.append(dict(file=f'{number}.jpg', license=license_name, flickr_page=page))
    (source / 'licenses.json').write_text(json.dumps(entries))
    assert make_photos.main([str(source), str(out)]) == 0
    assert sorted(path.name for path in out.rglob('*.jpg')) == ['0.jpg', '2.jpg']  # not share-alike
    for path in out.rglob('*.png'):
        named = [[0, 1, 8, 6], [2, 0, 9, 0]]
        np.testing.assert_array_equal(np.asarray(Image.open(path)), named)
    assert len((out / 'attribution.csv').read_text().splitlines()) == 3
    assert make_photos.main([str(source), str(out)]) == 2
    assert 'not an empty folder' in capsys.readouterr().err
    assert make_photos.main([str(out), str(tmp_path / 'new')]) == 2
    assert 'no licenses.json' in capsys.readouterr().err


def test_the_split_is_that_of_the_names(make_photos):
    for path in ROOT.glob('images/*/*'):
        assert make_photos.split_of(path.name) == path.parent.name
    assert ('other', *make_photos.IDS) == PHOTO_CLASSES
