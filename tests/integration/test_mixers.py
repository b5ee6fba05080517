"""Every mixer in every trunk that takes it trains through the real Runner, in both frameworks.

On the embedded mini sets, at sides that are no squares for segmentation: the grid is 4 x 6, and
2 x 3 in the second stage of RVT.
"""

import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor

from mmvars.cli import run_tool
from mmvars.engine.train import main as run_train
from mmvars.layers import MIXERS

SINGLE = dict(embed_dims=24, num_layers=2, num_heads=2)
ARCHS = {
    'rvt': dict(trunk='rvt', embed_dims=[16, 32], num_layers=[1, 1], num_heads=[2, 4]),
    'deit_convstem': dict(trunk='deit_convstem', **SINGLE),
    'gfnet': dict(trunk='gfnet', **SINGLE),
}
# With the release's 3.5 every code is zero in nets as small and fresh as these: nothing to train.
OPTIONS = {'vars_s': dict(sparsity=0.1)}
EVERYWHERE = ('performer', 'vars_d', 'vars_sd', 'vars_s')
OWN = {
    'rvt': ('self_attention', 'masked_attention'),
    'deit_convstem': ('self_attention',),
    'gfnet': ('global_filter',),
}
VALID = [(trunk, mixer) for trunk in ARCHS for mixer in (*OWN[trunk], *EVERYWHERE)]
INVALID = [(trunk, mixer) for trunk in ARCHS for mixer in MIXERS if (trunk, mixer) not in VALID]

COMMON = """
_base_ = {base!r}
default_scope = {scope!r}
randomness = dict(seed=0)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False,
                        dataset=dict(serialize_data=False))
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01),
    constructor='mmvars.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.75))
log_processor = dict(by_epoch=False)
default_hooks = dict(logger=dict(type='LoggerHook', interval=1), checkpoint=None)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
custom_hooks = [dict(type='Witness')]
"""
SEGMENTATION = (
    COMMON
    + """
train_pipeline = [*_base_.train_pipeline[:3],
                  dict(type='RandomResize', scale=(96, 96), ratio_range=(1., 1.), keep_ratio=False),
                  dict(type='mmseg.RandomCrop', crop_size=(64, 96)),
                  dict(type='mmseg.PackSegInputs')]
train_dataloader['dataset']['pipeline'] = train_pipeline
head = dict(channels=8, num_classes=19, norm_cfg=dict(type='BN'), dropout_ratio=0.1,
            loss_decode=dict(type='CrossEntropyLoss'))
model = dict(
    type='mmvars.EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53],
                           std=[58.395, 57.12, 57.375], bgr_to_rgb=True, size=(64, 96), pad_val=0,
                           seg_pad_val=255),
    backbone=dict(type='mmvars.VARS', arch={arch}, mixer={mixer!r}, mixer_cfg={options},
                  img_size=(64, 96), out_indices=(0, 1), drop_path_rate=0.1,
                  with_cp=True),
    decode_head=dict(type='UPerHead', in_channels={widths}, in_index=[0, 1], pool_scales=(1, 2),
                     **head),
    auxiliary_head=dict(type='FCNHead', in_channels={widths}[1], in_index=1, num_convs=1, **head),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
del head
"""
)
CLASSIFICATION = (
    COMMON
    + """
model = dict(
    type='mmvars.ImageClassifier',
    data_preprocessor=dict(type='ClsDataPreprocessor', mean=[123.675, 116.28, 103.53],
                           std=[58.395, 57.12, 57.375], to_rgb=True, num_classes=1000),
    backbone=dict(type='mmvars.VARS', arch={arch}, mixer={mixer!r}, mixer_cfg={options},
                  img_size=64, out_type='avg_featmap'),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels={widths}[-1],
              loss=dict(type='CrossEntropyLoss')))
"""
)
FRAMEWORKS = {
    'seg': (SEGMENTATION, 'mini_cityscapes', 'mmseg'),
    'cls': (CLASSIFICATION, 'mini_imagenet', 'mmpretrain'),
}


@HOOKS.register_module()
class Witness(Hook):
    """Sees the losses and which parameters a finite gradient, not always zero, reaches."""

    last: 'Witness'

    def before_train(self, runner) -> None:
        Witness.last = self
        self.losses, self.missed = [], {}
        parameters = [(n, p) for n, p in runner.model.named_parameters() if p.requires_grad]
        self.count = len(parameters)
        for name, parameter in parameters:
            self.missed[name] = 'no gradient'
            parameter.register_post_accumulate_grad_hook(
                lambda p, name=name: self._reached(name, p.grad)
            )

    def _reached(self, name: str, gradient: Tensor) -> None:
        if not gradient.isfinite().all():
            self.missed[name] = 'not finite'
        elif self.missed.get(name) != 'not finite':
            if gradient.any():
                self.missed.pop(name, None)
            elif name in self.missed:
                self.missed[name] = 'zero'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.losses.append(outputs['loss'].item())


def write_config(framework: str, trunk: str, mixer: str, repo: Path, folder: Path) -> Path:
    package = {'seg': 'mmseg', 'cls': 'mmpretrain'}[framework]
    pytest.importorskip(f'{package}.models', exc_type=ImportError)
    text, data, scope = FRAMEWORKS[framework]
    arch = ARCHS[trunk]
    widths = arch['embed_dims'] if trunk == 'rvt' else [arch['embed_dims']] * 2
    path = folder / f'{framework}.py'
    path.write_text(
        text.format(
            base=str(repo / f'configs/_base_/datasets/{data}.py'),
            scope=scope,
            arch=arch,
            mixer=mixer,
            widths=widths,
            options=OPTIONS.get(mixer, {}),
        )
    )
    return path


@pytest.fixture(autouse=True)
def _plain_dumps(monkeypatch) -> None:
    """mmengine formats a config five times a run with yapf: longer than the training takes."""
    monkeypatch.setattr(Config, 'pretty_text', property(lambda self: repr(self._cfg_dict)))


@pytest.mark.parametrize('framework', FRAMEWORKS)
@pytest.mark.parametrize('trunk, mixer', VALID)
def test_every_mixer_trains_in_every_trunk(framework, trunk, mixer, repo, tmp_path) -> None:
    config = write_config(framework, trunk, mixer, repo, tmp_path)
    assert run_train([str(config), '--work-dir', str(tmp_path)]) == 0
    assert len(Witness.last.losses) == 2
    assert all(math.isfinite(loss) for loss in Witness.last.losses)
    # DDP runs with find_unused_parameters=False: a parameter that no loss reaches would stop it.
    assert Witness.last.missed == {}
    assert Witness.last.count > 20


@pytest.mark.parametrize(
    'trunk, mixer', [('rvt', mixer) for mixer in EVERYWHERE] + [('gfnet', 'global_filter')]
)
def test_mixers_train_in_bfloat16(trunk, mixer, repo, tmp_path) -> None:
    """Autocast around all: the tools leave --amp out where there is no accelerator."""
    config = write_config('seg', trunk, mixer, repo, tmp_path)
    with torch.autocast('cpu', torch.bfloat16):
        assert run_train([str(config), '--work-dir', str(tmp_path)]) == 0
    assert all(math.isfinite(loss) for loss in Witness.last.losses)
    assert Witness.last.missed == {}


@pytest.mark.parametrize('trunk, mixer', INVALID)
def test_combinations_that_make_no_sense_are_refused(trunk, mixer, repo, tmp_path, capsys) -> None:
    config = write_config('seg', trunk, mixer, repo, tmp_path)
    work_dir = tmp_path / 'work'
    assert run_tool('train', [str(config), '--work-dir', str(work_dir)]) == 2
    message = capsys.readouterr().err.split('mmvars: ', 1)[1]
    assert 'Traceback' not in message
    assert message.count('\n') == 1
    reason = f'mixer={mixer!r} does not go into the {trunk.split("_")[0]} trunk: '
    assert reason in message
    assert not list(work_dir.rglob('*.pth'))


def test_the_lists_above_are_not_empty() -> None:
    assert (len(VALID), len(INVALID)) == (16, 5)
    assert {mixer for _, mixer in VALID} == set(MIXERS)
