"""What changes in a config where there is no accelerator."""

import pytest
from mmengine.config import Config

from mmvars.engine import cpu
from mmvars.errors import InputError


@pytest.fixture(autouse=True)
def _no_accelerator(monkeypatch) -> None:
    monkeypatch.setattr(cpu, 'get_device', lambda: 'cpu')


def config(launcher='none', **extra) -> Config:
    return Config(
        dict(
            launcher=launcher,
            model=dict(
                norm_cfg=dict(type='SyncBN'),
                heads=[
                    dict(norm_cfg=dict(type='mmseg.SyncBN', eps=1.0)),
                    dict(norm_cfg=dict(type='LN')),
                ],
            ),
            **extra,
        )
    )


def test_sync_bn_becomes_bn_everywhere() -> None:
    cfg = config()
    assert cpu.replace_sync_bn(cfg.model) == 2
    assert cfg.model.heads[0].norm_cfg == dict(type='BN', eps=1.0)
    assert cfg.model.heads[1].norm_cfg == dict(type='LN')


def test_a_single_process_is_told_that_it_runs_on_the_cpu() -> None:
    cfg = config()
    assert cpu.setup_cpu(cfg) == ['No accelerator found: running on the CPU']
    assert 'model_wrapper_cfg' not in cfg


def test_mixed_precision_is_left_out_and_said() -> None:
    cfg = config(optim_wrapper=dict(type='AmpOptimWrapper', loss_scale='dynamic', optimizer=1))
    assert 'float32 is used' in cpu.setup_cpu(cfg)[1]
    assert cfg.optim_wrapper == dict(type='OptimWrapper', optimizer=1)


def test_a_distributed_run_gets_gloo_and_a_wrapper_without_device(monkeypatch) -> None:
    started = []
    monkeypatch.setattr(cpu, '_init_gloo', lambda *args: started.append(args))
    monkeypatch.setattr(cpu.dist, 'get_world_size', lambda: 2)
    monkeypatch.setattr(cpu.os, 'environ', dict(RANK='0', WORLD_SIZE='2', LOCAL_RANK='0'))
    cfg = config(
        'pytorch',
        sync_bn='torch',
        find_unused_parameters=True,
        env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=60)),
    )
    notes = ' '.join(cpu.setup_cpu(cfg))
    assert started == [('pytorch', 60)]
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=True,
    )
    assert 'sync_bn' not in cfg
    assert '2 processes' in notes and '2 entries of the model use BN' in notes


def test_with_an_accelerator_nothing_changes(monkeypatch) -> None:
    monkeypatch.setattr(cpu, 'get_device', lambda: 'cuda')
    cfg = config(optim_wrapper=dict(type='AmpOptimWrapper'))
    before = cfg.to_dict()
    assert cpu.setup_cpu(cfg) == []
    assert cfg.to_dict() == before


@pytest.mark.parametrize(
    'launcher, remedy', [('pytorch', 'torchrun'), ('slurm', 'srun'), ('mpi', 'mpirun')]
)
def test_a_launcher_that_did_not_launch_is_named(launcher, remedy, monkeypatch) -> None:
    monkeypatch.setattr(cpu.os, 'environ', {})
    with pytest.raises(InputError, match=f'--launcher {launcher}: .* not set .*{remedy}'):
        cpu.setup_cpu(config(launcher))
