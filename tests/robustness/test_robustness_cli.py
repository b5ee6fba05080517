"""`mmvars robustness` on models of the two frameworks, from the command line to the table."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope
from PIL import Image
from robustness_models import ABSVIT, SEGMENTATION, SHORT, run

from mmvars.datasets import LoadImageFromFile
from mmvars.engine.samples import CheckedPipeline
from mmvars.errors import InputError
from mmvars.robustness import cli, corrupt
from mmvars.robustness.protocols import CLEAN, PROTOCOLS, Setting
from mmvars.robustness.runner import Evaluation, Images
from mmvars.robustness.store import store_images
from mmvars.visualization.figure import draw_figure

FILES = ('robustness.txt', 'robustness.json', 'robustness.csv', 'robustness.md', 'robustness.html')


@pytest.fixture(scope='module')
def whole(segmentor, tmp_path_factory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp('whole')
    run(segmentor, folder, '--images', '5')
    return folder


def test_a_segmentor_gets_the_table_of_its_own_metric(whole) -> None:
    content = json.loads((whole / 'robustness.json').read_text())
    assert list(content['settings']) == ['clean', 'fog-1', 'fog-5', 'contrast-1', 'contrast-5']
    values = {}
    for name, each in content['settings'].items():
        row = json.loads((whole / 'rows' / content['rows'][name] / f'{name}.json').read_text())
        assert round(100 * each['value'], 2) == pytest.approx(row['metrics']['mIoU'], abs=1e-4)
        assert len(row['classes']) == 5 and each['low'] <= each['value'] <= each['high']
        values[name] = each['value']
    assert len(set(values.values())) > 3
    corrupted = sum(values[name] for name in values if name != 'clean') / 4
    assert content['numbers']['corrupted']['value'] == pytest.approx(corrupted)
    assert content['about']['preprocessing'] == (
        'as in training, by the config in the checkpoint (mean, std, channel order, steps of the '
        'test pipeline, reduce_zero_label); not compared: classes'
    )


def test_the_page_shows_where_most_is_lost(whole) -> None:
    page = (whole / 'robustness.html').read_text()
    assert 1 <= page.count('<img src="data:image/png;base64,') <= 2 and 'http' not in page


def test_the_page_shows_what_ours_attends_to(
    make_model, segmentation_data, tmp_path, monkeypatch
) -> None:
    drawn: list = []
    monkeypatch.setattr(
        'mmvars.robustness.pictures.draw_figure',
        lambda rows, *args, **kwargs: drawn.append(rows) or draw_figure(rows, *args, **kwargs),
    )
    model = make_model(SEGMENTATION + ABSVIT, segmentation_data)
    run(model, tmp_path, '--images', '2', '--corruptions', 'contrast', '--severities', '5')
    titles = ['Input', 'Bottom-up attention', 'Token mask', 'Top-down attention']
    ((clean, corrupted),) = drawn
    assert [panel.title for panel in clean.panels] == [*titles, 'Ground truth', 'Segmentation']
    for before, after in zip(clean.panels[1:4], corrupted.panels[1:4], strict=True):
        assert not np.array_equal(before.values, after.values)
    assert clean.panels[1].limits == corrupted.panels[3].limits
    images = {path.name: np.asarray(Image.open(path)) for path in segmentation_data.glob('img/*')}
    (name,) = (n for n, image in images.items() if np.array_equal(image, clean.panels[0].image))
    expected = corrupt(images[name], 'contrast', 5, f'img/{name}')
    np.testing.assert_array_equal(corrupted.panels[0].image, expected)


def test_a_stopped_run_goes_on_and_gives_the_same_table(
    segmentor, whole, tmp_path, monkeypatch
) -> None:
    made, honest = [], Evaluation.run

    def stopped(self, setting):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(setting)
        return honest(self, setting)

    monkeypatch.setattr(Evaluation, 'run', stopped)
    with pytest.raises(KeyboardInterrupt):
        run(segmentor, tmp_path, '--images', '5')
    (folder,) = (tmp_path / 'rows').iterdir()
    assert {path.stem for path in folder.glob('*.json')} == {'run', *(s.name for s in made)}
    monkeypatch.setattr(
        Evaluation, 'run', lambda self, setting: made.append(setting) or honest(self, setting)
    )
    run(segmentor, tmp_path, '--images', '5')
    assert len(made) == len(set(made)) == 5  # nothing twice
    for name in FILES:
        assert (whole / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_classifier_gets_top1_and_mce_of_imagenet_c(classifier, tmp_path, capsys) -> None:
    options = ['--protocol', 'hendrycks', '--images', '4', '--severities', '3']
    metrics = '[{"type": "Accuracy"}, {"type": "ConfusionMatrix"}]'
    options += ['--cfg-options', f'test_evaluator={metrics}']
    cli.main([*classifier, '--out', str(tmp_path), *options, '--corruptions', 'fog'])
    content = json.loads(Path(tmp_path, 'robustness.json').read_text())
    assert content['score'] == 'top-1' and 'mCE' not in content['numbers']  # of all 15 only
    for name, each in content['settings'].items():
        row = json.loads(Path(tmp_path, 'rows', content['rows'][name], f'{name}.json').read_text())
        assert 100 * each['value'] == pytest.approx(row['metrics']['accuracy/top1'])
        assert row['labels'] == [0, 1, 3, 4]  # of ten images, evenly spaced
    text = capsys.readouterr().out
    (steps,) = re.findall('steps of fog-3: .*', text)
    assert re.search(r'ResizeEdge\(scale=256.*CenterCrop.*fog.*SaveAsJPEG\(quality=85\)', steps)
    assert ' CE\n' not in text  # of all five severities only
    assert 'left out, as not one number: confusion_matrix/result' in text


def identities(config: str, root: Path) -> list:
    """All that the rows of a config depend on, with its data at another place."""
    cfg = Config.fromfile(config)
    cfg.test_dataloader.dataset.data_root = str(root)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        images = Images(DATASETS.build(cfg.test_dataloader.dataset), None)
    evaluation = Evaluation.__new__(Evaluation)
    evaluation.__dict__ |= dict(protocol=PROTOCOLS['quick'], shifted=None, class_ids=None)
    evaluation.__dict__ |= dict(_own=images, weights='')
    evaluation.names, evaluation.totals, evaluation.digests = evaluation._list_images()
    return evaluation.identities(cfg)


@pytest.mark.parametrize('folder', ['img', 'ann'])
def test_rows_of_other_data_of_the_same_names_are_others(
    segmentor, segmentation_data, tmp_path, folder
) -> None:
    shutil.copytree(segmentation_data, tmp_path / 'data')
    before = identities(segmentor[0], segmentation_data)
    assert identities(segmentor[0], tmp_path / 'data') == before
    path = tmp_path / 'data' / folder / '3.png'
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the same size
    assert identities(segmentor[0], tmp_path / 'data') != before


STEP = 'test_dataloader.dataset.pipeline'


@pytest.mark.slow
def test_labels_that_are_no_class_are_found_on_clean_images(segmentor, tmp_path) -> None:
    options = ['--cfg-options', 'test_evaluator.ignore_index=3']
    with pytest.raises(InputError, match='the label 255 of .*no class of the model'):
        run(segmentor, tmp_path, *options, '--ignore-mismatch')


def test_two_runs_are_compared_over_the_same_images(segmentor, whole, tmp_path) -> None:
    size = ['--images', '5', '--cfg-options', f'{STEP}.1.scale=(112,80)', '--ignore-mismatch']
    content = run(segmentor, tmp_path, *size, '--against', str(whole))
    ours, theirs = (
        json.loads((folder / 'robustness.json').read_text())['numbers']
        for folder in (tmp_path, whole)
    )
    difference = content['against']['corrupted']
    expected = ours['corrupted']['value'] - theirs['corrupted']['value']
    assert difference['value'] == pytest.approx(expected) and expected != 0
    assert difference['low'] < difference['value'] < difference['high']
    page = (tmp_path / 'robustness.html').read_text()
    clean, corrupted, other = re.search(
        r': mIoU of this image ([\d.]+) → ([\d.]+); .*config.py: mIoU of this image ([\d.]+) →',
        page,
    ).groups()
    assert float(clean) > float(corrupted) and other != clean
    text = (tmp_path / 'robustness.txt').read_text()
    assert 'DIFFERS from training (--ignore-mismatch): steps of' in text
    assert 'paired over the images' in text
    with pytest.raises(InputError, match=r'images \(7 and 5.*seed \(1 and 0\)'):
        run(segmentor, tmp_path, *size[2:], '--against', str(whole), '--seed', '1')


def test_reliability_of_pixels_is_in_the_table(segmentor, tmp_path) -> None:
    run(segmentor, tmp_path, '--images', '2', '--severities', '5', '--reliability')
    assert 'reliability/ECE' in (tmp_path / 'robustness.txt').read_text()


def test_a_corrupted_set_is_stored_without_a_model(segmentor, segmentation_data, tmp_path) -> None:
    options = ['--corruptions', 'contrast', '--severities', '2', '--images', '3']
    assert cli.main([segmentor[0], '--write', str(tmp_path / 'c'), *options]) == 0
    files = sorted((tmp_path / 'c' / 'contrast' / '2' / 'img').iterdir())
    assert [path.name for path in files] == ['0.png', '3.png', '6.png']
    for path in files:
        image = np.asarray(Image.open(segmentation_data / 'img' / path.name))
        expected = corrupt(image, 'contrast', 2, f'img/{path.name}')
        np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)
    with pytest.raises(InputError, match='leave out CHECKPOINT'):
        cli.main([*segmentor, '--write', str(tmp_path / 'c'), *options])


def test_of_several_data_sets_those_images_are_stored_that_are_tested(
    segmentor, segmentation_data, tmp_path
) -> None:
    (tmp_path / 'two' / 'img').mkdir(parents=True)
    shutil.copy(segmentation_data / 'img' / '0.png', tmp_path / 'two' / 'img' / '9.png')
    cfg = Config.fromfile(segmentor[0])
    one = cfg.test_dataloader.dataset
    both = [one, dict(one, data_root=str(tmp_path / 'two'))]
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=both)
    stored: list = []
    protocol = replace(PROTOCOLS['quick'], changes=('contrast',), levels=(1,), images=3)
    store_images(cfg, protocol, tmp_path / 'c', lambda *each: stored.append(each))
    assert stored == [('contrast-1', 3)]  # of eight


def test_what_is_not_of_this_task_is_refused(segmentor, classifier, tmp_path) -> None:
    for model, option, message in (
        (segmentor, ['--protocol', 'hendrycks'], 'is for classifiers'),
        (classifier, ['--reliability'], 'is of pixels'),
        (segmentor[:1], [], 'give its CHECKPOINT'),
    ):
        with pytest.raises(InputError, match=message):
            run(model, tmp_path, *option)


def test_clean_is_clean_and_a_setting_is_what_it_says(segmentation_data) -> None:
    evaluation = SimpleNamespace(protocol=replace(PROTOCOLS['quick'], seed=3), shifted=None)
    path = str(segmentation_data / 'img' / '0.png')
    original = CheckedPipeline([LoadImageFromFile()])
    image = np.asarray(Image.open(path))
    for setting, expected in (
        (CLEAN, image),
        (Setting('fog', 5), corrupt(image, 'fog', 5, 'img/0.png', seed=3)),
    ):
        pipeline = Evaluation.pipeline(evaluation, original, setting)
        np.testing.assert_array_equal(pipeline(dict(img_path=path))['img'][..., ::-1], expected)


def trained(model: tuple[str, str], folder: Path, steps: int = 100) -> tuple[str, str]:
    """The model after some steps on its test images."""
    cfg, content = Config.fromfile(model[0]), torch.load(model[1])
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        network = MODELS.build(cfg.model)
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
    data = pseudo_collate([dataset[index] for index in range(len(dataset))])
    optimizer = torch.optim.Adam(network.parameters(), 0.003)
    for _ in range(steps):
        batch = network.data_preprocessor(dict(data), False)
        losses = network(**batch, mode='loss')
        optimizer.zero_grad()
        losses['decode.loss_ce'].backward()
        optimizer.step()
    content['state_dict'] = network.state_dict()
    torch.save(content, folder / 'trained.pth')
    return model[0], str(folder / 'trained.pth')


def test_a_segmentor_is_attacked_through_its_test_loop(segmentor, tmp_path, capsys) -> None:
    options = ['--protocol', 'segmentation-attacks', '--images', '2', '--epsilons', '1', '2']
    model = trained(segmentor, tmp_path)
    cli.main([*model, '--out', str(tmp_path), *options, '--attacks', 'fgsm', 'cospgd'])
    content = json.loads((tmp_path / 'robustness.json').read_text())
    numbers = {name: each['value'] for name, each in content['numbers'].items()}
    for epsilon in ('1/255', '2/255'):
        found = [numbers[f'{name}, {epsilon}'] for name in ('worst case', 'fgsm', 'cospgd')]
        assert found[0] <= min(found[1:]) + 1e-9 and found[1] < numbers['clean']
    assert numbers['cospgd, 2/255'] < numbers['cospgd, 1/255']
    text = capsys.readouterr().out
    assert 'mIoU, %, by epsilon in 1/255 of pixels' in text and 'whether the attacks worked' in text
    assert 'every image has a gradient' in text and '0 of 2 have none' in text
    row = json.loads(next(tmp_path.glob('rows/*/cospgd-2.json')).read_text())
    assert len(row['zero_gradient']) == 2 and max(row['zero_gradient']) < 1


def test_a_classifier_is_attacked_as_in_the_thesis(classifier, tmp_path, capsys) -> None:
    cli.main([*classifier, '--protocol', 'attacks', '--out', str(tmp_path)])
    rows = {path.stem for path in tmp_path.glob('rows/*/*.json')} - {'run'}
    assert rows == {'clean', 'fgsm-1', 'pgd-1', 'pgd20-1', 'pgd-64', 'noise-1'}
    assert 'believed: ' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            ['--protocol', 'segmentation-attacks'],
            r'of segmentors alone: segpgd.*--protocol attacks',
        ),
        (
            ['--attacks', 'pgd'],
            r'--attacks is for protocols of attacks.*take --protocol attacks or',
        ),
        (['--protocol', 'attacks', '--severities', '3'], '--severities is for protocols of corru'),
        (['--protocol', 'attacks', '--attacks', 'apgd'], "--attacks.*'apgd'.*pgd"),
        (['--protocol', 'attacks', '--epsilons', '0'], r'--epsilons must be a number in \[0.001'),
        (['--protocol', 'attacks', '--seed', '-1'], '--seed must be a whole number of at least 0'),
    ],
)
def test_attacks_that_cannot_be_are_refused(classifier, tmp_path, options, message) -> None:
    with pytest.raises(InputError, match=message):
        cli.main([*classifier, '--out', str(tmp_path), *options])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--data', ''], "--data '' names no folder"),
        (['--against', ''], "--against '' names no folder"),
        (['--write', ''], "--write '' names no folder"),
        (['--out', ''], "--out '' names no folder"),
        (['--out', '{config}'], '--out .*config.py is no folder that can be written; give another'),
        (['--write', '{config}/c'], '--write .*config.py is no folder that can be written'),
    ],
)
def test_folders_that_are_none_are_named_by_their_option(segmentor, options, message) -> None:
    model = segmentor[:1] if '--write' in options else segmentor
    options = [option.format(config=model[0]) for option in options]
    with pytest.raises(InputError, match=message):
        cli.main([*model, *SHORT, *options])
