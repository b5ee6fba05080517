"""The recipes of the configs against what the authors published or their scripts do."""

from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import LinearLR, PolyLR

CONFIGS = Path(__file__).parents[2] / 'configs'
LEAVES = sorted(
    p for p in CONFIGS.rglob('*.py') if '_base_' not in p.parts and p.parent.name != 'meter'
)
CANONICAL = [p for p in LEAVES if p.parent != CONFIGS and p.parent.name != 'timm']
IMAGENET = [p for p in CANONICAL if p.stem.endswith('in1k')]
PUBLISHED_SEGMENTATION = [p for p in CANONICAL if 'upernet_2xb8' in p.name]
SHORT_NAMES = [p for p in LEAVES if p.parent == CONFIGS]


def _id(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@cache
def _load(path: Path) -> Config:
    return Config.fromfile(str(path))


# Schedules


@pytest.mark.parametrize('path', LEAVES, ids=_id)
def test_the_schedule_ends_with_the_training(path):
    cfg = _load(path)
    by_epoch = 'max_epochs' in cfg.train_cfg
    last = cfg.train_cfg.max_epochs if by_epoch else cfg.train_cfg.max_iters
    point = 0
    for schedule in cfg.param_scheduler:  # without a gap
        assert schedule.by_epoch == by_epoch
        assert schedule.begin in (0, point)
        point = schedule.end
    assert point == last
    assert last % cfg.train_cfg.val_interval == 0, 'the last weights are validated'


@pytest.mark.parametrize('path', PUBLISHED_SEGMENTATION, ids=_id)
def test_the_segmentation_rate_is_the_released_one(path):
    """Linear decay from iteration 0, times the warm-up: base * (1 - t / T) * warm(t)."""
    cfg = _load(path)
    assert (cfg.optim_wrapper.optimizer.type, cfg.optim_wrapper.optimizer.lr) == ('AdamW', 6e-5)
    total = cfg.train_cfg.max_iters
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=6e-5)
    kinds = dict(LinearLR=LinearLR, PolyLR=PolyLR)
    settings = [dict(s) for s in cfg.param_scheduler]
    schedulers = [kinds[s.pop('type')](optimizer, **s) for s in settings]
    rates = []
    for _ in range(3000):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    steps = torch.arange(3000, dtype=torch.float64)
    warm = (1 - (1 - steps / 1500) * (1 - 1e-6)).clamp(max=1)
    released = 6e-5 * (1 - steps / total) * warm
    difference = (torch.tensor(rates, dtype=torch.float64) - released).abs().max()
    assert difference < 1e-3 * 6e-5  # mmengine's warm-up ends one iteration early


def test_imagenet_recipes_train_300_epochs():
    """FAN's own scripts run the ten cool-down epochs; the loop of the others does not."""
    for path in IMAGENET:
        fan = path.stem.startswith('fan-')
        cfg = _load(path)
        cosine = next(s for s in cfg.param_scheduler if s.type == 'CosineAnnealingLR')
        assert cfg.train_cfg.max_epochs == (310 if fan else 300), _id(path)
        assert (cosine.begin, cosine.end) == (5, 300)
        assert cosine.eta_min == (1e-6 if fan else 1e-5)
        optimizer = cfg.optim_wrapper.optimizer
        warmup = cfg.param_scheduler[0]
        assert optimizer.lr == (2e-3 if fan else 1e-3)
        assert optimizer.lr == pytest.approx(5e-4 * cfg.auto_scale_lr.base_batch_size / 512)
        assert warmup.start_factor * optimizer.lr == pytest.approx(1e-6)


def test_fan_trains_by_its_own_scripts():
    """Batch, interpolation, repetition, erasing, averaging, test crop."""
    batch = {'tiny': 128, 'small': 32, 'base': 64}
    paths = [p for p in IMAGENET if p.stem.startswith('fan-')]
    assert len(paths) == 6
    for path in paths:
        cfg, size = _load(path), path.stem.split('-')[1]
        loader = cfg.train_dataloader
        assert loader.batch_size == batch[size]
        assert loader.sampler.type == 'DefaultSampler'
        choices = [t for t in loader.dataset.pipeline if t.type == 'RandomChoice']
        assert len(choices) == 2  # crop and RandAugment
        for choice in choices:
            options = [
                option[0].get('interpolation') or option[0].hparams.interpolation
                for option in choice.transforms
            ]
            assert options == ['bilinear', 'bicubic']
        (erasing,) = [t for t in loader.dataset.pipeline if t.type.endswith('RandomErasing')]
        assert erasing.erase_prob == (0.3 if size == 'base' else 0.25)
        assert cfg.model.backbone.drop_path_rate == dict(tiny=0.0, small=0.2, base=0.35)[size]
        (resize,) = [t for t in cfg.test_pipeline if t.type.endswith('ResizeEdge')]
        assert resize.scale == cfg.crop_size == 224
        (average,) = [h for h in cfg.custom_hooks if h.type == 'EMAHook']
        assert average.momentum == pytest.approx(1 - 0.99992)
        assert cfg.val_dataloader.dataset.pipeline == cfg.test_pipeline


@pytest.mark.parametrize('path', SHORT_NAMES, ids=_id)
def test_short_names_are_the_published_recipe(path):
    cfg = _load(path)
    name, spread, _ = path.stem.partition('_fsdp')
    iterations, crop, classes = {
        'ade20k': (160_000, (512, 512), 150),
        'cityscapes': (40_000, (512, 1024), 19),
        'voc12': (20_000, (512, 512), 21),
    }[name.rpartition('_')[2]]
    backbone = cfg.model.backbone
    assert backbone.type == 'mmvars.AbSViT'
    batch_size = 2 if spread else 8
    assert (cfg.train_cfg.max_iters, cfg.train_dataloader.batch_size) == (iterations, batch_size)
    assert tuple(cfg.crop_size) == crop
    assert cfg.model.decode_head.num_classes == classes
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 6e-5, 0.01)
    assert tuple(backbone.out_indices) == (2, 5, 8, 11)
    assert backbone.drop_path_rate == 0.1
    assert backbone.get('reconstruction_loss_weight', 0) == 0
    assert cfg.model.test_cfg.mode == 'whole'


# Parameters

EXEMPT_BASELINES = {
    'pit': {'cls_token', 'pos_embed'},
    'convit': {'cls_token', 'pos_embed'},
    'swin': {'relative_position_bias_table'},
}


def test_what_is_decayed(built):
    """As in the releases: all but 1-D parameters, positions and class tokens."""
    checked = [p for p in CANONICAL if 'upernet' not in p.name or 'mini-' in p.name]
    checked = [p for p in checked if not p.stem.endswith('pacs')]  # nothing is
    assert len(checked) == 62
    for path in checked:
        decay = built[path]['decay']
        assert decay['flat_decayed'] == [], path.name
        if path.parent.name == 'baselines':  # the same, and as in the release of Swin
            kinds = {name.rpartition('.')[2] for name in decay['others_not_decayed']}
            assert kinds == EXEMPT_BASELINES.get(path.name.partition('-')[0], set()), path.name
        else:
            assert decay['others_not_decayed'] == built[path]['exempt'], path.name
    for path in PUBLISHED_SEGMENTATION:  # by name: `prior.query` and the heads' `bn` are decayed
        kinds = {name.rpartition('.')[2] for name in built[path]['decay']['others_not_decayed']}
        assert kinds == {'cls_token', 'pos_embed'}, path.name
    vars_sd = built[CONFIGS / 'vars' / 'deit-convstem-tiny-p16-vars-sd_8xb128-coslr-300e_in1k.py']
    assert {name.rpartition('.')[2] for name in vars_sd['exempt']} == {'cls_token', 'pos_embed'}


def test_every_paramwise_key_matches_a_parameter(built):
    """Backbones without positions share the schedules, so somewhere, not everywhere."""
    matched = {key for facts in built.values() for key in facts['matched_keys']}
    named = {
        key
        for path in built
        for key in _load(path).optim_wrapper.get('paramwise_cfg', {}).get('custom_keys', {})
    }
    assert len(named) == 12
    assert named == matched


def test_classifiers_start_as_released():
    """RVT and VARS leave theirs to torch; ViT, DeiT, GFNet and FAN draw a truncated normal."""
    counts = dict(torch=0, normal=0)
    for path in (p for p in CANONICAL if 'upernet' not in p.name and 'baselines' != p.parent.name):
        init = _load(path).model.head.init_cfg
        vars_code = path.parent.name == 'vars' or path.stem.startswith('deit-convstem')
        if vars_code or path.stem.startswith('rvt-'):
            assert init is None, path.name
            counts['torch'] += 1
        else:
            assert (init.type, init.layer, init.std) == ('TruncNormal', 'Linear', 0.02), path.name
            counts['normal'] += 1
    assert counts == dict(torch=26, normal=23)


def test_step_sizes_are_updated_where_there_are_any(built):
    """In the files, so that the training tools of mmseg and mmpretrain do it as well."""
    with_hook = 0
    for path, facts in built.items():
        hooks = [dict(h) for h in _load(path).custom_hooks if 'Lipschitz' in h.type]
        hook = dict(type='mmvars.LipschitzUpdateHook', interval=100, rate=0.1)
        assert hooks == ([hook] if facts['mixer'] == 'vars_s' else []), path.name
        with_hook += bool(hooks)
    assert with_hook == 4
