"""Two processes over gloo compute what one process computes with the same global batch.

The two use gradient checkpointing, the one does not: neither may change anything. Batch norm is the
exception: its statistics are those of each process (mmengine's DDP does not broadcast buffers), so
with it the two are compared with one another only.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmvars.engine.train import main as run_train

# Runs inside the training processes: mean loss over ranks, which parameters got gradients, which
# tensors differ between ranks in any bit, and the Lipschitz constants of VARS-S.
RECORDER = """
import json
import torch
from mmengine.dist import all_gather, all_reduce, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class Recorder(Hook):
    def __init__(self, file):
        self.file, self.losses, self.reached, self.bounds = file, [], set(), []
        self.differing = []  # before the last checkpoint, for which statistics are averaged

    def before_train(self, runner):
        self.names = []
        for name, parameter in runner.model.named_parameters():
            if parameter.requires_grad:
                name = name.removeprefix('module.')
                self.names.append(name)
                parameter.register_post_accumulate_grad_hook(
                    lambda p, name=name: p.grad.isfinite().all() and p.grad.any()
                    and self.reached.add(name) or None)  # what else it returns were the gradient

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = outputs['loss'].detach().clone()
        all_reduce(loss, op='mean')
        self.losses.append(float(loss))
        self.bounds.append([bound.tolist() for name, bound in runner.model.named_buffers()
                            if name.endswith('lipschitz')])
        self.differing.append(self.compare(runner.model))

    def compare(self, model):
        differing = []
        for name, tensor in model.state_dict().items():
            copies = all_gather(tensor.contiguous())
            if not all(torch.equal(copy, copies[0]) for copy in copies):
                differing.append(name.removeprefix('module.'))
        return differing

    def after_train(self, runner):
        saved = self.compare(runner.model)
        if is_main_process():
            json.dump(dict(losses=self.losses, names=self.names, reached=sorted(self.reached),
                           bounds=self.bounds, differing=self.differing[-1], saved=saved,
                           processes=get_world_size()),
                      open(self.file, 'w'))
"""

EXTRA = """
custom_imports = dict(imports=['recorder'])
custom_hooks = [dict(type='Recorder', file={file!r}),
                dict(type='mmvars.LipschitzUpdateHook', interval=2, rate=0.5)]
train_dataloader['batch_size'] = {batch}
model['backbone'].update({backbone})
model['backbone']['with_cp'] = {checkpointing}
"""

# Each stands for the whole backbone of a config. The first has layer norms alone.
WITHOUT_BATCH_NORM = dict(
    _delete_=True,
    type='mmvars.VARS',
    mixer='vars_s',
    img_size=64,
    mixer_cfg=dict(preset='thesis'),
    arch=dict(trunk='gfnet', embed_dims=48, num_layers=2, num_heads=2),
    out_indices=(0, 1),
)
WITH_BATCH_NORM = dict(
    _delete_=True,
    type='mmvars.VARS',
    mixer='vars_s',
    img_size=64,
    out_type='avg_featmap',
    mixer_cfg=dict(sparsity=0.1),
    arch=dict(trunk='rvt', embed_dims=[16, 48], num_layers=[1, 1], num_heads=[2, 4]),
)


def run(
    toy: Path, folder: Path, framework: str, processes: int, backbone: dict | None = None
) -> tuple[dict, str]:
    (folder / 'recorder.py').write_text(RECORDER)
    record = folder / f'{processes}.json'
    config = folder / f'{framework}{processes}.py'
    backbone = dict(backbone or {})
    text = (toy / f'{framework}.py').read_text()
    if backbone.pop('_delete_', False):
        text += "model['backbone'] = {}\n"
    config.write_text(
        text
        + EXTRA.format(
            file=str(record), batch=4 // processes, backbone=backbone, checkpointing=processes > 1
        )
    )
    arguments = ['train', str(config), '--work-dir', str(folder / 'work'), '--no-validate']
    if processes == 1:
        sys.modules.pop('recorder', None)
        run_train(arguments[1:])
        return json.loads(record.read_text()), ''
    command = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        f'--nproc-per-node={processes}',
        '-m',
        'mmvars.cli',
        *arguments,
        '--launcher',
        'pytorch',
    ]
    env = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join([str(folder), *sys.path]),
        OMP_NUM_THREADS='1',
        CUDA_VISIBLE_DEVICES='',
    )
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(record.read_text()), done.stdout + done.stderr


@pytest.mark.parametrize(
    'framework, backbone',
    [
        ('seg', None),
        pytest.param('cls', None, marks=pytest.mark.slow),
        pytest.param('seg', WITHOUT_BATCH_NORM, marks=pytest.mark.slow),
    ],
    ids=['absvit-seg', 'absvit-cls', 'vars_s-seg'],
)
def test_two_processes_equal_one(framework, backbone, toy, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    one, _ = run(toy, tmp_path, framework, 1, backbone)
    two, log = run(toy, tmp_path, framework, 2, backbone)
    assert (one['processes'], two['processes']) == (1, 2)
    assert 'Distributed over gloo: 2 processes' in log
    assert len(one['losses']) == 6
    assert two['losses'][0] == pytest.approx(one['losses'][0], rel=1e-6)
    # Sums in another order, carried through six steps of AdamW.
    assert two['losses'] == pytest.approx(one['losses'], rel=1e-4)
    assert len(two['names']) > 20
    assert two['reached'] == sorted(two['names'])
    assert one['reached'] == two['reached']
    assert two['differing'] == []


@pytest.mark.slow
def test_batch_norm_alone_differs_between_processes(toy, tmp_path) -> None:
    """Weights and Lipschitz constants are the same bits on both, which see different images.

    For a checkpoint the statistics are averaged.
    """
    record, log = run(toy, tmp_path, 'cls', 2, WITH_BATCH_NORM)
    assert '2 VARS-S mixers, updated every 2' in log
    assert record['reached'] == sorted(record['names'])
    assert [len(bounds) for bounds in record['bounds']] == [2] * 6
    moved = [i for i in range(1, 6) if record['bounds'][i] != record['bounds'][i - 1]]
    assert moved == [2, 4]
    assert len(record['differing']) > 10
    assert all(name.endswith(('running_mean', 'running_var')) for name in record['differing'])
    assert record['saved'] == []


@pytest.mark.slow
def test_steerable_training(toy, tmp_path) -> None:
    """Whatever each process draws, every parameter trains, and all processes have the same."""
    steerable = tmp_path / 'steerable'
    steerable.mkdir()
    text = (toy / 'seg.py').read_text() + (
        "model['backbone'].update(prior='learned_classes', alpha=10.0)\n"
        "model.update(prior_sampler=dict(type='mmvars.PriorSampler'), prior_loss_weight=1.0,\n"
        "    prompt_head=dict(type='mmvars.PromptHead', norm_cfg=dict(type='GN', num_groups=1)))\n"
    )
    (steerable / 'seg.py').write_text(text)
    record, _ = run(steerable, tmp_path, 'seg', 2)
    assert {'prompt_head.layers.0.weight', 'backbone.network.prior.prototypes'} <= {
        *record['names']
    }
    assert record['reached'] == sorted(record['names'])
    assert record['differing'] == []
