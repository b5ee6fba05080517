"""Run configs that were written for GPUs where there is none, distributed runs included."""

import datetime
import os
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device

from mmvars.errors import InputError

__all__ = ['pick_device', 'replace_sync_bn', 'setup_cpu']

_SYNC_BN = {'SyncBN', 'MMSyncBN', 'NaiveSyncBN', 'SyncBatchNorm'}
# launcher -> how to start it; variables with the rank, the number of processes, the local rank
_LAUNCHERS = {
    'none': ('', ()),
    'pytorch': (
        '`torchrun`, tools/dist_train.sh or tools/dist_test.sh',
        ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    ),
    'slurm': ('`srun` or tools/slurm_train.sh', ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID')),
    'mpi': (
        '`mpirun`',
        ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
    ),
}


def pick_device(name: str | None) -> torch.device:
    """The device of that name; by default CUDA's, if there is one.

    Raises:
        InputError: If it cannot be used.
    """
    if name is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f'device {name!r} cannot be used here ({reason}); try cpu') from error
    return device


def setup_cpu(cfg: Config) -> list[str]:
    """Change ``cfg`` and start the process group where no accelerator is present.

    mmengine's launchers and its default model wrapper select a CUDA device. The launchers skip that
    where a process group exists, so it is started here, over gloo; the wrapper gets no device.
    Batch norm is not synchronized, since torch's SyncBatchNorm is for accelerators only.

    Returns:
        Lines for the log; empty where an accelerator is present.

    Raises:
        InputError: If the launcher's environment variables are missing.
    """
    program, variables = _LAUNCHERS[cfg.launcher]
    if missing := [name for name in variables if name not in os.environ]:
        raise InputError(
            f'--launcher {cfg.launcher}: {", ".join(missing)} not set in the '
            f'environment: start it with {program}'
        )
    if get_device() != 'cpu':
        return []
    notes = ['No accelerator found: running on the CPU']
    optim_wrapper = cfg.get('optim_wrapper') or {}
    kind = optim_wrapper.get('type')
    if getattr(kind, '__name__', str(kind)).endswith('AmpOptimWrapper'):
        optim_wrapper['type'] = 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            optim_wrapper.pop(key, None)
        notes.append('Mixed precision (AmpOptimWrapper) needs an accelerator: float32 is used')
    if cfg.launcher == 'none':
        return notes  # the Runner itself replaces SyncBN here
    _init_gloo(cfg.launcher, cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout'))
    notes.append(f'Distributed over gloo: {dist.get_world_size()} processes')
    if replaced := replace_sync_bn(cfg.model):
        notes.append(
            f'SyncBN needs an accelerator: {replaced} entries of the model use BN '
            'instead, whose statistics are those of each process'
        )
    cfg.pop('sync_bn', None)
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = wrapper | (cfg.get('model_wrapper_cfg') or {}) | dict(device_ids=None)
    if cfg.get('runner_type') == 'FlexibleRunner':  # its strategy wraps the model
        strategy = cfg.setdefault('strategy', dict(type='DDPStrategy'))
        if strategy['type'] == 'FSDPStrategy':
            wrapper, on_cpu = dict(type='MMFullyShardedDataParallel'), dict(device_id='cpu')
        else:
            on_cpu = dict(device_ids=None)
        if strategy['type'] in ('DDPStrategy', 'FSDPStrategy'):
            strategy['model_wrapper'] = wrapper | (strategy.get('model_wrapper') or {}) | on_cpu
    return notes


def replace_sync_bn(node: Any) -> int:
    """Turn every ``type='SyncBN'`` below ``node`` into ``'BN'``, in place; returns how many."""
    if isinstance(node, list | tuple):
        return sum(replace_sync_bn(value) for value in node)
    if not isinstance(node, dict):
        return 0
    count = sum(replace_sync_bn(value) for value in node.values())
    if str(node.get('type')).rpartition('.')[2] in _SYNC_BN:
        node['type'] = 'BN'
        count += 1
    return count


def _init_gloo(launcher: str, timeout: float | None) -> None:
    if dist.is_initialized():
        return
    if 'MASTER_ADDR' not in os.environ:
        raise InputError(
            f'--launcher {launcher}: MASTER_ADDR not set in the environment: set it '
            'to the address of the first host'
        )
    os.environ.setdefault('MASTER_PORT', '29500')
    names = _LAUNCHERS['pytorch'][1]
    os.environ |= {
        name: os.environ[source]
        for name, source in zip(names, _LAUNCHERS[launcher][1], strict=True)
    }
    dist.init_process_group(
        'gloo', timeout=datetime.timedelta(seconds=timeout) if timeout else None
    )
