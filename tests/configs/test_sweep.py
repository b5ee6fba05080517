"""Every config of the repository: it builds, and what it says in several places agrees."""

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config

CONFIGS = Path(__file__).parents[2] / 'configs'
LEAVES = sorted(
    p for p in CONFIGS.rglob('*.py') if '_base_' not in p.parts and p.parent.name != 'meter'
)
PRETRAINED = [p for p in LEAVES if p.parent.name == 'timm']  # see test_pretrained.py
CANONICAL = [p for p in LEAVES if p.parent != CONFIGS and p not in PRETRAINED]
SHORT_NAMES = [p for p in LEAVES if p.parent == CONFIGS]
BASELINES = [p for p in CANONICAL if p.parent.name == 'baselines']
OTHERS = [p for p in CANONICAL if 'upernet' not in p.name and p not in BASELINES]

MIXER = r'performer|vars-(?:s|d|sd)'
DESIGN = r'absvit|absvit-qkv|feedback|mask-attention|perceiver-io'
SEGMENTATION = re.compile(
    rf'(?P<model>[a-z]+)(?P<stem>)-?(?P<size>ti16|b16|101)(-(?P<mixer>{MIXER}))?(?P<design>)'
    r'_upernet_(?P<gpus>\d+)xb(?P<batch>\d+)-(?P<length>\d+)(?P<unit>k|iter)_'
    r'(?P<data>[a-z0-9-]+)-(?P<height>\d+)x(?P<width>\d+)'
)
CLASSIFICATION = re.compile(
    r'(?P<model>[a-z]+)(?P<stem>-convstem)?-(?P<size>tiny|small|base)-p16'
    rf'(-(?P<no_rec>no-rec)|-(?P<mixer>{MIXER})|-(?P<design>{DESIGN}))?_'
    r'(?P<gpus>\d+)xb(?P<batch>\d+)(-coslr)?-(?P<length>\d+)(?P<unit>e|k)_'
    r'(?P<data>in1k|mini-imagenet|pacs)(-(?P<crop>\d+)px)?'
)
ARCH = {'ti16': 'tiny', 'b16': 'base'}
DATASETS = {
    'ade20k': 'mmseg.ADE20KDataset',
    'cityscapes': 'mmseg.CityscapesDataset',
    'voc12': 'mmseg.PascalVOCDataset',
    'voc12aug': 'ConcatDataset',
    'in1k': 'mmpretrain.ImageNet',
    'mini-imagenet': 'mmpretrain.ImageNet',
    'pacs': 'mmvars.PACS',
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


def _find(pipeline: list, name: str) -> dict:
    (match,) = [t for t in pipeline if t['type'].rpartition('.')[2] == name]
    return match


# What there is


def test_the_sweep_sees_the_configs():
    assert len(CANONICAL) == 65 + 10  # published rows, minis
    assert {p.parent.name for p in CANONICAL} == {
        *('absvit', 'vit', 'resnet', 'deit', 'gfnet', 'rvt', 'vars', 'fan', 'baselines')
    }
    assert [p.name for p in SHORT_NAMES] == [
        'absvit_upernet_ade20k.py',
        'absvit_upernet_ade20k_fsdp.py',
        'absvit_upernet_cityscapes.py',
        'absvit_upernet_voc12.py',
    ]


def test_one_mini_config_a_family_and_framework():
    minis = sorted((p.parent.name, 'upernet' in p.name) for p in CANONICAL if 'mini-' in p.name)
    families = ('absvit', 'fan', 'rvt', 'vars', 'vit')
    assert minis == [(family, upernet) for family in families for upernet in (False, True)]


# What is built


def test_every_config_builds(built):
    assert sorted(built) == LEAVES
    errors = [f'{_id(path)}: {facts["error"]}' for path, facts in built.items() if 'error' in facts]
    assert not errors, '\n'.join(errors)
    assert all(min(facts['num_transforms']) >= 2 for facts in built.values())
    assert all(facts['resolved'] > 10 for facts in built.values())


def test_heads_agree_with_the_backbone(built):
    assert built
    for path, facts in built.items():
        assert facts['heads'], path
        channels = facts['channels']
        for name, head in facts['heads'].items():
            index = head['in_index']
            expected = [channels[i] for i in index] if isinstance(index, list) else channels[index]
            assert head['in_channels'] == expected, f'{_id(path)}: {name} gets {expected}'


def test_heads_state_in_channels_only_where_the_model_cannot_ask(built):
    for path in built:
        for head in ('decode_head', 'auxiliary_head', 'head'):
            if (model := _load(path).model).get(head):
                stated = 'in_channels' in model[head]
                assert stated == (not model.type.startswith('mmvars.')), _id(path)


def test_heads_agree_with_the_data(built):
    assert built
    for path, facts in built.items():
        classes = {head['num_classes'] for head in facts['heads'].values()}
        assert classes == set(facts['num_classes'].values()), _id(path)


def test_mixers_and_strides(built):
    """Beside the arguments (checked with the names), what the built backbones are."""
    default = {'deit': 'self_attention', 'rvt': 'self_attention', 'gfnet': 'global_filter'}
    for path in (p for p in CANONICAL if p.parent.name in ('deit', 'rvt', 'gfnet', 'vars')):
        facts, name = built[path], path.stem.partition('_')[0]
        in_name = re.search(r'performer|vars-(sd|s|d)$', name)
        mixer = in_name[0].replace('-', '_') if in_name else default[path.parent.name]
        assert facts['mixer'] == mixer, path.name
        if 'upernet' in path.name:  # RVT-Ti
            assert facts['strides'] == [16, 16, 16, 32], path.name
            assert facts['heads']['auxiliary_head']['in_index'] == 2, 'the last map of stride 16'


def test_published_sizes(built):
    """Parameter counts of the backbones and classifiers (thesis Table 2.2, released models)."""
    assert built[CONFIGS / 'absvit_upernet_ade20k.py']['backbone_parameters'] == 100_591_104
    for name, count in (
        ('absvit-tiny-p16', 6_602_344),
        ('absvit-small-p16', 25_589_992),
        ('absvit-base-p16', 100_724_200),
        ('vit-tiny-p16', 5_717_416),
        ('vit-base-p16', 86_567_656),
    ):
        path = CONFIGS / name.split('-')[0] / f'{name}_8xb128-coslr-300e_in1k.py'
        assert built[path]['parameters'] == count


def test_sizes_of_table_1_2(built):
    """Trainable parameters in millions, as counted without this package, or as printed (CNNs)."""
    for name, millions, digits in (
        ('rvt/rvt-tiny-p16', 8.646, 3),
        ('gfnet/gfnet-tiny-p16', 7.512, 3),
        ('deit/deit-convstem-tiny-p16-performer', 5.673, 3),
        ('rvt/rvt-tiny-p16-performer', 8.646, 3),
        ('vars/rvt-tiny-p16-vars-d', 8.029, 3),
        ('vars/rvt-tiny-p16-vars-sd', 9.005, 3),
        ('vars/rvt-tiny-p16-vars-s', 9.206, 3),
        ('baselines/regnety-4gf', 20.6, 1),
        ('baselines/resnet50', 25.6, 1),
        ('baselines/resnext50-32x4d', 25.0, 1),
        ('baselines/inception-v3', 23.8, 1),  # 27.2 in the table, with the auxiliary head
    ):
        path = CONFIGS / f'{name}_8xb128-coslr-300e_in1k.py'
        assert round(built[path]['parameters'] / 1e6, digits) == millions, name


def test_sizes_of_table_2_2(built):
    """Millions, as printed; but 8 for FAN-Ti with AbS, where the table has 9: our design."""
    names = (
        f'{trunk}-{size}-p16{design}'
        for trunk in ('rvt', 'fan')
        for design in ('', '-absvit')
        for size in ('tiny', 'small', 'base')
    )
    published = dict(zip(names, (9, 22, 86, 11, 26, 100, 7, 28, 54, 8, 32, 62), strict=True))
    published |= {'pit-tiny': 5, 'convit-tiny': 6, 'swin-base': 88, 'convnext-base': 89}
    published |= {'pit-base': 74, 'swin-tiny': 28, 'convnext-tiny': 29}
    for name, millions in published.items():
        (path,) = [p for p in CANONICAL if p.stem.startswith(f'{name}_') and 'in1k' in p.stem]
        assert round(built[path]['parameters'] / 1e6) == millions, name


def test_designs_have_the_parts_that_they_name(built):
    """Parameters of top-down attention and its rivals on ViT-Ti and RVT-Ti: prior and decoders."""
    rvt_decoders = 10 * 2 * 192**2 + 2 * 2 * 384**2 + 9 * 384 * 192 + 192
    for trunk, prior, decoders in (('vit', 192, 12 * 2 * 192**2), ('rvt', 384, rvt_decoders)):
        recipe = '_8xb128-coslr-300e_in1k.py'
        plain = built[CONFIGS / trunk / f'{trunk}-tiny-p16{recipe}']['parameters']
        whole = 'absvit-qkv' if trunk == 'vit' else 'absvit'
        for design, added in (
            ('feedback', decoders),
            ('perceiver-io', prior),
            ('mask-attention', prior),
            (whole, prior + decoders),
        ):
            path = CONFIGS / 'absvit' / f'{trunk}-tiny-p16-{design}{recipe}'
            assert built[path]['parameters'] - plain == added, path.name


# How they are written


@pytest.mark.parametrize('path', LEAVES, ids=_id)
def test_layout(path):
    assert len(path.read_text().splitlines()) <= 22
    assert _depth(path) <= 3 + (path in SHORT_NAMES)
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
    bare = {
        d['type']
        for d in _dicts(dict(model=cfg.model))
        if 'type' in d and '.' not in d['type'] and '_scope_' not in d
    }
    # Of mmcv and mmengine; batch augmentations have no parent registry, priors no registry.
    assert bare <= {'SyncBN', 'TruncNormal', 'Pretrained', 'Mixup', 'CutMix', 'learned_classes'}
    assert cfg.default_scope in ('mmseg', 'mmpretrain')


# Names


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
    assert name['data'].startswith('mini-') == os.path.isabs(cfg.data_root)
    if name['model'] == 'resnet':
        assert cfg.model.backbone.depth == int(name['size'])
    else:
        _check_backbone(path, name, ARCH[name['size']])


@pytest.mark.parametrize('path', OTHERS, ids=_id)
def test_classification_names_tell_the_truth(path):
    name = CLASSIFICATION.fullmatch(path.stem)
    assert name, 'not a canonical name'
    cfg = _load(path)
    assert cfg.train_dataloader.batch_size == int(name['batch'])
    assert cfg.auto_scale_lr.base_batch_size == int(name['gpus']) * int(name['batch'])
    assert cfg.train_dataloader.dataset.type == DATASETS[name['data']]
    assert cfg.crop_size == int(name['crop'] or 224)
    cosine = [s.end for s in cfg.param_scheduler if s.type == 'CosineAnnealingLR']
    if name['unit'] == 'e':
        assert cosine == [int(name['length'])]
    else:
        assert (cosine, cfg.train_cfg.max_iters) == ([], 1000 * int(name['length']))
    _check_backbone(path, name, name['size'])
    weight = cfg.model.backbone.get('reconstruction_loss_weight', 0)
    reconstructs = name['model'] == 'absvit' or (name['design'] or '').startswith('absvit')
    assert weight == (0.1 if reconstructs and not name['no_rec'] else 0)


def _check_backbone(path: Path, name: re.Match, size: str) -> None:
    """Trunk, stem, size, mixer and design of a config's name are those of its backbone."""
    backbone = _load(path).model.backbone
    trunk = name['model'] + (name['stem'] or '').replace('-', '_')
    mixer = name['mixer'] and name['mixer'].replace('-', '_')
    assert backbone.get('mixer') == mixer
    if name['design'] or trunk == 'absvit':
        prefix = '' if trunk in ('absvit', 'vit') else f'{trunk}_'
        assert (backbone.type, backbone.arch) == ('mmvars.AbSViT', prefix + size)
        assert backbone.get('design', 'absvit') == (name['design'] or 'absvit').replace('-', '_')
        folder = 'absvit'
    elif trunk in ('vit', 'deit'):  # DeiT-Ti is ViT-Ti
        assert (backbone.type, backbone.arch) == ('mmvars.ViT', size)
        folder = trunk
    else:
        types = {'mmvars.VARS': '', 'mmvars.RVT': 'rvt_', 'mmvars.GFNet': 'gfnet_'}
        prefix = (types | {'mmvars.FAN': 'fan_'})[backbone.type]
        assert prefix + backbone.arch == f'{trunk}_{size}'
        assert mixer or prefix, 'mmvars.VARS has a mixer of its own'
        folder = 'vars' if mixer and mixer.startswith('vars') else name['model']
    assert path.parent.name == folder


@pytest.mark.parametrize('path', BASELINES, ids=lambda path: path.stem)
def test_baselines_are_models_of_other_packages(path):
    model, _, recipe = path.stem.partition('_')
    assert recipe == '8xb128-coslr-300e_in1k'
    cfg = _load(path)
    name, _, size = model.rpartition('-')
    if cfg.model.type == 'mmpretrain.TimmClassifier':
        in_timm = {
            'pit-tiny': 'pit_ti_224',
            'pit-small': 'pit_s_224',
            'pit-base': 'pit_b_224',
            'regnety-4gf': 'regnety_040',
        }
        assert cfg.model.model_name == in_timm.get(model, model.replace('-', '_'))
    else:
        assert cfg.model.type == 'mmpretrain.ImageClassifier'
        assert cfg.model.backbone.arch == size
        types = {'swin': 'mmpretrain.SwinTransformer', 'convnext': 'mmpretrain.ConvNeXt'}
        assert cfg.model.backbone.type == types[name]


# Twins


def _twin(path: Path) -> Path:
    """The config of the trunk without top-down attention."""
    name = re.sub(rf'-({DESIGN}|no-rec)_', '_', path.name).removeprefix('abs')
    return CONFIGS / name.split('-')[0] / name


def test_twins_differ_in_the_backbone_alone():
    twins = dict.fromkeys(('vit', 'rvt', 'fan'), 0)
    for path in (p for p in CANONICAL if p.parent.name == 'absvit'):
        ours, theirs = _load(path).to_dict(), _load(_twin(path)).to_dict()
        backbone, plain = ours['model'].pop('backbone'), theirs['model'].pop('backbone')
        assert backbone.pop('type') == 'mmvars.AbSViT'
        family = plain.pop('type').removeprefix('mmvars.').lower()
        for key in ('reconstruction_loss_weight', 'design'):
            backbone.pop(key, None)
        if family != 'vit':
            plain['arch'] = f'{family}_{plain["arch"]}'
        assert backbone == plain, path.name
        assert ours == theirs, path.name
        twins[family] += 1
    assert twins == dict(vit=3 + 3 + 5 + 2, rvt=3 + 3, fan=3)


def test_compared_mixers_differ_in_the_mixer_alone():
    """Configs of a trunk are the same but for the mixer and what it needs."""
    compared = 0
    for path in (p for p in CONFIGS.glob('vars/*.py') if p.stem.endswith(('in1k', 'pacs'))):
        mixer = re.search(r'vars-(sd|s|d)(?=_)', path.name)[0]
        other = path.with_name(path.name.replace(mixer, 'vars-d'))
        ours, theirs = _load(path).to_dict(), _load(other).to_dict()
        for cfg in (ours, theirs):
            for key in ('mixer', 'mixer_cfg', 'init_cfg'):
                cfg['model']['backbone'].pop(key, None)
            cfg['custom_hooks'] = [h for h in cfg['custom_hooks'] if 'Lipschitz' not in h['type']]
        assert ours == theirs, path.name
        compared += path != other
    assert compared == 6 + 2
