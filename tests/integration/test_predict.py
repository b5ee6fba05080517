"""``mmvars predict``: what is written is what the Predictor answers, and nothing is lost."""

import csv
import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

import mmvars
import mmvars.predict
from mmvars.checkpoints import write_checkpoint
from mmvars.cli import run_tool
from mmvars.errors import InputError
from mmvars.predict import _labels as labels_png
from mmvars.predict import find_sources, main
from mmvars.prior_words import parse_prior

COMMON = """
backbone = dict(
    type='mmvars.AbSViT', img_size=32, prior=dict(type='class_prototype', num_classes=3),
    arch=dict(embed_dims=24, num_layers=2, num_heads=2, patch_size=8, global_pool='avg'))
names = dict(classes=('wall', 'dog', 'cat'), palette=[[9, 8, 7], [200, 0, 0], [0, 0, 200]])
"""
SEGMENTOR = """
default_scope = 'mmseg'
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
test_dataloader = dict(dataset=dict(type='BaseSegDataset', metainfo=names, pipeline=pipeline))
model = dict(
    type='mmvars.EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0],
        bgr_to_rgb=True, test_cfg=dict(size_divisor=8)),
    backbone=backbone,
    decode_head=dict(
        type='FCNHead', in_channels=24, channels=24, num_classes=3, in_index=0, num_convs=0,
        concat_input=False),
    test_cfg=dict(mode='whole'))
"""
CLASSIFIER = """
default_scope = 'mmpretrain'
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
test_dataloader = dict(dataset=dict(type='CustomDataset', metainfo=names, pipeline=pipeline))
model = dict(
    type='mmvars.ImageClassifier',
    data_preprocessor=dict(mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0], to_rgb=True),
    backbone=dict(out_type='avg_featmap', **backbone),
    head=dict(type='LinearClsHead', in_channels=24, num_classes=3))
"""


class Words:
    """A text encoder."""

    def encode(self, texts):
        return torch.stack([torch.tensor([len(text), text.count('o'), 1.0]) for text in texts])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with photos and a video."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    Path('photos/more').mkdir(parents=True)
    for name in ('a.jpg', 'more/a.png', 'more/b.png'):
        pixels = random.integers(0, 255, (24, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f'photos/{name}', quality=100)
    video = cv2.VideoWriter('clip.avi', cv2.VideoWriter_fourcc(*'MJPG'), 5, (40, 24))
    for _ in range(5):
        bgr = random.integers(0, 255, (3, 5, 3), dtype=np.uint8) * np.uint8([0, 1, 1])  # no blue
        video.write(cv2.resize(bgr, (40, 24)))
    video.release()
    return tmp_path


def _write_model(text):
    Path('run').mkdir(exist_ok=True)
    Path('run/config.py').write_text(COMMON + text)
    config = Config.fromfile('run/config.py')
    init_default_scope(config.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    for name, value in model.state_dict().items():
        if name.endswith(('prototypes', 'to_below.weight', 'to_value.weight')):
            torch.nn.init.normal_(value)
    write_checkpoint('run/iter_1.pth', model.state_dict(), 'state_dict', overwrite=True)


@pytest.fixture
def predictor(folder):
    """Of the model in the folder ``run``."""
    _write_model(SEGMENTOR)
    return mmvars.Predictor('run')


def _labels(path):
    return np.asarray(Image.open(path))


def test_files_hold_what_the_predictor_answers(predictor, capsys):
    words = ['class:dog', 'point:30,10', 'none']
    arguments = ['run', 'photos', '-o', 'out', '--overlay', '--probabilities', '--alpha', '3']
    assert main([*arguments, '--prior', *words]) == 0
    assert '3 images and frames -> out' in capsys.readouterr().out
    for folder, prior in (('1-class-dog', 'dog'), ('2-point-30,10', (30, 10)), ('3-none', None)):
        for name, path in (('a', 'a.jpg'), ('more/a', 'more/a.png'), ('more/b', 'more/b.png')):
            predictor.set_image(f'photos/{path}')
            answer = predictor.predict(prior, None if prior is None else 3)
            labels = Image.open(f'out/{folder}/labels/{name}.png')
            assert np.array_equal(labels, answer.labels)
            assert labels.getpalette()[:9] == [9, 8, 7, 200, 0, 0, 0, 0, 200]
            stored = np.load(f'out/{folder}/probabilities/{name}.npz')
            np.testing.assert_allclose(stored['probabilities'], answer.probabilities, atol=1e-3)
            assert stored['classes'].tolist() == ['wall', 'dog', 'cat']
            heatmap = Path(f'out/{folder}/heatmap/{name}.png')
            assert heatmap.exists() == (prior is not None)
            if prior is not None:
                np.testing.assert_allclose(_labels(heatmap) / 255, answer.heatmap, atol=1 / 255)
            width = 80 if prior is not None else 40
            assert Image.open(f'out/{folder}/overlay/{name}.jpg').size == (width, 24)
    assert len([*Path('out').rglob('*.*')]) == 1 + 3 * (4 + 4 + 3)


def test_labels_of_many_classes_have_16_bits(tmp_path):
    labels = np.arange(300).reshape(15, 20)
    many = SimpleNamespace(classes=range(300))
    (tmp_path / 'x.png').write_bytes(labels_png(SimpleNamespace(labels=labels), many, 'none'))
    assert np.array_equal(_labels(tmp_path / 'x.png'), labels)


def test_words_mean_prompts(predictor):
    mask = np.zeros((24, 40), np.uint8)
    mask[3:9, 4:30] = 255
    Image.fromarray(mask).save('mask.png')
    vector = torch.randn(24)
    torch.save(vector, 'v.pt')
    torch.save(torch.stack([vector, 2 * vector]), 'table.pt')
    predictor.set_image('photos/a.jpg')
    image = 'photos/more/b.png'
    for word, prior in {
        'class:cat': 'cat',
        'class:1': 1,
        'point:3,4,30,20': mmvars.Points([(3, 4), (30, 20)]),
        'box:3,4,30,20': mmvars.Box(3, 4, 30, 20),
        'mask:mask.png': mmvars.Mask(mask),
        f'example:{image}': mmvars.Example(image),
        f'example:{image}@3,4,30,20': mmvars.Example(image, mmvars.Box(3, 4, 30, 20)),
        'file:v.pt': vector,
        'file:table.pt:1': 2 * vector,
    }.items():
        prompt = parse_prior(word, predictor)
        assert torch.equal(predictor.prior_vector(prompt), predictor.prior_vector(prior)), word
    assert parse_prior('none', predictor) is None
    with_text = mmvars.Predictor('run', text=Words())
    prior = with_text.prior_vector('a brown dog')
    assert torch.equal(parse_prior('text:a brown dog', with_text), prior)
    with pytest.raises(InputError, match="class:a brown dog: no class is called 'a brown dog'"):
        parse_prior('class:a brown dog', with_text)


@pytest.mark.parametrize(
    'word, message',
    [
        ('dog', "'dog' is not understood: give class:NAME"),
        ('class:', 'not understood'),
        ('class:dgo', "class:dgo: .*did you mean 'dog'"),
        ('point:3,x', "point:3,x: numbers .*got '3,x'"),
        ('point:3', 'got 1 numbers'),
        ('box:3,4,5', 'got 3 numbers'),
        ('box:30,4,3,9', 'x0 < x1'),
        ('mask:run/config.py', 'is no image'),
        ('example:lost.jpg', 'lost.jpg'),
        ('file:lost.pt', 'lost.pt does not exist'),
        ('query', 'no learned query .* give another: class:NAME, point:X,Y'),
    ],
)
def test_words_that_mean_nothing_are_refused(predictor, word, message):
    with pytest.raises(InputError, match=message):
        parse_prior(word, predictor)


def test_a_video_is_frames_and_a_place_is_in_the_first(predictor):
    assert main('run clip.avi -o out --prior point:5,6 --every 2'.split()) == 0
    files = sorted(path.name for path in Path('out/labels/clip').iterdir())
    assert files == ['000000.png', '000002.png', '000004.png']
    frames = [pixels for _, pixels in find_sources(['clip.avi'], 'out')[0].frames(2)]
    assert frames[0][..., 2].mean() < 40 < frames[0][..., 0].mean()
    predictor.set_image(frames[0])
    vector = predictor.prior_vector((5, 6))
    for name, pixels in zip(files, frames, strict=True):
        predictor.set_image(pixels)
        assert np.array_equal(_labels(f'out/labels/clip/{name}'), predictor.predict(vector).labels)

    assert main('run clip.avi -o carried --prior point:5,6 --carry-state'.split()) == 0
    previous = None
    for number, (_, pixels) in enumerate(find_sources(['clip.avi'], 'out')[0].frames(1)):
        predictor.set_image(pixels, previous)
        previous = predictor.predict(vector)
        labels = _labels(f'carried/labels/clip/{number:06}.png')
        assert np.array_equal(labels, previous.labels)
    assert not np.array_equal(labels, _labels('out/labels/clip/000004.png'))


def test_the_frame_before_takes_the_place_of_the_first_pass(predictor):
    random = np.random.default_rng(1)
    first, second = random.integers(0, 255, (2, 24, 40, 3), dtype=np.uint8)
    predictor.set_image(first)
    before = predictor.predict('dog')
    assert before.shift.pixels.max() > 0  # which asks the model without a prior, too
    predictor.set_image(second, before)
    answer = predictor.predict('dog')
    network = predictor.model.backbone.network
    mean, std = (np.float32(each) for each in ((120, 110, 100), (60, 50, 40)))
    inputs = [
        torch.from_numpy((each - mean) / std).permute(2, 0, 1)[None] for each in (first, second)
    ]
    prior = network.prior.prototypes[1]
    with torch.no_grad():
        output = network(inputs[0], prior).second
        feats, _ = predictor.model.backbone.forward_frame(inputs[1], output, prior)
        logits = predictor.model.decode_head(feats)
    expected = torch.nn.functional.interpolate(logits, (24, 40), mode='bilinear').softmax(dim=1)[0]
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-5)
    predictor.set_image(second)
    assert np.abs(predictor.predict('dog').probabilities - answer.probabilities).max() > 1e-3
    with pytest.raises(InputError, match=r'24x30 pixels .* 24x40: leave previous out'):
        predictor.set_image(second[:, :30], before)


def test_a_stopped_run_goes_on_and_nothing_is_replaced_unasked(predictor, monkeypatch, capsys):
    predict, calls = mmvars.Predictor.predict, []

    def stopping(self, *args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict(self, *args)

    monkeypatch.setattr(mmvars.Predictor, 'predict', stopping)
    arguments = ['run', 'photos', '-o', 'out', '--probabilities']
    assert run_tool('predict', arguments) == 130
    first = Path('out/labels/a.png')
    written = [path.name for path in sorted(Path('out').rglob('*.*'))]
    assert written == ['a.png', 'predict.json', 'a.npz'] and first.stat().st_size > 0
    assert run_tool('predict', arguments) == 2
    assert re.search('out/labels/a.png exists: .*--overwrite.*--resume', capsys.readouterr().err)
    first_bytes, first_time = first.read_bytes(), first.stat().st_mtime_ns
    assert run_tool('predict', [*arguments, '--resume']) == 0
    assert len(calls) == 4 and len([*Path('out').rglob('*.*')]) == 7
    assert first.stat().st_mtime_ns == first_time
    first.unlink()
    assert run_tool('predict', [*arguments, '--resume']) == 0
    assert first.read_bytes() == first_bytes and len(calls) == 5
    for other in (['--prior', 'point:3,4'], ['--alpha', '2']):
        capsys.readouterr()
        assert run_tool('predict', [*arguments, *other, '--resume']) == 2
        assert 'are of other settings' in capsys.readouterr().err
    first.write_bytes(b'other')
    assert run_tool('predict', [*arguments, '--overwrite']) == 0
    assert first.read_bytes() == first_bytes


def test_results_of_other_settings_never_count_as_done(predictor, capsys):
    first, second = 'photos/a.jpg', 'photos/more/b.png'
    dog, cat = (['-o', 'out', '--prior', f'class:{name}'] for name in ('dog', 'cat'))
    heatmaps = {}
    for arguments in (dog, cat):
        assert main(['run', first, '-o', 'alone', *arguments[2:], '--overwrite']) == 0
        heatmaps[arguments[-1]] = Path('alone/heatmap/a.png').read_bytes()
    assert heatmaps['class:dog'] != heatmaps['class:cat']

    assert main(['run', first, *dog]) == 0
    capsys.readouterr()
    for option in ([], ['--resume']):
        assert run_tool('predict', ['run', second, *cat, *option]) == 2
        error = capsys.readouterr().err
        assert "(prior ['class:dog'] there, ['class:cat'] here)" in error and '--overwrite' in error
    assert main(['run', second, *cat, '--overwrite']) == 0
    assert Path('out/heatmap/a.png').read_bytes() == heatmaps['class:dog']
    for number in (1, 0):
        assert main(['run', first, second, *cat, '--resume']) == 0
        assert f'\n{number} images and frames' in capsys.readouterr().out
    assert Path('out/heatmap/a.png').read_bytes() == heatmaps['class:cat']


@pytest.mark.parametrize('content', [b'{"model": "run', b'[]', b'\xff'])
def test_damaged_settings_are_other_settings(predictor, content, capsys):
    assert main(['run', 'photos/a.jpg', '-o', 'out']) == 0
    Path('out/predict.json').write_bytes(content)
    arguments = ['run', 'photos', '-o', 'out']
    assert run_tool('predict', [*arguments, '--resume']) == 2
    assert 'are of other settings (model None there' in capsys.readouterr().err
    assert main([*arguments, '--overwrite']) == 0


def test_an_image_that_cannot_be_read_does_not_stop_the_others(predictor, capsys):
    Path('photos/more/a.png').write_bytes(b'no image')
    Path('empty.mp4').write_bytes(b'no video')
    assert run_tool('predict', ['run', 'photos', 'empty.mp4', 'clip.avi', '-o', 'out']) == 2
    captured = capsys.readouterr()
    assert re.search(r'not predicted: photos/more/a.png: .*not an image', captured.err)
    assert 'not predicted: empty.mp4: OpenCV can read no frame' in captured.err
    assert 'mmvars: 2 of 5 images and videos could not be predicted' in captured.err
    assert len([*Path('out/labels').rglob('*.png')]) == 2 + 5


def test_a_scale_that_cannot_be_used_is_said_once(predictor, capsys):
    arguments = ['run', 'photos', '-o', 'out', '--alpha']
    for words, message in (
        (['2'], 'this model has no prior of its own: give one, or leave --alpha out'),
        (['2', '--prior', 'none'], 'leave --alpha out'),
        (['nan', '--prior', 'class:dog'], '--alpha must be a number of at least 0, got nan'),
        (['-1', '--prior', 'class:dog'], '--alpha must be a number of at least 0, got -1.0'),
        (['1e30', '--prior', 'class:dog'], 'not finite with alpha 1e+30: take a smaller one'),
    ):
        assert run_tool('predict', [*arguments, *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count('\n') == 1
    assert run_tool('predict', [*arguments, '2', '--prior', 'class:dog', 'none']) == 0


def test_a_video_that_ends_early_is_said_to(predictor, monkeypatch, capsys):
    capture = cv2.VideoCapture

    class Truncated:
        """Three frames of what its header says."""

        def __init__(self, path):
            self.video, self.left = capture(path), 3

        def grab(self):
            self.left -= 1
            return self.left >= 0 and self.video.grab()

        def __getattr__(self, name):
            return getattr(self.video, name)

    monkeypatch.setattr(cv2, 'VideoCapture', Truncated)
    assert run_tool('predict', ['run', 'clip.avi', '-o', 'out']) == 2
    error = capsys.readouterr().err
    assert 'OpenCV can read 3 of its 5 frames, which have been predicted' in error
    assert len([*Path('out/labels/clip').iterdir()]) == 3


def test_the_heat_map_of_the_learned_query_is_in_the_overlay(folder):
    _write_model(f"{SEGMENTOR}\nmodel['backbone']['prior'] = 'learned_query'\n")
    assert main('run photos/a.jpg -o out --overlay --prior query none'.split()) == 0
    sizes = [Image.open(f'out/{name}/overlay/a.jpg').width for name in ('1-query', '2-none')]
    assert sizes == [80, 40]


def test_a_model_without_feedback_takes_no_prior(folder, capsys):
    plain = "model['backbone'] = dict(type='mmvars.ViT', img_size=32, arch=backbone['arch'])"
    _write_model(f'{SEGMENTOR}\n{plain}\n')
    arguments = ['run', 'photos', '-o', 'out', '--overlay']
    assert run_tool('predict', [*arguments, '--prior', 'point:3,4']) == 2
    assert capsys.readouterr().err == (
        'mmvars: --prior: run takes none, leave it out; an AbSViT takes one\n'
    )
    assert main(arguments) == 0 and len([*Path('out').rglob('*.*')]) == 7


def test_results_have_names_of_their_own(folder):
    Path('photos/a.webp').write_bytes(b'')
    sources = find_sources(['photos', 'photos/more/a.png', 'clip.avi', 'photos/a.jpg'], 'out')
    assert [source.name for source in sources] == ['a', 'a-2', 'more/a', 'more/b', 'clip']
    assert all(source.starts for source in sources)
    frames = find_sources(['photos', 'clip.avi'], 'out', are_frames=True)
    assert [source.starts for source in frames] == [True, False, False, False, True]


def test_classes_of_a_classifier_are_lines_of_a_table(folder):
    _write_model(CLASSIFIER)
    arguments = ['run', 'photos', '-o', 'out', '--overlay', '--prior', 'class:dog', 'none']
    assert main(arguments) == 0
    predictor = mmvars.Predictor('run')
    with open('out/labels.csv', newline='') as file:
        rows = [*csv.reader(file)]
    assert len(rows) == 7 and len([*Path('out').rglob('*.jpg')]) == 6
    for name, word, label, text, score in rows[1:]:
        predictor.set_image(next(Path('photos').glob(f'{name}.*')))
        answer = predictor.predict(None if word == 'none' else 'dog')
        assert (int(label), text) == (answer.labels, predictor.classes[answer.labels])
        assert float(score) == pytest.approx(answer.probabilities.max(), abs=1e-5)
    assert main([*arguments, '--resume']) == 0 and main([*arguments, '--overwrite']) == 0
    assert Path('out/labels.csv').read_text().count('\n') == 7


@pytest.mark.parametrize(
    'words, message',
    [
        ('lost.jpg', 'lost.jpg.* does not exist'),
        ('out/none', "'out/none' holds no image"),
        ('photos --every 2', '--every needs a video'),
        ('clip.avi --every 0', '--every must be .*at least 1'),
        ('photos/a.jpg --carry-state', '--carry-state needs a video or a folder'),
        ('clip.avi --carry-state --resume', '--carry-state needs all frames, so no --resume'),
        ('clip.avi --carry-state --prior none class:1', '--carry-state needs one --prior'),
        ('photos --resume --overwrite', '--resume needs what is there'),
        ('photos --prior text:dog', '--prior text:WORDS needs --text'),
        ('photos --text encoder --prior class:dog', '--text needs --prior text:WORDS'),
        ('photos --prototypes x.pth', '--prototypes needs --prior class:NAME'),
        ('out', "'out' is both --out-dir and a folder of images: give another --out-dir"),
        ('out/../out/ --resume', 'is both --out-dir'),
        ('out/labels/x.png --overwrite', 'is one of the images: give another --out-dir'),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_at_once(folder, words, message, capsys):
    for path in ('out/labels', 'out/none'):
        Path(path).mkdir(parents=True)
    Image.new('RGB', (40, 24)).save('out/labels/x.png')
    assert run_tool('predict', ['no-such-run', *words.split(), '-o', 'out']) == 2
    assert re.search(f'^mmvars: .*{message}', capsys.readouterr().err)
