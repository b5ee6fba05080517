"""Constants of a mixer that no tensor shows, through training, testing and resuming."""

import pytest

from mmvars.checkpoints import read_checkpoint
from mmvars.cli import run_tool

BACKBONE = """
model['backbone'] = dict(
    type='mmvars.VARS', img_size=64, mixer='vars_d', mixer_cfg=dict(num_steps=2),
    arch=dict(trunk='rvt', embed_dims=[16, 48], num_layers=[1, 1], num_heads=[2, 4]),
    out_indices=(0, 1))
train_cfg['max_iters'] = 1
"""


def test_a_checkpoint_made_with_other_constants_is_refused(
    toy, tmp_path, forget_runs, capsys, monkeypatch
) -> None:
    pytest.importorskip('mmseg.models', exc_type=ImportError)
    monkeypatch.delenv('MMVARS_DEBUG', raising=False)
    config, checkpoint = tmp_path / 'seg.py', tmp_path / 'iter_1.pth'
    config.write_text((toy / 'seg.py').read_text() + BACKBONE)

    def run(tool: str, *arguments: str) -> tuple[int, str]:
        forget_runs()
        status = run_tool(tool, [str(config), *arguments])
        return status, capsys.readouterr().err

    place = ('--work-dir', str(tmp_path))
    assert run('train', *place, '--no-validate')[0] == 0
    assert read_checkpoint(checkpoint)['meta']['mixer'] == 'vars_d'
    other = ('--cfg-options', 'model.backbone.mixer_cfg.num_steps=4')
    for tool, arguments in (
        ('test', (str(checkpoint), *place)),
        ('train', ('--resume', *place)),
        ('train', (*place, '--cfg-options', f'load_from={checkpoint}')),
    ):
        more = other[1:] if '--cfg-options' in arguments else other
        status, message = run(tool, *arguments, *more)
        assert status == 2, tool
        assert 'was made with num_steps=2 (network: 4)' in message
        assert '--cfg-options allow_constants=num_steps)' in message
        assert 'Traceback' not in message
    assert run('test', str(checkpoint), *place)[0] == 0
    assert run('test', str(checkpoint), *place, *other, 'allow_constants=num_steps')[0] == 0
