"""Images of other sources: their labels, their layouts, and what a model may answer to them."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from robustness_models import CLASSIFICATION, FCN, RESNET, SEGMENTATION

from mmvars.datasets import ImageNetFolders
from mmvars.datasets.imagenet import imagenet_numbers, imagenet_wnids
from mmvars.errors import InputError
from mmvars.robustness import cli
from mmvars.robustness.protocols import PROTOCOLS, Setting
from mmvars.robustness.runner import restrict_classes
from mmvars.robustness.shifts import SHIFTS, ShiftedData

CLASSIFIER = (CLASSIFICATION + RESNET).replace('=5', '=1000').replace('CustomDataset', 'ImageNet')
SEGMENTOR = re.sub(
    "type='BaseSegDataset'.*car'\\)\\)",
    "type='CityscapesDataset', data_root=DATA, data_prefix=dict(img_path='a', seg_map_path='b')",
    (SEGMENTATION + FCN).replace('num_classes=4', 'num_classes=19'),
)
CONDITIONS = ('fog', 'night', 'rain', 'snow')


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
    sample.set_pred_score(torch.tensor([1.0, 0, 0, 0, 0]))  # wrong, and so in the ranks
    restrict_classes(sample, [1, 4])
    assert sample.pred_score.tolist() == [0, 1, 0, 0, 0] and sample.pred_label.tolist() == [1]
    sample.set_pred_score(torch.full((5,), torch.nan))
    with pytest.raises(InputError, match='NaN'):
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


def measure(model, out: Path, *options: str) -> tuple[dict, dict[str, dict]]:
    """What a run writes, and its rows."""
    cli.main([*model, '--out', str(out), *options])
    content = json.loads((out / 'robustness.json').read_text())
    rows = {
        name: json.loads((out / 'rows' / key / f'{name}.json').read_text())
        for name, key in content['rows'].items()
    }
    return content, rows


@pytest.fixture(scope='module')
def classifier_1000(make_model, tmp_path_factory) -> tuple[tuple[str, str], Path]:
    """A classifier of ImageNet's classes, and images of all of them."""
    root = fill(tmp_path_factory.mktemp('imagenet') / 'val', imagenet_wnids(), 2)
    return make_model(CLASSIFIER, root), root


@pytest.mark.slow
def test_clean_images_have_the_classes_of_imagenet_r(classifier_1000, tmp_path) -> None:
    (config, file), _ = classifier_1000
    checkpoint = torch.load(file, weights_only=False)
    weights = checkpoint['state_dict']
    weights['head.fc.weight'] *= 0
    weights['head.fc.bias'] = -0.01 * torch.arange(1000)  # tench first, which is none of the 200
    torch.save(checkpoint, tmp_path / 'tench.pth')
    model = config, str(tmp_path / 'tench.pth')
    root = fill(tmp_path / 'r', imagenet_wnids('r'))
    options = ['--protocol', 'imagenet-r', '--data', str(root), '--images', '6']
    content, rows = measure(model, tmp_path / 'out', *options)
    allowed = imagenet_numbers('r')
    assert (
        list(rows) == ['clean', 'imagenet-r']
        and content['rows']['clean'] != content['rows']['imagenet-r']
    )
    for row in rows.values():
        assert row['predictions'] == [allowed[0]] * 6
        assert row['ranks'] == [allowed.index(label) for label in row['labels']]
        assert row['ranks'][0] == 0 and row['ranks'][-1] == 199
    row = rows['imagenet-r']
    assert content['numbers']['top-5']['value'] == np.mean(np.less(row['ranks'], 5))
    assert row['metrics']['accuracy/top1'] == pytest.approx(
        100 * content['numbers']['shifted']['value']
    )
    assert content['about']['images'] == (
        'clean: 6 of 400, evenly spaced; imagenet-r: 6 of 200, evenly spaced (the published set '
        'has 30000)'
    )
    (tmp_path / 'r' / 'n01443537' / '0.png').unlink()
    with pytest.raises(
        InputError, match='(?s)1 folders .* are empty.*expected.*CLASS/IMAGE.*found'
    ):
        measure(model, tmp_path / 'out', *options)


def test_conditions_have_other_images_each_and_need_no_clean_ones(make_model, tmp_path) -> None:
    model = make_model(SEGMENTOR, tmp_path / 'no-cityscapes')
    rng = np.random.default_rng(0)
    for index, condition in enumerate(CONDITIONS):
        for part, suffix, shape in (
            ('rgb_anon', 'rgb_anon', (40, 56, 3)),
            ('gt', 'gt_labelTrainIds', (40, 56)),
        ):
            folder = tmp_path / 'acdc' / part / condition / 'val' / f'GOPR{index}'
            folder.mkdir(parents=True)
            for number in range(2 + index % 2):
                pixels = rng.integers(0, 19, shape).astype(np.uint8)
                Image.fromarray(pixels * (1 if part == 'gt' else 13)).save(
                    folder / f'{number}_{suffix}.png'
                )
    options = ['--protocol', 'acdc', '--data', str(tmp_path / 'acdc')]
    content, rows = measure(model, tmp_path / 'out', *options)
    assert [len(row['classes']) for row in rows.values()] == [2, 3, 2, 3] and [*rows] == [
        *CONDITIONS
    ]
    assert len({*content['rows'].values()}) == 4
    values = [content['settings'][name]['value'] for name in CONDITIONS]
    assert content['numbers'].keys() == {'shifted'}
    assert content['numbers']['shifted']['value'] == pytest.approx(np.mean(values))
    assert content['about']['clean score'].startswith('not measured: The path')
    text = (tmp_path / 'out' / 'robustness.txt').read_text()
    assert re.search(r'\nnight +\d+\.\d\d\n', text) and 'clean ' not in text.split('mIoU, %')[1]
    assert (tmp_path / 'out' / 'robustness.html').read_text().count('<img src="data:image') >= 1
    again, _ = measure(model, tmp_path / 'again', *options, '--against', str(tmp_path / 'out'))
    assert again['against']['shifted']['value'] == 0 == again['against']['night']['high']


@pytest.mark.slow
def test_stored_images_of_imagenet_c_score_as_those_made_on_the_fly(
    classifier_1000, tmp_path
) -> None:
    """Stored without loss, through the same model."""
    model, root = classifier_1000
    few = ['--protocol', 'hendrycks', '--corruptions', 'fog', '--severities', '3', '--images', '6']
    cli.main([model[0], '--write', str(tmp_path / 'c'), *few])
    _, made = measure(model, tmp_path / 'made', *few)
    stored = [*few, '--data', str(tmp_path / 'c')]
    with pytest.raises(
        InputError, match=r'(?s)994 folders in .*fog/3. are missing.*fog/3/CLASS/IMAGE'
    ):
        measure(model, tmp_path / 'stored', *stored)
    content, rows = measure(model, tmp_path / 'stored', *stored, '--ignore-mismatch')
    for name in ('labels', 'predictions', 'ranks'):
        assert rows['fog-3'][name] == made['fog-3'][name]
        assert rows['clean'][name] == made['clean'][name]
    assert (
        '6 of 6' in content['about']['images']
        and 'the published set has 50000' in content['about']['images']
    )
    shutil.copytree(tmp_path / 'c' / 'fog', tmp_path / 'c' / 'own')
    shutil.rmtree(next((tmp_path / 'c' / 'own' / '3').glob('n*')))
    stored += ['--ignore-mismatch', '--corruptions', 'fog', 'own']
    with pytest.raises(InputError, match=r'(?s)own-3 has 5 images, fog-3 6.*expected.*own/3/CLASS'):
        measure(model, tmp_path / 'stored', *stored)


def test_options_that_do_nothing_are_refused(classifier, segmentor, tmp_path) -> None:
    folder = ['--data', str(tmp_path)]
    for model, options, message in (
        (classifier, ['--protocol', 'quick', *folder], 'changes the test images of the config'),
        (
            classifier,
            ['--protocol', 'imagenet-a'],
            'needs the folder of its images: add --data FOLDER',
        ),
        (
            segmentor,
            ['--protocol', 'acdc', *folder, '--corruptions', 'frost'],
            "one of fog, night, rain, snow; got 'frost'",
        ),
        (segmentor, ['--protocol', 'acdc', *folder, '--severities', '1'], 'has none; leave it out'),
        (classifier, ['--protocol', 'hendrycks', *folder, '--seed', '1'], '--seed: the images'),
        (segmentor, ['--protocol', 'imagenet-r', *folder], 'is for classifiers'),
        (classifier, ['--protocol', 'bdd100k', *folder], 'is for segmentors'),
        (classifier[:1], ['--protocol', 'imagenet-a', '--write', 'x'], 'leave --data out'),
    ):
        with pytest.raises(InputError, match=message):
            cli.main([*model, *options, '--out', str(tmp_path)])
