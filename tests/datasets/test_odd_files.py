"""Odd and hostile files in data sets: each is named in one line, or read; none hangs or is dropped.

The whole way of `mmvars train` and `mmvars test` to a sample, with the transforms of the shipped
configs and with the frameworks' own; the commands themselves are in a slow test.
"""

import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS
from odd_files import KINDS, good_image, good_labels
from peak_memory import needs_proc, start_peak
from PIL import Image

from mmvars.datasets import LoadImageFromFile, check_data_roots
from mmvars.engine.samples import check_pipelines
from mmvars.errors import InputError

pytest.importorskip('mmseg.datasets')
pytest.importorskip('mmpretrain.datasets')

LOAD, PACK = dict(type='mmseg.LoadAnnotations'), dict(type='mmseg.PackSegInputs')
CHECK = dict(type='mmvars.CheckLabels', num_classes=3)
PIPELINES = {
    'shipped': [dict(type='mmvars.LoadImageFromFile'), LOAD, CHECK, PACK],
    'stock': [dict(type='LoadImageFromFile'), LOAD, PACK],
    'classification': [dict(type='LoadImageFromFile'), dict(type='mmpretrain.PackInputs')],
}
COLOR = {'bmp', 'webp', 'tiff', 'jpeg', 'turned by exif', 'jpeg, damaged exif', 'image'}
ODD_COLOR = {'gray', 'bilevel', 'palette', 'rgba', 'gray and alpha', 'cmyk', '16 bits', 'gif'}
OTHER_SIZES = {'1 x 1', '1 x 1, color', 'another size', 'another size, color'}
GRAY = {'labels', 'labels as palette', 'other classes', 'png, comment bomb'}
READABLE = {  # pipeline, role -> kinds that are read, as mmseg and mmpretrain read them
    ('shipped', 'images'): COLOR,
    ('shipped', 'labels'): {'labels', 'labels as palette', 'bilevel'}
    | {'16 bits', '32 bits', 'float'},
    ('stock', 'images'): COLOR | ODD_COLOR | GRAY,
    ('stock', 'labels'): (COLOR | ODD_COLOR | GRAY | {'32 bits', 'float'}) - {'png, comment bomb'},
    ('classification', 'images'): COLOR | ODD_COLOR | GRAY | OTHER_SIZES,
}


class HangError(BaseException):
    """Not to be caught by what is tested."""


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    def stop(*_):
        raise HangError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def _dataset(root: Path, pipeline: str) -> dict:
    steps = PIPELINES[pipeline]
    if pipeline == 'classification':
        return dict(
            type='mmpretrain.CustomDataset',
            data_root=str(root),
            data_prefix='images',
            with_label=False,
            pipeline=steps,
            test_mode=True,
            serialize_data=False,  # which collects garbage each time
        )
    return dict(
        type='mmseg.BaseSegDataset',
        data_root=str(root),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        img_suffix='.png',
        metainfo=dict(classes=('a', 'b', 'c')),
        pipeline=steps,
        test_mode=True,
        serialize_data=False,  # which collects garbage each time
    )


def _read_all(dataset: dict) -> int:
    """What the commands do: check the roots, build, read every sample. The number of them."""
    check_data_roots(Config(dict(test_dataloader=dict(dataset=dataset))))
    built = DATASETS.build(dict(dataset))
    check_pipelines(built)
    return len([built[index] for index in range(len(built))])


@needs_proc
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('pipeline, role', READABLE)
def test_every_kind_is_named_or_read(pipeline, role, tmp_path) -> None:
    """Counts by outcome; three samples, the odd one is the second."""
    for name in 'abc':
        for folder, write in (('images', good_image), ('labels', good_labels)):
            (tmp_path / folder).mkdir(exist_ok=True)
            write(tmp_path / folder / f'{name}.png')
    odd = tmp_path / role / 'b.png'
    good = odd.read_bytes()
    dataset = _dataset(tmp_path, pipeline)
    assert _read_all(dataset) == 3
    growth = start_peak()
    read, faults = set(), {}
    for kind, write in KINDS.items():
        odd.unlink()
        write(odd)
        try:
            count = _read_all(dataset)
        except InputError as error:
            message = str(error).partition(' (set by ')[0]
            # Of a missing image, its labels are left to be named.
            named = tmp_path / 'labels' / 'b.png' if kind == 'missing' else odd
            if str(named) not in message:
                faults[kind] = f'not named: {message}'
            elif '\n' in message or 'BytesIO' in message:
                faults[kind] = message
        except Exception as error:
            faults[kind] = f'traceback: {error!r}'
        else:
            read.add(kind)
            if count != 3 and (pipeline, kind) != ('classification', 'missing'):
                faults[kind] = f'dropped: {count} of 3'
        if odd.is_dir() and not odd.is_symlink():
            odd.rmdir()
        for path in odd.parent.glob('b.*'):
            path.unlink()
        odd.write_bytes(good)
    assert not faults
    # A folder without labels does not tell what is missing.
    unknown = {'missing'} if pipeline == 'classification' else set()
    assert read - {'gif'} == (READABLE[pipeline, role] | unknown) - {'gif'}  # OpenCV 5 has it
    assert growth() < 256 << 20  # less than half of what one such bomb takes


def test_the_loader_of_pictures_names_what_it_refuses(tmp_path) -> None:
    """`mmvars visualize` reads its images by it alone."""
    read = set()
    for index, (kind, write) in enumerate(KINDS.items()):
        path = tmp_path / f'{index}.png'
        write(path)
        try:
            LoadImageFromFile()(dict(img_path=str(path)))
            read.add(kind)
        except InputError as error:
            assert str(path) in str(error) and '\n' not in str(error), kind
    assert read == COLOR | {'1 x 1, color', 'another size, color'}


def test_the_bound_on_pixels_is_in_the_environment(tmp_path, monkeypatch) -> None:
    good_image(tmp_path / 'a.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', Image.MAX_IMAGE_PIXELS)
    for value, refused in (('1534', True), ('1536', False), ('4e8', False)):
        monkeypatch.setenv('MMVARS_MAX_PIXELS', value)
        with pytest.raises(InputError, match='too large') if refused else nullcontext():
            LoadImageFromFile()(dict(img_path=str(tmp_path / 'a.png')))
    for value in ('many', '-1', '0', 'inf', 'nan'):
        monkeypatch.setenv('MMVARS_MAX_PIXELS', value)
        with pytest.raises(InputError, match=f'must be a positive number, got {value!r}'):
            LoadImageFromFile()(dict(img_path=str(tmp_path / 'a.png')))
