"""Eight planted mistakes of preprocessing through the command, and the score of the training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from robustness_models import CLASSIFICATION, FCN, RESNET, SEGMENTATION, run

from mmvars.errors import InputError
from mmvars.robustness.guard import check_score, is_same_data
from mmvars.robustness.scores import Scores
from mmvars.robustness.training import Training, read_training

ONE = ('--corruptions', 'contrast', '--severities', '1')
VALIDATION = 'val_dataloader = test_dataloader\n'


def train(model: tuple[str, str], classes: tuple[str, ...], folder: Path) -> tuple[str, str]:
    """Leave what a training of a model would: its classes, and the log of its validation."""
    checkpoint = torch.load(model[1], weights_only=False)
    meta = dict(epoch=1, experiment_name='x_20260101_000000', dataset_meta=dict(classes=classes))
    checkpoint['meta'] |= meta
    torch.save(checkpoint, model[1])
    content = run(model, folder, *ONE)
    assert 'scalars' not in content['about']['clean score']
    row = json.loads((folder / 'rows' / content['rows']['clean'] / 'clean.json').read_text())
    write_log(Path(model[1]).parent, dict(row['metrics'], step=1))
    return model


def write_log(folder: Path, *validations: dict) -> None:
    """The log that mmengine writes beside a checkpoint."""
    log = folder / '20260101_000000' / 'vis_data'
    log.mkdir(parents=True, exist_ok=True)
    lines = [dict(lr=0.1, loss=2.0, mIoU=0, epoch=1, step=1), *validations, dict(step=1)]
    (log / 'scalars.json').write_text(''.join(json.dumps(line) + '\n' for line in lines))


@pytest.fixture(scope='module')
def segmentor(make_model, segmentation_data, tmp_path_factory) -> tuple[str, str]:
    model = make_model(SEGMENTATION + FCN + VALIDATION, segmentation_data)
    return train(model, ('sky', 'road', 'tree', 'car'), tmp_path_factory.mktemp('out'))


@pytest.fixture(scope='module')
def classifier(make_model, classification_data, tmp_path_factory) -> tuple[str, str]:
    model = make_model(CLASSIFICATION + RESNET + VALIDATION, classification_data)
    return train(model, tuple(f'c{k}' for k in range(5)), tmp_path_factory.mktemp('out'))


def edited(model: tuple[str, str], folder: Path, *edits: tuple[str, str]) -> tuple[str, str]:
    """The model with another config."""
    text = Path(model[0]).read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    (folder / 'tested.py').write_text(text)
    return str(folder / 'tested.py'), model[1]


MEAN, STD = '[123.675, 116.28, 103.53]', '[58.395, 57.12, 57.375]'
RESIZE = "dict(type='Resize', scale=(56, 40), keep_ratio=True)"
ORDER = "('sky', 'road', 'tree', 'car')"
PLANTED = {
    'BGR': (('bgr_to_rgb=True', 'bgr_to_rgb=False'), 'channel order: BGR in this .*, RGB in the c'),
    'divided by 255 before': (
        (f'{RESIZE},', f"{RESIZE}, dict(type='Normalize', mean=[0] * 3, std=[255] * 3),"),
        r'steps of the test pipeline: .*Normalize\(mean=\[0, 0, 0\], std=\[255, 255',
    ),
    'wrong mean': ((MEAN, '[127.5, 127.5, 127.5]'), r'mean: \[127.5, .* \[123.675, 116.28'),
    'wrong std': ((STD, '[1., 1., 1.]'), r'std: \[1.0, 1.0, 1.0\] .* \[58.395, 57.12'),
    'wrong size': (('scale=(56, 40)', 'scale=(28, 20)'), r'Resize\(scale=\[28, 20\].*\[56, 40\]'),
    'stretched': (('keep_ratio=True', 'keep_ratio=False'), 'keep_ratio=False.*keep_ratio=True'),
    'no resize': ((RESIZE + ',', ''), r'LoadImageFromFile\(\) in this .* LoadImageFromFile\(\), R'),
    'labels one less': (
        ('reduce_zero_label=False', 'reduce_zero_label=True'),
        'reduce_zero_label: True in this .* False',
    ),
    'classes in another order': (
        (ORDER, "('road', 'sky', 'tree', 'car')"),
        "of the test data other ones than in training: 0 is 'road', was 'sky', 1 is 'sky'",
    ),
    'some of the classes': (
        (ORDER, "('sky', 'road')"),
        r'2 in the test data \(sky, road\), 4 in the head',
    ),
}


@pytest.mark.parametrize('name', PLANTED)
def test_planted_mistakes_stop_the_run(segmentor, tmp_path, name) -> None:
    edit, message = PLANTED[name]
    with pytest.raises(InputError, match=f'(?s){message}.*--ignore-mismatch'):
        run(edited(segmentor, tmp_path, edit), tmp_path)
    assert not (tmp_path / 'rows').exists()  # before anything is measured


@pytest.mark.slow
def test_planted_mistakes_stop_a_classifier(classifier, classification_data, tmp_path) -> None:
    data = tmp_path / classification_data.name
    for name, other in (('c0', 'd0'), ('c1', 'd1')):
        shutil.copytree(classification_data / name, data / other)
    for edit, message in (
        (('to_rgb=True', 'to_rgb=False'), 'channel order: BGR'),
        (('scale=40', 'scale=48'), r'ResizeEdge\(scale=48'),
        ((str(classification_data), str(data)), r'2 in the test data \(d0, d1\), 5 in the head'),
    ):
        with pytest.raises(InputError, match=message):
            run(edited(classifier, tmp_path, edit), tmp_path)
    for name in ('c2', 'c3', 'c4'):
        shutil.copytree(classification_data / name, data / name)
    with pytest.raises(InputError, match="0 is 'c2', was 'c0', 1 is 'c3', was 'c1'"):
        run(edited(classifier, tmp_path, edit), tmp_path)


def test_without_a_record_values_and_classes_are_looked_at(segmentor, tmp_path) -> None:
    """A checkpoint of weights alone, elsewhere."""
    weights = torch.load(segmentor[1], weights_only=False)['state_dict']
    (tmp_path / 'weights').mkdir()
    bare = str(tmp_path / 'weights' / 'bare.pth')
    torch.save(weights, bare)
    edits = [(MEAN, '[31000., 30000., 26000.]'), (STD, '[14900., 14600., 14600.]')]
    config = edited(segmentor, tmp_path, *edits, (ORDER, "('a', 'b', 'c')"))[0]
    with pytest.raises(InputError, match='(?s)classes: 3 .*4 in the head.*divided by 255 twice'):
        run((config, bare), tmp_path)
    content = run((segmentor[0], bare), tmp_path, *ONE, '--images', '2')
    assert content['about']['preprocessing'].startswith('not compared: neither the checkpoint')
    assert content['about']['clean score'].startswith('not compared: validation data of the ')


def test_labels_that_the_log_contradicts_stop_the_run(
    segmentor, segmentation_data, tmp_path
) -> None:
    """The config is that of the training; the files are not."""
    content = run(segmentor, tmp_path / 'same', *ONE)
    assert content['about']['clean score'].startswith('as logged: mIoU ')
    assert content['about']['preprocessing'].endswith('reduce_zero_label, classes)')
    data = tmp_path / segmentation_data.name
    shutil.copytree(segmentation_data, data)
    for file in (data / 'ann').iterdir():
        labels = np.asarray(Image.open(file))
        Image.fromarray(np.where(labels < 4, (labels + 1) % 4, labels)).save(file)
    model = edited(segmentor, tmp_path, (str(segmentation_data), str(data)))
    message = r'clean score: mIoU .* of all images, .*scalars.json, step 1 \(0.50 points'
    with pytest.raises(InputError, match=message):
        run(model, tmp_path, *ONE)
    (rows,) = (tmp_path / 'rows').iterdir()
    assert [file.name for file in rows.glob('*-1.json')] == []  # nothing but the clean score
    about = run(model, tmp_path, *ONE, '--ignore-mismatch')['about']
    assert about['clean score'].startswith('DIFFERS from the log: mIoU ')
    assert 'DIFFERS from training (--ignore-mismatch): clean score: ' in about['preprocessing']


def pixels(*right: int) -> Scores:
    """Images of 100 pixels of two classes, of which so many are right, in equal parts."""
    half = np.array(right)[:, None].repeat(2, 1) / 2
    return Scores(half, 100 - half)  # a wrong pixel is in two unions


def labels(*right: int) -> Scores:
    values = np.array(right, float)[:, None]
    return Scores(values, np.ones_like(values), np.arange(len(right)) % 2)


def check(scores: Scores, is_all: bool | None, **logged: float) -> tuple[bool, str]:
    names = {name.replace('top1', 'accuracy/top1'): value for name, value in logged.items()}
    problems, line = check_score(scores, is_all, Training(scores=names, log='LOG'))
    assert line.startswith('DIFFERS') == bool(problems)
    return bool(problems), line


def test_the_score_of_all_images_is_that_of_the_log() -> None:
    half = pixels(50, 50)  # mIoU 1/3, accuracy 1/2
    assert check(half, True, mIoU=33.8)[0] is False
    differs, line = check(half, True, mIoU=33.9, aAcc=50)
    assert differs and 'mIoU 33.33 of all images, 33.90 in LOG (0.50 points' in line
    assert check(labels(1, 0, 1, 0), True, top1=25)[0] is False  # one image
    assert check(labels(1, 0, 1, 0), True, top1=24)[0] is True


def test_some_images_differ_by_their_spread() -> None:
    some = pixels(*[40, 60] * 50)  # the mean of 100 has an error of 1 point
    assert check(some, False, aAcc=53.9, mIoU=0)[0] is False
    differs, line = check(some, False, aAcc=55.5)
    assert differs and 'aAcc 50.00 of 100 images, 55.50 in LOG' in line
    right = labels(*[1] * 25)  # no spread, but 0.9 ** 25 is 7 %
    assert check(right, False, top1=90)[0] is False
    assert check(right, False, top1=50)[0] is True


def test_what_is_not_compared_says_why() -> None:
    assert check(pixels(90, 90), False, mIoU=90)[1].startswith('not compared: LOG has no aAcc')
    line = check(pixels(40, 40), None, mIoU=90)[1]
    assert line.startswith('not compared: validation data') and 'no better than one class' in line
    assert 'no better' in check(labels(1, 0, 0, 1), None)[1]
    assert 'no better' not in check(labels(1, 1, 0, 1), None)[1]


def test_the_same_data_may_lie_elsewhere() -> None:
    def cfg(root, **options):
        dataset = dict(type='A', data_root=root, data_prefix=dict(img=f'{root}/val'), **options)
        return {name: dict(dataset=dataset) for name in ('test_dataloader', 'val_dataloader')}

    assert is_same_data(cfg('/a/set', pipeline=[]), cfg('/b/c/set/', metainfo=1))
    assert not is_same_data(cfg('/a/set'), cfg('/a/other'))
    assert not is_same_data(cfg('/a/set', ann_file='x'), cfg('/a/set', ann_file='y'))
    assert not is_same_data(cfg('/a/set'), {}) and not is_same_data({}, {})


def test_the_log_is_that_of_the_checkpoint(tmp_path) -> None:
    file = tmp_path / 'a.pth'

    def logged(hub=None, by_epoch=True, **meta) -> tuple[dict, str]:
        cfg = (
            f'model = dict(a=1)\ndefault_hooks = dict(logger=dict(log_metric_by_epoch={by_epoch}))'
        )
        torch.save(dict(meta=dict(cfg=cfg, **meta), message_hub=hub or {}), file)
        training = read_training(str(file), 'x')
        return training.scores, training.log

    write_log(tmp_path, dict(mIoU=1.5, time=3, step=1), dict(mIoU=2.5, data_time=3, step=7))
    log = str(tmp_path / '20260101_000000' / 'vis_data' / 'scalars.json')
    assert logged(epoch=1, iter=7) == ({'mIoU': 1.5, 'time': 3, 'step': 1}, f'{log}, step 1')
    assert logged(epoch=1, iter=7, by_epoch=False)[0]['mIoU'] == 2.5
    assert logged(epoch=2, iter=7) == ({}, log)
    other = tmp_path / '20260202_000000' / 'vis_data'
    other.mkdir(parents=True)
    (other / 'scalars.json').write_text('{"mIoU": 9, "step": 1}\n{"broken\n')
    assert 'mIoU' not in logged(epoch=1)[0]  # which of the two?
    assert logged(epoch=1, experiment_name='x_20260202_000000')[0]['mIoU'] == 9


def test_the_best_checkpoint_has_its_score(tmp_path) -> None:
    from mmengine.logging import HistoryBuffer

    scalars = {
        'val/mIoU': HistoryBuffer([3.0, 4.0], [1, 1]),
        'train/loss': HistoryBuffer([1.0], [1]),
    }
    hub = dict(runtime_info=dict(best_ckpt='/elsewhere/best_mIoU.pth'), log_scalars=scalars)
    for name, expected in (('best_mIoU.pth', dict(mIoU=4.0)), ('epoch_2.pth', {})):
        torch.save(dict(state_dict={}, message_hub=hub), tmp_path / name)
        assert read_training(str(tmp_path / name), 'x').scores == expected


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['CustomDataset', 'ImageNet'])
def test_200_classes_that_nobody_masks_are_refused(make_model, tmp_path, kind) -> None:
    """timm#2456: the labels 0 to 199 of such a folder are no classes of ImageNet."""
    from mmvars.datasets.imagenet import imagenet_wnids

    pixels = np.random.default_rng(0).integers(0, 255, (40, 56, 3)).astype(np.uint8)
    for wnid in imagenet_wnids()[::5]:
        (tmp_path / 'data' / wnid).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / 'data' / wnid / '0.JPEG')
    text = (CLASSIFICATION + RESNET).replace('num_classes=5', 'num_classes=1000')
    options = "split='', " * (kind == 'ImageNet')
    text = text.replace("type='CustomDataset', ", f"type='{kind}', {options}")
    with pytest.raises(InputError, match='200.*1000') as error:
        run(make_model(text, tmp_path / 'data'), tmp_path)
    assert ('masks the others' in str(error.value)) == (kind == 'CustomDataset')
