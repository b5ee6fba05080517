"""Published layouts of fixations and masks, written anew, and what is measured on them."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmvars.errors import InputError
from mmvars.saliency.cli import main
from mmvars.saliency.data import read_data
from mmvars.saliency.measures import seen_labels
from mmvars.saliency.subject import View

FIXATIONS = {  # image, observer: the first of each on the cross, one outside of the image
    '1001': [[[20, 15], [3.5, 4], [39, 29]], [[20, 15], [7, 8]]],
    '1002': [[[20, 15], [50, 2], [1, 2]], [[20, 14]]],
}
WITHOUT_FIRST = {'1001': [[3.5, 4], [39, 29], [7, 8]], '1002': [[1, 2]]}


@pytest.fixture
def run(run_into):
    return partial(run_into, main, 'attention', 32)


def savemat(path: Path, variables: dict) -> None:
    pytest.importorskip('scipy.io').savemat(path, variables)


def write_images(folder: Path, suffix: str, names=FIXATIONS) -> None:
    folder.mkdir(parents=True)
    for name in names:
        Image.new('RGB', (40, 30)).save(folder / f'{name}{suffix}')


def cells(items: list) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def write_osie(root: Path) -> None:
    write_images(root / 'stimuli', '.jpg')
    images = []
    for name, observers in FIXATIONS.items():
        subjects = [dict(fix_x=np.array(o)[:, 0], fix_y=np.array(o)[:, 1]) for o in observers]
        images.append(dict(img=f'{name}.jpg', subjects=cells(subjects)))
    (root / 'eye').mkdir()
    savemat(root / 'eye' / 'fixations.mat', dict(fixations=cells(images)))


def write_extracted(root: Path) -> None:
    write_images(root / 'ALLSTIMULI', '.jpeg')
    (root / 'extracted').mkdir()
    for name, observers in FIXATIONS.items():
        for person, fixations in zip(('ab', 'c_d'), observers, strict=True):
            content = dict(fixations=np.array(fixations, float), starts=np.ones((1, 3)))
            savemat(root / 'extracted' / f'{name}.jpeg_{person}.mat', content)


@pytest.mark.parametrize(('on', 'write'), [('osie', write_osie), ('mit1003', write_extracted)])
def test_fixations_in_matlab_files(on, write, tmp_path) -> None:
    write(tmp_path)
    data = read_data(on, str(tmp_path))
    assert [Path(name).stem for name in data.names] == [*FIXATIONS] and data.left_out == 1
    for name, points in zip(FIXATIONS, data.points, strict=True):
        inside = [point for each in FIXATIONS[name] for point in each if point != [50, 2]]
        assert points.tolist() == inside
    data = read_data(on, str(tmp_path), drop_first=True)
    assert [points.tolist() for points in data.points] == [*WITHOUT_FIRST.values()]
    assert data.degree == {'osie': (24, 800), 'mit1003': (35, 1024)}[on]


def test_maps_of_mit1003_have_no_order(tmp_path) -> None:
    write_images(tmp_path / 'ALLSTIMULI', '.jpeg')
    (tmp_path / 'ALLFIXATIONMAPS').mkdir()
    for name, points in WITHOUT_FIRST.items():
        fixated = np.zeros((30, 40), dtype=np.uint8)
        fixated[tuple(np.array(points, int).T[::-1])] = 255
        path = tmp_path / 'ALLFIXATIONMAPS' / f'{name}_fixPts.jpg'
        Image.fromarray(fixated).save(path, quality=95)
    data = read_data('mit1003', str(tmp_path))
    for name, points in zip(data.names, data.points, strict=True):
        assert sorted(points.tolist()) == sorted(np.floor(WITHOUT_FIRST[name]).tolist())
    with pytest.raises(InputError, match='ALLFIXATIONMAPS has none: leave it out'):
        read_data('mit1003', str(tmp_path), drop_first=True)


@pytest.mark.parametrize(
    ('break_it', 'on', 'message'),
    [
        (lambda root: (root / 'eye' / 'fixations.mat').unlink(), 'osie', 'nor eye/fixations.mat'),
        (
            lambda root: savemat(root / 'eye' / 'fixations.mat', dict(fixations=[1, 2])),
            'osie',
            'is not as it must be',
        ),
        (lambda root: (root / 'eye' / 'fixations.mat').write_text('x'), 'osie', 'no MATLAB file'),
        (lambda root: (root / 'stimuli' / '1002.jpg').unlink(), 'osie', 'lacks 1002.jpg'),
        (
            lambda root: (root / 'DATA' / 'ab').mkdir(parents=True),
            'mit1003',
            r'0 images, 0 maps .* the traces themselves are not read',
        ),
    ],
)
def test_other_layouts_are_one_message(break_it, on, message, tmp_path) -> None:
    write_osie(tmp_path)
    break_it(tmp_path)
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)):
        read_data(on, str(tmp_path))


def write_voc(root: Path, masks: dict[str, list[list[int]]]) -> None:
    """As PASCAL VOC 2012 is: palette PNGs, borders of 255, a split that leaves one out."""
    write_images(root / 'JPEGImages', '.jpg', ())
    for folder in ('SegmentationClass', 'ImageSets/Segmentation'):
        (root / folder).mkdir(parents=True)
    for name, labels in masks.items():
        Image.new('RGB', (4, 4), (90, 120, 30)).save(root / 'JPEGImages' / f'{name}.jpg')
        mask = Image.fromarray(np.array(labels, dtype=np.uint8), 'P')
        mask.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
        mask.save(root / 'SegmentationClass' / f'{name}.png')
    val = root / 'ImageSets' / 'Segmentation' / 'val.txt'
    val.write_text('\n'.join([*masks][:2]) + '\n')


def test_table_1_4_on_voc_by_hand(run, write_model, tmp_path) -> None:
    """The center map of 4x4 pixels, from 0 to 1, is 1 on the middle four and 0.27 beside them."""
    write_voc(
        tmp_path / 'VOC2012',
        {
            # Of the four, three on a person, one on the background; two of a car are not marked.
            '2007_000033': [[0, 0, 255, 255], [0, 15, 15, 7], [0, 15, 0, 7], [0, 0, 0, 0]],
            # Three on the background, one without a label; two of an aeroplane are not marked.
            '2007_000042': [[1, 1, 0, 0], [0, 255, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
            '2011_002993': [[9, 9, 9, 9]] * 4,
        },
    )
    root = tmp_path / 'VOC2012'
    model = write_model('vars')
    status, said, content = run(*model, '--on', 'voc', '--data-root', root)
    assert status == 0, said
    foreground, objects = (table['center'] for table in content['tables'].values())
    expected = {
        'IoU': (3 / 6 + 0 / 5) / 2,
        'FP': (1 / 14 + 3 / 15) / 2,
        'FN': (2 / 14 + 2 / 15) / 2,
        'IoU of all': 3 / 11,
    }
    assert {key: score['value'] for key, score in foreground.items()} == pytest.approx(expected)
    assert foreground['IoU']['count'] == 2 and objects['pointing']['count'] == 3
    assert objects['pointing']['value'] == pytest.approx((3 / 4 + 0 + 0) / 3)
    assert content['about']['objects'] == '3; 0.245 of the pixels, mean over the images'
    status, said, _ = run(*model, '--on', 'voc', '--data-root', root, '--drop-first')
    assert status == 2 and '--drop-first is for fixations' in said
    named = run(*model, '--on', 'voc', '--data-root', root, '--objects', 'car')[2]
    assert named['about']['objects'].startswith('1; ')


def write_masks(root: Path, labels: np.ndarray) -> Path:
    """Two images of 40 x 30 pixels with the same mask."""
    write_images(root / 'images', '.png')
    (root / 'masks').mkdir()
    for name in FIXATIONS:
        Image.fromarray(labels.astype(np.uint8)).save(root / 'masks' / f'{name}.png')
    return root


@pytest.mark.parametrize('size', [(31, 40), (30, 41), (29, 40), (30, 39)])
@pytest.mark.parametrize('window', [(0, 0, 30, 40), (5, 10, 20, 20)], ids=['whole', 'crop'])
def test_a_mask_is_of_the_size_of_its_image(size, window, tmp_path) -> None:
    """What is seen of one that is not would be another part of the image."""
    view = View(np.zeros((8, 8, 3)), *window)
    data = read_data(str(write_masks(tmp_path / 'wrong', np.ones(size))))
    with pytest.raises(InputError, match=f'1001.png has {size[1]}x{size[0]} pixels.* 40x30'):
        seen_labels(data, 0, view)
    labels = np.arange(1200).reshape(30, 40) % 255
    seen = seen_labels(read_data(str(write_masks(tmp_path / 'right', labels))), 0, view)
    assert (seen == labels[window[0] :, window[1] :][: window[2], : window[3]]).all()


def test_nothing_to_compare_with_is_one_message(run, write_model, tmp_path) -> None:
    model, labels = write_model('absvit'), np.zeros((30, 40))
    status, said, _ = run(*model, '--on', write_masks(tmp_path / 'empty', labels))
    assert status == 2 and 'none of the 2 images of empty has an object' in said
    assert said.strip().endswith(
        'look at the masks, in which 0 is the background and 255 unlabeled'
    )
    labels[0] = 1
    edge = write_masks(tmp_path / 'edge', labels)
    status, said, _ = run(*model, '--on', edge, '--crop', 16, '--images', 1)
    assert status == 2 and 'none of the 1 images of edge has an object' in said
    assert said.strip().endswith('seen of it: leave --crop out, or look at more --images')
    fixations = json.dumps({name: [[[1, 1]]] for name in FIXATIONS})
    (edge / 'fixations.json').write_text(fixations)
    status, said, _ = run(*model, '--on', edge, '--crop', 16)
    assert status == 2 and 'has a fixation in what is seen of it: leave --crop out' in said
