"""mmvars.Corrupt in pipelines: the same pixels whatever the model, the order and the workers."""

from pathlib import Path

import mmpretrain.datasets  # noqa: F401
import mmseg.datasets  # noqa: F401
import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmcv.transforms import LoadImageFromFile as StockLoader
from mmengine.dataset import BaseDataset, Compose
from mmengine.registry import TRANSFORMS, DefaultScope
from PIL import Image
from torch.utils.data import DataLoader

from mmvars.datasets import Corrupt, LoadImageFromFile, insert_corrupt
from mmvars.errors import InputError
from mmvars.robustness import corrupt

RGB = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
SNOW = dict(type='mmvars.Corrupt', name='snow', severity=3)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Paths of six images in one folder, all alike."""
    (tmp_path / 'val').mkdir()
    paths = [tmp_path / 'val' / f'{index}.png' for index in range(6)]
    for path in paths:
        Image.fromarray(RGB).save(path)
    return list(map(str, paths))


@pytest.mark.parametrize('scope', ['mmseg', 'mmpretrain'])
@pytest.mark.parametrize('loader', ['LoadImageFromFile', 'mmvars.LoadImageFromFile'])
@pytest.mark.parametrize('to_float32', [False, True])
def test_rgb_is_corrupted_and_bgr_goes_on(images, scope, loader, to_float32) -> None:
    loader = dict(type=loader, to_float32=to_float32)
    with DefaultScope.overwrite_default_scope(scope):
        pipeline = Compose(insert_corrupt([loader], SNOW))
    result = pipeline(dict(img_path=images[2]))['img']
    assert result.dtype == (np.float32 if to_float32 else np.uint8) and result.flags.c_contiguous
    np.testing.assert_array_equal(result[..., ::-1], corrupt(RGB, 'snow', 3, 'val/2.png'))


def test_a_loader_of_ones_own_may_give_rgb() -> None:
    results = dict(img=RGB, img_path='a/b.png')
    result = Corrupt('snow', 3, seed=4, channel_order='rgb')(results)['img']
    np.testing.assert_array_equal(result, corrupt(RGB, 'snow', 3, 'a/b.png', seed=4))


def test_the_place_of_the_data_does_not_count() -> None:
    transform = Corrupt('gaussian_noise', 2)
    paths = 'data/x/val/1.png', '/elsewhere/val/1.png', 'data/x/val/2.png', 'data/x/train/1.png'
    first, same, *others = (transform(dict(img=RGB, img_path=path))['img'] for path in paths)
    np.testing.assert_array_equal(first, same)
    assert not any(np.array_equal(first, other) for other in others)


class Listed(BaseDataset):
    def load_data_list(self) -> list[dict]:
        return [dict(img_path=str(p)) for p in sorted(Path(self.data_root).iterdir())]


@pytest.mark.parametrize('workers', [0, 2])
def test_the_same_for_any_order_and_workers(images, workers) -> None:
    pipeline = insert_corrupt([dict(type='LoadImageFromFile')], SNOW)
    dataset = Listed(data_root=str(Path(images[0]).parent), pipeline=pipeline)
    expected = {path: dataset[index]['img'] for index, path in enumerate(images)}
    loader = DataLoader(
        dataset, batch_size=2, shuffle=True, num_workers=workers, collate_fn=lambda batch: batch
    )
    samples = [sample for batch in loader for sample in batch]
    assert len(samples) == 6
    for sample in samples:
        np.testing.assert_array_equal(sample['img'], expected[sample['img_path']])


class Derived(StockLoader):
    pass


@TRANSFORMS.register_module()
class CorruptTestDecoy(BaseTransform):
    """Comes first and loads nothing."""

    def transform(self, results: dict) -> dict:
        return results


@pytest.mark.parametrize(
    'loader',
    [
        dict(type='LoadImageFromFile'),
        dict(type='mmcv.LoadImageFromFile'),
        dict(type='LoadImageFromNDArray'),
        dict(type='LoadImageFromFile', _scope_='mmvars'),
        dict(type='mmvars.InferencerLoader'),
        dict(type=Derived),
        Derived(),
        LoadImageFromFile(),
    ],
    ids=str,
)
def test_the_loader_is_found_by_its_class(loader) -> None:
    pipeline = [
        dict(type='CorruptTestDecoy'),
        loader,
        dict(type='Resize', scale=(64, 64)),
        dict(type='LoadAnnotations'),
    ]
    with DefaultScope.overwrite_default_scope('mmseg'):
        result = insert_corrupt(pipeline, SNOW)
    assert result == [*pipeline[:2], SNOW, *pipeline[2:]] and len(pipeline) == 4


@pytest.mark.parametrize(
    ('pipeline', 'words'),
    [
        ([], ['no transform']),
        ([dict(type='LoadAnnotations'), dict(type='NoSuch')], ['no transform', 'NoSuch']),
        ([dict(type='LoadImageFromFile'), Derived()], ['2 transforms', 'Derived']),
        ([dict(type='LoadImageFromFile'), SNOW], ['already']),
    ],
)
def test_where_it_belongs_must_be_clear(pipeline, words) -> None:
    with DefaultScope.overwrite_default_scope('mmseg'), pytest.raises(InputError) as caught:
        insert_corrupt(pipeline, SNOW)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ('results', 'words'),
    [
        (dict(img_path='a.png'), ['no img;']),
        (dict(img=RGB), ['no img_path;', 'mmvars.robustness.corrupt']),
        (dict(img=RGB[..., 0], img_path='a.png'), ['a.png', '(40, 56)']),
        (dict(img=RGB[:20], img_path='a.png'), ['a.png', '20 x 56']),
        (dict(img=RGB / np.float32(255), img_path='a.png'), ['a.png', 'float32']),
        (dict(img=RGB - np.float32(9), img_path='a.png'), ['a.png', 'float32']),
    ],
)
def test_other_images_are_refused(results, words) -> None:
    with pytest.raises(InputError) as caught:
        Corrupt('contrast', 1)(results)
    assert all(word in str(caught.value) for word in words)


def test_bad_arguments_are_refused_when_it_is_built() -> None:
    with pytest.raises(InputError, match='gaussian_noise'):
        TRANSFORMS.build(dict(type='mmvars.Corrupt', name='noise', severity=1))
    with pytest.raises(InputError, match='channel_order'):
        Corrupt('fog', 1, channel_order='RGB')
