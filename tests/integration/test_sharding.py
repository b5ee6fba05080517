"""Weights spread over two processes (gloo): losses and gradients are those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed.fsdp

from mmvars.engine.test import main as run_test
from mmvars.engine.train import main as run_train

FLAT = dict(embed_dims=24, num_layers=2, num_heads=2)
STAGES = dict(embed_dims=[12, 24], num_layers=[1, 1], num_heads=[2, 2])
BACKBONES = {
    'vit': dict(type='mmvars.ViT', arch=FLAT),
    'absvit': dict(type='mmvars.AbSViT', arch=FLAT),
    'absvit_qkv': dict(type='mmvars.AbSViT', arch=FLAT, design='absvit_qkv'),
    'absvit_rvt': dict(type='mmvars.AbSViT', arch=dict(STAGES, trunk='rvt')),
    'absvit_fan': dict(type='mmvars.AbSViT', arch=dict(FLAT, trunk='fan')),
    'performer': dict(type='mmvars.RVT', arch=STAGES, mixer='performer'),
    'vars_d': dict(type='mmvars.VARS', arch=dict(STAGES, trunk='rvt'), mixer='vars_d'),
    'vars_sd': dict(type='mmvars.VARS', arch=dict(STAGES, trunk='rvt'), mixer='vars_sd'),
    'vars_s': dict(type='mmvars.VARS', arch=dict(STAGES, trunk='rvt'), mixer='vars_s'),
    'gfnet': dict(type='mmvars.GFNet', arch=FLAT),
    'fan': dict(type='mmvars.FAN', arch=FLAT),
}
UNITS = {'whole': ['model'], 'backbone': ['backbone'], 'blocks': ['blocks', 'backbone', 'model']}

PROCESS = """
import copy, json, os, sys
from types import SimpleNamespace
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
import mmvars.models
from mmpretrain.structures import DataSample
from mmvars.engine.hooks import LipschitzUpdateHook

init_default_scope('mmpretrain')
dist.init_process_group('gloo')
rank = dist.get_rank()


def build(backbone):
    torch.manual_seed(1)
    backbone = dict(backbone, img_size=64, out_type='pooled')
    head = dict(type='LinearClsHead', num_classes=3)
    return MODELS.build(dict(type='mmvars.ImageClassifier', backbone=backbone, head=head)).double()


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def compare(backbone, units):
    '''Largest relative difference of the losses of two steps, and of a gradient.'''
    alone = build(backbone)
    sharded = copy.deepcopy(alone)
    for unit in units:
        parts = dict(model=[sharded], backbone=[sharded.backbone],
                     blocks=sharded.backbone.trunk.blocks)[unit]
        for part in parts:
            fully_shard(part)
    assert any(isinstance(p, DTensor) for p in sharded.parameters())
    images = torch.randn(4, 3, 64, 48, dtype=torch.double)
    samples = [DataSample().set_gt_label(i % 3) for i in range(4)]
    has_batch_norm = any('BatchNorm' in type(m).__name__ for m in alone.modules())
    # Batch statistics are those of a process: with batch norm both see the same images.
    # So do they where the head is in no unit, whose gradients nobody averages.
    same = has_batch_norm or units == ['backbone']
    half = slice(0, 2) if same else slice(2 * rank, 2 * rank + 2)
    everything = half if same else slice(0, 4)
    worst = 0.0
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (alone, sharded)]
    for _ in range(2):
        totals = []
        for model, part in ((alone, everything), (sharded, half)):
            losses = model(images[part], samples[part], mode='loss')
            totals.append(sum(v for k, v in losses.items() if 'loss' in k))
            totals[-1].backward()
        loss = totals[1].detach().clone()
        dist.all_reduce(loss)
        worst = max(worst, abs(float(loss) / 2 / float(totals[0]) - 1))
        for (name, p), q in zip(alone.named_parameters(), sharded.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            if p.grad is not None:
                scale = p.grad.abs().max().clamp_min(1e-9)
                difference = (whole(q.grad) - p.grad).abs().max() / scale
                worst = max(worst, float(difference))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return worst


def compare_bounds(backbone):
    '''That of the Lipschitz constants, which a hook computes from weights that are spread.'''
    alone = build(backbone).train()
    sharded = FullyShardedDataParallel(copy.deepcopy(alone), device_id=torch.device('cpu'),
                                       use_orig_params=True)
    hook = LipschitzUpdateHook(interval=1, rate=0.5)
    for model in (alone, sharded):
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name.endswith('lipschitz'):
                    buffer.mul_(3)
        hook.before_train_iter(SimpleNamespace(model=model), 0)
    pairs = [(p, q) for (name, p), q in zip(alone.named_buffers(), sharded.buffers(), strict=True)
             if name.endswith('lipschitz')]
    assert pairs
    return max(float((q / p - 1).abs().max()) for p, q in pairs)


backbones, units = json.loads(sys.argv[1])
result = {f'{name} {kind}': compare(backbone, units[kind])
          for name, backbone in backbones.items() for kind in units
          if kind == 'blocks' or name in ('absvit', 'vars_s')}
result['vars_s bounds'] = compare_bounds(backbones['vars_s'])
if rank == 0:
    print('RESULT' + json.dumps(result), flush=True)
dist.barrier()
os._exit(0)  # threads of gloo can abort a process that ends by itself
"""


def launch(*command: str, folder: Path) -> str:
    """Run in two processes; what they print."""
    done = subprocess.run(
        [sys.executable, *'-m torch.distributed.run --standalone --nproc-per-node 2'.split()]
        + list(command),
        cwd=folder,
        env=dict(
            os.environ,
            PYTHONPATH=os.pathsep.join(sys.path),
            OMP_NUM_THREADS='1',
            CUDA_VISIBLE_DEVICES='',
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


@pytest.mark.slow
def test_fully_shard(tmp_path) -> None:
    """FSDP2: the whole model as one unit, the backbone as one, and each block as one."""
    if not hasattr(torch.distributed.fsdp, 'fully_shard'):
        pytest.skip('FSDP2 is in torch.distributed.fsdp from torch 2.6 on')
    (tmp_path / 'process.py').write_text(PROCESS)
    backbones = {
        name: dict(cfg, **dict(reconstruction_loss_weight=0.1) if 'absvit' in name else {})
        for name, cfg in BACKBONES.items()
    }
    out = launch('process.py', json.dumps([backbones, UNITS]), folder=tmp_path)
    result = json.loads(out.partition('RESULT')[2])
    print('\n'.join(f'{case:20} {worst:.1e}' for case, worst in result.items()))
    assert len(result) == len(BACKBONES) + 5
    assert all(worst < 1e-6 for worst in result.values()), result


FSDP = """
runner_type = 'FlexibleRunner'
env_cfg = dict()
strategy = dict(
    type='FSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel', auto_wrap_policy='mmvars.layers.is_block'),
    activation_checkpointing=dict(check_fn='mmvars.layers.is_block'),
    state_dict_cfg='full')
"""


SGD = """
optim_wrapper['optimizer'] = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.1)
"""


@pytest.mark.slow
def test_the_fsdp_strategy_of_mmengine(toy, tmp_path) -> None:
    """Six steps of two processes, also resumed, are those of one; the file is an ordinary one."""
    text = (toy / 'cls.py').read_text() + SGD
    (tmp_path / 'one.py').write_text(text + "train_dataloader['batch_size'] = 4\n")
    (tmp_path / 'two.py').write_text(text + FSDP)
    run_train([str(tmp_path / 'one.py'), '--work-dir', str(tmp_path / 'one'), '--no-validate'])
    train = '-m mmvars.cli train two.py --no-validate --launcher pytorch --work-dir'.split()
    launch(*train, 'two', folder=tmp_path)
    launch(*train, 'resumed', '--resume', 'two/iter_3.pth', folder=tmp_path)
    one, two, resumed = (
        torch.load(tmp_path / folder / 'iter_6.pth', weights_only=False)['state_dict']
        for folder in ('one', 'two', 'resumed')
    )
    assert one.keys() == two.keys() == resumed.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
        torch.testing.assert_close(resumed[name], two[name], rtol=1e-5, atol=1e-6, msg=name)
    checkpoint = str(tmp_path / 'two' / 'iter_6.pth')
    assert run_test([str(tmp_path / 'one.py'), checkpoint, '--work-dir', str(tmp_path)]) == 0
