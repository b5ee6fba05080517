"""Flickr30K: captions of other images beside an image's own, and images in tests."""

import json
from collections import Counter

import numpy as np
import pytest
from mmengine.config import Config

from mmvars.datasets import Flickr30K, check_data_roots
from mmvars.errors import InputError

IMAGES = [('a', 'train', 5), ('b', 'val', 4), ('c', 'train', 6), ('d', 'test', 5), ('e', 'test', 5)]


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'annotations').mkdir()
    for name, *_ in IMAGES:
        (tmp_path / 'images' / f'{name}.jpg').touch()
    images = [
        dict(
            filename=f'{name}.jpg',
            split=split,
            sentences=[dict(raw=f'{name}{number}') for number in range(count)],
        )
        for name, split, count in IMAGES
    ]
    (tmp_path / 'annotations' / 'dataset_flickr30k.json').write_text(
        json.dumps(dict(images=images))
    )
    return tmp_path


def test_a_caption_comes_with_those_of_other_images(root):
    np.random.seed(0)
    dataset = Flickr30K(str(root), split=('train', 'val'), num_negatives=5000)
    assert len(dataset) == len(dataset.captions) == 15
    for index, caption in enumerate(dataset.captions):
        info = dataset.get_data_info(index)
        assert info['img_path'].endswith(f'images/{caption[0]}.jpg')
        assert len(info['text']) == 5001
        assert info['text'][0] == caption
        others = [text for text in dataset.captions if text[0] != caption[0]]
        counts = Counter(info['text'][1:])
        assert counts.keys() == {*others}
        assert min(counts.values()) > 0.8 * 5000 / len(others)
        assert dataset.get_data_info(index)['text'] != info['text']


def test_a_test_has_the_images_and_all_their_captions(root):
    dataset = Flickr30K(str(root), split='test', test_mode=True)
    assert dataset.captions == [f'{name}{number}' for name in 'de' for number in range(5)]
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    assert [info['gt_text_id'] for info in infos] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert all('text' not in info for info in infos)


def _break(root, what):
    if what == 'image':
        (root / 'images' / 'c.jpg').unlink()
    elif what == 'file':
        (root / 'annotations' / 'dataset_flickr30k.json').unlink()
    else:
        (root / 'annotations' / 'dataset_flickr30k.json').write_text('{"questions": []}')


@pytest.mark.parametrize(
    'what, message',
    [
        (
            'file',
            'expected in data_root:\n    annotations/dataset_flickr30k.json\n    images/IMAGE',
        ),
        ('image', "1 of 2 images of .* are not in '.*/images', first 'c.jpg'"),
        ('content', r'must be built like \{"images": \[\{"filename"'),
    ],
)
def test_what_is_missing_is_said_once(root, what, message):
    _break(root, what)
    dataset = dict(type='mmvars.Flickr30K', data_root=str(root), pipeline=[])
    dataset |= dict(ann_file='annotations/dataset_flickr30k.json', data_prefix='images')
    with pytest.raises(InputError, match=message):
        check_data_roots(Config(dict(train_dataloader=dict(dataset=dataset))))
        Flickr30K(str(root))


def test_splits_that_are_not_there(root):
    with pytest.raises(InputError, match='no image of split restval; it has test, train, val'):
        Flickr30K(str(root), split='restval')
    with pytest.raises(InputError, match='training needs two images'):
        Flickr30K(str(root), split='val')
