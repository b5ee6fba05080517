"""``mmvars steerability`` from the command line to its files, on random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmvars.cli import run_tool
from mmvars.errors import InputError
from mmvars.steerability import protocol
from mmvars.steerability.cli import main
from mmvars.visualization.model import model_names


@pytest.fixture
def run(tmp_path, capsys):
    """Exit status, what was said, and the JSON file."""

    def call(*arguments):
        out = tmp_path / 'out'
        status = run_tool(main, [*map(str, arguments), '--device', 'cpu', '--out', str(out)])
        captured = capsys.readouterr()
        file = out / 'steerability.json'
        content = json.loads(file.read_text()) if file.exists() else None
        return status, captured.err if status else captured.out, content

    return call


def test_designs_side_by_side(run, write_model, tmp_path) -> None:
    run_folder = Path(write_model('segmentation', 'absvit')[0]).parent
    models = [run_folder, '--against', *write_model('segmentation', 'feedback')]
    stale = [tmp_path / 'out' / name for name in ('alpha.png', 'example_9.png', 'example_me.png')]
    stale[0].parent.mkdir()
    for file in stale:
        file.touch()
    options = ['--images', 3, '--examples', 0, '--alpha', 1, 3, 1]
    status, said, content = run(*models, *options)
    assert status == 0, said
    assert [file.stat().st_size if file.exists() else None for file in stale[1:]] == [None, 0]
    ours, feedback = content['models']
    assert Path(ours['checkpoint']) == run_folder / 'iter_1.pth'
    assert ours['answer'] == 'prompt head' and ours['alphas'] == [1, 3]
    assert ours['sections']['images']['count'] == 3
    assert ours['sections']['images']['sweep']['3']['gain random']['count'] == 3
    for row, columns in feedback['sections']['images']['flip'].items():
        assert columns.get('answer', dict(value=0))['value'] == 0, row
    assert 'takes no prior: it answers every question alike' in said
    for table in ('flip', 'auc', 'share', 'iou', 'marked'):
        for row, columns in ours['sections']['images'][table].items():
            least = -1 if row.endswith('less none') else 0  # a difference
            for number in columns.values():
                assert number['value'] is None or least <= number['low'] <= number['high'] <= 1
    assert (tmp_path / 'out' / 'steerability.txt').read_text() in said
    assert 'Attention: token norms after block ' in said  # which map the numbers are of


class Stopped(Exception):
    pass


def _measures(monkeypatch, times: int) -> list:
    """Lets so many models be measured."""
    measured = []

    def measure(*args):
        if len(measured) == times:
            raise Stopped
        measured.append(args)
        return protocol.measure(*args)

    monkeypatch.setattr('mmvars.steerability.cli.measure', measure)
    return measured


def test_nothing_is_measured_before_all_can_be(run, write_model, tmp_path, monkeypatch) -> None:
    measured = _measures(monkeypatch, 9)
    first, out = write_model('segmentation', 'absvit'), tmp_path / 'out'
    bare, feedback = (
        write_model('segmentation', design, steerable=False) for design in (None, 'feedback')
    )

    def refusal(*arguments):
        status, said, _ = run(*first, '--images', 5, *arguments)
        assert status == 2
        return said.splitlines()[-1]  # loggers of earlier tests may complain before it

    assert 'no top-down attention' in refusal('--against', *bare)
    assert 'without a prior' in refusal('--against', *feedback)
    assert 'some classifiers' in refusal('--against', *write_model('classification', 'absvit'))
    assert '--min-share 1: no class' in refusal('--min-share', 1)
    assert not out.exists()
    out.touch()
    assert f'--out {out} cannot be made a folder' in refusal()
    assert not measured


def test_a_model_is_on_disk_before_the_next(run, write_model, tmp_path, monkeypatch) -> None:
    _measures(monkeypatch, 1)
    models = write_model('segmentation', 'absvit'), write_model('segmentation', 'feedback')
    with pytest.raises(Stopped):
        run(*models[0], '--against', *models[1], '--images', 1, '--examples', 0)
    (entry,) = json.loads((tmp_path / 'out' / 'steerability.json').read_text())['models']
    assert entry['config'] == models[0][0] and entry['sections']['images']['count'] == 1


@pytest.mark.slow
@pytest.mark.parametrize('task', ['segmentation', 'classification'])
def test_pictures(run, write_model, tmp_path, task) -> None:
    models = [
        *write_model(task, 'absvit'),
        *('--against', *write_model(task, 'perceiver_io')),
        *('--against', *write_model(task, 'mask_attention')),
    ]
    status, said, _ = run(*models, '--images', 3, '--examples', 2)
    assert status == 0, said
    files = {path.name for path in (tmp_path / 'out').iterdir()}
    expected = {'steerability.txt', 'steerability.json', 'alpha.png'}
    for name in ('example_1', 'example_2'):
        expected |= {f'{name}.png', f'{name}_alpha.png'}
    assert files == expected


@pytest.mark.slow
def test_the_same_command_gives_the_same_numbers(run, write_model) -> None:
    model = write_model('segmentation', 'absvit')
    options = ['--examples', 0, '--seed']
    first, second, other = (run(*model, *options, seed)[2] for seed in (1, 1, 2))
    assert first == second
    assert first['models'] != other['models']


@pytest.mark.slow
@pytest.mark.parametrize('layout', ['square', 'side'])
@pytest.mark.parametrize('design', ['absvit', 'mask_attention', 'perceiver_io'])
def test_classifiers(run, write_model, design, layout) -> None:
    status, said, content = run(
        *write_model('classification', design),
        *('--pair-layout', layout, '--images', 5, '--examples', 0),
    )
    assert status == 0, said
    (model,) = content['models']
    assert model['answer'] == 'token weights' and list(model['sections']) == ['pairs', 'squares']
    pairs = model['sections']['pairs']
    assert pairs['count'] == 5 and pairs['flip']['no prior']['score']['value'] == 0
    assert ('sweep' in pairs) and (len(pairs['sweep']) > 1) == (design != 'mask_attention')
    assert pairs['share']['no prior']['attention']['value'] == pytest.approx(0.5)


@pytest.mark.slow
@pytest.mark.parametrize('design', ['absvit_qkv', 'mask_attention', 'perceiver_io'])
def test_other_designs_and_models_without_a_head(run, write_model, design) -> None:
    status, said, content = run(
        *write_model('segmentation', design, steerable=False), '--examples', 0
    )
    assert status == 0, said
    images = content['models'][0]['sections']['images']
    assert 'answer at best' in images['iou']['its prior'] and 'weights' not in str(images['auc'])
    assert 'answer at 0.5' not in images['iou']['its prior']


@pytest.mark.parametrize(
    'task, design, arguments, message',
    [
        ('classification', None, [], 'the backbone mmvars.ViT has no top-down attention'),
        ('classification', 'feedback', [], 'feeds back without a prior'),
        ('classification', 'absvit', ['--images', 0], '--images must be a whole number'),
        ('classification', 'absvit', ['--alpha', -1], '--alpha must be a number of at least 0'),
        ('classification', 'absvit', ['--prototypes', 'x', 'y'], 'one file for all models'),
        ('classification', 'absvit', ['--images', 1], '(1) hold no two classes'),
        ('classification', 'absvit', ['--prototypes', 'x.pth'], 'x.pth'),
        ('classification', 'absvit', ['--against', 'a', 'b', 'c'], 'CONFIG CHECKPOINT; got 3'),
    ],
)
def test_what_cannot_be_measured_is_refused(run, write_model, task, design, arguments, message):
    status, said, _ = run(*write_model(task, design), *arguments)
    assert status == 2 and message in said and said.count('\n') == 1


def test_names_of_models_differ() -> None:
    """Seeds of one config have checkpoints of one name, and one file may lie in two folders."""
    one, two = ('a/s.py', 'r0/iter_9.pth'), ('a/s.py', 'r1/iter_9.pth')
    assert model_names([one]) == ['s']
    assert model_names([one, two]) == ['r0/iter_9', 'r1/iter_9']
    assert model_names([one, ('b/s.py', 'r0/iter_9.pth')]) == ['a/s', 'b/s']
    assert model_names([one, ('a/t.py', 'r0/iter_9.pth')]) == ['s', 't']
    assert len(set(model_names([one, two, ('b/s.py', 'r1/iter_9.pth')]))) == 3
    assert len(set(model_names([one, ('a/s.py', 'r0/iter_9.safetensors')]))) == 2
    with pytest.raises(InputError, match='given twice'):
        model_names([one, two, one])


class Letters:
    """A text encoder."""

    def encode(self, texts):
        return torch.tensor([[text.count(letter) + 0.1 for letter in 'aeort'] for text in texts])


def test_some_classes_alone_and_by_other_words(run, write_model, monkeypatch) -> None:
    monkeypatch.setattr('mmvars.priors.load_text_encoder', lambda folder: Letters())
    measured = _measures(monkeypatch, 9)
    model = write_model('segmentation', 'absvit')
    words = ['--classes', 'road', 'Car=automobile', '--text', 'folder']
    options = ['--images', 1, '--examples', 0, '--alpha', 1]
    status, said, content = run(*model, *words, *options)
    assert status == 0 and 'Asked for alone: road, Car=automobile' in said
    subject = measured[0][0]
    predictor = subject.predictor
    assert subject.askable.tolist() == [1, 3]
    for k, prompt in ((1, 'road'), (3, 'automobile')):
        assert np.array_equal(subject.priors[k], predictor.prior_vector(prompt).numpy())
    predictor.set_image(np.zeros((32, 48, 3), np.uint8))
    (answer,) = subject.ask([3])
    assert np.array_equal(answer.heatmap, predictor.predict('automobile').heatmap)
    assert not np.array_equal(answer.heatmap, predictor.predict('car').heatmap)
    (part,) = content['models']
    assert part['not_asked_for'] == []
    for words in (['--classes', 'car=automobile'], ['--text', 'folder', '--classes', 'car']):
        status, said, _ = run(*model, *words)
        assert status == 2 and 'need each other' in said
