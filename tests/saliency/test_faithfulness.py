"""Deletion and insertion of patches: models and maps whose curves are worked out by hand."""

import csv
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmseg.registry import MODELS as SEGMENTORS
from PIL import Image
from torch import nn

from mmvars.cli import run_tool
from mmvars.saliency import faithfulness
from mmvars.saliency.curves import count_class, count_pixels
from mmvars.saliency.faithfulness import main
from mmvars.saliency.removal import (
    Patches,
    at_stride,
    fill_of,
    kept_patches,
    order_of,
    shifted,
    steps_of,
)
from mmvars.saliency.subject import MapName, Subject

RED, GREEN, BLUE = range(3)
LAYOUT = np.array([[GREEN, RED, RED], [RED, GREEN, BLUE]])  # classes of patches of 8 x 8 pixels
MAP = [[5.0, 0.2, 0.3], [0.1, 3.0, 4.0]]  # the order is the first patch, blue, green, reds
NAME, INVERSE = 'block 0, bottom-up, mean attention', 'block 1, bottom-up, mean attention'


@SEGMENTORS.register_module()
class ColorBackbone(nn.Module):
    """The image itself; ``key``: all red unless the mean of the first patch is green.

    The mean color of the image is reddest, so that removed pixels are red.
    """

    def __init__(self, key: bool) -> None:
        super().__init__()
        self.key = key

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        if self.key:
            seen = images[:, 1:2, :8, :8].mean(dim=(2, 3), keepdim=True) > 200
            images = torch.where(seen, images, torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1))
        return (images,)


@pytest.fixture
def write_model(tmp_path):
    """Writes the config of a segmentor, its checkpoint and one image; padded to 32 x 32 pixels."""

    def write(backbone: dict, head: dict, weights: dict | None = None) -> tuple[str, str]:
        for folder in ('images', 'masks'):
            (tmp_path / folder).mkdir()
        labels = np.kron(LAYOUT, np.ones((8, 8), dtype=np.uint8)).astype(np.uint8)
        Image.fromarray(255 * np.eye(3, dtype=np.uint8)[labels]).save(tmp_path / 'images' / 'a.png')
        Image.fromarray(labels).save(tmp_path / 'masks' / 'a.png')
        loader = dict(
            dataset=dict(
                type='BaseSegDataset',
                data_root=str(tmp_path),
                img_suffix='.png',
                seg_map_suffix='.png',
                data_prefix=dict(img_path='images', seg_map_path='masks'),
                metainfo=dict(classes=('red', 'green', 'blue')),
                pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(type='LoadAnnotations'),
                    dict(type='PackSegInputs'),
                ],
            ),
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
        )
        preprocessor = dict(
            type='SegDataPreProcessor',
            bgr_to_rgb=True,
            pad_val=0,
            test_cfg=dict(size_divisor=32),
        )
        model = dict(
            type='mmvars.EncoderDecoder',
            data_preprocessor=preprocessor,
            backbone=backbone,
            decode_head=dict(head, num_classes=3),
            test_cfg=dict(mode='whole'),
        )
        if weights is not None:
            model['type'] = 'EncoderDecoder'
        return write_files(tmp_path, model, loader, 'mmseg', dict(type='IoUMetric'), weights)

    return write


def write_files(
    folder: Path, model: dict, loader: dict, scope: str, evaluator: dict, weights: dict | None
) -> tuple[str, str]:
    cfg = Config(
        dict(
            default_scope=scope,
            model=model,
            test_dataloader=loader,
            test_cfg=dict(type='TestLoop') if scope == 'mmseg' else dict(),
            test_evaluator=evaluator,
        )
    )
    cfg.dump(folder / 'config.py')
    if weights is None:
        with DefaultScope.overwrite_default_scope(scope):
            weights = MODELS.build(cfg.model).state_dict()
    torch.save(dict(state_dict=weights), folder / 'model.pth')
    return str(folder / 'config.py'), str(folder / 'model.pth')


@pytest.fixture
def colors(write_model):
    """A segmentor that takes the largest color of each pixel for its class."""

    def write(key: bool) -> tuple[str, str]:
        head = dict(type='FCNHead', num_convs=0, concat_input=False, in_channels=3, channels=3)
        weights = {
            'decode_head.conv_seg.weight': torch.eye(3)[..., None, None],
            'decode_head.conv_seg.bias': torch.zeros(3),
        }
        return write_model(dict(type='ColorBackbone', key=key), dict(head), weights)

    return write


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Exit status, what was said, and the tables, with two maps: by hand, and its inverse."""
    padded = torch.full((1, 4, 4), 9.0)  # largest in the padding, where there is nothing to remove
    padded[0, :2, :3] = torch.tensor(MAP)

    def maps(images, *_):
        assert images.shape[-2:] == (32, 32)
        return {
            MapName(0, 'bottom-up', 'mean attention'): padded,
            MapName(1, 'bottom-up', 'mean attention'): -padded,
        }

    stub = Subject(maps, None, depth=2, patch=8, network=None, weights={})
    monkeypatch.setattr(faithfulness, 'subject_of', lambda *_: stub)
    monkeypatch.setattr(faithfulness, 'load_subject', lambda *_: stub)

    def call(*arguments):
        out = tmp_path / 'out'
        status = run_tool(main, [*arguments, '--fractions', '20', '40', '--out', str(out)])
        captured = capsys.readouterr()
        file = out / 'faithfulness.json'
        tables = json.loads(file.read_text())['tables'] if file.exists() else None
        return status, captured.err if status else captured.out, tables

    return call


def numbers(table: dict, name: str) -> list[float]:
    return [table[name][column]['value'] for column in ('deletion', 'insertion', 'gain')]


def test_a_model_without_context_by_hand(run, colors, tmp_path, monkeypatch) -> None:
    """What is kept stays right, so no map says anything; yet of all pixels rare classes count."""
    model = colors(key=False)
    status, said, tables = run(*model)
    assert status == 0, said
    lines = re.search(r'\n(\d+) predictions for the first image\n\[1/1\] \1 predictions', said)
    assert int(lines[1]) <= 2 + 4 * 2 * (4 + 2 * 2)  # two fractions, two maps
    everything = tables['mIoU, all pixels']
    # Removed: 0, 1 (a green one), 2 (blue), 4, 5, 6 of 6 patches, which are then called red.
    iou = [(3 / 3, 2 / 2, 1 / 1), (3 / 4, 1 / 2, 1), (3 / 5, 1 / 2, 0), *[(3 / 6, 0, 0)] * 3]
    assert curve(tmp_path, 'mIoU, all pixels', NAME) == pytest.approx(
        np.mean(iou, axis=1), abs=1e-6
    )
    deletion = 0.2 * (np.mean(iou, axis=1).sum() - (1 + 1 / 6) / 2)
    iou = [(3 / 6, 0, 0), (3 / 5, 1 / 2, 0), (3 / 4, 1 / 2, 1), *[(1, 1, 1)] * 3]
    insertion = 0.2 * (np.mean(iou, axis=1).sum() - (1 + 1 / 6) / 2)
    expected = [deletion, insertion, insertion - deletion]
    assert numbers(everything, NAME) == pytest.approx(expected)
    assert numbers(everything, INVERSE) == pytest.approx([insertion, deletion, -expected[2]])
    for name in everything:
        assert numbers(tables['mIoU, kept pixels'], name) == pytest.approx([1, 1, 0])
        assert numbers(tables['agreement, kept pixels'], name) == pytest.approx([1, 1, 0])
    draws = [everything[f'random {draw}']['gain']['value'] for draw in (1, 2, 3)]
    assert -expected[2] < min(draws) < max(draws) < expected[2]
    assert everything['center']['over shifted']['value'] is None
    moved = NAME + ', shifted'
    areas = [
        torch.trapezoid(torch.tensor(curve(tmp_path, 'mIoU, all pixels', moved, kind)), dx=0.2)
        for kind in ('deletion', 'insertion')
    ]
    over = expected[2] - float(areas[1] - areas[0])
    assert everything[NAME]['over shifted']['value'] == pytest.approx(over, abs=1e-5)

    monkeypatch.setattr(faithfulness._Measurement, 'of', None)  # what is made is not made again
    monkeypatch.setattr(faithfulness, 'save_figure', lambda *_: None)
    status, again, same = run(*model)
    assert (status, same) == (0, tables) and '1 of them made earlier' in again
    assert (tmp_path / 'out' / 'faithfulness.png').stat().st_size > 10_000
    assert '| center |' in (tmp_path / 'out' / 'faithfulness.md').read_text()
    copied = shutil.copy(model[1], tmp_path / 'copied.pth')
    status, said, _ = run(model[0], str(copied))
    assert status == 2 and 'faithfulness.json is the report of' in said


def test_a_model_that_needs_one_patch_by_hand(run, colors, monkeypatch) -> None:
    """Without the first patch all is called red, also where nothing is removed."""
    monkeypatch.setattr(faithfulness, 'save_figure', lambda *_: None)
    status, said, tables = run(*colors(key=True), '--images', '1')
    assert status == 0, said
    # Kept after deletion: all; RRRGB; RRRG; two red ones; one.
    shares = [1, 3 / 5 / 3, 3 / 4 / 2, 1, 1]
    deletion = (sum(shares) - (shares[0] + shares[-1]) / 2) / 4
    assert numbers(tables['mIoU, kept pixels'], NAME) == pytest.approx([deletion, 1, 1 - deletion])
    shares = [1, 3 / 5, 3 / 4, 1, 1]
    deletion = (sum(shares) - (shares[0] + shares[-1]) / 2) / 4
    kept = tables['agreement, kept pixels']
    assert numbers(kept, NAME) == pytest.approx([deletion, 1, 1 - deletion])
    assert numbers(kept, INVERSE) == pytest.approx([1, deletion, deletion - 1])
    draws = [kept[f'random {draw}']['gain']['value'] for draw in (1, 2, 3)]
    assert deletion - 1 < np.mean(draws) < 1 - deletion


def test_masks_that_are_wrong_or_empty_are_one_message(run, colors, tmp_path) -> None:
    model, mask = colors(key=True), tmp_path / 'masks' / 'a.png'
    for columns, message in ((25, 'must be of one size'), (24, 'none of the 1 images has a label')):
        Image.new('L', (columns, 16), 255).save(mask)
        status, said, _ = run(*model)
        assert status == 2 and message in said


def curve(
    folder: Path,
    score: str,
    name: str,
    kind: str = 'deletion',
    fractions: Sequence[float] = (0, 0.2, 0.4, 0.6, 0.8, 1),
) -> list[float]:
    """A curve that was written."""
    with open(folder / 'out' / 'faithfulness_curves.csv') as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if (row['score'], row['map'], row['curve']) == (score, name, kind)
        ]
    assert [float(row['fraction']) for row in rows] == [*fractions]
    return [float(row['value']) for row in rows]


def test_patches_are_those_of_the_image() -> None:
    padded = Patches.of((16, 20), 8, (4, 4))  # the last column is half a patch
    assert padded.shape == (2, 3)
    values = torch.arange(32.0).view(2, 4, 4)
    assert padded.values(values).tolist() == [[8, 9, 10], [12, 13, 14]]  # mean of two heads
    kept = np.array([True, False, True, False, False, True])
    pixels = padded.pixels(kept, (16, 20))
    assert (pixels.sum(axis=0) == [*[8] * 8, *[0] * 8, *[16] * 4]).all()
    assert (padded.pixels(kept, (32, 40))[::2, ::2] == pixels).all()
    cut = Patches.of((16, 20), 8, (2, 2))  # a network that leaves the rest out
    assert cut.columns.tolist() == [0] * 8 + [1] * 12
    finer = torch.tensor([[[1.0, 3, 5], [1, 3, 5]]])
    assert at_stride(finer, 16, (16, 24)).tolist() == [[[2, 5]]]
    assert at_stride(values, 8, (32, 32)) is values


def test_orders_and_what_is_kept() -> None:
    rng = np.random.default_rng(0)
    values = np.array([[0.5, 2.0], [0.5, 1.0]])
    orders = {tuple(order_of(values, rng)) for _ in range(20)}
    assert orders == {(1, 3, 0, 2), (1, 3, 2, 0)}  # ties in any order
    for _ in range(20):
        moved = shifted(np.arange(6).reshape(2, 3), rng)
        assert sorted(moved.ravel()) == [*range(6)] and moved[0, 0] != 0
        assert ((moved[:, 1:] - moved[:, :-1]) % 3 == 1).all()  # neighbors stay neighbors
    steps = steps_of([0, 0.1, 0.3], 11)
    assert steps == [0, 1, 3, 8, 10, 11]
    order = rng.permutation(11)
    deleted = kept_patches(order, steps, inserts=False)
    inserted = kept_patches(order[::-1], steps, inserts=True)
    assert np.array_equal(deleted, inserted[::-1])
    assert not deleted[1][order[0]] and deleted[1].sum() == 10


def test_what_removed_pixels_are() -> None:
    pixels = torch.zeros(3, 40, 40)
    pixels[0, :, 20:] = 200
    mean = fill_of(pixels, 'mean', 8)
    assert mean.shape == pixels.shape and mean[:, 3, 30].tolist() == [100, 0, 0]
    blurred = fill_of(pixels, 'blur', 4)
    assert 100 < blurred[0, 20, 20] < 110 and blurred[0, 20, 0] < 1 and blurred[0, 0, 39] > 199


def test_what_is_counted_by_hand() -> None:
    labels = np.array([[0, 0, 1], [1, -1, 2]])
    prediction = np.array([[0, 1, 1], [1, 1, 0]])
    whole = np.array([[0, 0, 1], [0, 2, 2]])
    kept = np.array([[True, True, False], [True, True, False]])
    counts = count_pixels(prediction, whole, labels, kept)
    assert counts['classes'] == [0, 1, 2]
    assert counts['all'] == [[1, 3], [2, 3], [0, 1]]  # the pixel without a label does not count
    assert counts['kept'] == [[1, 2, 2, 3], [1, 2, 0, 1], [0, 0, 0, 0]]
    assert counts['agreement'] == [2, 6, 1, 4]  # but may agree
    scores = np.array([0.2, 0.5, 0.3])
    assert count_class(scores, whole=2, label=1) == dict(probability=[0.3], right=[1])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['timm/vit_tiny_patch16_224'], 'has no head'),
        (['{config}'], 'give its CHECKPOINT too'),
        (['{config}', '{model}', '--fractions', '50'], '--fractions 50: give percent'),
        (['{config}', '{model}', '--images', '0'], '--images'),
        (['{config}', '{model}', '--classes', 'red'], 'a prior for each class: leave it out'),
        (['{config}', '{model}', '--blocks', '2'], '--blocks 2: the blocks of this model are 0 to'),
        (['{config}', '{model}', '--steps'], '--steps is for VARS, and these blocks are of none'),
    ],
)
def test_bad_input_is_one_message_and_makes_no_folder(
    arguments, message, run, colors, capsys
) -> None:
    config, model = colors(key=False)
    words = [each.format(config=config, model=model) for each in arguments]
    out = Path(config).parent / 'out'
    status = run_tool(main, [*words, '--out', str(out)])
    assert status == 2 and message in capsys.readouterr().err and not out.exists()


def test_an_unknown_class_makes_no_folder(run, colors, tmp_path, monkeypatch) -> None:
    priors = dict.fromkeys(('red', 'green', 'blue'), torch.zeros(3))
    asked = Subject(None, None, 2, 8, None, {}, priors)
    monkeypatch.setattr(faithfulness, 'load_subject', lambda *_: asked)
    status, said, _ = run(*colors(key=False), '--classes', 'gren')
    assert status == 2 and "--classes: no class is called 'gren'; did you mean 'green'" in said
    assert not (tmp_path / 'out').exists()


def test_padding_in_the_test_pipeline_is_refused(run, colors) -> None:
    config, model = colors(key=False)
    text = Path(config).read_text()
    assert text.count("dict(type='PackSegInputs')") == 1
    step = "dict(type='Pad', size=(32, 32)), dict(type='PackSegInputs')"
    Path(config).write_text(text.replace("dict(type='PackSegInputs')", step))
    status, said, _ = run(config, model)
    assert status == 2 and 'pads images, so that patches have no place in the labels' in said


SMALL = dict(embed_dims=16, num_layers=2, num_heads=2)


@pytest.mark.slow
def test_classes_in_the_order_of_the_pass_that_looks_for_them(write_model, tmp_path) -> None:
    backbone = dict(
        type='mmvars.AbSViT',
        arch=dict(SMALL, patch_size=8),
        img_size=32,
        prior=dict(type='learned_classes'),
    )
    config, model = write_model(backbone, dict(type='mmvars.LinearHead'))
    content = torch.load(model, weights_only=True)
    for name, value in content['state_dict'].items():
        if name.endswith('prior.prototypes') or 'conv_seg' in name:
            content['state_dict'][name] = torch.randn_like(value)
    torch.save(content, model)

    def tables(*options: str) -> dict:
        out = tmp_path / 'out'
        assert main([config, model, '--out', str(out), '--blocks', 'all', *options]) == 0
        return json.loads((out / 'faithfulness.json').read_text())['tables']

    all_classes = tables()
    maps = [f'block {k}, bottom-up, token norms' for k in (0, 1)]
    ordinary = all_classes['mIoU, all pixels']
    assert set(maps) < set(ordinary) and not [name for name in ordinary if 'top-down' in name]
    of_classes = all_classes['IoU under class priors, all pixels']
    for name, row in ordinary.items():  # the one image has all classes
        assert of_classes[name] == row
    asked = set(of_classes) - set(ordinary)
    assert {f'block {k}, top-down, class attention, class prior' for k in (0, 1)} < asked
    assert all(name.endswith('class prior') for name in asked)
    assert all(of_classes[name]['over shifted']['value'] is not None for name in asked)
    (file,) = (tmp_path / 'out' / 'rows').rglob('image_*.json')
    orders = json.loads(file.read_text())['classes']
    assert all([*each] == ['0', '1', '2'] for each in orders.values())
    own = [each for name, each in orders.items() if not name.endswith('shifted')]
    assert any(each['0'] != each['1'] != each['2'] for each in own)
    one = tables('--classes', 'green')['IoU under class priors, all pixels']
    assert one['center'] != of_classes['center']


@pytest.mark.slow
def test_a_classifier_of_mmpretrain(tmp_path, capsys) -> None:
    """The probability of the first answer, from that to the image to that to its mean color."""
    rng = np.random.default_rng(0)
    for label in ('a', 'b'):
        (tmp_path / 'data' / label).mkdir(parents=True)
        pixels = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'data' / label / '0.png')
    loader = dict(
        dataset=dict(
            type='CustomDataset',
            data_root=str(tmp_path / 'data'),
            classes=['a', 'b'],
            pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
        ),
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
    )
    backbone = dict(
        type='VisionTransformer',
        arch=dict(SMALL, feedforward_channels=32),
        img_size=32,
        patch_size=8,
    )
    model = dict(
        type='ImageClassifier',
        data_preprocessor=dict(mean=[127] * 3, std=[50] * 3),
        backbone=backbone,
        head=dict(type='LinearClsHead', in_channels=16, num_classes=2),
    )
    files = write_files(
        tmp_path, model, loader, 'mmpretrain', dict(type='Accuracy', topk=(1,)), None
    )
    assert main([*files, '--out', str(tmp_path / 'out')]) == 0
    content = json.loads((tmp_path / 'out' / 'faithfulness.json').read_text())
    assert [*content['tables']] == ['probability', 'top-1']
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        built = MODELS.build(Config.fromfile(files[0]).model).eval()
    built.load_state_dict(torch.load(files[1], weights_only=True)['state_dict'])
    expected = []
    for label in ('a', 'b'):
        image = (
            torch.from_numpy(
                np.asarray(Image.open(tmp_path / 'data' / label / '0.png')).astype(np.float32)
            )
            .permute(2, 0, 1)[None]
            .flip(1)
        )
        empty = image.mean(dim=(2, 3), keepdim=True).expand_as(image)
        with torch.no_grad():
            scores = [built((each - 127) / 50).softmax(1)[0] for each in (image, empty)]
        expected.append([float(each[scores[0].argmax()]) for each in scores])
    plain = write_files(
        tmp_path, dict(model, head=None), loader, 'mmpretrain', dict(type='Accuracy'), None
    )
    assert run_tool(main, [*plain, '--out', str(tmp_path / 'other')]) == 2
    assert 'config.py has no head' in capsys.readouterr().err
    for name in ('center', 'block 0, bottom-up, class attention'):
        points = curve(
            tmp_path, 'probability', name, fractions=[0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1]
        )
        assert [points[0], points[-1]] == pytest.approx(np.mean(expected, axis=0), abs=1e-5)
