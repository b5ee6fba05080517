"""Models and images of a config, and the files that pictures are drawn from."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from mmvars.errors import InputError
from mmvars.visualization.cli import find_images, short_paths
from mmvars.visualization.model import (
    ClassTable,
    build_model,
    class_sources,
    dataset_of,
    image_pipeline,
    load_sample,
    network_of,
)


def write_image(path, size=(80, 100), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def test_folders_are_searched_and_files_stay_in_order(tmp_path):
    b, a = write_image(tmp_path / 'b.png'), write_image(tmp_path / 'a.png')
    deep = write_image(tmp_path / 'folder' / 'deep' / 'c.JPG'.lower())
    (tmp_path / 'folder' / 'notes.txt').write_text('no image')
    images = find_images([b, a, str(tmp_path / 'folder'), a], str(tmp_path / 'out'))
    assert images == [b, a, deep]


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
    sample = load_sample([write_image(tmp_path / 'a.png')], image_pipeline(cfg), 16)
    # Cityscapes: within (width 100, height 60), aspect kept. Classifier: short edge 72, crop 64.
    assert sample.size == ((60, 75) if task == 'segmentation' else (64, 64))
    assert sample.data_sample.metainfo['ori_shape'][:2] == (80, 100)


def test_an_image_smaller_than_a_patch_is_refused(make_config, tmp_path):
    cfg = make_config('segmentation')
    init_default_scope(cfg.default_scope)
    path = write_image(tmp_path / 'small.png', (12, 300))
    with pytest.raises(InputError, match='small.png.* is 12x300 pixels .* one patch of 16x16'):
        load_sample([path], image_pipeline(cfg), 16)


def test_a_damaged_image_is_refused(make_config, tmp_path):
    cfg = make_config('segmentation')
    init_default_scope(cfg.default_scope)
    path = write_image(tmp_path / 'cut.png')
    with open(path, 'r+b') as file:
        file.truncate(500)
    with pytest.raises(InputError, match='cut.png'):
        load_sample([path], image_pipeline(cfg), 16)


def test_wrapped_data_sets_are_unwrapped():
    inner = dict(type='X', pipeline=[])
    wrapped = dict(type='ConcatDataset', datasets=[dict(type='RepeatDataset', dataset=inner)])
    assert dataset_of(Config(dict(val_dataloader=dict(dataset=wrapped)))) == inner


@pytest.mark.parametrize(
    'cfg,message',
    [
        (dict(), 'no test_dataloader'),
        (
            dict(test_dataloader=dict(dataset=dict(type='X', pipeline=[dict(type='Resize')]))),
            'no LoadImageFromFile',
        ),
    ],
)
def test_a_config_that_reads_no_images_is_refused(cfg, message):
    with pytest.raises(InputError, match=message):
        image_pipeline(Config(cfg))


def test_a_missing_checkpoint_is_named_before_the_model_is_built(make_config):
    cfg = make_config('segmentation')
    cfg.model.type = 'NoSuchModel'
    with pytest.raises(InputError, match='nothing.pth does not exist'):
        build_model(cfg, 'nothing.pth', torch.device('cpu'))


def test_types_that_are_classes_are_read_like_names(make_config, tmp_path):
    from mmcv.transforms import LoadImageFromFile, Resize
    from mmseg.datasets import CityscapesDataset, LoadAnnotations, PackSegInputs

    cfg = make_config('segmentation')
    init_default_scope(cfg.default_scope)
    dataset = dict(
        type=CityscapesDataset,
        pipeline=[
            dict(type=LoadImageFromFile),
            dict(type=Resize, scale=(100, 60), keep_ratio=True),
            dict(type=LoadAnnotations),
            dict(type=PackSegInputs),
        ],
    )
    cfg.test_dataloader = dict(dataset=dataset)
    path = write_image(tmp_path / 'a.png')
    assert load_sample([path], image_pipeline(cfg), 16).size == (60, 75)
    assert ClassTable.of(19, *class_sources(dataset_of(cfg), {})).names[0] == 'road'


def test_each_photo_of_a_pair_is_prepared_by_the_pipeline(make_config, tmp_path):
    photos = [
        write_image(tmp_path / 'left.png', (80, 100)),
        write_image(tmp_path / 'right.png', (70, 60), seed=1),
    ]
    for task, size, seam in (('classification', (64, 128), 64), ('segmentation', (60, 126), 75)):
        init_default_scope(make_config(task).default_scope)
        pipeline = image_pipeline(make_config(task))
        sample = load_sample(photos, pipeline, 16)
        left, right = (pipeline(dict(img_path=path))['inputs'] for path in photos)
        assert (sample.size, sample.seam) == (size, seam) and sample.inputs.dtype == left.dtype
        assert torch.equal(sample.inputs[..., :seam], left)
        if task == 'classification':
            assert torch.equal(sample.inputs[..., seam:], right)
    # Resized to a width of 51 and 60 rows by the pipeline: nothing is left to scale.
    higher = load_sample(
        photos,
        lambda entry: dict(
            inputs=pipeline(entry)['inputs'][:, : 30 if 'left' in entry['img_path'] else 60],
            data_samples=pipeline(entry)['data_samples'],
        ),
        16,
    )
    assert higher.size == (30, 75 + round(right.shape[-1] / 2)) and higher.seam == 75


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    cat, dog = (write_image(tmp_path / 'photos' / kind / 'x.png') for kind in ('cat', 'dog'))
    other = write_image(tmp_path / 'y.png')
    assert short_paths(cat, dog) == ['cat/x.png', 'dog/x.png']
    assert short_paths(cat, other) == ['x.png', 'y.png']
    assert short_paths(cat, cat) == ['x.png', 'x.png']


def test_a_backbone_without_tokens_is_refused():
    model = torch.nn.Module()
    model.backbone = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match='backbone Linear is none of mmvars.* mmvars.AbSViT'):
        network_of(model)


def test_class_names_come_from_the_first_source_that_has_as_many():
    seg = {'classes': ('road', 'sky'), 'palette': [[1, 2, 3], [4, 5, 6]]}
    assert ClassTable.of(2, None, {'classes': ('a', 'b', 'c')}, seg) == ClassTable(
        ('road', 'sky'), [[1, 2, 3], [4, 5, 6]]
    )
    computed = ClassTable.of(40, seg)
    assert not computed.named and computed.names[39] == 'class 39'
    assert len({tuple(color) for color in computed.palette}) == 40
