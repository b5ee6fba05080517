"""``mmvars export``: the file gives the model's outputs, at every size that it promises."""

import importlib.util

import pytest
import torch
from mmengine.registry import MODELS

from mmvars.cli import run_tool
from mmvars.errors import InputError
from mmvars.export import cli
from mmvars.export.check import open_file
from mmvars.visualization.model import build_model, read_config

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ('onnx', 'onnxscript', 'onnxruntime')),
    reason='needs onnx, onnxscript and onnxruntime: pip install ".[export]"')
SUFFIXES = ['.pt2', pytest.param('.onnx', marks=needs_onnx)]


def export(trained: tuple[str, str], output, *flags: str) -> None:
    config, checkpoint = trained
    assert cli.main([config, checkpoint, '--output', str(output), *flags]) == 0


@needs_onnx
def test_a_segmentor_for_any_size_gives_the_logits_of_mmseg(trained, tmp_path, capsys) -> None:
    import onnx
    made = trained('absvit')
    path = tmp_path / 'model.onnx'
    export(made, path, '--size', '64x48', '--dynamic', '--normalise')
    output = capsys.readouterr().out
    assert 'images of any size' in output and 'sliding windows of (64, 64)' in output
    assert sorted(p.name for p in tmp_path.iterdir()) == ['absvit.pth', 'absvit.py', path.name]
    model, _ = build_model(read_config(made[0]), made[1], torch.device('cpu'))
    run = open_file(path)
    for batch, size in ((1, (64, 64)), (3, (50, 81))):
        pixels = torch.randint(0, 256, (batch, 3, *size))
        mean, std = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]])
        images = (pixels.float().flip(1) - mean[:, None, None]) / std[:, None, None]
        meta = dict(img_shape=torch.Size(size), ori_shape=size, pad_shape=size)
        with torch.no_grad():
            wanted = model.encode_decode(images, [meta] * batch)
        found, = run(pixels.float())
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    file = onnx.load(path)
    axes = file.graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in axes] == ['batch', 3, 'height', 'width']
    assert [value.name for value in file.graph.output] == ['logits']
    meta = {entry.key: entry.value for entry in file.metadata_props}
    assert meta['config'] == 'absvit.py' and meta['input'] == 'pixels 0 to 255'


def test_a_classifier_as_a_program_of_torch(trained, tmp_path) -> None:
    made = trained('vit', 'classification')
    path = tmp_path / 'classifier.pt2'
    export(made, path, '--size', '48')
    model, _ = build_model(read_config(made[0]), made[1], torch.device('cpu'))
    images = torch.randn(3, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(open_file(path)(images)[0], model(images, mode='tensor'),
                                   rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('suffix', SUFFIXES)
@pytest.mark.parametrize('flags', [['--labels'], ['--dynamic', '--labels'], ['--dynamic']])
def test_a_segmentor_in_every_way(suffix, flags, trained, tmp_path) -> None:
    """The command compares file and model itself."""
    export(trained('absvit'), tmp_path / f'model{suffix}', '--size', '64', *flags)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize('dynamic', [False, True])
@pytest.mark.parametrize('kind', ['absvit', 'absvit_rvt', 'vit', 'vars_d', 'vars_sd', 'vars_s',
                                  'rvt', 'fan', 'gfnet'])
def test_every_backbone(kind, dynamic, trained, tmp_path) -> None:
    """The command compares file and model itself, at five sizes where the size is free."""
    flags = ['--dynamic'] if dynamic else []
    if dynamic and kind in ('vars_s', 'gfnet'):
        with pytest.raises(InputError, match='transforms maps of one size'):
            export(trained(kind), tmp_path / 'b.onnx', '--size', '80x64', *flags)
        return
    export(trained(kind), tmp_path / 'b.onnx', '--size', '80x64', '--part', 'backbone', *flags)


@pytest.mark.parametrize('flags, words', [
    (['--output', 'model.txt', '--size', '64'], 'must end in one of .onnx, .pt2'),
    (['--output', 'gone/model.pt2', '--size', '64'], 'does not exist'),
    (['--output', 'model.pt2', '--size', '64', '--part', 'backbone', '--labels'], 'leave out'),
    (['--output', 'model.pt2', '--size', '8'], 'smaller than one patch'),
    (['--output', 'there.pt2', '--size', '64'], 'exists and is kept'),
])
def test_bad_input_is_one_line_and_leaves_no_file(flags, words, trained, tmp_path, monkeypatch,
                                                  capsys) -> None:
    made = trained('vit')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'there.pt2').write_text('kept')
    before = sorted(tmp_path.iterdir())
    assert run_tool('export', [*made, *flags]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count('\n') == 1
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / 'there.pt2').read_text() == 'kept'


def test_a_file_that_differs_is_not_kept(trained, tmp_path, monkeypatch) -> None:
    made = trained('vit')
    monkeypatch.setattr(cli, 'open_file', lambda path: lambda images: [
        torch.zeros(images.shape[0], 5, *images.shape[2:])])
    with pytest.raises(InputError, match='differs from the model'):
        export(made, tmp_path / 'model.pt2', '--size', '64')
    assert not list(tmp_path.glob('*.pt2')) and not list(tmp_path.glob('.*'))


def test_a_file_that_does_not_run_is_not_kept(trained, tmp_path, monkeypatch) -> None:
    made = trained('vit')

    def fails(images) -> None:
        raise RuntimeError('invalid index\nmore')

    monkeypatch.setattr(cli, 'open_file', lambda path: fails)
    with pytest.raises(InputError, match=r'does not run for 2 images of 64x64 \(invalid index\)'):
        export(made, tmp_path / 'model.pt2', '--size', '64')
    assert not list(tmp_path.glob('*.pt2')) and not list(tmp_path.glob('.*'))


def test_a_head_that_predicts_in_its_own_way_is_refused(trained, tmp_path, monkeypatch) -> None:
    made = trained('vit')
    head = MODELS.get('mmseg.FCNHead')
    own = head.predict_by_feat
    monkeypatch.setattr(head, 'predict_by_feat', lambda *args: own(*args) * 2)
    with pytest.raises(InputError, match='FCNHead does more in a test'):
        export(made, tmp_path / 'model.pt2', '--size', '64')


def test_missing_packages_are_named(trained, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cli, 'find_spec', lambda name: None)
    with pytest.raises(InputError, match=r'mmvars\[export\]'):
        export(trained('vit'), tmp_path / 'model.onnx', '--size', '64')
