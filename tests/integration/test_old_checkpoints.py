"""Checkpoints of mmvars 0.1, and of either stack, through the tools: test, resume, fine-tuning."""

import runpy
from pathlib import Path

import pytest

from mmvars.checkpoints import read_checkpoint
from mmvars.cli import run_tool

FILES = Path(__file__).parents[1] / 'checkpoints'
RECORDED = [
    *(('old', name) for name in ('vit', 'absvit', 'abs_rvt', 'rvt_vars_s', 'rvt_vars_sd')),
    ('stacks', 'onedl'),
    ('stacks', 'official'),
]


FEW = [('old', 'absvit'), ('old', 'rvt_vars_sd'), ('stacks', 'official')]


@pytest.mark.parametrize(
    'folder, name',
    [pytest.param(*row, marks=() if row in FEW else pytest.mark.slow) for row in RECORDED],
)
def test_test_resume_and_load_from(toy, tmp_path, forget_runs, monkeypatch, folder, name) -> None:
    pytest.importorskip('mmseg.models', exc_type=ImportError)
    monkeypatch.setenv('MMVARS_DEBUG', '1')
    recorded = runpy.run_path(str(FILES / 'old' / 'record.py'))
    config, checkpoint = tmp_path / 'seg.py', str(FILES / folder / f'{name}.pth')
    config.write_text(
        (toy / 'seg.py').read_text()
        + recorded['CHANGES'].format(
            backbone=recorded['BACKBONES']['absvit' if folder == 'stacks' else name]
        )
        + 'train_cfg["max_iters"] = 3\n'
    )
    place = ('--work-dir', str(tmp_path / 'run'))
    assert run_tool('test', [str(config), checkpoint, *place]) == 0
    forget_runs()
    assert run_tool('train', [str(config), *place, '--no-validate', '--resume', checkpoint]) == 0
    forget_runs()
    resumed = read_checkpoint(tmp_path / 'run' / 'iter_3.pth')
    assert resumed['meta']['iter'] == 3
    log = resumed['message_hub']['log_scalars']['train/loss'].values
    old = read_checkpoint(checkpoint)['message_hub']['log_scalars']['train/loss'].values
    assert len(log) == 3 and log[:2] == old
    assert not any(
        old in key
        for key in resumed['state_dict']
        for old in ('chain', 'readout', 'crossings', 'step_bound')
    )
    assert (
        run_tool(
            'train',
            [
                str(config),
                '--work-dir',
                str(tmp_path / 'fine'),
                '--no-validate',
                '--cfg-options',
                f'load_from={checkpoint}',
                'max_iters=1',
            ],
        )
        == 0
    )
