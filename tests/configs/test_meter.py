"""The configs of METER: what their names say, the released recipe, and that they build."""

import re
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import LinearLR, PolyLR
from mmengine.registry import DATASETS, LOOPS, METRICS, MODELS, DefaultScope
from PIL import Image

from mmvars.engine.options import apply_options, parse_cfg_options
from mmvars.engine.test import main as run_test
from mmvars.engine.train import main as run_train
from mmvars.errors import InputError

FOLDER = Path(__file__).parents[2] / 'configs' / 'meter'
NAME = re.compile(
    r'meter-(?P<model>absvit|vit)-b16(-(?P<design>perceiver-io|feedback|mask-attention))?'
    r'(_(?P<gpus>\d+)xb(?P<batch>\d+)-(?P<epochs>\d+)e)?_(?P<data>vqav2|flickr30k)(-(?P<kind>.*))?'
)
FULL = [path for path in sorted(FOLDER.glob('*.py')) if 'mini-' not in path.name]
MINI = [path for path in sorted(FOLDER.glob('*.py')) if 'mini-' in path.name]


@cache
def _load(path: Path) -> Config:
    return Config.fromfile(str(path))


def _names() -> list[tuple[Config, dict]]:
    return [(_load(path), NAME.fullmatch(path.stem).groupdict()) for path in FULL]


def test_every_row_of_the_table_has_its_configs():
    rows = {(n['model'], n['design']) for _, n in _names()}
    assert len(rows) == 5
    kinds = [('vqav2', None), ('flickr30k', 'finetuned'), ('flickr30k', 'zero-shot')]
    found = [(n['model'], n['design'], (n['data'], n['kind'])) for _, n in _names()]
    expected = [(*row, kind) for row in rows for kind in kinds]
    assert sorted(map(str, found)) == sorted(
        map(str, [*expected, ('absvit', None, ('vqav2', 'train'))])
    )
    assert len(MINI) == 3


def test_backbones_are_those_of_the_names():
    for cfg, name in _names():
        backbone, vqa = cfg.model.backbone, name['data'] == 'vqav2'
        plain = name['model'] == 'vit' and name['design'] is None
        assert backbone.type == ('mmvars.ViT' if plain else 'mmvars.AbSViT')
        assert backbone.get('design') == (name['design'] and name['design'].replace('-', '_'))
        asks = not plain and name['design'] != 'feedback'
        assert backbone.get('prior') == (dict(type='text', text_dim=768) if asks else None)
        released = name['model'] == 'absvit'  # m z projected on the prior, times 5
        assert (backbone.get('modulation'), backbone.get('alpha')) == (
            ('project', 5.0) if released else (None, None)
        )
        weight = 0.3 if released and vqa else None  # the release has it in VQA alone
        assert backbone.get('reconstruction_loss_weight') == weight
        text = cfg.model.text_backbone
        assert (text.max_length, text.text_vector) == ((50, 'padded_mean') if vqa else (40, 'eos'))
        assert cfg.model.head == (
            dict(type='mmvars.VQAHead', num_answers=3129)
            if vqa
            else dict(type='mmvars.RetrievalHead')
        )


def test_the_recipe_is_the_released_one():
    for cfg, name in _names():
        if name['kind'] == 'zero-shot':
            assert [cfg.get(f'{part}_dataloader') for part in ('train', 'val')] == [None, None]
            assert cfg.test_dataloader.dataset.split == 'test'
            continue
        vqa, wrapper = name['data'] == 'vqav2', cfg.optim_wrapper
        assert cfg.auto_scale_lr.base_batch_size == int(name['gpus']) * int(name['batch'])
        assert cfg.train_dataloader.batch_size == int(name['batch'])
        assert wrapper.accumulative_counts * cfg.auto_scale_lr.base_batch_size == (
            432 if vqa else 512
        )
        assert cfg.train_cfg.max_epochs == int(name['epochs']) == 10
        optimizer = dict(wrapper.optimizer)
        assert optimizer.pop('type') == 'AdamW'
        assert optimizer == dict(lr=1e-5, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.01)
        assert wrapper.paramwise_cfg == dict(
            head_lr_mult=50 if vqa else 5, fusion_lr_mult=10, top_down_lr_mult=3
        )
        assert wrapper.type == 'OptimWrapper'  # float32


def test_the_rate_rises_for_a_tenth_and_falls_to_zero():
    cfg, length = _load(FULL[0]), 20  # steps an epoch
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    kinds, rates = dict(LinearLR=LinearLR, PolyLR=PolyLR), []
    schedules = [
        kinds[s.pop('type')].build_iter_from_epoch(optimizer, epoch_length=length, **s)
        for s in map(dict, cfg.param_scheduler)
        if s.pop('convert_to_iter_based')
    ]
    for _ in range(10 * length):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for schedule in schedules:
            schedule.step()
    steps = np.arange(10 * length)
    released = np.minimum(steps / length, (10 * length - steps) / (9 * length))
    np.testing.assert_allclose(rates, released, atol=1.1 / length)


def test_splits_are_the_released_ones():
    for cfg, name in _names():
        if name['kind'] == 'zero-shot':
            continue
        train, val, test = (
            cfg[f'{split}_dataloader'].dataset for split in ('train', 'val', 'test')
        )
        if name['data'] == 'flickr30k':
            assert tuple(train.split) == ('train', 'val') and train.num_negatives == 15
            assert (val.split, test.split, val.test_mode) == ('test', 'test', True)
            continue
        parts = [train] if name['kind'] == 'train' else train.datasets
        folders = [part.data_prefix for part in parts]
        assert folders == (['train2014'] if name['kind'] else ['train2014', 'val2014'])
        assert not any(part.get('test_mode') for part in parts)
        assert (val.data_prefix, val.test_mode, test.test_mode) == ('val2014', True, True)
        assert test.data_prefix == ('val2014' if name['kind'] else 'test2015')
        assert bool(test.get('ann_file')) == (name['kind'] == 'train')
        for part in (*parts, val):
            year = part.data_prefix
            assert year in part.question_file and year in part.ann_file


def test_parts_are_registered():
    for path in FULL + MINI:
        cfg = _load(path)
        for registry, entries in (
            (DATASETS, [cfg.test_dataloader.dataset]),
            (METRICS, [cfg.test_evaluator]),
            (LOOPS, [cfg.test_cfg] * ('type' in cfg.test_cfg)),
            (MODELS, [cfg.model, cfg.model.backbone, cfg.model.text_backbone, cfg.model.head]),
        ):
            with registry.switch_scope_and_registry(None) as root:
                assert all(root.get(entry['type']) is not None for entry in entries), path.name


@pytest.mark.parametrize(
    'path', [p for p in FULL if p.stem.endswith('vqav2')], ids=lambda p: p.stem
)
def test_models_build(path, text_encoder):
    cfg = _load(path).copy()
    cfg.model.text_backbone.update(name=str(text_encoder), pretrained=False)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert len(model.fusion.image_layers) == len(model.fusion.text_layers) == 6
    assert model.head.num_answers == 3129


@pytest.mark.parametrize('data', ['vqav2', 'flickr30k-finetuned'])
def test_pipelines_prepare_as_released(tmp_path, data):
    (path,) = FOLDER.glob(f'meter-vit-b16_*_{data}.py')
    cfg = _load(path)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    given = dict(img_path=str(tmp_path / 'a.png'), question='is it?', text=['a', 'b'])
    given |= dict(gt_score=np.ones(5, dtype=np.float32), question_id=3, gt_text_id=[0])
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        for _ in range(20):  # all operations of RandAugment
            packed = Compose(cfg.train_pipeline)(dict(given))
        tested = Compose(cfg.test_pipeline)(dict(given))
    assert packed['inputs'].shape == tested['inputs'].shape == (3, 224, 224)
    short = Image.fromarray(pixels).resize((373, 224), Image.Resampling.BICUBIC)
    middle = torch.from_numpy(np.asarray(short)[:, 74:298, ::-1].copy()).permute(2, 0, 1)
    assert (tested['inputs'].int() - middle.int()).abs().float().mean() < 1
    sample = packed['data_samples']
    if data == 'vqav2':
        assert (sample.question, sample.question_id) == ('is it?', 3)
        assert sample.gt_score.tolist() == [1] * 5
    else:
        assert (sample.text, sample.gt_text_id) == (['a', 'b'], [0])


def test_shorthands_reach_all_parts():
    cfg = deepcopy(_load(FULL[0]))
    apply_options(cfg, dict(data_root='/d', crop_size=384))
    sets = [*cfg.train_dataloader.dataset.get('datasets', [cfg.train_dataloader.dataset])]
    sets += [cfg.val_dataloader.dataset, cfg.test_dataloader.dataset]
    for dataset in sets:
        assert dataset.data_root == '/d'
        resize, crop = dataset.pipeline[-3:-1]
        assert (resize.scale, crop.crop_size) == (384, 384)
    assert cfg.model.backbone.img_size == 384


@pytest.fixture(scope='module')
def text_encoder(tmp_path_factory) -> Path:
    """As wide as RoBERTa-base, of one layer."""
    pytest.importorskip('transformers')
    tools = str(FOLDER.parents[1] / 'tools' / 'dataset_converters')
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tools)
        from tiny_text_encoder import write_text_encoder
    folder = tmp_path_factory.mktemp('text') / 'encoder'
    write_text_encoder(['is it red?'], folder, hidden_size=768, num_layers=1, num_heads=12)
    return folder


def _options() -> list[str]:
    """The options that the README shows."""
    text = (FOLDER / 'README.md').read_text()
    options = []
    for row in re.findall(r'^\| [^|]* \| (`[^|]*=[^|]*`) \|$', text, re.MULTILINE):
        for code in re.findall(r'`([^`]+)`', row):
            options.append(code if '=' in code else re.sub(r'=.*', f'={code}', options[-1]))
    return options


@pytest.mark.parametrize('options', _options())
def test_options_of_the_readme_apply_and_build(options, text_encoder):
    cfg = deepcopy(_load(FOLDER / 'meter-absvit-b16_6xb24-10e_vqav2.py'))
    words = parse_cfg_options(options.split())
    apply_options(cfg, words)
    for key, value in words.items():
        node = cfg
        for name in key.removeprefix('+').split('.'):
            node = node[name]
        assert node == value
    cfg.model.text_backbone.update(name=str(text_encoder), pretrained=False)
    with torch.device('meta'):
        MODELS.build(cfg.model)


def _rivals() -> list[tuple[str, str, str]]:
    """Config, work folder and options of the trainings on ImageNet that the README shows."""
    text = (FOLDER / 'README.md').read_text()
    pattern = r'train (absvit/\S+) .* --work-dir work_dirs/(\S+) --cfg-options (.+)'
    return re.findall(pattern, text)


def test_all_starting_checkpoints_are_explained():
    text = (FOLDER / 'README.md').read_text().replace('$rival', '{}')
    made = {*re.findall(r'checkpoints/[\w-]+\.pth', text)}
    made |= {f'checkpoints/{name}-b16_in1k.pth' for _, name, _ in _rivals()}
    starts = (_load(path).model.backbone.get('init_cfg') for path in FULL)
    needed = {start.checkpoint for start in starts if start}
    assert needed == made and len(needed) == 5
    assert 'checkpoints/{}-b16_in1k.pth' in text


@pytest.mark.parametrize(('config', 'name', 'options'), _rivals())
def test_a_run_on_imagenet_starts_a_rival(tmp_path, config, name, options):
    """As it is, at a small size: every tensor of trunk and feedback."""
    cfg = deepcopy(_load(FOLDER.parent / f'{config}.py'))
    apply_options(cfg, parse_cfg_options(options.split()))
    assert cfg.model.backbone.arch == 'base'
    small = dict(embed_dims=24, num_layers=2, num_heads=2)
    cfg.model.backbone.update(arch=small, img_size=32)
    trained = MODELS.build(cfg.model).state_dict()
    torch.save(dict(state_dict=trained, meta={}), tmp_path / 'epoch_300.pth')
    meter = deepcopy(_load(FOLDER / f'meter-vit-b16-{name}_6xb24-10e_vqav2.py').model.backbone)
    meter.update(arch=small, img_size=32)
    meter.init_cfg.update(checkpoint=str(tmp_path / 'epoch_300.pth'))
    backbone = MODELS.build(meter)
    backbone.init_weights()
    for key, value in backbone.state_dict().items():
        if 'prior.projection' not in key:
            assert torch.equal(value, trained[f'backbone.{key}']), key


VQA, RETRIEVAL = 'meter-vit-b16_6xb24-10e_vqav2.py', 'meter-vit-b16_flickr30k-zero-shot.py'


@pytest.mark.parametrize(
    'name, words, message',
    [
        (VQA, ['--tta'], 'left and right'),
        (VQA, ['--show-dir', 'x'], 'mmvars ask'),
        (VQA, ['--out', 'x.pkl'], r'go to a \.json file'),
        (RETRIEVAL, ['--out', 'x.json'], r'of this model .* \.pkl .*--out-item metrics'),
    ],
)
def test_what_a_test_of_texts_cannot_do_is_refused(tmp_path, name, words, message):
    checkpoint = tmp_path / 'a.pth'
    torch.save(dict(state_dict={}), checkpoint)
    config = str(FOLDER / name)
    with pytest.raises(InputError, match=message):
        run_test([config, str(checkpoint), '--work-dir', str(tmp_path), *words])


@pytest.mark.parametrize('name', ['meter-vit_*_mini-easy-vqa.py', 'meter-absvit-*_vqav2.py'])
def test_missing_data_are_said_with_what_is_expected(tmp_path, monkeypatch, name):
    (config,) = FOLDER.glob(name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match='expected in data_root:\n    annotations/answers.json'):
        run_train([str(config), '--work-dir', str(tmp_path)])
