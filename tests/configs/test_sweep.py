"""Every config of the repository: it builds, and what it says in several places agrees."""

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
LEAVES = sorted(p for p in CONFIGS.rglob('*.py') if '_base_' not in p.parts)
CANONICAL = [p for p in LEAVES if p.parent != CONFIGS]
BASELINES = [p for p in CANONICAL if p.parent.name == 'baselines']
SHORT_NAMES = [p for p in LEAVES if p.parent == CONFIGS]
FAMILIES = {'absvit', 'vit', 'resnet', 'deit', 'gfnet', 'rvt', 'vars', 'fan', 'baselines'}

MIXER = r'performer|vars-(?:s|d|sd)'
DESIGN = r'absvit|absvit-qkv|feedback|mask-attention|perceiver-io'
SEGMENTATION = re.compile(
    r'(?P<model>[a-z]+)(?P<stem>-convstem)?-?(?P<size>ti16|s16|b16|101)'
    rf'(-(?P<transfer>linear|prompt|topdown)|-(?P<mixer>{MIXER})|-(?P<design>{DESIGN}))?_upernet_'
    r'(?P<gpus>\d+)xb(?P<batch>\d+)-(?P<length>\d+)(?P<unit>k|iter)_'
    r'(?P<data>[a-z0-9-]+)-(?P<height>\d+)x(?P<width>\d+)')
CLASSIFICATION = re.compile(
    r'(?P<model>[a-z]+)(?P<stem>-convstem)?-(?P<size>tiny|small|base)-p(?P<patch>\d+)'
    rf'(-gap|-(?P<no_rec>no-rec)|-(?P<mixer>{MIXER})|-(?P<design>{DESIGN}))?_'
    r'(?P<gpus>\d+)xb(?P<batch>\d+)(-coslr)?-(?P<epochs>\d+)e_(?P<data>in1k|mini-imagenet)')
BASELINE = re.compile(
    r'(?P<model>convit|convnext|pit|swin)-(?P<size>tiny|small|base)_8xb128-coslr-300e_in1k')
ARCH = {'ti16': 'tiny', 's16': 'small', 'b16': 'base'}
DATASETS = {
    'ade20k': 'mmseg.ADE20KDataset', 'cityscapes': 'mmseg.CityscapesDataset',
    'voc12': 'mmseg.PascalVOCDataset', 'voc12aug': 'ConcatDataset', 'in1k': 'mmpretrain.ImageNet',
    'mini-imagenet': 'mmpretrain.ImageNet'
}


def _id(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@cache
def _load(path: Path) -> Config:
    return Config.fromfile(str(path))


def _base_files(path: Path) -> list[Path]:
    bases = re.search(r'^_base_ = (\[.*?\]|\'[^\']*\')', path.read_text(), re.DOTALL | re.MULTILINE)
    return [path.parent / name for name in re.findall(r"'([^']+)'", bases[1])] if bases else []


def _depth(path: Path) -> int:
    return 1 + max((_depth(base) for base in _base_files(path)), default=0)


def _dicts(node: object) -> Iterator[dict]:
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, dict):
            yield value
        if isinstance(value, dict | list | tuple):
            yield from _dicts(value)


def _check_backbone(path: Path, name: re.Match, size: str) -> None:
    """Host, stem, size and mixer of a config's name are those of its backbone."""
    backbone = _load(path).model.backbone
    host = name['model'] + (name['stem'] or '').replace('-', '_')
    mixer = name['mixer'] and name['mixer'].replace('-', '_')
    if host == 'deit':  # DeiT-Ti is ViT-Ti
        assert (backbone.type, backbone.arch) == ('mmvars.ViT', size)
    else:
        family = {'mmvars.VARS': '', 'mmvars.RVT': 'rvt_', 'mmvars.GFNet': 'gfnet_',
                  'mmvars.FAN': 'fan_'}[backbone.type]
        assert family + backbone.arch == f'{host}_{size}'
        assert mixer or family, 'mmvars.VARS has a mixer of its own'
    assert backbone.get('mixer') == mixer
    assert path.parent.name == ('vars' if mixer and mixer.startswith('vars') else name['model'])


def _check_top_down(path: Path, name: re.Match, size: str) -> None:
    """Trunk, size and design of a config's name are those of its backbone."""
    backbone = _load(path).model.backbone
    host = '' if name['model'] in ('vit', 'absvit') else f"{name['model']}_"
    if name['model'] == 'vit' and not name['design']:
        assert backbone.type == 'mmvars.ViT'
    else:
        assert backbone.type == 'mmvars.AbSViT'
    assert backbone.arch == host + size
    design = (name['design'] or 'absvit').replace('-', '_')
    assert backbone.get('design', 'absvit') == design
    assert path.parent.name == ('absvit' if name['design'] else name['model'])


def _find(pipeline: list, name: str) -> dict:
    (found, ) = [t for t in pipeline if t['type'].rpartition('.')[2] == name]
    return found


def test_the_sweep_sees_the_configs():
    assert len(LEAVES) >= 160
    assert {p.parent.name for p in CANONICAL} == FAMILIES
    assert [p.name for p in SHORT_NAMES] == [
        'absvit_upernet_ade20k.py', 'absvit_upernet_cityscapes.py', 'absvit_upernet_voc12.py']
    for family in ('absvit', 'vit'):
        names = ' '.join(p.name for p in CONFIGS.glob(f'{family}/*.py'))
        for part in ('-ti16', '-s16', '-b16', '_ade20k-', '_cityscapes-', '_voc12-', '-tiny-p16',
                     '-small-p16', '-base-p16', 'mini-ade20k', 'mini-cityscapes', 'mini-voc12',
                     'mini-imagenet', '_in1k'):
            assert part in names, f'no {part} among the configs of {family}'


def test_every_config_builds(built):
    assert sorted(built) == LEAVES
    errors = [f"{_id(path)}: {facts['error']}" for path, facts in built.items() if 'error' in facts]
    assert not errors, '\n'.join(errors)
    assert all(min(facts['num_transforms']) >= 2 for facts in built.values())
    assert all(facts['resolved'] > 10 for facts in built.values())


def test_heads_agree_with_the_backbone(built):
    assert built
    for path, facts in built.items():
        assert facts['heads'], path
        for name, head in facts['heads'].items():
            wanted, index = head['in_channels'], head['in_index']
            given = facts['channels']
            expected = [given[i] for i in index] if isinstance(index, list) else given[index]
            assert wanted == expected, f'{_id(path)}: {name} takes {wanted}, gets {expected}'


def test_heads_agree_with_the_data(built):
    assert built
    for path, facts in built.items():
        classes = {head['num_classes'] for head in facts['heads'].values()}
        assert classes == set(facts['num_classes'].values()), _id(path)


def test_every_paramwise_key_matches_a_parameter(built):
    assert built
    with_keys = 0
    for path in built:
        assert built[path]['unmatched_keys'] == [], _id(path)
        with_keys += bool(_load(path).optim_wrapper.get('paramwise_cfg'))
    assert with_keys >= 40


def test_published_sizes(built):
    """Parameter counts of the backbones and classifiers (thesis Table 2.2, released models)."""
    assert built[CONFIGS / 'absvit_upernet_ade20k.py']['backbone_parameters'] == 100_591_104
    for name, count in (('absvit-tiny-p16', 6_602_344), ('absvit-small-p16', 25_589_992),
                        ('absvit-base-p16', 100_724_200), ('absvit-tiny-p8-gap', 6_604_648),
                        ('vit-tiny-p16', 5_717_416), ('vit-base-p16', 86_567_656)):
        path = CONFIGS / name.split('-')[0] / f'{name}_8xb128-coslr-300e_in1k.py'
        assert built[path]['parameters'] == count


def test_sizes_of_table_2_2(built):
    """Millions, as printed; but 8 for FAN-Ti with AbS, where the table has 9: our design."""
    published = dict(zip((f'{host}-{size}-p16{design}' for host in ('rvt', 'fan')
                          for design in ('', '-absvit') for size in ('tiny', 'small', 'base')),
                         (9, 22, 86, 11, 26, 100, 7, 28, 54, 8, 32, 62), strict=True))
    published |= {'pit-tiny': 5, 'convit-tiny': 6, 'swin-base': 88, 'convnext-base': 89,
                  'pit-base': 74, 'swin-tiny': 28, 'convnext-tiny': 29}
    for name, millions in published.items():
        (path, ) = [p for p in CANONICAL if p.stem.startswith(f'{name}_') and 'in1k' in p.stem]
        assert round(built[path]['parameters'] / 1e6) == millions, name


def test_designs_have_the_parts_that_they_name(built):
    """Parameters of top-down attention and its rivals on ViT-Ti and RVT-Ti: prior and decoders."""
    for host, prior, decoders in (('vit', 192, 12 * 2 * 192**2),
                                  ('rvt', 384, 10 * 2 * 192**2 + 2 * 2 * 384**2 + 9 * 384 * 192
                                   + 192)):
        recipe = '_8xb128-coslr-300e_in1k.py'
        plain = built[CONFIGS / host / f'{host}-tiny-p16{recipe}']['parameters']
        whole = 'absvit-qkv' if host == 'vit' else 'absvit'
        for design, added in (('feedback', decoders), ('perceiver-io', prior),
                              ('mask-attention', prior), (whole, prior + decoders)):
            path = CONFIGS / 'absvit' / f'{host}-tiny-p16-{design}{recipe}'
            assert built[path]['parameters'] - plain == added, path.name


def test_every_design_has_a_mini_version():
    names = {p.stem for p in CONFIGS.glob('absvit/*mini-*.py')}
    designs = ('feedback', 'perceiver-io', 'mask-attention', 'absvit-qkv')
    for size, rest in (('tiny-p16', '1xb16-20e_mini-imagenet-64px'),
                       ('ti16', 'upernet_1xb8-400iter_mini-cityscapes-128x256')):
        wanted = {f'vit-{size}-{design}_{rest}' for design in designs}
        wanted |= {f'{host}-{size}-absvit_{rest}' for host in ('rvt', 'fan')}
        assert wanted <= names


def test_transfer_modes_train_what_they_say(built):
    wanted = {
        'absvit-b16-linear': (), 'vit-b16-linear': (),
        'vit-b16-prompt': ('trunk.prompt_embeddings', 'trunk.deep_prompt_embeddings'),
        'absvit-b16-prompt': ('trunk.prompt_embeddings', 'trunk.deep_prompt_embeddings', 'prior.'),
        'absvit-b16-topdown': ('prior.', 'feedback.'),
    }
    for stem, prefixes in wanted.items():
        (path, ) = [p for p in CANONICAL if p.stem.startswith(f'{stem}_')]
        names = [n.removeprefix('backbone.network.') for n in built[path]['trainable']
                 if n.startswith('backbone.')]
        assert all(name.startswith(prefixes) for name in names)
        assert all(any(name.startswith(prefix) for name in names) for prefix in prefixes)
        assert any(name.startswith('decode_head.') for name in built[path]['trainable'])


@pytest.mark.parametrize('path', LEAVES, ids=_id)
def test_layout(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 15
    assert _depth(path) <= 3
    assert _base_files(path), 'a leaf inherits'


def test_bases_exist_and_are_used_and_local():
    files = sorted(CONFIGS.rglob('*.py'))
    used = {base.resolve() for path in files for base in _base_files(path)}
    bases = {p.resolve() for p in (CONFIGS / '_base_').rglob('*.py')}
    assert len(bases) >= 20
    assert bases <= used, f'unused: {bases - used}'
    assert all(base.is_file() for base in used)
    assert not [p for p in files if re.search(r"'\w+::", p.read_text())]


@pytest.mark.parametrize('path', LEAVES, ids=_id)
def test_types_carry_their_scope(path):
    """Types of mmvars, mmseg and mmpretrain are prefixed wherever a model is described."""
    cfg = _load(path)
    bare = {d['type'] for d in _dicts(dict(model=cfg.model)) if 'type' in d
            and '.' not in d['type'] and '_scope_' not in d}
    # Layers and initialisers of mmcv and mmengine; batch augmentations have no parent registry.
    assert bare <= {'SyncBN', 'TruncNormal', 'Mixup', 'CutMix'}
    assert cfg.default_scope in ('mmseg', 'mmpretrain')


@pytest.mark.parametrize('path', LEAVES, ids=_id)
def test_the_schedule_ends_with_the_training(path):
    cfg = _load(path)
    by_epoch = 'max_epochs' in cfg.train_cfg
    last = cfg.train_cfg.max_epochs if by_epoch else cfg.train_cfg.max_iters
    point = 0
    for schedule in cfg.param_scheduler:  # without a gap or an overlap
        assert schedule.by_epoch == by_epoch
        assert schedule.begin == point
        point = schedule.end
    assert point == last
    assert last % cfg.train_cfg.val_interval == 0, 'the last weights are validated'


@pytest.mark.parametrize('path', [p for p in CANONICAL if 'upernet' in p.name], ids=_id)
def test_segmentation_names_tell_the_truth(path):
    name = SEGMENTATION.fullmatch(path.stem)
    assert name, 'not a canonical name'
    cfg = _load(path)
    crop = (int(name['height']), int(name['width']))
    assert tuple(_find(cfg.train_pipeline, 'RandomCrop').crop_size) == crop
    assert tuple(cfg.model.data_preprocessor.size) == crop
    length = int(name['length']) * (1000 if name['unit'] == 'k' else 1)
    assert cfg.train_cfg.max_iters == length
    assert cfg.train_dataloader.batch_size == int(name['batch'])
    assert cfg.auto_scale_lr.base_batch_size == int(name['gpus']) * int(name['batch'])
    data = name['data'].removeprefix('mini-')
    assert cfg.train_dataloader.dataset.type == DATASETS[data]
    assert name['data'].startswith('mini-') == (os.path.isabs(cfg.data_root))
    if name['model'] == 'resnet':
        assert cfg.model.backbone.depth == int(name['size'])
        return
    if path.parent.name not in ('absvit', 'vit'):
        _check_backbone(path, name, ARCH[name['size']])
        return
    _check_top_down(path, name, ARCH[name['size']])
    transfer = {'topdown': 'top-down', None: 'end2end'}.get(name['transfer'], name['transfer'])
    assert cfg.model.backbone.get('transfer', 'end2end') == transfer


@pytest.mark.parametrize('path', [
    p for p in CANONICAL if 'upernet' not in p.name and p.parent.name != 'baselines'], ids=_id)
def test_classification_names_tell_the_truth(path):
    name = CLASSIFICATION.fullmatch(re.sub(r'-\d+px$', '', path.stem))
    assert name, 'not a canonical name'
    cfg = _load(path)
    total = int(name['gpus']) * int(name['batch'])
    assert cfg.train_dataloader.batch_size == int(name['batch'])
    assert cfg.auto_scale_lr.base_batch_size == total
    assert cfg.train_dataloader.dataset.type == DATASETS[name['data']]
    gap = '-gap_' in path.stem
    assert int(name['patch']) == (8 if gap else 16)
    if path.parent.name in ('absvit', 'vit'):
        _check_top_down(path, name, name['size'] + ('_patch8_gap' if gap else ''))
        averages = gap or name['model'] == 'rvt'
        assert (cfg.model.backbone.out_type == 'avg_featmap') == averages
    else:
        _check_backbone(path, name, name['size'])
    cosine = [s for s in cfg.param_scheduler if s.type == 'CosineAnnealingLR']
    assert [s.end for s in cosine] == [int(name['epochs'])]
    if name['data'] == 'in1k':
        assert cfg.optim_wrapper.optimizer.lr == pytest.approx(5e-4 * total / 512)
    weight = cfg.model.backbone.get('reconstruction_loss_weight', 0)
    reconstructs = name['model'] == 'absvit' or (name['design'] or '').startswith('absvit')
    assert weight == (0.1 if reconstructs and not name['no_rec'] else 0)


@pytest.mark.parametrize('path', BASELINES, ids=lambda path: path.stem)
def test_baselines_are_models_of_other_packages(path):
    name = BASELINE.fullmatch(path.stem)
    assert name, 'not a canonical name'
    cfg = _load(path)
    assert (cfg.auto_scale_lr.base_batch_size, cfg.optim_wrapper.optimizer.lr) == (1024, 1e-3)
    if cfg.model.type == 'mmpretrain.TimmClassifier':
        short = {'tiny': ('ti', 'tiny'), 'small': ('s', 'small'), 'base': ('b', 'base')}
        model, size = cfg.model.model_name.split('_')[:2]
        assert model == name['model']
        assert size in short[name['size']]
    else:
        assert cfg.model.type == 'mmpretrain.ImageClassifier'
        assert cfg.model.backbone.arch == name['size']
        assert cfg.model.backbone.type == {
            'swin': 'mmpretrain.SwinTransformer', 'convnext': 'mmpretrain.ConvNeXt'}[name['model']]


@pytest.mark.parametrize('path', SHORT_NAMES, ids=_id)
def test_short_names_are_the_published_recipe(path):
    cfg = _load(path)
    iterations, crop, classes = {
        'ade20k': (160_000, (512, 512), 150), 'cityscapes': (40_000, (512, 1024), 19),
        'voc12': (20_000, (512, 512), 21)}[path.stem.rpartition('_')[2]]
    assert cfg.model.backbone.type == 'mmvars.AbSViT'
    assert (cfg.train_cfg.max_iters, cfg.train_dataloader.batch_size) == (iterations, 8)
    assert tuple(cfg.crop_size) == crop
    assert cfg.model.decode_head.num_classes == classes
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 6e-5, 0.01)
    warmup, poly = cfg.param_scheduler
    assert (warmup.end, warmup.start_factor, poly.power, poly.eta_min) == (1500, 1e-6, 1.0, 0.0)
    assert tuple(cfg.model.backbone.out_indices) == (2, 5, 8, 11)
    assert cfg.model.backbone.drop_path_rate == 0.1
    assert cfg.model.backbone.reconstruction_loss_weight == 0
    assert cfg.model.test_cfg.mode == 'whole'


def _twin(path: Path) -> Path | None:
    """The config of the trunk without top-down attention."""
    name = re.sub(rf'-({DESIGN}|no-rec)_', '_', path.name).removeprefix('abs')
    twin = CONFIGS / name.split('-')[0] / name
    return None if '-topdown_' in name else twin  # a plain ViT has nothing to train in this mode


def test_twins_differ_in_the_backbone_alone():
    twins = dict.fromkeys(('vit', 'rvt', 'fan'), 0)
    for path in (p for p in CANONICAL if p.parent.name == 'absvit'):
        if (other := _twin(path)) is None:
            continue
        ours, theirs = _load(path).to_dict(), _load(other).to_dict()
        backbone, plain = ours['model'].pop('backbone'), theirs['model'].pop('backbone')
        assert backbone.pop('type') == 'mmvars.AbSViT'
        family = plain.pop('type').removeprefix('mmvars.').lower()
        for own in ('reconstruction_loss_weight', 'design'):
            backbone.pop(own, None)
        if family != 'vit':
            plain['arch'] = f"{family}_{plain.get('arch', 'tiny')}"
        assert backbone == plain, path.name
        assert ours == theirs, path.name
        twins[family] += 1
    assert twins['vit'] >= 29
    assert min(twins['rvt'], twins['fan']) >= 8
