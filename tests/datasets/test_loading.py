"""LoadImageFromFile: equal to mmcv on good files, one clear error on bad ones."""

import io
from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile as StockLoader
from PIL import Image

from mmvars.datasets import LoadImageFromFile
from mmvars.errors import InputError

RGB = (np.arange(40 * 56 * 3).reshape(40, 56, 3) * 7 % 256).astype(np.uint8)


def _save(path: Path, array: np.ndarray, mode: str | None = None, **kwargs) -> str:
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **kwargs)
    return str(path)


def _deep_rgb(path: Path) -> str:
    """A 16-bit RGB PNG. PIL cannot write one, OpenCV can."""
    import cv2

    cv2.imwrite(str(path), RGB.astype(np.uint16) * 257)
    return str(path)


@pytest.mark.parametrize('suffix', ['jpg', 'png'])
@pytest.mark.parametrize('to_float32', [False, True])
def test_same_result_as_mmcv(tmp_path, suffix, to_float32):
    path = _save(tmp_path / f'a.{suffix}', RGB)
    ours = LoadImageFromFile(to_float32)(dict(img_path=path))
    stock = StockLoader(to_float32)(dict(img_path=path))
    assert ours.keys() == stock.keys()
    assert ours['img'].dtype == stock['img'].dtype and ours['img'].flags.c_contiguous
    np.testing.assert_array_equal(ours['img'], stock['img'])
    assert ours['img_shape'] == ours['ori_shape'] == (40, 56)


def test_orientation_from_exif_as_mmcv(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    path = _save(tmp_path / 'a.jpg', RGB, exif=exif)
    ours = LoadImageFromFile()(dict(img_path=path))['img']
    assert ours.shape == (56, 40, 3)
    np.testing.assert_array_equal(ours, StockLoader()(dict(img_path=path))['img'])


BAD = {
    'gray.png': (lambda p: _save(p, RGB, 'L'), ['gray', "allow=('gray', )"]),
    'gray.jpg': (lambda p: _save(p, RGB, 'L'), ['gray', "allow=('gray', )"]),
    'bilevel.png': (lambda p: _save(p, RGB, '1'), ['gray']),
    'palette.png': (lambda p: _save(p, RGB, 'P'), ['palette', "allow=('palette', )"]),
    'cmyk.jpg': (lambda p: _save(p, RGB, 'CMYK'), ['CMYK', "allow=('cmyk', )"]),
    'rgba.png': (lambda p: _save(p, RGB, 'RGBA'), ['alpha', 'drops the alpha']),
    'gray_alpha.png': (lambda p: _save(p, RGB, 'LA'), ['alpha']),
    'transparent.png': (lambda p: _save(p, RGB, transparency=(0, 7, 14)), ['alpha']),
    'gray16.png': (lambda p: _save(p, RGB[..., 0].astype(np.uint16) * 257), ['more than 8 bits']),
    'rgb16.png': (_deep_rgb, ['more than 8 bits', '8-bit RGB']),
    'text.jpg': (lambda p: p.write_text('no image'), ['not an image', '8 bytes']),
    'empty.jpg': (lambda p: p.write_bytes(b''), ['not an image', '0 bytes']),
    'missing.jpg': (lambda p: None, ['does not exist', 'data_root']),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_files_are_refused_by_name(tmp_path, name):
    make, words = BAD[name]
    make(tmp_path / name)
    with pytest.raises(InputError) as error:
        LoadImageFromFile()(dict(img_path=str(tmp_path / name)))
    for word in [str(tmp_path / name), *words]:
        assert word in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('suffix', ['jpg', 'png'])
@pytest.mark.parametrize('share', [0.3, 0.6, 0.98])
def test_truncated_files_are_refused(tmp_path, suffix, share):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, 'jpeg' if suffix == 'jpg' else 'png')
    path = tmp_path / f'cut.{suffix}'
    path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * share)])
    with pytest.raises(InputError, match='truncated or damaged') as error:
        LoadImageFromFile()(dict(img_path=str(path)))
    assert str(path) in str(error.value) and 'fetch it again' in str(error.value)


@pytest.mark.parametrize(
    'kind, name',
    [
        ('gray', 'gray.png'),
        ('palette', 'palette.png'),
        ('cmyk', 'cmyk.jpg'),
        ('alpha', 'rgba.png'),
        ('alpha', 'transparent.png'),
    ],
)
def test_allowed_kinds_become_rgb(tmp_path, kind, name):
    BAD[name][0](tmp_path / name)
    image = LoadImageFromFile(allow=[kind])(dict(img_path=str(tmp_path / name)))['img']
    expected = Image.open(tmp_path / name).convert('RGB')
    np.testing.assert_array_equal(image[..., ::-1], np.asarray(expected))


def test_the_british_word_of_older_configs_is_read_too():
    assert LoadImageFromFile(allow='grey').allow == ('gray',)


def test_unknown_kind_lists_the_choices():
    with pytest.raises(InputError, match="16-bit.*'gray', 'palette', 'cmyk', 'alpha'"):
        LoadImageFromFile(allow=('16-bit',))


def test_given_array_is_checked():
    results = LoadImageFromFile()(RGB)
    assert results['img'] is RGB and results['img_path'] is None
    with pytest.raises(InputError, match='uint8 array'):
        LoadImageFromFile()(dict(img=RGB[..., 0]))


@pytest.mark.parametrize('host', ['mmseg', 'mmpretrain'])
@pytest.mark.parametrize(
    'spelling',
    [
        dict(type='mmvars.LoadImageFromFile'),
        dict(type='LoadImageFromFile', _scope_='mmvars'),
    ],
)
def test_builds_from_both_hosts(host, spelling):
    pytest.importorskip(f'{host}.datasets')  # what its registry imports on the first look-up
    registry = pytest.importorskip(f'{host}.registry').TRANSFORMS
    transform = registry.build(dict(spelling, allow=['gray']))
    assert type(transform) is LoadImageFromFile and transform.allow == ('gray',)


def test_mmseg_inferencer_finds_it(tmp_path):
    """MMSegInferencer looks for the bare name, and renames it; hence the `_scope_` spelling."""
    apis = pytest.importorskip('mmseg.apis')
    from mmengine.config import Config

    pipeline = [
        dict(type='LoadImageFromFile', _scope_='mmvars'),
        dict(type='LoadAnnotations'),
        dict(type='mmvars.CheckLabels', num_classes=3),
        dict(type='PackSegInputs'),
    ]
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmseg'):
        run = apis.MMSegInferencer.__new__(apis.MMSegInferencer)._init_pipeline(
            Config(dict(test_dataloader=dict(dataset=dict(pipeline=pipeline))))
        )
    for single in (RGB, _save(tmp_path / 'a.png', RGB)):
        packed = run(single)
        assert tuple(packed['inputs'].shape) == (3, 40, 56)
        assert packed['data_samples'].ori_shape == (40, 56)
    with pytest.raises(InputError, match='gray'):
        run(_save(tmp_path / 'gray.png', RGB, 'L'))
