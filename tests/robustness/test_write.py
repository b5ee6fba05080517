"""The stored set: what a pipeline would see, under the same names, resumed and never mixed."""

from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile as StockLoader
from PIL import Image

from mmvars.datasets import Corrupt
from mmvars.errors import InputError
from mmvars.robustness.write import write_corrupted

CORRUPT = Corrupt('gaussian_noise', 3)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / 'data' / name for name in ('a/1.png', 'a/2.jpg', 'b/c/1.png')]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (33, 40, 3), dtype=np.uint8)).save(path)
    return list(map(str, paths))


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / 'data')


@pytest.mark.parametrize('load', [StockLoader(), StockLoader(to_float32=True), None])
def test_the_files_hold_what_the_pipeline_sees(images, root, tmp_path, load) -> None:
    files = write_corrupted(images, root, str(tmp_path / 'out'), CORRUPT, load)
    names = [str(file.relative_to(tmp_path / 'out')) for file in files]
    assert names == ['a/1.png', 'a/2.png', 'b/c/1.png']
    for path, file in zip(images, files, strict=True):
        seen = CORRUPT(StockLoader()(dict(img_path=path)))['img']
        np.testing.assert_array_equal(StockLoader()(dict(img_path=str(file)))['img'], seen)


def test_a_run_that_broke_off_goes_on(images, root, tmp_path) -> None:
    out = str(tmp_path / 'out')
    whole = [file.read_bytes() for file in write_corrupted(images, root, out, CORRUPT)]
    again = str(tmp_path / 'again')
    (tmp_path / 'data/b/c/1.png').rename(tmp_path / 'away')
    with pytest.raises(InputError, match='does not exist'):
        write_corrupted(images, root, again, CORRUPT)
    (tmp_path / 'away').rename(tmp_path / 'data/b/c/1.png')
    times = {file: file.stat().st_mtime_ns for file in Path(again).rglob('*.png')}
    assert len(times) == 2
    files = write_corrupted(images, root, again, CORRUPT)
    assert [file.read_bytes() for file in files] == whole
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())


def test_what_would_be_mixed_or_lost_is_refused(images, root, tmp_path) -> None:
    out = str(tmp_path / 'out')
    write_corrupted(images, root, out, CORRUPT)
    with pytest.raises(InputError, match='other images'):
        write_corrupted(images, root, out, Corrupt('gaussian_noise', 4))
    with pytest.raises(InputError, match='other images'):
        write_corrupted(images, root, out, CORRUPT, StockLoader(imdecode_backend='pillow'))
    with pytest.raises(InputError, match='empty folder'):
        write_corrupted(images, root, root, CORRUPT)
    with pytest.raises(InputError, match='not below root'):
        write_corrupted(images, str(tmp_path / 'data' / 'a'), str(tmp_path / 'new'), CORRUPT)
    twice = str(tmp_path / 'data' / 'a' / '1.jpg')
    with pytest.raises(InputError, match='rename one'):
        write_corrupted([*images, twice], root, str(tmp_path / 'new'), CORRUPT)
    assert not (tmp_path / 'new').exists()
