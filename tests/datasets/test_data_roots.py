"""check_data_roots: silent on good data, one message with every path on bad ones."""

import os
import shutil
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset

from mmvars.data import mini_root
from mmvars.datasets import check_data_roots
from mmvars.errors import InputError
from mmvars.registry import DATASETS

pytest.importorskip('mmseg.datasets')


def _ade(root, split='training') -> dict:
    return dict(
        type='ADE20KDataset',
        data_root=str(root),
        pipeline=[dict(type='NoSuchTransform')],
        data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
    )


def _voc(root, ann_file='ImageSets/Segmentation/train.txt') -> dict:
    return dict(
        type='mmseg.PascalVOCDataset',
        data_root=str(root),
        ann_file=ann_file,
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
    )


def _cfg(train, val=None, scope='mmseg') -> Config:
    return Config(
        dict(
            default_scope=scope,
            train_dataloader=dict(dataset=train),
            val_dataloader=None if val is None else dict(dataset=val),
        )
    )


def _message(cfg) -> str:
    with pytest.raises(InputError) as error:
        check_data_roots(cfg)
    return str(error.value)


@pytest.fixture
def ade(tmp_path) -> Path:
    return Path(shutil.copytree(mini_root('ade20k'), tmp_path / 'ade'))


def test_good_roots_pass_without_building_pipelines():
    check_data_roots(_cfg(_ade(mini_root('ade20k')), _voc(mini_root('voc12'))))
    check_data_roots(Config(dict(model=dict())))


def test_missing_root_is_named_once_with_all_its_options(tmp_path):
    root = tmp_path / 'nowhere'
    message = _message(_cfg(_ade(root), _ade(root, 'validation')))
    assert message.count(str(root)) == 1 and 'ADE20KDataset' in message
    assert 'train_dataloader.dataset, val_dataloader.dataset' in message
    assert '--cfg-options data_root=PATH' in message
    assert 'train_dataloader.dataset.data_root=PATH' in message


def test_only_the_loaders_asked_for(tmp_path):
    cfg = _cfg(_ade(mini_root('ade20k')), _ade(tmp_path / 'nowhere'))
    check_data_roots(cfg, ['train_dataloader'])
    with pytest.raises(InputError, match='val_dataloader'):
        check_data_roots(cfg, ['val_dataloader'])


@pytest.mark.parametrize(
    'wrap, key',
    [
        (lambda d: dict(type='RepeatDataset', times=2, dataset=d), 'dataset.dataset'),
        (
            lambda d: dict(type='ConcatDataset', datasets=[_ade(mini_root('ade20k')), d]),
            'dataset.datasets.1',
        ),
    ],
)
def test_wrapped_data_sets_are_found(tmp_path, wrap, key):
    message = _message(_cfg(wrap(_ade(tmp_path / 'nowhere'))))
    assert f'train_dataloader.{key}' in message and f'{tmp_path / "nowhere"}' in message


def test_missing_folder_and_list(ade, tmp_path):
    shutil.rmtree(ade / 'annotations')
    assert f"'{ade}/annotations/training'" in _message(_cfg(_ade(ade)))
    voc = _voc(mini_root('voc12'), 'ImageSets/Segmentation/test.txt')
    assert 'ImageSets/Segmentation/test.txt' in _message(_cfg(voc))


def test_empty_folder(ade):
    for path in (ade / 'images' / 'training').iterdir():
        path.unlink()
    message = _message(_cfg(_ade(ade)))
    assert f"'{ade}/images/training'" in message and 'holds no file' in message


def test_images_of_another_suffix(ade):
    for path in (ade / 'images' / 'training').iterdir():
        path.rename(path.with_suffix('.bmp'))
    assert 'holds no file *.jpg' in _message(_cfg(_ade(ade)))


def test_images_that_a_listing_would_leave_out(ade):
    path = sorted((ade / 'images' / 'training').iterdir())[3]
    path.rename(path.with_suffix('.JPG'))
    message = _message(_cfg(_ade(ade)))
    assert f"'{path.with_suffix('.JPG')}' would be left out" in message and "is '.jpg'" in message
    path.with_suffix('.JPG').unlink()
    labels = ade / 'annotations' / 'training' / f'{path.stem}.png'
    message = _message(_cfg(_ade(ade)))
    assert f"1 labels of ADE20KDataset have no image *.jpg in '{path.parent}'" in message
    assert repr(str(labels)) in message and 'ann_file' in message
    names = [image.stem for image in path.parent.iterdir()]
    (ade / 'those.txt').write_text('\n'.join(names))  # the remedy
    check_data_roots(_cfg(dict(_ade(ade), ann_file='those.txt')))
    unlabeled = _ade(ade)
    unlabeled['data_prefix'] = dict(img_path='images/training')
    check_data_roots(_cfg(unlabeled))


def test_lost_labels_are_counted(ade):
    lost = sorted((ade / 'annotations' / 'training').iterdir())[3:5]
    for path in lost:
        path.unlink()
    message = _message(_cfg(_ade(ade)))
    assert f'2 of 48 samples of ADE20KDataset lack labels, first {str(lost[0])!r}' in message


def test_a_set_without_labels_says_so_by_an_empty_prefix(ade):
    shutil.rmtree(ade / 'annotations')
    cfg = _ade(ade)
    cfg['data_prefix']['seg_map_path'] = ''
    check_data_roots(_cfg(cfg))


def test_lost_image_of_a_list(tmp_path):
    root = Path(shutil.copytree(mini_root('voc12'), tmp_path / 'voc'))
    (root / 'JPEGImages' / '2012_000007.jpg').unlink()
    assert '1 of 48 samples' in _message(_cfg(_voc(root)))


def test_a_list_that_is_none(ade):
    cfg = _cfg(dict(_ade(ade), ann_file='list.txt'))
    os.mkfifo(ade / 'list.txt')
    assert f"'{ade}/list.txt' is a FIFO" in _message(cfg)
    (ade / 'list.txt').unlink()
    (ade / 'list.txt').write_bytes(b'\xff\xfe\x00a')
    message = _message(cfg)
    assert f"the list '{ade}/list.txt' of ADE20KDataset cannot be read: UnicodeDecode" in message


def test_classification(tmp_path):
    pytest.importorskip('mmpretrain')
    good = dict(type='ImageNet', data_root=mini_root('imagenet'), split='val')
    check_data_roots(_cfg(good, scope='mmpretrain'))
    custom = dict(type='CustomDataset', data_root=str(tmp_path), data_prefix='train')
    (tmp_path / 'train' / 'n03063599').mkdir(parents=True)
    assert 'holds no file' in _message(_cfg(custom, scope='mmpretrain'))
    (tmp_path / 'train').rename(tmp_path / 'val')
    assert f"'{tmp_path}/train'" in _message(_cfg(custom, scope='mmpretrain'))
    split = dict(type='ImageNet', data_root=str(tmp_path), split='train')
    assert f"'{tmp_path}/train'" in _message(_cfg(split, scope='mmpretrain'))


def test_a_set_that_downloads_itself_may_be_missing(tmp_path):
    pytest.importorskip('mmpretrain')
    cifar = dict(type='CIFAR10', data_root=str(tmp_path / 'none'), split='train')
    check_data_roots(_cfg(cifar, scope='mmpretrain'))
    assert 'does not exist' in _message(_cfg(dict(cifar, download=False), scope='mmpretrain'))


def test_a_class_of_the_users_own_may_have_any_arguments(tmp_path):
    """Its constructor is not known, so nothing below its paths is looked at; its root is."""

    @DATASETS.register_module(force=True)
    class _OwnDataset(BaseDataset):
        def __init__(self, data_root):
            self.data_root = data_root

    @DATASETS.register_module(force=True)
    class _PlainDataset:
        def __init__(self, data_root):
            raise AssertionError('must not be built')

    for name in ('_OwnDataset', '_PlainDataset'):
        dataset = dict(type=f'mmvars.{name}', data_root=str(tmp_path))
        check_data_roots(Config(dict(train_dataloader=dict(dataset=dataset))))
        dataset['data_root'] = str(tmp_path / 'none')
        with pytest.raises(InputError, match='does not exist'):
            check_data_roots(Config(dict(train_dataloader=dict(dataset=dataset))))


@pytest.mark.parametrize(
    'change', [dict(data_root=5), dict(data_prefix=5), dict(data_prefix=dict(img_path=5))]
)
def test_what_is_no_path_is_named(change, ade) -> None:
    assert 'must be paths, got 5' in _message(_cfg(_ade(ade) | change))


def test_a_loader_that_is_no_dict_is_named() -> None:
    with pytest.raises(InputError, match='train_dataloader must be a dict with a dataset, got 5'):
        check_data_roots(Config(dict(train_dataloader=5)))


@pytest.mark.parametrize('links', [('.', '.'), ('../..', '..'), ('../validation/m', '../training')])
def test_links_that_lead_back_are_named_where_a_folder_is_listed(links, ade) -> None:
    """The frameworks follow them without end."""
    folder = ade / 'images' / 'training'
    for path in (folder / 'l', folder.parent / 'validation' / 'm'):
        path.symlink_to(links[path.name == 'm'])
    if links[1] == '.':
        (folder / 'm').symlink_to('.')
    assert 'is a link back to' in _message(_cfg(_ade(ade)))


def test_links_to_other_folders_pass(ade) -> None:
    elsewhere = ade / 'elsewhere'
    (ade / 'images' / 'training').rename(elsewhere)
    for name in ('training', 'training-2'):
        (ade / 'images' / name).symlink_to(elsewhere)
    check_data_roots(_cfg(_ade(ade)))


def test_the_layout_expected_and_found_are_shown(ade, tmp_path):
    shutil.rmtree(ade / 'images' / 'validation')
    (ade / 'validation.zip').touch()  # to be unpacked
    message = _message(_cfg(_ade(ade, 'validation')))
    expected, found = message.partition('  expected in data_root:\n')[2].split('  found there:\n')
    assert expected.split() == [
        'images/validation/*.jpg',
        'annotations/validation/*.png',
    ]
    lines = [line[4:] for line in found.splitlines()]
    assert lines[:5] == ['annotations/', '  training/', '  validation/', 'images/', '  training/']
    assert 'validation.zip' in lines
    message = _message(_cfg(_ade(tmp_path / 'no' / 'root')))
    assert f'found in {tmp_path}, the nearest folder that exists:\n    ade/\n' in message


def test_the_layout_of_a_classifiers_data(tmp_path):
    pytest.importorskip('mmpretrain.datasets')
    dataset = dict(type='ImageNet', data_root=str(tmp_path), split='val')
    assert '    val/CLASS/IMAGE\n' in _message(_cfg(dataset, scope='mmpretrain'))
    dataset = dict(type='CustomDataset', data_root=str(tmp_path / 'x'))
    assert '    CLASS/IMAGE\n' in _message(_cfg(dataset, scope='mmpretrain'))
