"""Build, train, resume, interrupt and test through the tools, in both frameworks."""

import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image

from mmvars.engine import TrainingInterrupted
from mmvars.engine.test import main as run_test
from mmvars.engine.train import main as run_train
from mmvars.errors import InputError
from mmvars.models import AbSViT


@HOOKS.register_module()
class SignalAt(Hook):
    """Send this process a signal in the middle of a training step."""

    def __init__(self, iteration: int, signum: int) -> None:
        self.iteration = iteration
        self.signum = signum

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter == self.iteration:
            os.kill(os.getpid(), self.signum)


def add_signal(signum: int, iteration: int) -> str:
    return f"custom_hooks=[dict(type='SignalAt', iteration={iteration}, signum={int(signum)})]\n"


class Trained(dict):
    """Framework -> work dir of one uninterrupted run in it, trained when first asked for."""

    def __init__(self, toy: Path, folders: pytest.TempPathFactory) -> None:
        super().__init__()
        self.toy, self.folders = toy, folders

    def __missing__(self, framework: str) -> Path:
        package = {'seg': 'mmseg', 'cls': 'mmpretrain'}[framework]
        pytest.importorskip(f'{package}.models', exc_type=ImportError)
        folder = self.folders.mktemp(framework)
        assert run_train([str(self.toy / f'{framework}.py'), '--work-dir', str(folder)]) == 0
        self[framework] = folder
        return folder


@pytest.fixture(scope='module')
def trained(toy, tmp_path_factory) -> dict[str, Path]:
    """Work dirs of one uninterrupted run in each framework."""
    return Trained(toy, tmp_path_factory)


@pytest.mark.parametrize(
    'framework, parts',
    [
        ('seg', {'decode.loss_ce', 'backbone.loss_reconstruction'}),
        ('cls', {'loss_bottom_up', 'loss_top_down', 'backbone.loss_reconstruction'}),
    ],
)
def test_training_lowers_the_loss_and_names_its_parts(framework, parts, trained, losses) -> None:
    curve = losses(trained[framework])
    assert sorted(curve) == [1, 2, 3, 4, 5, 6]
    assert curve[6] < curve[1]
    log = next(trained[framework].glob('*/*.log')).read_text()
    for part in parts:
        assert f'{part}: ' in log
    assert (trained[framework] / 'last_checkpoint').read_text().endswith('iter_6.pth')


@pytest.mark.parametrize('framework', ['seg', 'cls'])
def test_a_resumed_run_equals_an_uninterrupted_one(
    framework, toy, trained, tmp_path, losses
) -> None:
    shutil.copy(trained[framework] / 'iter_3.pth', tmp_path / 'iter_3.pth')
    run_train(
        [
            str(toy / f'{framework}.py'),
            '--work-dir',
            str(tmp_path),
            '--resume',
            str(tmp_path / 'iter_3.pth'),
        ]
    )
    resumed, whole = losses(tmp_path), losses(trained[framework])
    assert sorted(resumed) == [4, 5, 6]
    assert [resumed[i] for i in (4, 5, 6)] == pytest.approx([whole[i] for i in (4, 5, 6)], rel=1e-6)
    same_weights(tmp_path / 'iter_6.pth', trained[framework] / 'iter_6.pth')


def same_weights(a: Path, b: Path) -> None:
    a, b = (torch.load(p, weights_only=False)['state_dict'] for p in (a, b))
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize(
    'signum, status',
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_interrupt_then_resume_equals_an_uninterrupted_run(
    signum, status, toy, trained, tmp_path, losses, forget_runs
) -> None:
    reference = trained['seg']
    forget_runs()
    config = tmp_path / 'seg.py'
    config.write_text((toy / 'seg.py').read_text() + add_signal(signum, iteration=3))
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(TrainingInterrupted) as caught:
        run_train([str(config), '--work-dir', str(tmp_path)])
    assert caught.value.code == status
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    saved = Path((tmp_path / 'last_checkpoint').read_text())
    assert saved == tmp_path / 'iter_4.pth'
    assert saved.is_file() and not list(tmp_path.glob('*.part'))

    moved = tmp_path.with_name(f'{tmp_path.name}-moved')
    tmp_path.rename(moved)
    forget_runs()
    run_train([str(toy / 'seg.py'), '--work-dir', str(moved), '--resume'])
    resumed, whole = losses(moved), losses(reference)
    assert [resumed[i] for i in range(1, 7)] == pytest.approx(
        [whole[i] for i in range(1, 7)], rel=1e-6
    )
    same_weights(moved / 'iter_6.pth', reference / 'iter_6.pth')


EPOCHS = """
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=10)
default_hooks['checkpoint'] = dict(type='CheckpointHook', interval=1)
train_dataloader['sampler'] = dict(type='DefaultSampler', shuffle=True)
param_scheduler = [dict(type='PolyLR', power=1., eta_min=1e-4, by_epoch=True, begin=0, end=2,
                        convert_to_iter_based=True)]
"""


@pytest.mark.slow
def test_an_interrupted_epoch_goes_on_where_it_was(toy, tmp_path, losses, forget_runs) -> None:
    config, work, whole = tmp_path / 'cls.py', tmp_path / 'work', tmp_path / 'whole'
    config.write_text((toy / 'cls.py').read_text() + EPOCHS + add_signal(signal.SIGHUP, 8))
    with pytest.raises(TrainingInterrupted) as caught:
        run_train([str(config), '--work-dir', str(work)])
    assert caught.value.code == 129
    config.write_text((toy / 'cls.py').read_text() + EPOCHS)
    for arguments in (['--work-dir', str(work), '--resume'], ['--work-dir', str(whole)]):
        forget_runs()
        run_train([str(config), *arguments])
    assert losses(work) == losses(whole)
    a, b = (torch.load(d / 'epoch_2.pth', weights_only=False) for d in (work, whole))
    assert a['meta']['iter'] == b['meta']['iter'] == 12
    for key, value in b['state_dict'].items():
        assert torch.equal(a['state_dict'][key], value), key


def test_segmentation_predictions_and_pictures(toy, trained, tmp_path) -> None:
    out, shows = tmp_path / 'out', tmp_path / 'shows'
    run_test(
        [
            str(toy / 'seg.py'),
            str(trained['seg'] / 'iter_6.pth'),
            '--work-dir',
            str(tmp_path),
            '--out',
            str(out),
            '--show-dir',
            str(shows),
        ]
    )
    names = sorted(path.name for path in out.glob('*.png'))
    assert names == ['0.png', '1.png', '2.png', '3.png']
    image = Image.open(out / '0.png')
    labels = np.asarray(image)
    assert image.mode == 'P' and labels.shape == (64, 64)
    colors = pytest.importorskip('mmseg.datasets').ADE20KDataset.METAINFO[
        'palette'
    ]  # of the class 0, whose id in files is 1
    assert image.convert('RGB').getpixel((0, 0)) == tuple(colors[labels[0, 0] - 1])
    assert labels.min() >= 1  # label 0 of ADE20K's files means "ignored": it is never predicted
    assert len(list(shows.rglob('*.png'))) == 4


@pytest.mark.parametrize('framework, flags', [('seg', []), ('seg', ['--tta']), ('cls', [])])
def test_tests_fuse_the_backbone_and_training_does_not(
    framework, flags, toy, trained, tmp_path, monkeypatch
) -> None:
    checkpoint = trained[framework] / 'iter_6.pth'
    fused = []
    forward = AbSViT.forward

    def watched(self, *args, **kwargs):
        fused.append(any(getattr(module, 'is_fused', False) for module in self.modules()))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(AbSViT, 'forward', watched)
    run_test([str(toy / f'{framework}.py'), str(checkpoint), '--work-dir', str(tmp_path), *flags])
    assert fused and all(fused)
    fused.clear()
    options = ('max_iters=1', 'train_cfg.val_interval=1')
    run_train(
        [
            str(toy / f'{framework}.py'),
            '--work-dir',
            str(tmp_path / 'train'),
            '--cfg-options',
            *options,
        ]
    )
    assert len(fused) > 1 and not any(fused)


def test_a_test_leaves_the_config_of_the_training_run(toy, trained, tmp_path) -> None:
    """With augmentation around its model it would make the next test an augmented one."""
    saved = trained['seg'] / 'seg.py'
    before = saved.read_bytes()
    copy = tmp_path / 'seg.py'
    copy.write_bytes(before)
    checkpoint = str(trained['seg'] / 'iter_6.pth')
    run_test([str(copy), checkpoint, '--work-dir', str(tmp_path), '--tta'])
    assert copy.read_bytes() == before


def test_windows_in_batches_and_without_logits_predict_the_same(
    toy, trained, tmp_path, forget_runs
) -> None:
    checkpoint = trained['seg'] / 'iter_6.pth'

    def predicted(name: str, *options: str) -> list[np.ndarray]:
        forget_runs()
        run_test(
            [
                str(toy / 'seg.py'),
                str(checkpoint),
                '--work-dir',
                str(tmp_path),
                '--out',
                str(tmp_path / name),
                '--cfg-options',
                'model.test_cfg.mode=slide',
                'model.test_cfg.crop_size=48,32',
                'model.test_cfg.stride=32,20',
                *options,
            ]
        )
        return [np.asarray(Image.open(path)) for path in sorted((tmp_path / name).glob('*.png'))]

    plain = predicted('plain')
    fewer = predicted('fewer', 'model.test_cfg.window_batch=4', 'model.test_cfg.keep_logits=False')
    assert len(plain) == len(fewer) == 4
    for a, b in zip(plain, fewer, strict=True):
        assert a.shape == b.shape == (64, 64)
        assert (a != b).mean() < 0.01  # pixels whose two best classes are equal but for rounding
    with pytest.raises(InputError, match='--tta averages logits'):
        predicted('averaged', 'model.test_cfg.keep_logits=False', '--tta')
    with pytest.raises(InputError, match='test_cfg.window_batch must be a whole number'):
        predicted('none', 'model.test_cfg.window_batch=none')


@pytest.mark.parametrize(
    'extra',
    [
        # As inherited from a base whose labels count from 0.
        "tta_pipeline[1]['transforms'][2][0].update(reduce_zero_label=False)",
        """
test_pipeline = tta_pipeline
tta_pipeline[1]['transforms'].pop(2)
test_evaluator = dict(type='IoUMetric', format_only=True)
""",
    ],
    ids=['with other labels', 'without labels'],
)
def test_augmented_segmentation_tests_write_predictions(extra, toy, trained, tmp_path) -> None:
    config = tmp_path / 'seg.py'
    config.write_text((toy / 'seg.py').read_text() + extra)
    out = tmp_path / 'out'
    if 'format_only' in extra:
        with pytest.raises(InputError, match='format_only=True.*--out FOLDER'):
            run_test([str(config), str(trained['seg'] / 'iter_6.pth'), '--work-dir', str(tmp_path)])
    run_test(
        [
            str(config),
            str(trained['seg'] / 'iter_6.pth'),
            '--work-dir',
            str(tmp_path),
            '--tta',
            '--out',
            str(out),
        ]
    )
    assert len(list(out.glob('*.png'))) == 4
    assert np.asarray(Image.open(out / '0.png')).min() >= 1


@pytest.mark.parametrize('flags', [[], ['--tta']])
def test_classification_predictions_and_metrics(flags, toy, trained, tmp_path) -> None:
    arguments = [
        str(toy / 'cls.py'),
        str(trained['cls'] / 'iter_6.pth'),
        '--work-dir',
        str(tmp_path),
        *flags,
    ]
    shows = [] if flags else ['--show-dir', str(tmp_path / 'shows')]
    run_test([*arguments, *shows, '--out', str(tmp_path / 'pred.pkl')])
    with open(tmp_path / 'pred.pkl', 'rb') as file:
        assert len(pickle.load(file)) == 4
    if not flags:
        assert len(list((tmp_path / 'shows').glob('*.png'))) == 4
        run_test([*arguments, '--out', str(tmp_path / 'metrics.json'), '--out-item', 'metrics'])
        assert 'accuracy' in (tmp_path / 'metrics.json').read_text()
