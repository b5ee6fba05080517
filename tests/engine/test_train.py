"""What the flags of the training tool make of a config."""

import pytest
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
