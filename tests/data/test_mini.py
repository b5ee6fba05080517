"""The mini data set: the stock classes and metrics take it as it is, and the layouts agree."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmvars.data import LAYOUTS, mini_root
from mmvars.errors import InputError

SPLITS = {'train': 48, 'val': 16}
# Classes that the labels hold, in the words of each data set, with the least share of pixels.
PRESENT = {
    'ade20k': {
        'road': 0.15,
        'sidewalk': 0.05,
        'building': 0.1,
        'tree': 0.04,
        'sky': 0.04,
        'person': 0.03,
        'car': 0.05,
        'table': 0.015,
        'ball': 0.01,
    },
    'cityscapes': {
        'road': 0.15,
        'sidewalk': 0.05,
        'building': 0.1,
        'vegetation': 0.04,
        'sky': 0.04,
        'person': 0.03,
        'car': 0.05,
    },
    'voc12': {'background': 0.5, 'person': 0.03, 'car': 0.05, 'diningtable': 0.01},
}


def _dataset(layout: str, split: str):
    datasets = pytest.importorskip('mmseg.datasets')
    folder = {'train': 'training', 'val': 'validation'}[split]
    kind, images, labels, extra = {
        'ade20k': ('ADE20KDataset', f'images/{folder}', f'annotations/{folder}', {}),
        'cityscapes': ('CityscapesDataset', f'leftImg8bit/{split}', f'gtFine/{split}', {}),
        'voc12': (
            'PascalVOCDataset',
            'JPEGImages',
            'SegmentationClass',
            dict(ann_file=f'ImageSets/Segmentation/{split}.txt'),
        ),
    }[layout]
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmseg'):
        pipeline = [
            dict(type='mmvars.LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(
                type='mmvars.CheckLabels',
                num_classes=len(getattr(datasets, kind).METAINFO['classes']),
            ),
        ]
        return getattr(datasets, kind)(
            data_root=mini_root(layout),
            pipeline=pipeline,
            test_mode=True,
            data_prefix=dict(img_path=images, seg_map_path=labels),
            **extra,
        )


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('layout', PRESENT)
def test_stock_data_sets_read_it(layout, split):
    dataset = _dataset(layout, split)
    assert len(dataset) == SPLITS[split]
    classes = dataset.metainfo['classes']
    counts = np.zeros(256, int)
    shape = (128, 256) if layout == 'cityscapes' else (128, 128)
    for sample in dataset:
        assert sample['img'].shape == (*shape, 3) and sample['gt_seg_map'].shape == shape
        counts += np.bincount(sample['gt_seg_map'].ravel(), minlength=256)
    names = {classes[i] for i in np.flatnonzero(counts[:255])}
    assert names == set(PRESENT[layout])
    for name, share in PRESENT[layout].items():
        assert counts[classes.index(name)] / counts.sum() > share, name
    assert 0 < counts[255] / counts.sum() < 0.1  # something is ignored, but little


@pytest.mark.parametrize('layout', PRESENT)
def test_truth_scores_100_and_the_commonest_class_little(layout):
    metric = pytest.importorskip('mmseg.evaluation').IoUMetric(iou_metrics=['mIoU'], prefix='')
    dataset = _dataset(layout, 'val')
    metric.dataset_meta = dataset.metainfo
    labels = [torch.from_numpy(sample['gt_seg_map']) for sample in dataset]
    commonest = torch.cat([map_[map_ != 255] for map_ in labels]).mode().values.item()

    def score(predict) -> float:
        metric.process(
            {},
            [
                dict(pred_sem_seg=dict(data=predict(map_)[None]), gt_sem_seg=dict(data=map_[None]))
                for map_ in labels
            ],
        )
        return metric.evaluate(len(dataset))['mIoU']

    assert score(lambda map_: map_) == 100.0
    assert score(lambda map_: torch.full_like(map_, commonest)) < 25.0


@pytest.mark.parametrize(
    'split', [pytest.param(s, marks=() if s == 'val' else pytest.mark.slow) for s in SPLITS]
)
def test_layouts_show_the_same_scenes(split):
    ade, city, voc = (_dataset(layout, split) for layout in ('ade20k', 'cityscapes', 'voc12'))
    same = dict(person=(12, 11, 15), car=(20, 13, 7))
    for a, c, v in zip(ade, city, voc, strict=True):
        square = slice(64, 192)
        np.testing.assert_array_equal(a['img'], v['img'])
        difference = np.abs(a['img'].astype(int) - c['img'][:, square])
        assert difference.mean() < 8  # what JPEG costs; two different scenes differ by 40 or more
        inside = v['gt_seg_map'] != 255
        assert 0.02 < (~inside).mean() < 0.25
        for of_ade, of_city, of_voc in same.values():
            mask = c['gt_seg_map'][:, square] == of_city
            np.testing.assert_array_equal(a['gt_seg_map'] == of_ade, mask)
            np.testing.assert_array_equal((v['gt_seg_map'] == of_voc)[inside], mask[inside])
        table = a['gt_seg_map'] == 15
        np.testing.assert_array_equal((v['gt_seg_map'] == 11)[inside], table[inside])
        assert (c['gt_seg_map'][:, square][table] == 255).all()


def test_scenes_differ():
    images = np.stack([sample['img'] for split in SPLITS for sample in _dataset('voc12', split)])
    small = images.reshape(64, 16, 8, 16, 8, 3).mean((2, 4)).reshape(64, -1)
    distance = np.abs(small[:, None] - small[None]).mean(-1)
    assert distance[~np.eye(64, dtype=bool)].min() > 8


def test_label_files_follow_the_conventions():
    root = {layout: Path(mini_root(layout)) for layout in LAYOUTS}
    voc = [Image.open(path) for path in (root['voc12'] / 'SegmentationClass').iterdir()]
    assert len(voc) == 64 and {image.mode for image in voc} == {'P'}
    for index, color in ((1, (128, 0, 0)), (7, (128, 128, 128)), (255, (224, 224, 192))):
        assert tuple(voc[0].getpalette()[3 * index : 3 * index + 3]) == color
    ade = np.stack(
        [
            Image.open(path)
            for path in sorted((root['ade20k'] / 'annotations' / 'validation').iterdir())
        ]
    )
    assert ade.min() == 0 and 255 not in ade  # as in ADE20K, "other" is 0 in the files
    for path in root['cityscapes'].rglob('*_labelTrainIds.png'):
        assert Image.open(path).mode == 'L'


@pytest.mark.parametrize('split', SPLITS)
def test_imagenet_layout(split):
    datasets = pytest.importorskip('mmpretrain.datasets')
    stock = datasets.ImageNet(data_root=mini_root('imagenet'), split=split)
    folders = datasets.CustomDataset(data_root=mini_root('imagenet'), data_prefix=split)
    assert len(stock) == len(folders) == {'train': 157, 'val': 56}[split]
    assert len(stock.CLASSES) == 1000 and len(folders.CLASSES) == 6
    assert [stock.CLASSES[i].split(',')[0] for i in sorted(set(stock.get_gt_labels()))] == [
        'coffee mug',
        'dining table',
        'racer',
        'soccer ball',
        'teddy',
        'tray',
    ]
    counts = np.bincount(folders.get_gt_labels(), minlength=6)
    assert counts.min() >= 5 and counts.max() / counts.sum() < 0.35
    for sample in stock:
        assert Image.open(sample['img_path']).size == (64, 64)


def test_size_in_the_wheel():
    files = [path for path in Path(mini_root('voc12')).parent.rglob('*') if path.is_file()]
    assert len(files) > 600 and sum(path.stat().st_size for path in files) < 2e6
    assert 'No accuracy claim' in (Path(mini_root('voc12')).parent / 'README.md').read_text()


def test_unknown_layout_lists_the_choices():
    with pytest.raises(InputError, match=r"ade20k, cityscapes, voc12, imagenet; got 'coco'"):
        mini_root('coco')
