"""``mmvars ask``: answers, and where questions make a METER look."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmvars.cli import run_tool
from mmvars.engine.checks import check_answers
from mmvars.errors import InputError
from mmvars.registry import MODELS

pytest.importorskip('mmpretrain')
pytest.importorskip('transformers')

from mmvars.parsers.ask import parse_args
from mmvars.vision_language.ask import _load
from mmvars.visualization.model import load_sample

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='mmvars.METER',
    backbone=dict(
        type='mmvars.AbSViT',
        arch=dict(embed_dims=24, num_layers=2, num_heads=2, patch_size=8),
        img_size=32,
        out_type='featmap_cls_token',
        prior=dict(type='text', text_dim=32),
        modulation='project',
        alpha=5.0),
    text_backbone=dict(type='mmvars.TextBackbone', name={text!r}, max_length=20),
    head={head},
    fusion=dict(hidden_dim=24, num_layers=1, num_heads=3),
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True))
test_dataloader = dict(dataset=dict(
    type='CustomDataset',
    metainfo=dict(classes=['red', 'blue', 'green']),
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='ResizeEdge', scale=32, edge='short'),
        dict(type='CenterCrop', crop_size=32),
        dict(type='PackInputs', algorithm_keys=['question'])]))
"""
VQA = "dict(type='mmvars.VQAHead', num_answers=3)"
RETRIEVAL = "dict(type='mmvars.RetrievalHead')"


@pytest.fixture
def run(tmp_path, text_folder):
    """A run folder with a model of random weights."""

    def make(head=VQA):
        from mmengine.config import Config

        config = tmp_path / 'run' / 'tiny.py'
        config.parent.mkdir(exist_ok=True)
        config.write_text(CONFIG.format(text=str(text_folder), head=head))
        torch.manual_seed(3)
        model = MODELS.build(Config.fromfile(config).model)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        torch.save(dict(state_dict=model.state_dict(), meta={}), config.parent / 'epoch_1.pth')
        return config.parent

    return make


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / 'photo.png'
    pixels = np.random.default_rng(0).integers(0, 255, (32, 46, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_answers_are_those_of_the_model_and_questions_steer_its_maps(run, photo, tmp_path, capsys):
    out = tmp_path / 'out'
    questions = ['what color is the circle', 'is the square green']
    status = run_tool('ask', [str(run()), str(photo), '--question', *questions, '-o', str(out)])
    assert status == 0
    results = json.loads((out / 'answers.json').read_text())
    assert [each['question'] for each in results] == questions
    assert results[0]['answers'] != results[1]['answers']
    from mmengine.config import Config
    from mmpretrain.structures import DataSample

    cfg = Config.fromfile(run() / 'tiny.py')
    model = MODELS.build(cfg.model).eval()
    model.load_state_dict(torch.load(run() / 'epoch_1.pth', weights_only=False)['state_dict'])
    with Image.open(photo) as image:
        crop = np.asarray(image)[:, 7:39, ::-1].copy()  # BGR, as the pipeline loads
    batch = dict(
        inputs=torch.from_numpy(crop).permute(2, 0, 1)[None],
        data_samples=[DataSample(question=questions[0])],
    )
    (sample,) = model.test_step(batch)
    scores = dict(zip(['red', 'blue', 'green'], sample.pred_score.tolist(), strict=True))
    assert results[0]['answers'] == pytest.approx(scores, abs=1e-5)
    with Image.open(out / 'photo_answers.png') as picture:
        assert picture.width > picture.height > 300


def test_questions_change_the_second_pass_alone(run, photo):
    asked = _load(parse_args([str(run())]))
    sample = load_sample([str(photo)], asked.pipeline, 8)
    tokens = []
    asked.model.backbone.trunk.norm.register_forward_hook(lambda *args: tokens.append(args[-1]))
    questions = ['what color is the circle', 'is the square green']
    first, other = (asked.answer(sample, question).maps for question in questions)
    assert list(first) == ['Bottom-up', 'Token weights', 'Top-down']
    assert all(each.shape == (4, 4) for each in first.values())
    np.testing.assert_array_equal(first['Bottom-up'], other['Bottom-up'])
    for name in ('Token weights', 'Top-down'):
        assert np.abs(first[name] - other[name]).max() > 0.01 * np.abs(first[name]).max()
    assert np.abs(first['Top-down'] - first['Bottom-up']).max() > 1e-4
    with torch.no_grad():
        vector = asked.model.text_backbone(questions[:1]).vector
        prior = asked.model.backbone.network.prior.projection(vector)
        cosines = torch.cosine_similarity(tokens[0][0, 1:], prior).clamp(min=0).view(4, 4)
    assert 0 < (cosines > 0).sum() < 16
    np.testing.assert_allclose(first['Token weights'], cosines.numpy(), atol=1e-5)


def test_a_question_that_is_cut_is_said(run, photo, tmp_path, capsys):
    words = ['red ' * 18, 'red ' * 19]  # and the tokens of the start and the end
    args = [str(run()), str(photo), '--question', *words, '-o', str(tmp_path / 'out')]
    assert run_tool('ask', args) == 0
    out = capsys.readouterr().out
    assert out.count('1 of 2 questions are longer than the 20 tokens that the model reads') == 1


@pytest.mark.parametrize('tool', ['predict', 'visualize', 'robustness', 'faithfulness'])
def test_commands_that_give_no_text_point_to_those_that_do(tool, run, photo, tmp_path, capsys):
    folder = run()
    words = [str(folder / 'tiny.py'), str(folder / 'epoch_1.pth')]
    if tool in ('predict', 'visualize'):
        words += [str(photo), '--out-dir', str(tmp_path / 'out')]
    assert run_tool(tool, words) == 2
    assert '`mmvars ask` asks it' in capsys.readouterr().err


def test_other_answers_than_in_training_are_refused(run, photo, tmp_path, capsys):
    folder = run()
    file, config = folder / 'epoch_1.pth', folder / 'tiny.py'
    for name in ('red', 'blue', 'green'):
        (tmp_path / 'data' / name).mkdir(parents=True)
        (tmp_path / 'data' / name / 'photo.png').write_bytes(photo.read_bytes())
    tested = f"""
test_dataloader['dataset'].update(data_root={str(tmp_path / 'data')!r})
test_dataloader.update(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler'))
test_cfg, test_evaluator = dict(), dict(type='mmvars.VQAMetric')
"""
    config.write_text(config.read_text() + tested)
    content = torch.load(file, weights_only=False)
    trained = ['green', 'blue', 'red']
    torch.save(dict(content, meta=dict(dataset_meta=dict(classes=trained))), file)
    asked = [str(folder), str(photo), '--question', 'what', '-o', str(tmp_path / 'out')]
    for tool, words in (('ask', asked), ('test', [str(config), str(file)])):
        assert run_tool(tool, words) == 2
        assert "in 2 places: number 0 is 'red', was 'green'" in capsys.readouterr().err
    check_answers(trained, tuple(trained))
    check_answers(trained, None)
    with pytest.raises(InputError, match="number 2 is None, was 'red'"):
        check_answers(trained[:2], trained)


def test_an_image_that_cannot_be_read_leaves_the_answers_to_the_others(
    run, photo, tmp_path, capsys
):
    out, bad = tmp_path / 'out', tmp_path / 'bad.png'
    bad.write_text('no image')
    words = [str(run()), str(bad), str(photo), '--question', 'what color', '-o', str(out)]
    assert run_tool('ask', words) == 2
    assert '1 of 2 images could not be read' in capsys.readouterr().err
    assert [each['image'] for each in json.loads((out / 'answers.json').read_text())] == [
        str(photo)
    ]
    assert [path.name for path in out.glob('*.png')] == ['photo_answers.png']


def test_captions_are_scored_by_a_model_of_retrieval(run, photo, tmp_path, capsys):
    words = [str(run(RETRIEVAL)), str(photo), '--question', 'a red circle', '-o', str(tmp_path)]
    assert run_tool('ask', words) == 0
    assert 'photo.png: a red circle fits ' in capsys.readouterr().out


def test_maps_are_compared_with_those_of_people(run, tmp_path, write_vqa_hat):
    questions = [(11, 1, 'what color'), (12, 1, 'what shape'), (21, 2, 'is the circle red')]
    folder = write_vqa_hat(tmp_path / 'hat', questions, {11: 3, 12: 2, 21: 3}, (40, 56))
    out = tmp_path / 'out'
    assert run_tool('ask', [str(run()), '--vqa-hat', str(folder), '-o', str(out)]) == 0
    tables = json.loads((out / 'vqa-hat.json').read_text())['tables']
    (table,) = tables.values()
    assert set(table) == {
        'center',
        'random',
        'Bottom-up',
        'Top-down',
        'Token weights',
        'Top-down, another question',
        'other people',
    }
    assert all(-1 < each['Spearman']['value'] < 1 for each in table.values())
    assert table['Top-down'] != table['Top-down, another question']
    assert (out / 'vqa-hat.png').is_file()


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ([], 'give images, and --question after them, or --vqa-hat DIR'),
        (['--question', 'what', 'photo.png'], 'give images, and --question after them'),
        (['photo.png', '--vqa-hat', 'nowhere'], '--vqa-hat has its own images and questions'),
        (['photo.png'], 'images without --question: give both'),
        (['photo.png', '--question', ' '], "--question needs words, got ' '"),
        (['--vqa-hat', 'nowhere', '--questions', '1'], '--questions must be .*2'),
        (['--vqa-hat', 'nowhere'], 'nowhere holds maps of 0 questions'),
        (['nowhere.png', '--question', 'what'], "the image 'nowhere.png' does not exist"),
        (
            ['photo.png', '--question', 'what', '--threshold', '2'],
            '--threshold must be .*1.* got 2',
        ),
    ],
)
def test_mistakes_are_one_line(words, message, photo, tmp_path, monkeypatch, capsys):
    import re

    monkeypatch.chdir(tmp_path)
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'tiny.py').write_text('model = dict(text_backbone={})')
    (tmp_path / 'run' / 'epoch_1.pth').write_bytes(b'')
    assert run_tool('ask', ['run', *words]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_model_without_text_is_refused(tmp_path, photo, capsys):
    config = tmp_path / 'plain.py'
    config.write_text("model = dict(type='mmvars.ImageClassifier')")
    (tmp_path / 'plain.pth').write_bytes(b'')
    words = [str(config), str(tmp_path / 'plain.pth'), str(photo), '--question', 'what']
    assert run_tool('ask', words) == 2
    assert 'describes no mmvars.METER' in capsys.readouterr().err
