"""Two processes over gloo compute what one process computes with the same global batch.

The two use gradient checkpointing, the one does not: neither may change anything.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Runs inside the training processes: mean loss over ranks, and which parameters got gradients.
RECORDER = """
import json
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Recorder(Hook):
    def __init__(self, file):
        self.file, self.losses, self.reached = file, [], set()

    def before_train(self, runner):
        self.names = []
        for name, parameter in runner.model.named_parameters():
            if parameter.requires_grad:
                name = name.removeprefix('module.')
                self.names.append(name)
                parameter.register_post_accumulate_grad_hook(
                    lambda p, name=name: p.grad.isfinite().all() and self.reached.add(name))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = outputs['loss'].detach().clone()
        all_reduce(loss, op='mean')
        self.losses.append(float(loss))

    def after_train(self, runner):
        if is_main_process():
            json.dump(dict(losses=self.losses, names=self.names, reached=sorted(self.reached),
                           processes=get_world_size()), open(self.file, 'w'))
"""

EXTRA = """
custom_imports = dict(imports=['recorder'])
custom_hooks = [dict(type='Recorder', file={file!r})]
train_dataloader['batch_size'] = {batch}
model['backbone']['with_cp'] = {checkpointing}
"""


def run(toy: Path, folder: Path, host: str, processes: int) -> tuple[dict, str]:
    (folder / 'recorder.py').write_text(RECORDER)
    record = folder / f'{processes}.json'
    config = folder / f'{host}{processes}.py'
    config.write_text((toy / f'{host}.py').read_text()
                      + EXTRA.format(file=str(record), batch=4 // processes,
                                      checkpointing=processes > 1))
    command = ['-m', 'mmvars.cli', 'train', str(config), '--work-dir', str(folder / 'work'),
               '--no-validate']
    if processes > 1:
        command = ['-m', 'torch.distributed.run', '--standalone',
                   f'--nproc-per-node={processes}', *command, '--launcher', 'pytorch']
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(folder), *sys.path]),
               OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    done = subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(record.read_text()), done.stdout + done.stderr


@pytest.mark.parametrize('host', ['seg', 'cls'])
def test_two_processes_equal_one(host, toy, tmp_path) -> None:
    one, _ = run(toy, tmp_path, host, 1)
    two, log = run(toy, tmp_path, host, 2)
    assert (one['processes'], two['processes']) == (1, 2)
    assert 'Distributed over gloo: 2 processes' in log
    assert len(one['losses']) == 6
    assert two['losses'][0] == pytest.approx(one['losses'][0], rel=1e-6)
    # Sums in another order, carried through six steps of AdamW.
    assert two['losses'] == pytest.approx(one['losses'], rel=1e-4)
    assert len(two['names']) > 30
    assert two['reached'] == sorted(two['names'])
    assert one['reached'] == two['reached']
