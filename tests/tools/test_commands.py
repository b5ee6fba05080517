"""The shims and the console script as processes of their own, from another folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TEXT = """
default_scope = 'mmpretrain'
train_dataloader = dict(
    batch_size=2, num_workers=1, sampler=dict(type='InfiniteSampler'),
    dataset=dict(type='FakeSet'))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=100000)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(logger=dict(type='LoggerHook', interval=1),
                     checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=100000))
log_processor = dict(by_epoch=False)
custom_imports = dict(imports=['fake_set'])
model = dict(
    type='mmvars.ImageClassifier',
    backbone=dict(type='mmvars.AbSViT', arch=dict(embed_dims=24, num_layers=1, num_heads=1),
                  img_size=32, out_type='cls_token'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=24,
              loss=dict(type='CrossEntropyLoss')))
"""

FAKE_SET = """
import torch
from mmengine.registry import DATASETS
from mmpretrain.structures import DataSample


@DATASETS.register_module()
class FakeSet(torch.utils.data.Dataset):
    def __init__(self, **ignored):
        pass

    def __len__(self):
        return 100

    def __getitem__(self, index):
        sample = DataSample()
        sample.set_gt_label(index % 2)
        return dict(inputs=torch.full((3, 32, 32), float(index % 2)), data_samples=sample)
"""


def command(repo: Path, tool: str) -> list[str]:
    return [sys.executable, str(repo / 'tools' / tool)]


def environment(*folders: Path) -> dict[str, str]:
    paths = [*map(str, folders), *sys.path]
    return dict(os.environ, PYTHONPATH=os.pathsep.join(paths), OMP_NUM_THREADS='1')


@pytest.mark.parametrize(
    'tool, words',
    [
        ('train.py', '--resume'),
        ('test.py', '--show-dir'),
    ],
)
def test_help(tool, words, repo, tmp_path) -> None:
    done = subprocess.run(
        [*command(repo, tool), '--help'],
        cwd=tmp_path,
        env=environment(repo),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert words in done.stdout


@pytest.mark.slow
def test_bad_input_is_one_line_and_status_2(repo, tmp_path) -> None:
    done = subprocess.run(
        [*command(repo, 'train.py'), 'gone.py'],
        cwd=tmp_path,
        env=environment(repo),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("mmvars: config 'gone.py' does not exist")
    assert done.stderr.count('\n') == 1


@pytest.mark.slow
@pytest.mark.parametrize('signum, status', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_group_saves_and_leaves(signum, status, repo, tmp_path) -> None:
    """Data workers get it too, as from a terminal (SIGINT), or slurm and torchrun (SIGTERM)."""
    (tmp_path / 'fake_set.py').write_text(FAKE_SET)
    (tmp_path / 'tiny.py').write_text(TEXT)
    log = tmp_path / 'out.txt'
    with log.open('w') as file:
        process = subprocess.Popen(
            [*command(repo, 'train.py'), 'tiny.py', '--work-dir', 'work'],
            cwd=tmp_path,
            env=environment(repo, tmp_path),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(log, 'Iter(train) [     5/', process)
        os.killpg(process.pid, signum)
        assert process.wait(timeout=60) == status
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    output = log.read_text()
    assert 'Traceback' not in output
    saved = Path((tmp_path / 'work' / 'last_checkpoint').read_text())
    assert saved.is_file()
    assert f'state saved to {saved}; --resume goes on from there' in output


def wait_for(log: Path, words: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while words not in log.read_text():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)
