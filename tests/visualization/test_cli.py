"""`mmvars visualize`: real runs on tiny models, and every mistake in one line."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mmvars.cli import run_tool
from mmvars.errors import InputError
from mmvars.visualization.cli import main


@pytest.fixture
def photo(tmp_path):
    """Writes a photo of random pixels; gives its path."""

    def write(name='photo.png', size=(80, 100)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return str(path)

    return write


@pytest.fixture
def draw(write_config, tmp_path, capsys):
    """Runs the tool in this process: exit status and what it wrote to stderr."""

    def run(task, *arguments, kind='AbSViT', config=None, checkpoint=None):
        own_config, own_checkpoint = write_config(task, kind)
        status = run_tool(
            main,
            [
                str(config or own_config),
                str(checkpoint or own_checkpoint),
                '--device',
                'cpu',
                '--out-dir',
                str(tmp_path / 'out'),
                *map(str, arguments),
            ],
        )
        return status, capsys.readouterr().err

    return run


def outputs(tmp_path):
    return sorted(os.listdir(tmp_path / 'out')) if (tmp_path / 'out').exists() else []


def size_of(path):
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize('kind', ['AbSViT', 'ViT'])
def test_one_picture_for_each_image(task, kind, draw, photo, tmp_path):
    folder_photo = photo('folder/b.jpg', (70, 50))
    status, _ = draw(task, photo(), os.path.dirname(folder_photo), kind=kind)
    assert status == 0
    assert outputs(tmp_path) == ['b_attention.png', 'photo_attention.png']


def test_the_folder_of_a_run_is_a_model(write_config, photo, tmp_path):
    _, checkpoint = write_config('segmentation')
    options = ['--device', 'cpu', '--out-dir', str(tmp_path / 'out')]
    assert run_tool(main, [str(tmp_path), photo('a.png'), photo('b.png'), *options]) == 0
    assert run_tool(main, [str(tmp_path), str(checkpoint), photo('c.png'), *options]) == 0
    assert outputs(tmp_path) == [f'{name}_attention.png' for name in 'abc']


def test_each_prior_and_scale_is_a_row(draw, photo, tmp_path):
    heights = []
    for arguments in (
        ['--alpha', 1, 5],
        ['--alpha', 1, 5, 10],
        ['--alpha', 1, 10, '--prior', 'class:tench', 'class:2', 'query'],
    ):
        assert draw('classification', photo(), *arguments)[0] == 0
        heights.append(size_of(tmp_path / 'out' / 'photo_attention.png')[1])
    row = heights[1] - heights[0]
    assert heights[2] - heights[1] == pytest.approx(3 * row, abs=3) and row > 200
    assert heights[0] > 3 * row  # one is for what depends on neither prior nor scale


def test_panels_alone_in_any_format(draw, photo, tmp_path):
    status, _ = draw(
        'segmentation',
        photo(size=(60, 100)),
        *('--alpha', 1, 5, '--format', 'svg', '--panels', tmp_path / 'panels'),
    )
    assert status == 0 and outputs(tmp_path) == ['photo_attention.svg']
    steered = ('token-mask', 'top-down-attention', 'segmentation')
    assert sorted(os.listdir(tmp_path / 'panels')) == sorted(
        f'photo_attention_{name}.svg'
        for name in (
            '1-input',
            '1-bottom-up-attention',
            *(f'2-prior-learned-query-alpha-1-{name}' for name in steered),
            *(f'3-prior-learned-query-alpha-5-{name}' for name in steered),
        )
    )
    assert draw('classification', photo(), '--panels', tmp_path / 'alone')[0] == 0
    with Image.open(tmp_path / 'alone' / 'photo_attention_input.png') as image:
        drawn = np.asarray(image.convert('RGB')).astype(int)
    with Image.open(photo()) as image:
        height, width = image.height * 72 // 80, image.width * 72 // 80
        expected = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    top, left = (height - 64) // 2, (width - 64) // 2
    assert drawn.shape == (64, 64, 3)  # the pixels of the network input
    expected = expected[top : top + 64, left : left + 64].astype(int)
    assert np.abs(drawn - expected).mean() < 12


def test_images_of_the_test_data_have_their_ground_truth(draw, photo, make_config, tmp_path):
    cfg = make_config('segmentation')
    photo('data/leftImg8bit/val/a_leftImg8bit.png', (60, 100))
    labels = np.full((60, 100), 3, np.uint8)
    labels[:30] = 255
    (tmp_path / 'data' / 'gtFine' / 'val').mkdir(parents=True)
    Image.fromarray(labels).save(tmp_path / 'data/gtFine/val/a_gtFine_labelTrainIds.png')
    cfg.test_dataloader.dataset.update(
        data_root=str(tmp_path / 'data'),
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
    )
    cfg.dump(tmp_path / 'own.py')
    for name, count in ((tmp_path / 'data/leftImg8bit/val/a_leftImg8bit.png', 6), (photo(), 5)):
        panels = tmp_path / str(count)
        arguments = ['--panels', panels]
        assert draw('segmentation', name, *arguments, config=tmp_path / 'own.py')[0] == 0
        assert len(os.listdir(panels)) == count
    with Image.open(tmp_path / '6' / 'a_leftImg8bit_attention_ground-truth.png') as image:
        drawn = np.asarray(image.convert('RGB')).astype(int)
    spread = np.ptp(drawn, axis=-1)
    assert spread[:28].max() == 0 and spread[32:].min() > 0  # ignored pixels are gray


def test_a_prior_from_a_file_reaches_a_segmentor(draw, photo, tmp_path):
    torch.save(torch.randn(24), tmp_path / 'prior.pt')
    status, _ = draw(
        'segmentation',
        photo(),
        '--prior',
        f'file:{tmp_path / "prior.pt"}',
        'query',
        '--class-attention',
        '--difference',
        '--threshold',
        '0.7',
        '--layer',
        '-1',
    )
    assert status == 0 and outputs(tmp_path) == ['photo_attention.png']


@pytest.mark.parametrize('kind', ['rvt:vars_sd', 'rvt:vars_s'])
def test_steps_and_atoms_are_pictures_beside_the_first(task, kind, draw, photo, tmp_path):
    status, _ = draw(task, photo(), '--steps', '--atoms', 3, '--layer', '-1', kind=kind)
    assert status == 0
    assert outputs(tmp_path) == [f'photo_{kind}.png' for kind in ('atoms', 'attention', 'steps')]
    heights = {name: size_of(tmp_path / 'out' / name)[1] for name in outputs(tmp_path)}
    rows = 2 if kind == 'rvt:vars_sd' else 1
    assert (heights['photo_atoms.png'] > 1.5 * heights['photo_attention.png']) == (rows == 2)


def test_options_of_steps_and_atoms_need_them_and_a_mixer_with_codes(draw, photo, tmp_path):
    for kind, arguments, message in [
        ('rvt:vars_d', ['--per-head', '--steps'], '--per-head tells atoms apart: give --atoms'),
        ('rvt:vars_d', ['--class-attention'], 'this RVT has no class token'),
        ('rvt:vars_d', ['--atoms', 49], 'atoms must be at most 48, got 49'),
        ('RVT', ['--steps'], 'SelfAttention, which is a single step without sparsity'),
        ('rvt:performer', ['--steps'], 'Performer, which is a single step'),
        ('GFNet', ['--atoms', 1], 'has neither a dictionary nor keys'),
    ]:
        status, errors = draw('classification', photo(), *arguments, kind=kind)
        assert status == 2 and message in errors and len(errors.strip().splitlines()) == 1
    assert outputs(tmp_path) == []


def test_images_of_one_name_get_pictures_of_their_own(draw, photo, tmp_path):
    assert draw('classification', photo('a/x.png'), photo('b/x.png'))[0] == 0
    assert outputs(tmp_path) == ['x-2_attention.png', 'x_attention.png']


def test_class_names_can_come_from_the_checkpoint(draw, photo, make_config, write_config, tmp_path):
    cfg = make_config('classification')
    del cfg.test_dataloader.dataset.metainfo
    cfg.dump(tmp_path / 'nameless.py')
    run = dict(config=tmp_path / 'nameless.py', checkpoint=tmp_path / 'named.pth')
    content = torch.load(write_config('classification')[1], weights_only=True)
    torch.save(content, run['checkpoint'])
    assert 'have no names here' in draw('classification', photo(), '--prior', 'class:b', **run)[1]
    content['meta']['dataset_meta'] = {'classes': list('abcdef')}
    torch.save(content, run['checkpoint'])
    assert draw('classification', photo(), '--prior', 'class:b', **run)[0] == 0


def test_a_data_preprocessor_outside_of_the_model_is_used(draw, photo, make_config, tmp_path):
    drawn = []
    for outside in (False, True):
        cfg = make_config('classification')
        if outside:
            cfg.data_preprocessor = cfg.model.pop('data_preprocessor')
        cfg.dump(tmp_path / 'moved.py')
        assert draw('classification', photo(), config=tmp_path / 'moved.py')[0] == 0
        drawn.append((tmp_path / 'out' / 'photo_attention.png').read_bytes())
    assert drawn[0] == drawn[1]


def test_one_bad_image_does_not_lose_the_others(draw, photo, tmp_path):
    bad, gray, good = photo('bad.png'), photo('gray.png'), photo('good.png')
    with open(bad, 'r+b') as file:
        file.truncate(300)
    Image.open(gray).convert('L').save(gray)
    status, errors = draw('segmentation', bad, gray, photo('tiny.png', (4, 4)), good)
    assert status == 2 and outputs(tmp_path) == ['good_attention.png']
    lines = errors.strip().splitlines()
    assert len(lines) == 4 and 'Traceback' not in errors
    assert lines[0].startswith('[1/4] not drawn') and 'bad.png' in lines[0]
    assert 'gray' in lines[1] and 'smaller than one patch of 16x16' in lines[2]
    assert '3 of 4 images could not be drawn' in lines[3]


@pytest.mark.parametrize(
    'arguments,message',
    [
        (['--alpha', 'much'], "--alpha must be a finite number of at least 0, got 'much'"),
        (['--alpha', 'nan'], "--alpha must be a finite number of at least 0, got 'nan'"),
        (['--alpha', '-1'], "--alpha must be a finite number of at least 0, got '-1'"),
        (['--prior', 'class:golden retreiver'], "did you mean 'golden retriever'"),
        (['--prior', 'dog'], "--prior 'dog' is not understood"),
        (['--layer', '3'], 'layer must be a block index from 0 to 2'),
        (['--threshold', '2'], '--threshold must be between 0 and 1'),
        (['--strength', '-0.5'], '--strength must be between 0 and 1'),
        (['--device', 'toaster'], "device 'toaster' cannot be used here"),
        (['--cfg-options', 'model.backbone.ach=tiny'], 'model.backbone.ach'),
        (['--cfg-options', 'model.backbone.out_type=featmap'], 'do not fit one another'),
        (['nothing.png'], "image 'nothing.png' does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_draws_nothing(draw, photo, tmp_path, arguments, message):
    status, errors = draw('classification', photo(), *arguments)
    assert status == 2 and message in errors and 'Traceback' not in errors
    assert outputs(tmp_path) == []


def test_a_class_of_a_segmentor_and_a_prior_of_a_plain_vit_are_refused(draw, photo):
    status, errors = draw('segmentation', photo(), '--prior', 'class:road')
    assert status == 2 and 'mmvars prototypes CONFIG CHECKPOINT -o FILE' in errors
    for arguments in (['--prior', 'query'], ['--alpha', '2']):
        status, errors = draw('segmentation', photo(), *arguments, kind='ViT')
        assert status == 2 and 'this model has no feedback' in errors


def test_a_config_or_checkpoint_that_does_not_fit_is_refused(draw, photo, tmp_path, write_config):
    other_config, other_checkpoint = write_config('segmentation')
    cases = [
        dict(config=tmp_path / 'nothing.py'),
        dict(checkpoint=tmp_path / 'nothing.pth'),
        dict(checkpoint=other_checkpoint),
        dict(checkpoint=other_config),
    ]
    (tmp_path / 'cut.pth').write_bytes(other_checkpoint.read_bytes()[:2000])
    cases.append(dict(checkpoint=tmp_path / 'cut.pth'))
    for case in cases:
        status, errors = draw('classification', photo(), **case)
        assert status == 2 and 'Traceback' not in errors
        assert next(iter(case.values())).name in errors
    assert outputs(tmp_path) == []


def test_a_checkpoint_of_another_width_is_refused(draw, photo, make_config, tmp_path):
    cfg = make_config('classification')
    cfg.model.backbone.arch.embed_dims = cfg.model.head.in_channels = 32
    cfg.dump(tmp_path / 'wide.py')
    status, errors = draw('classification', photo(), config=tmp_path / 'wide.py')
    assert status == 2 and 'trunk.cls_token' in errors and 'Traceback' not in errors


def test_a_backbone_of_somebody_else_is_refused(draw, photo, make_config, tmp_path):
    cfg = make_config('classification')
    cfg.model.type = 'mmpretrain.ImageClassifier'
    cfg.model.backbone = dict(type='mmpretrain.ResNet', depth=18)
    cfg.model.head.in_channels = 512
    cfg.dump(tmp_path / 'resnet.py')
    status, errors = draw('classification', photo(), config=tmp_path / 'resnet.py')
    assert status == 2 and 'the backbone ResNet is none of mmvars' in errors


def test_the_images_themselves_are_never_overwritten(draw, photo, tmp_path):
    image, victim = photo('out/x.png'), photo('out/x_attention.png')
    before = open(victim, 'rb').read()
    status, errors = draw('classification', image, victim)
    assert status == 2 and 'would overwrite an image' in errors
    assert open(victim, 'rb').read() == before


def test_a_folder_that_cannot_be_written_is_one_line(draw, photo, tmp_path):
    (tmp_path / 'out').write_text('a file in the way')
    status, errors = draw('classification', photo())
    assert status == 2 and 'out' in errors and 'Traceback' not in errors
    assert (tmp_path / 'out').read_text() == 'a file in the way'


def test_bad_input_is_an_input_error_for_python_callers(write_config):
    config, checkpoint = write_config('classification')
    with pytest.raises(InputError, match='does not exist'):
        main([str(config), str(checkpoint), 'nothing.png'])


def test_sliding_windows_are_replaced_by_one_forward_and_this_is_said(
    write_config, photo, tmp_path, capsys
):
    config, checkpoint = write_config('segmentation')
    assert (
        main(
            [
                str(config),
                str(checkpoint),
                photo(),
                '--out-dir',
                str(tmp_path / 'out'),
                '--device',
                'cpu',
                '--cfg-options',
                'model.test_cfg.mode=slide',
                'model.test_cfg.crop_size=(32,32)',
                'model.test_cfg.stride=(16,16)',
            ]
        )
        == 0
    )
    assert 'tests with sliding windows' in capsys.readouterr().out
    assert outputs(tmp_path) == ['photo_attention.png']


@pytest.fixture
def shim(repo, tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, str(repo / 'tools' / 'visualize_attention.py'), *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {'OMP_NUM_THREADS': '1'},
        )

    return run


def test_the_tool_explains_itself(shim):
    done = shim('--help')
    assert done.returncode == 0, done.stderr
    for word in (
        'config',
        'checkpoint',
        'images',
        '--prior',
        '--alpha',
        '--layer',
        '--out-dir',
        '--steps',
        '--atoms',
        '--average-attention',
    ):
        assert word in done.stdout


@pytest.mark.slow
def test_the_tool_draws_from_any_folder(shim, photo, write_config, tmp_path):
    config, checkpoint = write_config('segmentation')
    photo()
    done = shim(config, checkpoint, 'photo.png', '--alpha', '1', '10')
    assert done.returncode == 0, done.stderr
    assert 'photo.png -> attention/photo_attention.png' in done.stdout
    assert size_of(tmp_path / 'attention' / 'photo_attention.png')[0] > 1000
    shutil.rmtree(tmp_path / 'attention')
    done = shim(config, checkpoint, 'nothing.png')
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "mmvars: the image 'nothing.png' does not exist"
    assert not (tmp_path / 'attention').exists()
