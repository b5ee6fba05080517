"""Images of other sources: their labels, their layouts, and what a model may answer to them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from robustness_models import CLASSIFICATION, FCN, RESNET, SEGMENTATION

from mmvars.datasets import ImageNetFolders
from mmvars.datasets.imagenet import imagenet_wnids
from mmvars.errors import InputError
from mmvars.robustness.protocols import PROTOCOLS, Setting
from mmvars.robustness.runner import restrict_classes
from mmvars.robustness.shifts import SHIFTS, ShiftedData

CLASSIFIER = (CLASSIFICATION + RESNET).replace('=5', '=1000').replace('CustomDataset', 'ImageNet')
SEGMENTOR = (SEGMENTATION + FCN).replace('num_classes=4', 'num_classes=19')
STREETS = (
    "type='CityscapesDataset', data_root=DATA, data_prefix=dict(img_path='a', seg_map_path='b')"
)
SEGMENTOR = SEGMENTOR.replace(
    SEGMENTOR[SEGMENTOR.index("type='BaseSegDataset'") : SEGMENTOR.index(', pipeline=pipeline')],
    STREETS,
)


def fill(root: Path, folders, count: int = 1) -> Path:
    """Folders of images, all links to a few."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = rng.integers(0, 256, (40, 48, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f'{index}.png')
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for index in range(count):
            os.link(root / f'{index}.png', root / folder / f'{index}.png')
    return root


def labels(root: Path, **options) -> dict[str, int]:
    """Folder -> label."""
    dataset = ImageNetFolders(data_root=str(root), data_prefix=dict(img_path=''), **options)
    infos = map(dataset.get_data_info, range(len(dataset)))
    return {Path(info['img_path']).parent.name: info['gt_label'] for info in infos}


def test_folders_have_the_number_of_their_class_however_they_sort(tmp_path) -> None:
    wnids = imagenet_wnids()
    assert len(wnids) == 1000 and wnids[0] == 'n01440764' and list(wnids) == sorted(wnids)
    numbers = labels(fill(tmp_path / 'v2', map(str, range(1000))))
    assert numbers == {str(number): number for number in range(1000)}
    for subset in 'ar':
        ids = imagenet_wnids(subset)
        found = labels(fill(tmp_path / subset, ids), subset=subset)
        assert len(found) == 200 and all(wnids[label] == wnid for wnid, label in found.items())


@pytest.mark.parametrize(
    ('folders', 'message'),
    [
        (
            'n01443537',
            r'199 folders in .* are missing, of the 200 classes of ImageNet-R: n01484850',
        ),
        ('n01443537 n01440764', '1 folders .* are none of the 200 classes.*: n01440764'),
        ('n01443537 train', '1 folders .* are none of .*: train'),
    ],
)
def test_folders_that_are_not_those_of_the_classes(tmp_path, folders, message) -> None:
    with pytest.raises(InputError, match=message):
        labels(fill(tmp_path, folders.split()), subset='r')


def test_a_part_may_be_asked_for_but_no_empty_folder(tmp_path) -> None:
    assert labels(fill(tmp_path, ['n01443537']), subset='r', partial=True) == {'n01443537': 1}
    (tmp_path / 'n01484850').mkdir()
    with pytest.raises(InputError, match='1 folders .* are empty, of the 200.*: n01484850'):
        labels(tmp_path, subset='r', partial=True)


def test_only_classes_that_can_be_right_are_answered() -> None:
    """Five classes, of which 1 and 4 can be right: softmax of their logits alone."""
    from mmpretrain.structures import DataSample

    logits = torch.tensor([3.0, 1.0, 2.0, 0.5, 0.0])
    sample = DataSample().set_gt_label(4).set_pred_score(logits.softmax(0)).set_pred_label(0)
    restrict_classes(sample, [1, 4])
    share = 1 / (1 + np.exp(-1.0))  # of two logits, one larger by 1
    np.testing.assert_allclose(sample.pred_score, [0, share, 0, 0, 1 - share], rtol=1e-6)
    assert sample.pred_label.tolist() == [1]
    sample.set_pred_score(torch.tensor([1.0, 0, 0, 0, 0]))
    with pytest.raises(InputError, match='none of the 2 classes any probability'):
        restrict_classes(sample, [1, 4])


def data(protocol: str, root: Path) -> ShiftedData:
    text = CLASSIFIER if SHIFTS[protocol].of_classifiers else SEGMENTOR
    return ShiftedData(protocol, str(root), Config.fromstring(f"DATA = 'x'\n{text}", '.py'))


@pytest.mark.parametrize(
    ('protocol', 'folders', 'message'),
    [
        ('acdc', ['rgb_anon/fog/val/a'], r'7 of 8 folders do not exist: .*gt/fog/val'),
        ('hendrycks', ['fog/1/n01440764'], '74 of 75 folders do not exist: .*gaussian_noise/1'),
    ],
)
def test_half_unpacked_sets_show_both_layouts(tmp_path, protocol, folders, message) -> None:
    shifted = data(protocol, fill(tmp_path, folders))
    settings = [setting for setting in PROTOCOLS[protocol].settings if setting.change]
    expected = 'rgb_anon/fog/val/\\*_rgb_anon.png' if protocol == 'acdc' else 'CLASS/IMAGE'
    with pytest.raises(
        InputError, match=f'(?s){message}.*expected in data_root:.*{expected}.*found there:'
    ):
        shifted.check_folders(settings)
    shifted.check_folders([])


def test_a_missing_and_an_unlabeled_set_show_both_layouts(tmp_path) -> None:
    with pytest.raises(InputError, match='(?s)missing.*does not exist.*expected.*found in '):
        data('bdd100k', tmp_path / 'missing').build(Setting('bdd100k'))
    fill(tmp_path, ['rgb_anon/val/night/g', 'gt/val/night/g'])
    os.link(tmp_path / '0.png', tmp_path / 'rgb_anon/val/night/g/0_rgb_anon.png')
    with pytest.raises(
        InputError, match='(?s)lack labels, first .*0_gt_labelTrainIds.png.*expected'
    ):
        data('dark-zurich', tmp_path).build(Setting('night'))


def test_models_of_other_classes_are_refused(tmp_path) -> None:
    imagenet, cityscapes = data('imagenet-a', tmp_path), data('acdc', tmp_path)
    for shifted, count, what in (
        (imagenet, 10, 'the 1000 classes of ImageNet, and this one has 10'),
        (imagenet, 200, 'the 1000 classes of ImageNet, and this one has 200'),
        (cityscapes, 150, 'the 19 classes of Cityscapes'),
    ):
        with pytest.raises(InputError, match=what):
            shifted.check_classes(count)
    assert imagenet.check_classes(1000, imagenet_wnids(), None) == []
    (problem,) = imagenet.check_classes(1000, imagenet_wnids()[::-1])
    assert "0 is 'tench, Tinca tinca', was 'n15075141'" in problem
    (problem,) = cityscapes.check_classes(19, [f'c{index}' for index in range(19)])
    assert "'road', was 'c0'" in problem
