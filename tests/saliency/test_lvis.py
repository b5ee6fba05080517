"""Photographs of LVIS with classes of ImageNet, and the class priors of ImageNet's classifiers."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from mmvars.cli import run_tool
from mmvars.datasets.imagenet import imagenet_synsets, imagenet_wnids
from mmvars.errors import InputError
from mmvars.saliency.cli import main
from mmvars.saliency.data import IGNORED, read_data
from mmvars.saliency.subject import load_subject

ZEBRA, BANANA, MADE_UP, TABBY = 'zebra.n.01', 'banana.n.02', 'stop_sign.n.01', 'tabby.n.01'
CATEGORIES = (ZEBRA, BANANA, MADE_UP, TABBY)
COCO_MINI = Path(__file__).parents[3] / 'shared' / 'data' / 'coco_mini'


def number(synset: str) -> int:
    return imagenet_synsets().index(synset)


def box(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def annotation(image: int, synset: str, *polygons: list[float], area: float = 1) -> dict:
    return dict(
        image_id=image,
        category_id=1 + CATEGORIES.index(synset),
        area=area,
        bbox=[0, 0, 1, 1],
        segmentation=list(polygons),
    )


def image(key: int, partial: tuple[str, ...] = (), folder: str = 'val2017') -> dict:
    return dict(
        id=key,
        height=40,
        width=56,
        coco_url=f'http://images.cocodataset.org/{folder}/{key:012d}.jpg',
        neg_category_ids=[],
        not_exhaustive_category_ids=[1 + CATEGORIES.index(name) for name in partial],
    )


def content() -> dict:
    """Two images that are to be taken, and three that are not."""
    return dict(
        images=[image(1), image(2, (ZEBRA,), 'train2017'), image(3), image(4), image(5, (BANANA,))],
        categories=[
            dict(id=1 + k, synset=synset, name=synset.split('.')[0], frequency='f')
            for k, synset in enumerate(CATEGORIES)
        ],
        annotations=[
            annotation(1, BANANA, box(30, 4, 40, 14), box(2, 30, 8, 36), area=136),
            annotation(1, ZEBRA, box(10, 0, 50, 38), area=1520),
            annotation(2, BANANA, box(0, 0, 20, 20), area=400),
            annotation(2, TABBY, box(20, 20, 40, 40), area=400),
            annotation(2, ZEBRA, box(44, 0, 56, 10), area=120),
            annotation(3, MADE_UP, box(0, 0, 20, 20)),
            annotation(3, ZEBRA, box(20, 0, 40, 20)),
            annotation(4, ZEBRA, box(0, 0, 20, 20)),
            annotation(4, ZEBRA, box(20, 0, 40, 20)),
            annotation(5, ZEBRA, box(0, 0, 20, 20)),
            annotation(5, BANANA, box(20, 0, 40, 20)),
        ],
    )


def write(root: Path, entries: dict) -> Path:
    (root / 'annotations').mkdir(parents=True, exist_ok=True)
    (root / 'annotations' / 'lvis_v1_val.json').write_text(json.dumps(entries))
    for key, folder in ((1, 'val2017'), (2, 'train2017')):
        (root / folder).mkdir(exist_ok=True)
        pixels = np.random.default_rng(key).integers(0, 255, (40, 56, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / folder / f'{key:012d}.jpg')
    return root


def test_names_of_wordnet_are_those_of_its_ids() -> None:
    lines = (files('timm.data') / '_info' / 'imagenet_synset_to_lemma.txt').read_text().splitlines()
    words = dict(line.split('\t') for line in lines)
    assert len(set(imagenet_synsets())) == 1000
    for synset, wnid in zip(imagenet_synsets(), imagenet_wnids(), strict=True):
        word, kind, sense = synset.rsplit('.', 2)
        assert (kind, sense.isdecimal()) == ('n', True)
        spellings = words[wnid].lower().split(', ')
        assert word.replace('_', ' ') == spellings[0], (synset, wnid)
    # Words with two senses among the classes, by the definitions: the bird and the machine.
    assert imagenet_synsets()[134] == 'crane.n.05' and imagenet_synsets()[517] == 'crane.n.04'


def test_only_images_with_two_classes_of_imagenet_count(tmp_path) -> None:
    data = read_data('lvis', str(write(tmp_path / 'lvis', content())))
    assert [Path(path).parts[-2:] for path in data.paths] == [
        ('train2017', '000000000002.jpg'),
        ('val2017', '000000000001.jpg'),
    ]
    assert data.names == ['000000000002', '000000000001']
    labels = data.labels(1)
    assert labels.shape == (40, 56)
    zebra, banana = number(ZEBRA) + 1, number(BANANA) + 1
    assert (data.class_name(zebra), data.class_name(banana)) == (ZEBRA, BANANA)
    expected = np.zeros((40, 56), dtype=int)
    expected[:38, 10:50] = zebra
    expected[4:14, 30:40] = expected[30:36, 2:8] = banana  # the smaller one is in front
    np.testing.assert_array_equal(labels, expected)
    # Not all zebras of the other image have a mask.
    assert set(np.unique(data.labels(0))) == {0, IGNORED, banana, number(TABBY) + 1}
    assert (data.labels(0)[:10, 44:] == IGNORED).all()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda each: each.pop('categories'), "(KeyError: 'categories')"),
        (lambda each: each['categories'][0].pop('synset'), "(KeyError: 'synset')"),
        (lambda each: each['images'][0].pop('coco_url'), "(KeyError: 'coco_url')"),
        (
            lambda each: each['annotations'][0].update(segmentation=dict(size=[4, 4], counts='x')),
            'a polygon of 4 numbers',
        ),
        (lambda each: each.update(annotations=[]), 'none of 5 images has two categories that are'),
        (lambda each: each['images'][0].update(coco_url='a/val2017/x.jpg'), '1 of 2 images that'),
    ],
)
def test_another_layout_is_one_message(change, message, tmp_path) -> None:
    entries = content()
    change(entries)
    with pytest.raises(InputError) as raised:
        read_data('lvis', str(write(tmp_path / 'lvis', entries)))
    assert message in str(raised.value)
    if '3 of 4' not in str(raised.value):
        assert 'annotations/lvis_v1_val.json' in str(raised.value)


def test_no_annotations_or_no_json(tmp_path) -> None:
    (tmp_path / 'lvis' / 'annotations').mkdir(parents=True)
    with pytest.raises(InputError, match='does not exist. LVIS must be laid out as'):
        read_data('lvis', str(tmp_path / 'lvis'))
    (tmp_path / 'lvis' / 'annotations' / 'lvis_v1_val.json').write_text('[1, 2')
    with pytest.raises(InputError, match='JSONDecodeError'):
        read_data('lvis', str(tmp_path / 'lvis'))


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """Writes an AbSViT of ImageNet's classes with a learned query, with its head or without."""
    folder = tmp_path_factory.mktemp('classifier')
    dataset = dict(type='ImageNet', data_root='nowhere', split='val', pipeline=[])
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            model=dict(
                type='mmvars.ImageClassifier',
                backbone=dict(
                    type='mmvars.AbSViT',
                    arch=dict(embed_dims=16, num_layers=2, num_heads=2, patch_size=8),
                    img_size=32,
                    out_type='cls_token',
                ),
                head=dict(type='mmpretrain.LinearClsHead', in_channels=16, num_classes=1000),
            ),
            data_preprocessor=dict(mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True),
            test_dataloader=dict(dataset=dataset),
        )
    )
    cfg.dump(folder / 'config.py')
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        state = MODELS.build(cfg.model).state_dict()
    for key, value in state.items():
        if '.feedback.' in key:
            state[key] = torch.randn_like(value)
    # Class k is looked for in direction k mod 16: bananas and zebras differ, 954 and 340.
    state['head.fc.weight'] = torch.eye(16).repeat(63, 1)[:1000]
    torch.save(dict(state_dict=state), folder / 'whole.pth')
    backbone = {key: value for key, value in state.items() if not key.startswith('head.')}
    torch.save(dict(state_dict=backbone), folder / 'backbone.pth')
    return folder


def measure(classifier: Path, checkpoint: str, root: Path, out: Path) -> dict:
    model = [str(classifier / 'config.py'), str(classifier / checkpoint)]
    options = ['--on', 'lvis', '--data-root', str(root), '--size', '32', '--device', 'cpu']
    assert run_tool(main, [*model, *options, '--out', str(out), '--blocks', '1']) == 0
    return json.loads((out / 'attention.json').read_text())['tables']


def test_rows_of_a_classifier_are_priors(classifier, tmp_path) -> None:
    cpu = torch.device('cpu')
    subject = load_subject(str(classifier / 'config.py'), str(classifier / 'whole.pth'), cpu)
    assert len(subject.priors) == 1000
    assert subject.priors[ZEBRA].tolist() == torch.eye(16)[340 % 16].tolist()
    root = write(tmp_path / 'lvis', content())
    tables = measure(classifier, 'whole.pth', root, tmp_path / 'whole')
    objects = tables['objects']
    steered = {name for name in objects if name.endswith(('class prior', 'another class'))}
    kinds = ('token norms', 'mean attention', 'class attention', 'token weights')
    assert steered == {
        f'block 1, top-down, {kind}, {whose}'
        for kind in kinds
        for whose in ('class prior', 'another class')
    }
    assert objects['center']['mass']['count'] == 4
    # The learned query asks too, for no class.
    own = 'block 1, top-down, token norms'
    assert own in tables['foreground (Table 1.4)'] and own in objects
    assert objects[own]['mass'] != objects[f'{own}, class prior']['mass']
    bare = measure(classifier, 'backbone.pth', root, tmp_path / 'bare')['objects']
    assert set(objects) - set(bare) == steered
    assert all(bare[name] == objects[name] for name in bare)


@pytest.mark.slow
def test_photographs_of_coco(classifier, tmp_path) -> None:
    """Masks of COCO as LVIS would write them; where COCO has one category, LVIS has others."""
    if not COCO_MINI.is_dir():
        pytest.skip('needs photographs of COCO')
    import cv2

    synsets = {24: ZEBRA, 52: BANANA, 17: TABBY, 73: 'laptop.n.01', 63: 'studio_couch.n.01'}
    categories = [dict(id=key, synset=synset) for key, synset in synsets.items()]
    images, annotations = [], []
    root = tmp_path / 'lvis'
    (root / 'annotations').mkdir(parents=True)
    (root / 'val2017').symlink_to(COCO_MINI / 'images' / 'val')
    for path in sorted((COCO_MINI / 'masks' / 'val').glob('*.png')):
        mask = np.asarray(Image.open(path))
        key, url = int(path.stem), f'http://images.cocodataset.org/val2017/{path.stem}.jpg'
        images.append(dict(id=key, height=mask.shape[0], width=mask.shape[1], coco_url=url))
        for category in set(np.unique(mask)) & set(synsets):
            found, _ = cv2.findContours(
                (mask == category).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
            )
            polygons = [each.ravel().tolist() for each in found if len(each) > 2]
            if polygons:
                entry = dict(image_id=key, category_id=int(category), segmentation=polygons)
                annotations.append(entry | dict(area=float((mask == category).sum())))
    entries = dict(images=images, categories=categories, annotations=annotations)
    (root / 'annotations' / 'lvis_v1_val.json').write_text(json.dumps(entries))
    data = read_data('lvis', str(root))
    for index, path in enumerate(data.paths):
        labels = data.labels(index)
        mask = np.asarray(Image.open(COCO_MINI / 'masks' / 'val' / f'{Path(path).stem}.png'))
        for category, synset in synsets.items():
            ours, theirs = labels == number(synset) + 1, mask == category
            if theirs.sum() > 400:
                assert (ours & theirs).sum() / (ours | theirs).sum() > 0.8, (path, synset)
    tables = measure(classifier, 'whole.pth', root, tmp_path / 'out')
    assert tables['objects']['center']['mass']['count'] >= 2 * len(data.names)
