"""METER through ``mmvars train``: two processes as one, resumed as not, and mixed precision."""

import json
import math
import os
import socket
import sys
import traceback

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from mmvars.engine.train import main as run_train

pytest.importorskip('mmpretrain')
pytest.importorskip('transformers')
pytestmark = pytest.mark.slow

DATASET = """
import torch
from mmengine.registry import DATASETS
from mmpretrain.structures import DataSample

WORDS = 'red blue green circle square'.split()


@DATASETS.register_module()
class Shapes(torch.utils.data.Dataset):
    metainfo = {}

    def __init__(self, retrieval):
        self.retrieval = retrieval

    def __len__(self):
        return 8

    def __getitem__(self, index):
        draw = torch.Generator().manual_seed(index)
        image = torch.randint(256, (3, 32, 32), generator=draw, dtype=torch.uint8)
        texts = ['a ' + WORDS[(index + number) % 5] + ' ' + WORDS[(index + number) % 3]
                 for number in range(4)]
        if self.retrieval:
            sample = DataSample(text=texts)
        else:
            sample = DataSample(question=texts[0])
            sample.set_gt_score(torch.rand(3, generator=draw))
        return dict(inputs=image, data_samples=sample)
"""

CONFIG = """
custom_imports = dict(imports=['shapes'])
default_scope = 'mmpretrain'
randomness = dict(seed=0)
model = dict(
    type='mmvars.METER',
    data_preprocessor=dict(mean=[127.5] * 3, std=[60.0] * 3),
    backbone=dict(
        type='mmvars.AbSViT', arch=dict(embed_dims=32, num_layers=2, num_heads=2, patch_size=8),
        img_size=32, out_type='featmap_cls_token', prior=dict(type='text', text_dim=32),
        modulation='project', alpha=5.0, reconstruction_loss_weight={weight}),
    text_backbone=dict(
        type='mmvars.TextBackbone', name={folder!r}, max_length=12, text_vector='padded_mean',
        config=dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)),
    fusion=dict(hidden_dim=24, num_layers=2, num_heads=3, dropout=0.0),
    prior_loss_cfg=dict(weight=0.1),
    head={head})
train_dataloader = dict(
    batch_size={batch_size}, num_workers=0, dataset=dict(type='Shapes', retrieval={retrieval}),
    collate_fn=dict(type='default_collate'), sampler=dict(type='DefaultSampler', shuffle=False))
optim_wrapper = dict(
    type='OptimWrapper', accumulative_counts={counts}, clip_grad=dict(max_norm=100.0),
    optimizer=dict(type='SGD', lr=0.001, momentum=0.9, weight_decay=0.01),
    constructor='mmvars.METEROptimWrapperConstructor')
param_scheduler = [dict(type='LinearLR', start_factor=1.0, end_factor=0.1, begin=0, end=8,
                        by_epoch=False)]
train_cfg = dict(by_epoch=True, max_epochs=4)
log_processor = dict(window_size=1)
default_hooks = dict(logger=dict(type='LoggerHook', interval=1),
                     checkpoint=dict(type='CheckpointHook', interval=1))
"""

HEADS = {
    'vqa': dict(type='mmvars.VQAHead', num_answers=3),
    'retrieval': dict(type='mmvars.RetrievalHead'),
}


@pytest.fixture
def write(text_folder, tmp_path, monkeypatch):
    """Write a config by name, for a task and a size of batch."""
    (tmp_path / 'shapes.py').write_text(DATASET)
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, task, batch_size, counts=1):
        text = CONFIG.format(
            folder=str(text_folder),
            head=HEADS[task],
            retrieval=task == 'retrieval',
            batch_size=batch_size,
            counts=counts,
            weight=0.3 if task == 'vqa' else 0.0,
        )
        (tmp_path / f'{name}.py').write_text(text)
        return tmp_path / f'{name}.py'

    yield write
    sys.modules.pop('shapes', None)
    DATASETS.module_dict.pop('Shapes', None)


def train(config, *options):
    """Run ``mmvars train`` here; the folder of the run."""
    out = config.with_name(f'{config.stem}-run')
    forget_runs()
    assert run_train([str(config), '--work-dir', str(out), '--no-validate', *options]) == 0
    return out


def train_in_two_processes(config):
    """Run ``mmvars train`` in two processes, copies of this one; the folder of the run."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in map(str, range(2)):
        children.append(os.fork())
        if not children[-1]:
            try:
                os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE='2', MASTER_PORT=port)
                os.environ['MASTER_ADDR'] = '127.0.0.1'
                train(config, '--launcher', 'pytorch')
                os._exit(0)
            finally:
                traceback.print_exc()
                os._exit(2)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    return config.with_name(f'{config.stem}-run')


def forget_runs():
    """mmengine keeps what a run had by name."""
    for owner in (MMLogger, MessageHub, Visualizer, DefaultScope):
        owner._instance_dict.clear()


def losses(run):
    """Of every step, in order."""
    (file,) = run.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [row['loss'] for row in rows if 'loss' in row]


def weights(run):
    return torch.load(run / 'epoch_4.pth', weights_only=False)['state_dict']


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=2e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize('task', HEADS)
def test_two_processes_train_as_one(task, write):
    """Images 0, 2, .. are the first's and 1, 3, .. the second's; the prior loss spans both.

    A process logs the loss of its own images, but after 8 steps the weights are those of one.
    """
    one = train(write('one', task, batch_size=4))
    two = train_in_two_processes(write('two', task, batch_size=2))
    assert len(losses(one)) == 8 and sum(losses(one)[-2:]) < sum(losses(one)[:2])
    assert_same_weights(weights(one), weights(two))


def test_accumulated_and_resumed_it_is_the_same(write):
    """Halves of a batch, whose gradients add up; without the prior loss, which spans a batch."""
    path, halves = write('whole', 'vqa', 4), write('halves', 'vqa', 2, counts=2)
    for config in (path, halves):
        text = config.read_text().replace('prior_loss_cfg=dict(weight=0.1),', '')
        config.write_text(text.replace('clip_grad=dict(max_norm=100.0),\n', ''))
    halves.write_text(halves.read_text().replace('param_scheduler', 'unused'))
    path.write_text(path.read_text().replace('param_scheduler', 'unused'))
    whole, halves = train(path), train(halves)
    assert len(losses(halves)) == 16
    means = [sum(pair) / 2 for pair in zip(losses(halves)[::2], losses(halves)[1::2], strict=True)]
    assert means == pytest.approx(losses(whole), rel=1e-4)
    expected = weights(whole)
    assert_same_weights(expected, weights(halves))
    resumed = train(
        path.rename(path.with_name('resumed.py')), '--resume', str(whole / 'epoch_2.pth')
    )
    assert len(losses(resumed)) == 4
    assert_same_weights(expected, weights(resumed))


@pytest.mark.parametrize('task', HEADS)
def test_mixed_precision(task, write, tmp_path, monkeypatch):
    """mmengine's wrapper in bfloat16, which on a CPU it refuses out of caution."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    forget_runs()
    cfg = Config.fromfile(write('amp', task, batch_size=4))
    cfg.work_dir = str(tmp_path / 'amp-run')
    cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=1.0)
    model = Runner.from_cfg(cfg).train()
    values = losses(tmp_path / 'amp-run')
    assert all(map(math.isfinite, values)) and sum(values[-2:]) < sum(values[:2])
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
