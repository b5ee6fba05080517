"""What the flags of the training tool make of a config."""

import os

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from mmvars.engine import cpu
from mmvars.engine.train import _set_resume, _use_amp
from mmvars.errors import InputError


@pytest.mark.parametrize('kind', ['OptimWrapper', OptimWrapper, 'AmpOptimWrapper', AmpOptimWrapper])
def test_amp_takes_a_name_or_the_class_of_a_pure_python_config(kind) -> None:
    cfg = Config(dict(optim_wrapper=dict(type=kind, optimizer=dict(type='SGD', lr=1.0))))
    _use_amp(cfg)
    assert cfg.optim_wrapper.type in ('AmpOptimWrapper', AmpOptimWrapper)


def test_amp_is_left_out_on_a_cpu_whether_it_is_a_name_or_a_class(monkeypatch) -> None:
    monkeypatch.setattr(cpu, 'get_device', lambda: 'cpu')
    cfg = Config(dict(launcher='none', model=dict(), optim_wrapper=dict(type=AmpOptimWrapper)))
    assert 'float32 is used' in cpu.setup_cpu(cfg)[1]
    assert cfg.optim_wrapper.type == 'OptimWrapper'


def test_resume_in_a_config_may_find_nothing_but_the_flag_may_not(tmp_path) -> None:
    cfg = Config(dict(work_dir=str(tmp_path), resume=True))
    _set_resume(cfg, None)
    assert not cfg.resume
    with pytest.raises(InputError, match='nothing to resume'):
        _set_resume(cfg, 'auto')


@pytest.fixture
def work_dir(tmp_path):
    """Three states, of which ``last_checkpoint`` names the newest, and files without a state."""
    for index, name in enumerate(('iter_2', 'iter_4', 'iter_10', 'best_mIoU_iter_10')):
        state = dict(state_dict=dict(x=torch.ones(1000)), meta=dict(epoch=0, iter=index))
        if name.startswith('iter'):
            state['optimizer'] = {}
        torch.save(state, tmp_path / f'{name}.pth')
        os.utime(tmp_path / f'{name}.pth', (index, index))
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_10.pth'))
    return tmp_path


def _cut(path):
    path.write_bytes(path.read_bytes()[:-500])


def _diverge(path):
    torch.save(dict(state_dict=dict(x=torch.tensor(float('nan'))), optimizer={}), path)


@pytest.mark.parametrize(
    ('damage', 'expected', 'said'),
    [
        (lambda d: None, 'iter_10', ''),
        (lambda d: d.joinpath('last_checkpoint').write_text('/moved/iter_4.pth'), 'iter_4', ''),
        (lambda d: d.joinpath('last_checkpoint').unlink(), 'iter_10', 'last_checkpoint cannot'),
        (
            lambda d: d.joinpath('last_checkpoint').write_bytes(b'\xff\0'),
            'iter_10',
            'cannot be read',
        ),
        (lambda d: d.joinpath('last_checkpoint').write_text('gone.pth'), 'iter_10', 'gone.pth'),
        (lambda d: d.joinpath('iter_10.pth').unlink(), 'iter_4', 'iter_10.pth does not exist'),
        (lambda d: _cut(d / 'iter_10.pth'), 'iter_4', 'iter_10.pth is'),
        (lambda d: _diverge(d / 'iter_10.pth'), 'iter_4', 'iter_10.pth holds NaN'),
        (lambda d: (_cut(d / 'iter_10.pth'), _cut(d / 'iter_4.pth')), 'iter_2', 'iter_4.pth is'),
        (
            lambda d: d.joinpath('last_checkpoint').write_text(f'{d}/best_mIoU_iter_10.pth'),
            'iter_10',
            'holds weights only',
        ),
    ],
)
def test_resume_falls_back_to_the_newest_state_that_loads(work_dir, damage, expected, said) -> None:
    damage(work_dir)
    for resume in ('auto', None):
        cfg = Config(dict(work_dir=str(work_dir), resume=True))
        notes = _set_resume(cfg, resume)
        assert cfg.load_from == str(work_dir / f'{expected}.pth')
        assert said in ''.join(notes) and bool(notes) == bool(said)
        assert not notes or f'resuming from {cfg.load_from}, the newest' in notes[0]


def test_damaged_states_are_no_reason_to_start_from_nothing(work_dir) -> None:
    for name in ('iter_2', 'iter_4', 'iter_10'):
        _cut(work_dir / f'{name}.pth')
    for resume in ('auto', None):
        with pytest.raises(InputError, match='nothing to resume .*iter_10.pth is'):
            _set_resume(Config(dict(work_dir=str(work_dir), resume=True)), resume)


def test_checkpoints_in_an_out_dir_are_found(work_dir, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp('out') / work_dir.name
    os.rename(work_dir, other)
    work_dir.mkdir()
    hooks = dict(checkpoint=dict(type='CheckpointHook', out_dir=str(other.parent)))
    cfg = Config(dict(work_dir=str(work_dir), default_hooks=hooks))
    _set_resume(cfg, 'auto')
    assert cfg.load_from == str(other / 'iter_10.pth')
