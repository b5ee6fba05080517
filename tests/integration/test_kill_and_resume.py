"""40 steps in one go are 20 steps, a kill or a signal, and 20 steps: every batch, loss and weight.

In both frameworks through the command line, with random augmentation in data workers.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

RECORDER = """
import hashlib
import os
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Recorder(Hook):
    def __init__(self, stop=None, signum=0):
        self.stop, self.signum = stop, signum

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.stop:
            os.kill(os.getpid(), self.signum)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        digest = hashlib.sha256()
        for image, sample in zip(data_batch['inputs'], data_batch['data_samples']):
            digest.update(image.numpy().tobytes() + sample.img_path.encode())
        with open(os.path.join(runner.work_dir, f'record{get_rank()}.txt'), 'a') as file:
            print(runner.iter, batch_idx, digest.hexdigest(), outputs['loss'].item(), file=file)
"""

SEGMENTATION = """
train_pipeline = [*pipeline[:2], dict(type='RandomCrop', crop_size=(48, 48)),
                  dict(type='RandomFlip', prob=0.5), dict(type='PhotoMetricDistortion'),
                  *pipeline[2:]]
train_dataloader.update(num_workers=2, persistent_workers=True)
train_dataloader['dataset']['pipeline'] = train_pipeline
train_cfg.update(max_iters=40, val_interval=10)
model['data_preprocessor']['test_cfg'] = dict(size=(64, 64))
model['data_preprocessor']['size'] = (48, 48)
model['backbone']['drop_path_rate'] = 0.3
model['decode_head']['dropout_ratio'] = 0.1
optim_wrapper['accumulative_counts'] = 3
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
"""

CLASSIFICATION = """
train_pipeline = [
    pipeline[0], dict(type='RandomResizedCrop', scale=64), dict(type='RandomFlip', prob=0.5),
    dict(type='RandAugment', policies='timm_increasing', num_policies=2, total_level=10,
         magnitude_level=9), pipeline[1]]
train_dataloader.update(num_workers=2, sampler=dict(type='RepeatAugSampler'))
train_dataloader['dataset']['pipeline'] = train_pipeline
train_cfg = dict(by_epoch=True, max_epochs=14, val_interval=4)
model['backbone']['drop_path_rate'] = 0.3
model['train_cfg'] = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.)])
model['head']['loss'] = dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=2)
optim_wrapper['accumulative_counts'] = 3
param_scheduler[0]['end'] = 42
custom_hooks = []
"""


def run(toy: Path, work: Path, framework: str, extra: str, processes: int, *flags: str) -> int:
    config = work.parent / f'{framework}.py'
    config.write_text((toy / f'{framework}.py').read_text() + extra)
    (work.parent / 'recorder.py').write_text(RECORDER)
    launch = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}']
    command = [sys.executable, *(launch if processes > 1 else []), '-m', 'mmvars.cli', 'train']
    command += [str(config), '--work-dir', str(work), *flags]
    command += ['--launcher', 'pytorch'] if processes > 1 else []
    env = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join([str(work.parent), *sys.path]),
        OMP_NUM_THREADS='1',
        CUDA_VISIBLE_DEVICES='',
    )
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    return done.returncode


@pytest.mark.slow
@pytest.mark.parametrize(
    'framework, processes, signum',
    [('seg', 1, signal.SIGKILL), ('cls', 2, signal.SIGINT)],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    framework, processes, signum, toy, tmp_path
) -> None:
    extra = SEGMENTATION if framework == 'seg' else CLASSIFICATION
    extra += "custom_imports = dict(imports=['recorder'])\nrandomness = dict(seed=None)\n"
    extra += "default_hooks['checkpoint'].update(interval=20, by_epoch=False)\n"
    # A kill after a checkpoint; Ctrl-C in iteration 26, the optimizer's step is the 27th.
    stop, done = (20, 20) if signum == signal.SIGKILL else (25, 27)
    recorder = "custom_hooks.append(dict(type='Recorder'))\n"
    stopper = f"custom_hooks.append(dict(type='Recorder', stop={stop}, signum={int(signum)}))\n"
    seed = "randomness['seed'] = {}\n"
    stopped, whole = tmp_path / 'stopped', tmp_path / 'whole'
    assert run(toy, stopped, framework, extra + stopper, processes) != 0
    drawn = torch.load(stopped / f'iter_{done}.pth', weights_only=False)['meta']['seed']
    assert run(toy, stopped, framework, extra + recorder, processes, '--resume') == 0
    assert run(toy, whole, framework, extra + recorder + seed.format(drawn), processes) == 0
    for rank in range(processes):
        a, b = ((folder / f'record{rank}.txt').read_text() for folder in (stopped, whole))
        assert len(b.splitlines()) >= 40
        assert a == b
    a, b = (torch.load(folder / 'iter_40.pth', weights_only=False) for folder in (stopped, whole))
    for entry in ('state_dict', *({'ema_state_dict'} & b.keys())):
        for key, value in b[entry].items():
            assert torch.equal(a[entry][key], value), (entry, key)
