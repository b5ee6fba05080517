"""Finding image files, and preparing them by the config's own rules."""

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from mmvars.errors import InputError
from mmvars.visualization.images import find_images, load_sample, test_dataset, test_pipeline

test_dataset.__test__ = test_pipeline.__test__ = False  # functions of the package, not tests


def write_image(path, size=(80, 100), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def test_folders_are_searched_and_files_kept_in_order(tmp_path):
    b, a = write_image(tmp_path / 'b.png'), write_image(tmp_path / 'a.png')
    deep = write_image(tmp_path / 'folder' / 'deep' / 'c.JPG'.lower())
    (tmp_path / 'folder' / 'notes.txt').write_text('no image')
    found = find_images([b, a, str(tmp_path / 'folder'), a], str(tmp_path / 'out'))
    assert found == [b, a, deep]


def test_earlier_pictures_in_the_output_folder_are_no_images(tmp_path):
    image = write_image(tmp_path / 'a.png')
    write_image(tmp_path / 'out' / 'a_attention.png')
    assert find_images([str(tmp_path)], str(tmp_path / 'out')) == [image]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="image '.*nothing.png' does not exist"):
        find_images([str(tmp_path / 'nothing.png')], 'out')
    with pytest.raises(InputError, match='holds no image'):
        find_images([str(tmp_path)], 'out')


def test_an_image_is_prepared_as_the_config_says(task, make_config, tmp_path):
    cfg = make_config(task)
    init_default_scope(cfg.default_scope)
    sample = load_sample(write_image(tmp_path / 'a.png'), test_pipeline(cfg), 16)
    # Cityscapes: within (width 100, height 60), aspect kept. Classifier: short edge 72, crop 64.
    assert sample.size == ((60, 75) if task == 'segmentation' else (64, 64))
    assert sample.data_sample.metainfo['ori_shape'][:2] == (80, 100)


def test_an_image_smaller_than_a_patch_is_refused(make_config, tmp_path):
    cfg = make_config('segmentation')
    init_default_scope(cfg.default_scope)
    path = write_image(tmp_path / 'small.png', (12, 300))
    with pytest.raises(InputError, match='small.png.* is 12x300 pixels .* one patch of 16x16'):
        load_sample(path, test_pipeline(cfg), 16)


def test_a_damaged_image_is_refused(make_config, tmp_path):
    cfg = make_config('segmentation')
    init_default_scope(cfg.default_scope)
    path = write_image(tmp_path / 'cut.png')
    with open(path, 'r+b') as file:
        file.truncate(500)
    with pytest.raises(InputError, match='cut.png'):
        load_sample(path, test_pipeline(cfg), 16)


def test_wrapped_data_sets_are_unwrapped():
    inner = dict(type='X', pipeline=[])
    wrapped = dict(type='ConcatDataset', datasets=[dict(type='RepeatDataset', dataset=inner)])
    assert test_dataset(Config(dict(val_dataloader=dict(dataset=wrapped)))) == inner


@pytest.mark.parametrize('cfg,message', [
    (dict(), 'no test_dataloader'),
    (dict(test_dataloader=dict(dataset=dict(type='X', pipeline=[dict(type='Resize')]))),
     'no LoadImageFromFile')])
def test_a_config_that_reads_no_images_is_refused(cfg, message):
    with pytest.raises(InputError, match=message):
        test_pipeline(Config(cfg))
