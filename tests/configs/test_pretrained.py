"""Configs of pretrained trunks of timm: names, normalization, what trains, and that they train."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

CONFIGS = Path(__file__).parents[2] / 'configs'
MINI = CONFIGS / 'timm' / 'dinov2-s14-absvit_linear_1xb8-100iter_mini-photos-168x168.py'
LEAVES = sorted(p for p in (CONFIGS / 'timm').glob('*.py') if p != MINI)
README = CONFIGS / 'timm' / 'README.md'
TRUNKS = {
    'dinov2-b14': 'vit_base_patch14_dinov2.lvd142m',
    'dinov3-b16': 'vit_base_patch16_dinov3.lvd1689m',
    'eva02-b14': 'eva02_base_patch14_448.mim_in22k_ft_in22k',
    'mae-b16': 'vit_base_patch16_224.mae',
    'siglip2-b16': 'vit_base_patch16_siglip_gap_512.v2_webli',
}
DATASETS = dict(ade20k='ADE20KDataset', cityscapes='CityscapesDataset', voc12='PascalVOCDataset')
NAME = re.compile(
    r'(?P<trunk>\w+-b(?P<patch>\d+))-absvit_(?P<head>upernet|linear)_2xb8-(?P<length>\d+)k_'
    r'(?P<data>\w+)-(?P<height>\d+)x(?P<width>\d+)'
)
LINEAR, UPERNET = (
    CONFIGS / 'timm' / f'dinov2-b14-absvit_{recipe}_cityscapes-518x1036.py'
    for recipe in ('linear_2xb8-40k', 'upernet_2xb8-40k')
)


@pytest.mark.parametrize('path', LEAVES, ids=lambda path: path.stem)
def test_names_tell_the_truth(path):
    name, cfg = NAME.fullmatch(path.stem), Config.fromfile(str(path))
    assert name, 'not a canonical name'
    crop = (int(name['height']), int(name['width']))
    sizes = [t.crop_size for t in cfg.train_dataloader.dataset.pipeline if 'crop_size' in t]
    assert [tuple(size) for size in sizes] == [crop]
    assert tuple(cfg.model.data_preprocessor.size) == tuple(cfg.crop_size) == crop
    assert not any(side % int(name['patch']) for side in crop)
    assert cfg.train_dataloader.batch_size == 8
    assert cfg.auto_scale_lr.base_batch_size == 16
    length = 1000 * int(name['length'])
    assert cfg.train_cfg.max_iters == length == 10 * cfg.train_cfg.val_interval
    assert [schedule.end for schedule in cfg.param_scheduler] == [1500, length]
    assert cfg.train_dataloader.dataset.type == f'mmseg.{DATASETS[name["data"]]}'
    backbone, is_linear = cfg.model.backbone, name['head'] == 'linear'
    assert (backbone.type, backbone.arch) == ('mmvars.AbSViT', f'timm/{TRUNKS[name["trunk"]]}')
    assert backbone.pretrained is True
    assert backbone.get('transfer', 'end2end') == ('top-down' if is_linear else 'end2end')
    assert cfg.model.decode_head.type == ('mmvars.LinearHead' if is_linear else 'mmseg.UPerHead')
    assert ('constructor' in cfg.optim_wrapper) == (not is_linear), 'layer decay where all trains'


def test_every_trunk_and_every_data_set_has_a_config():
    names = [NAME.fullmatch(path.stem) for path in LEAVES]
    heads = {(name['trunk'], name['head'], name['data']) for name in names}
    assert heads == {
        *((trunk, 'upernet', 'ade20k') for trunk in TRUNKS),
        *(('dinov2-b14', head, data) for head in ('upernet', 'linear') for data in DATASETS),
    }


@pytest.mark.parametrize('path', LEAVES, ids=lambda path: path.stem)
def test_images_are_normalized_as_the_weights_want_it(path):
    from timm.models import get_pretrained_cfg

    model = Config.fromfile(str(path)).model
    weights = get_pretrained_cfg(model.backbone.arch.removeprefix('timm/'))
    for key in ('mean', 'std'):
        expected = [255 * value for value in getattr(weights, key)]
        assert model.data_preprocessor[key] == pytest.approx(expected, abs=1e-3)


def test_another_trunk_brings_its_normalization():
    """With the shorthand, unless it is named; unknown names are left to the backbone."""
    from mmvars.engine.options import apply_options

    siglip = dict(arch=f'timm/{TRUNKS["siglip2-b16"]}')
    for options, mean in (
        (siglip, [127.5] * 3),
        (siglip | {'model.data_preprocessor.mean': [1.0, 2.0, 3.0]}, [1.0, 2.0, 3.0]),
        (dict(arch='timm/vit_base_patch14_dinov2.none'), [123.675, 116.28, 103.53]),
    ):
        cfg = Config.fromfile(str(LINEAR))
        notes = apply_options(cfg, options)
        assert cfg.model.data_preprocessor.mean == mean
        assert ('127.5' in ''.join(notes)) == (options['arch'] == siglip['arch'])


def test_what_trains(built):
    """Frozen: prior, feedback and head alone. And no biases of norms are decayed anywhere."""
    for path in LEAVES:
        parts = set(built[path]['trainable'])
        expected = {'decode_head', 'backbone.network.prior', 'backbone.network.feedback'}
        if 'upernet' in path.name:
            expected |= {'auxiliary_head', 'backbone.network.trunk'}
        assert parts == expected, path.name
        decay = built[path]['decay']
        if 'upernet' in path.name:
            assert decay['flat_decayed'] == []
            kinds = {name.rpartition('.')[2] for name in decay['others_not_decayed']}
            assert kinds <= {'cls_token', 'pos_embed', 'reg_token'}, path.name


def test_the_mini_config_is_a_frozen_trunk_that_learns_to_be_asked(built):
    from mmvars.data import PHOTO_CLASSES

    cfg = Config.fromfile(str(MINI))
    assert set(built[MINI]['trainable']) == {
        'prompt_head',
        'backbone.network.feedback',
        'backbone.network.prior',
    }
    assert cfg.model.data_preprocessor.size == cfg.crop_size == (168, 168)
    assert (cfg.train_cfg.max_iters, cfg.train_dataloader.batch_size) == (100, 8)
    assert cfg.model.decode_head.num_classes == cfg.num_classes == len(PHOTO_CLASSES)
    assert cfg.model.decode_head.loss_decode.class_weight == [0.4, *[1.0] * 9]
    assert cfg.model.prior_sampler.type == 'mmvars.PriorSampler'


def _rows() -> list[tuple[str, ...]]:
    pattern = r'^\| (\S.*?-([SBL])/(\d+).*?) \| (\d+) x (\d+) \| ([\d.]+) \| (\S+) \| `(.*)` \|$'
    return re.findall(pattern, README.read_text(), re.MULTILINE)


def test_the_table_lists_the_trunks():
    names = [row[0] for row in _rows()]
    sizes = [f'DINOv2-{size}/14{kind}' for kind in ('', ', registers') for size in 'SBL']
    sizes += [f'DINOv3-{size}/16' for size in 'SBL']
    assert names == [*sizes, 'SigLIP 2-B/16', 'EVA-02-B/14', 'MAE-B/16']


@pytest.mark.slow
@pytest.mark.parametrize('row', _rows(), ids=lambda row: row[0])
def test_every_trunk_of_the_table_goes_into_every_config(row):
    """Size, patch and license as printed; with both heads, the largest on the meta device too."""
    import timm
    from mmengine.registry import MODELS, init_default_scope

    from mmvars.engine.options import apply_options, parse_cfg_options

    _, _, patch, width, depth, millions, license_name, options = row
    for path in (LINEAR, UPERNET):
        cfg = Config.fromfile(str(path))
        apply_options(cfg, parse_cfg_options(options.split()))
        init_default_scope(cfg.default_scope)
        with torch.device('meta'):
            model = MODELS.build(cfg.model).eval()
            (feature, *_) = model.backbone(torch.zeros(1, 3, 64, 96))
        trunk = model.backbone.trunk
        assert (trunk.embed_dim, trunk.depth) == (int(width), int(depth))
        assert trunk.strides[0] == int(patch)
        assert feature.shape[1:] == (int(width), -(-64 // int(patch)), -(-96 // int(patch)))
        counted = sum(p.numel() for p in trunk.parameters()) / 1e6
        assert f'{counted:.1f}' == millions
        name = cfg.model.backbone.arch.removeprefix('timm/')
        weights = timm.models.get_pretrained_cfg(name)
        assert weights.license == license_name
        mean = [255 * value for value in weights.mean]
        assert cfg.model.data_preprocessor.mean == pytest.approx(mean, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('path, trains', [(LINEAR, False), (UPERNET, True)])
def test_training_on_the_mini_set(path, trains, tmp_path):
    """Of DINOv2-S with random weights; the trunk is the same afterwards if it is frozen."""
    from mmvars.cli import main
    from mmvars.data import mini_root

    options = [
        'arch=timm/vit_small_patch14_reg4_dinov2.lvd142m',
        'model.backbone.pretrained=False',
        f'data_root={mini_root("cityscapes")}',
        'crop_size=56,112',
        'img_scale=128,64',
        'max_iters=3',  # the last rate is zero
        'default_hooks.checkpoint.interval=1',
        'default_hooks.checkpoint.max_keep_ckpts=3',
        'default_hooks.logger.interval=1',
        'train_dataloader.batch_size=2',
        'train_dataloader.num_workers=0',
        'val_dataloader.num_workers=0',
        'val_dataloader.dataset.indices=2',
    ]
    command = ['train', str(path), '--work-dir', str(tmp_path), '--cfg-options', *options]
    assert main(command) == 0
    one, two = (
        torch.load(tmp_path / f'iter_{step}.pth', weights_only=False)['state_dict']
        for step in (1, 2)
    )
    changed = {name for name, tensor in one.items() if not torch.equal(tensor, two[name])}
    assert any(name.startswith('decode_head.') for name in changed)
    assert 'backbone.network.feedback.decoders.11.gate' in changed, 'the gates open'
    assert any('network.trunk' in name for name in changed) == trains
