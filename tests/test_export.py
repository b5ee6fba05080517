"""``mmvars export``: the file gives the model's outputs, at every size that it promises."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmvars import export as module
from mmvars.cli import run_tool
from mmvars.errors import InputError
from mmvars.visualization.model import build_model, read_config

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ('onnx', 'onnxscript', 'onnxruntime')),
    reason='needs onnx, onnxscript and onnxruntime: pip install ".[export]"',
)
needs_new_torch = pytest.mark.skipif(
    not hasattr(torch.compiler, 'is_exporting'),
    reason='torch before 2.7 does not export for free sizes',
)
SUFFIXES = ['.pt2', pytest.param('.onnx', marks=needs_onnx)]

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
WIDTH = 24
ARCH = dict(embed_dims=WIDTH, num_layers=2, num_heads=2)

BACKBONES = {
    'absvit': dict(type='mmvars.AbSViT', arch=ARCH),
    'absvit_rvt': dict(
        type='mmvars.AbSViT',
        arch=dict(trunk='rvt', embed_dims=[12, WIDTH], num_layers=[1, 1], num_heads=[2, 2]),
    ),
    'vit': dict(type='mmvars.ViT', arch=ARCH),
    'gfnet': dict(type='mmvars.GFNet', arch=ARCH),
    'rvt': dict(
        type='mmvars.RVT', arch=dict(embed_dims=[12, WIDTH], num_layers=[1, 1], num_heads=[2, 2])
    ),
    'fan': dict(type='mmvars.FAN', arch=ARCH),
    **{
        mixer: dict(type='mmvars.VARS', arch=dict(trunk='deit_convstem', **ARCH), mixer=mixer)
        for mixer in ('vars_s', 'vars_d', 'vars_sd')
    },
}

HEADS = {
    'fcn': dict(type='mmseg.FCNHead', num_convs=1, concat_input=False),
    'psp': dict(type='mmseg.PSPHead', pool_scales=(1, 2)),
}


def model_of(kind: str, task: str, head: str) -> tuple[str, dict]:
    """Default scope and model."""
    backbone = BACKBONES[kind] | dict(img_size=64)
    if task == 'classification':
        return 'mmpretrain', dict(
            type='mmvars.ImageClassifier',
            data_preprocessor=dict(
                type='mmpretrain.ClsDataPreprocessor',
                mean=MEAN,
                std=STD,
                num_classes=5,
                to_rgb=True,
            ),
            backbone=backbone | dict(out_type='avg_featmap'),
            head=dict(type='mmpretrain.LinearClsHead', num_classes=5, in_channels=WIDTH),
        )
    decode_head = HEADS[head] | dict(
        in_channels=WIDTH,
        in_index=0,
        channels=8,
        num_classes=5,
        norm_cfg=dict(type='SyncBN'),
        align_corners=False,
    )
    return 'mmseg', dict(
        type='mmvars.EncoderDecoder',
        data_preprocessor=dict(
            type='mmseg.SegDataPreProcessor',
            mean=MEAN,
            std=STD,
            bgr_to_rgb=True,
            size=(64, 64),
            pad_val=0,
            seg_pad_val=255,
        ),
        backbone=backbone,
        decode_head=decode_head,
        test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(48, 48)),
    )


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """``trained(kind, task)``: paths of a config and of a checkpoint of its model."""

    def make(kind: str, task: str = 'segmentation', head: str = 'fcn') -> tuple[str, str]:
        scope, model = model_of(kind, task, head)
        config, checkpoint = tmp_path / f'{kind}.py', tmp_path / f'{kind}.pth'
        Config(dict(default_scope=scope, model=model)).dump(config)
        init_default_scope(scope)
        network = MODELS.build(model)
        with torch.no_grad():  # outputs that would show a mistake
            for name, parameter in network.named_parameters():
                if 'feedback.' in name or 'head.' in name:
                    torch.nn.init.normal_(parameter, std=0.3)
        torch.save(dict(state_dict=network.state_dict(), meta={}), checkpoint)
        return str(config), str(checkpoint)

    return make


def export(trained: tuple[str, str], output, *flags: str) -> None:
    config, checkpoint = trained
    assert module.main([config, checkpoint, '--output', str(output), *flags]) == 0


@needs_onnx
@needs_new_torch
def test_a_segmentor_for_any_size_gives_the_logits_of_mmseg(trained, tmp_path, capsys) -> None:
    import onnx

    files = trained('absvit')
    path = tmp_path / 'model.onnx'
    export(files, path, '--size', '64x48', '--dynamic', '--normalize')
    output = capsys.readouterr().out
    assert 'images of any size' in output and 'sliding windows of (64, 64)' in output
    assert sorted(p.name for p in tmp_path.iterdir()) == ['absvit.pth', 'absvit.py', path.name]
    model, _ = build_model(read_config(files[0]), files[1], torch.device('cpu'))
    assert any(getattr(part, 'is_fused', False) for part in model.modules())
    model.backbone.unfuse()  # the file was traced fused, and gives what the plain path gives
    run = module.open_file(path)
    for batch, size in ((1, (64, 64)), (3, (50, 81))):
        pixels = torch.randint(0, 256, (batch, 3, *size))
        mean, std = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]])
        images = (pixels.float().flip(1) - mean[:, None, None]) / std[:, None, None]
        meta = dict(img_shape=torch.Size(size), ori_shape=size, pad_shape=size)
        with torch.no_grad():
            expected = model.encode_decode(images, [meta] * batch)
        (logits,) = run(pixels.float())
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    file = onnx.load(path)
    axes = file.graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in axes] == ['batch', 3, 'height', 'width']
    assert [value.name for value in file.graph.output] == ['logits']
    meta = {entry.key: entry.value for entry in file.metadata_props}
    assert meta['config'] == 'absvit.py' and meta['input'] == 'pixels 0 to 255'
    assert meta['channels'] == 'BGR'  # as mmcv loads them; the file turns them to RGB
    assert 'classes' not in meta  # none of the config's data set has so many


@needs_new_torch
def test_a_classifier_as_a_program_of_torch(trained, tmp_path) -> None:
    files = trained('vit', 'classification')
    path = tmp_path / 'classifier.pt2'
    export(files, path, '--size', '48')
    model, _ = build_model(read_config(files[0]), files[1], torch.device('cpu'))
    images = torch.randn(3, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(
            module.open_file(path)(images)[0], model(images, mode='tensor'), rtol=1e-4, atol=1e-4
        )


@pytest.mark.slow
@pytest.mark.parametrize('suffix', SUFFIXES)
@pytest.mark.parametrize('flags', [['--labels'], ['--dynamic', '--labels'], ['--dynamic']])
@needs_new_torch
def test_a_segmentor_in_every_way(suffix, flags, trained, tmp_path) -> None:
    """The command compares file and model itself."""
    export(trained('absvit'), tmp_path / f'model{suffix}', '--size', '64', *flags)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize('dynamic', [False, True])
@pytest.mark.parametrize(
    'kind', ['absvit', 'absvit_rvt', 'vit', 'vars_d', 'vars_sd', 'vars_s', 'rvt', 'fan', 'gfnet']
)
@needs_new_torch
def test_every_backbone(kind, dynamic, trained, tmp_path) -> None:
    """The command compares file and model itself, at five sizes where the size is free."""
    flags = ['--dynamic'] if dynamic else []
    if kind in ('vars_d', 'vars_sd'):  # sign(u) GELU(|u| - t) jumps at 0: rounding can show
        flags += ['--tolerance', '1e-3']
    if dynamic and kind in ('vars_s', 'gfnet'):
        with pytest.raises(InputError, match='transforms maps of one size'):
            export(trained(kind), tmp_path / 'b.onnx', '--size', '80x64', *flags)
        return
    export(trained(kind), tmp_path / 'b.onnx', '--size', '80x64', '--part', 'backbone', *flags)


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--output', 'model.txt', '--size', '64'], 'must end in one of .onnx, .pt2'),
        (['--output', 'gone/model.pt2', '--size', '64'], 'does not exist'),
        (['--output', 'model.pt2', '--size', '64', '--part', 'backbone', '--labels'], 'leave out'),
        (['--output', 'model.pt2', '--size', '8'], 'smaller than one patch'),
        (['--output', 'there.pt2', '--size', '64'], 'exists and is kept'),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(
    flags, words, trained, tmp_path, monkeypatch, capsys
) -> None:
    files = trained('vit')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'there.pt2').write_text('kept')
    before = sorted(tmp_path.iterdir())
    assert run_tool('export', [*files, *flags]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count('\n') == 1
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / 'there.pt2').read_text() == 'kept'


@needs_new_torch
def test_a_file_that_differs_is_not_kept(trained, tmp_path, monkeypatch) -> None:
    files = trained('vit')
    monkeypatch.setattr(
        module,
        '_program',
        lambda content, suffix: lambda images: [torch.zeros(images.shape[0], 5, *images.shape[2:])],
    )
    with pytest.raises(InputError, match='differs from the model'):
        export(files, tmp_path / 'model.pt2', '--size', '64')
    assert not list(tmp_path.glob('*.pt2')) and not list(tmp_path.glob('.*'))


@needs_new_torch
def test_a_file_that_does_not_run_is_not_kept(trained, tmp_path, monkeypatch) -> None:
    files = trained('vit')

    def fails(images) -> None:
        raise RuntimeError('invalid index\nmore')

    monkeypatch.setattr(module, '_program', lambda content, suffix: fails)
    with pytest.raises(InputError, match=r'does not run for 2 images of 64x64 \(invalid index\)'):
        export(files, tmp_path / 'model.pt2', '--size', '64')
    assert not list(tmp_path.glob('*.pt2')) and not list(tmp_path.glob('.*'))


def test_a_head_that_predicts_in_its_own_way_is_refused(trained, tmp_path, monkeypatch) -> None:
    files = trained('vit')
    head = MODELS.get('mmseg.FCNHead')
    own = head.predict_by_feat
    monkeypatch.setattr(head, 'predict_by_feat', lambda *args: own(*args) * 2)
    with pytest.raises(InputError, match='FCNHead does more in a test'):
        export(files, tmp_path / 'model.pt2', '--size', '64')


def test_missing_packages_are_named(trained, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, 'find_spec', lambda name: None)
    with pytest.raises(InputError, match=r'mmvars\[export\]'):
        export(trained('vit'), tmp_path / 'model.onnx', '--size', '64')


def test_an_old_torch_is_named(trained, tmp_path, monkeypatch) -> None:
    monkeypatch.delattr(torch.compiler, 'is_exporting', raising=False)
    with pytest.raises(InputError, match='use torch 2.7 or newer'):
        export(trained('vit', 'classification'), tmp_path / 'model.pt2', '--size', '64')
    assert not (tmp_path / 'model.pt2').exists()


@pytest.mark.parametrize('suffix', ['.onnx', '.pt2'])
def test_a_head_that_pools_to_a_fixed_grid_is_refused_before_tracing(
    suffix, trained, tmp_path, monkeypatch
) -> None:
    files = trained('vit', head='psp')

    def traces(*args) -> None:
        raise InputError('traced')

    monkeypatch.setattr(module, '_traced', traces)
    monkeypatch.setattr(module, '_check_packages', lambda path: None)
    message = 'traced' if suffix == '.pt2' else r'PSPHead pools to a fixed grid .*write a .pt2'
    with pytest.raises(InputError, match=message):
        export(files, tmp_path / f'model{suffix}', '--size', '64', '--dynamic')


@pytest.mark.parametrize('count, names', [(2, ['sky', 'ground']), (3, [])])
def test_names_of_classes_are_those_that_are_known(count, names, monkeypatch) -> None:
    dataset = dict(type='BaseDataset', pipeline=[], metainfo=dict(classes=('sky', 'ground')))
    cfg = Config(dict(test_dataloader=dict(dataset=dataset)))
    monkeypatch.setattr(module, 'num_classes_of', lambda model: count)
    assert module._class_names(cfg, None, {}) == names
    recorded = dict(dataset_meta=dict(classes=('a', 'b', 'c')))
    assert module._class_names(cfg, None, recorded) == (names or ['a', 'b', 'c'])
