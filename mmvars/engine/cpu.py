"""Run configs that were written for GPUs where there is none, distributed runs included."""

import datetime
import os
import subprocess
from typing import Any

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device

from mmvars.errors import InputError

__all__ = ['adapt_to_cpu', 'replace_sync_bn']

_SYNC_BN = {'SyncBN', 'MMSyncBN', 'NaiveSyncBN', 'SyncBatchNorm'}
# launcher -> variables with the rank, the number of processes, the rank on this host
_LAUNCHERS = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}
_HOW_TO_START = {
    'pytorch': 'start it with `torchrun`, or with tools/dist_train.sh or tools/dist_test.sh',
    'slurm': 'start it with `srun`, or with tools/slurm_train.sh',
    'mpi': 'start it with `mpirun`',
}


def adapt_to_cpu(cfg: Config) -> list[str]:
    """Adapt ``cfg`` and start the process group where no accelerator is present.

    mmengine's launchers select a CUDA device, which fails without one. It skips that step when the
    process group exists already, so it is started here, over gloo. Its default model wrapper asks
    for a device too, so one without is given; and batch norm is not synchronised, since torch's
    SyncBatchNorm is for accelerators only.

    Args:
        cfg: Config with ``launcher``; changed in place.

    Returns:
        Lines for the log; empty where an accelerator is present.

    Raises:
        InputError: If the launcher's environment variables are missing.
    """
    _check_environment(cfg.launcher)
    if get_device() != 'cpu':
        return []
    notes = ['No accelerator found: running on the CPU']
    if _drop_amp(cfg):
        notes.append('Mixed precision (AmpOptimWrapper) needs an accelerator: float32 is used')
    if cfg.launcher == 'none':
        return notes  # the Runner itself replaces SyncBN here
    timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
    _init_gloo(cfg.launcher, timeout)
    replaced = replace_sync_bn(cfg.model)
    cfg.pop('sync_bn', None)
    wrapper = dict(type='MMDistributedDataParallel', broadcast_buffers=False,
                   find_unused_parameters=cfg.get('find_unused_parameters', False))
    wrapper.update(cfg.get('model_wrapper_cfg') or {})
    wrapper['device_ids'] = None
    cfg.model_wrapper_cfg = wrapper
    notes.append(f'Distributed over gloo: {dist.get_world_size()} processes')
    if replaced:
        notes.append(f'SyncBN needs an accelerator: {replaced} entries of the model use BN '
                     'instead, whose statistics are those of each process')
    return notes


def replace_sync_bn(node: Any) -> int:
    """Turn every ``type='SyncBN'`` below ``node`` into ``'BN'``, in place; returns how many."""
    count = 0
    if isinstance(node, dict):
        kind = node.get('type')
        if isinstance(kind, str) and kind.rpartition('.')[2] in _SYNC_BN:
            node['type'] = 'BN'
            count += 1
        count += sum(replace_sync_bn(value) for value in node.values())
    elif isinstance(node, list | tuple):
        count += sum(replace_sync_bn(value) for value in node)
    return count


def _drop_amp(cfg: Config) -> bool:
    wrapper = cfg.get('optim_wrapper') or {}
    if not str(wrapper.get('type', '')).endswith('AmpOptimWrapper'):
        return False
    wrapper['type'] = 'OptimWrapper'
    for key in ('loss_scale', 'dtype', 'use_fsdp'):
        wrapper.pop(key, None)
    return True


def _check_environment(launcher: str) -> None:
    if launcher == 'none':
        return
    missing = [name for name in _LAUNCHERS[launcher] if name not in os.environ]
    if missing:
        raise InputError(f'--launcher {launcher}: {", ".join(missing)} not set in the environment: '
                         f'{_HOW_TO_START[launcher]}')


def _init_gloo(launcher: str, timeout: float | None) -> None:
    if dist.is_initialized():
        return
    rank, world_size, local_rank = (os.environ[name] for name in _LAUNCHERS[launcher])
    os.environ.update(RANK=rank, WORLD_SIZE=world_size, LOCAL_RANK=local_rank)
    os.environ.setdefault('MASTER_PORT', '29500')
    if 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _first_host(launcher)
    dist.init_process_group(
        'gloo', timeout=datetime.timedelta(seconds=timeout) if timeout else None)


def _first_host(launcher: str) -> str:
    if launcher == 'slurm':
        hosts = subprocess.run(['scontrol', 'show', 'hostname', os.environ['SLURM_NODELIST']],
                               capture_output=True, text=True, check=True).stdout.split()
        return hosts[0]
    raise InputError(f'--launcher {launcher}: MASTER_ADDR not set in the environment: set it to '
                     'the address of the first host')
