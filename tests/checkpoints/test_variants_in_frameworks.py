"""Converted RVT, VARS and GFNet files in both frameworks, and the command line of their options."""

import json
import re

import pytest
import torch

from mmvars.checkpoints import convert_checkpoint
from mmvars.checkpoints.cli import main
from mmvars.checkpoints.io import read_checkpoint
from mmvars.cli import run_tool

ARCH = dict(trunk='rvt', embed_dims=[24, 48], num_layers=[2, 1], num_heads=[2, 4])
SIZE = dict(embed_dim=(24, 48), depth=(2, 1))
SIZE_ARGUMENTS = ['--embed-dim', '24', '48', '--depth', '2', '1']


def _close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.fixture
def released(golden, tmp_path):
    """Path of the recorded VARS-SD as a released file."""
    torch.save(dict(model=golden('rvt_vars_sd')['state_dict']), tmp_path / 'a.pth')
    return tmp_path / 'a.pth'


@torch.no_grad()
def test_a_backbone_for_segmentation(golden, tmp_path, released):
    backbones = pytest.importorskip('mmvars.models')
    record = golden('rvt_vars_sd')
    convert_checkpoint(released, tmp_path / 'b.pth', 'rvt_tiny', task='segmentation', **SIZE)
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'b.pth'))
    common = dict(arch=ARCH, mixer='vars_sd', img_size=96, out_indices=(1, 2), final_norm=False)
    backbone = backbones.VARS(init_cfg=pretrained, **common)
    backbone.init_weights()
    for feature, stage in zip(
        backbone.eval()(record['inputs']['image']), ('stage0', 'stage1'), strict=True
    ):
        _close(feature, record['outputs'][stage])
    other = dict(common, mixer_cfg=dict(num_steps=2))
    with pytest.raises(ValueError, match=r'num_steps=5 \(network: 2\).*allow_constants'):
        backbones.VARS(init_cfg=pretrained, **other).init_weights()
    allowed = backbones.VARS(init_cfg=pretrained | dict(allow_constants=('num_steps',)), **other)
    allowed.init_weights()
    assert torch.equal(
        allowed.trunk.blocks[0].attn.static_atoms,
        record['state_dict']['transformers.0.blocks.0.attn.kernel'],
    )


@torch.no_grad()
def test_a_classifier(golden, tmp_path, released):
    load_checkpoint = pytest.importorskip('mmengine.runner').load_checkpoint
    pytest.importorskip('mmpretrain.models')
    from mmvars.registry import MODELS

    record = golden('rvt_vars_sd')
    convert_checkpoint(released, tmp_path / 'b.pth', 'rvt_tiny', task='classification', **SIZE)
    model = MODELS.build(
        dict(
            type='mmvars.ImageClassifier',
            backbone=dict(
                type='mmvars.VARS', arch=ARCH, mixer='vars_sd', img_size=96, out_type='avg_featmap'
            ),
            head=dict(type='mmpretrain.LinearClsHead', num_classes=7, in_channels=48),
        )
    )
    load_checkpoint(model, str(tmp_path / 'b.pth'), strict=True)
    _close(model.eval()(record['inputs']['image']), record['outputs']['logits'])


def test_options_of_the_command_line(tmp_path, released, capsys):
    arguments = [str(released), str(tmp_path / 'b.pth'), '--arch', 'rvt_tiny', *SIZE_ARGUMENTS]
    assert (
        main(
            [
                *arguments,
                '--mixer',
                'vars_sd',
                '--mixer-cfg',
                'num_steps=3',
                'preset=release',
                'scale_aware_sparsity=False',
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert 'attn.L  2  (nothing reads it' in printed
    assert "does not say its constants; the network has preset='release', num_steps=3" in printed
    meta = read_checkpoint(tmp_path / 'b.pth')['meta']
    options = json.loads(meta['mixer_cfg'])
    assert options['num_steps'] == 3
    assert options['preset'] == 'release'
    assert options['scale_aware_sparsity'] is False


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--mixer', 'vars_x'], "invalid choice: 'vars_x'"),
        (['--mixer-cfg', 'num_steps'], "'num_steps' is not of the form KEY=VALUE"),
        (['--mixer-cfg', 'num_steps='], "'num_steps=' is not of the form KEY=VALUE"),
        (['--mixer-cfg', 'nums=3'], 'takes no option nums'),
        (['--mixer-cfg', 'preset=paper'], 'preset must be one of'),
        (
            ['--mixer-cfg', 'num_steps=-1'],
            r'num_steps must be a whole number in \[0, 1000\], got -1',
        ),
        (['--mixer-cfg', 'sparsity=lots'], "sparsity must be a number in .*got 'lots'"),
        (['--mixer-cfg', 'feature_ratio=0.01'], 'at least one feature'),
        (['--mixer-cfg', 'feature_ratio=4'], 'show feature_ratio=2, .*network has feature_ratio=4'),
        (['--mixer', 'vars_s'], 'with vars_sd, the network with vars_s. .*leave --mixer out'),
        (['--mixer', 'global_filter'], 'does not go into the rvt trunk'),
        (['--depth', '2'], 'one number for each stage'),
        (['--num-heads', '5', '4'], 'must be divisible by num_heads'),
    ],
)
def test_bad_options_end_in_one_line(tmp_path, released, capsys, monkeypatch, arguments, said):
    monkeypatch.delenv('MMVARS_DEBUG', raising=False)
    target = tmp_path / 'b.pth'
    try:
        status = run_tool(
            'convert',
            [str(released), str(target), '--arch', 'rvt_tiny', *SIZE_ARGUMENTS, *arguments],
        )
    except SystemExit as stop:  # argparse
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert 'Traceback' not in error
    assert re.search(said, error)
    assert not target.exists()
