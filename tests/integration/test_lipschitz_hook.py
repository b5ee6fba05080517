"""VARS-S in real runs: when its Lipschitz constants move, resumed, averaged, without a hook."""

from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmvars.engine.test import main as run_test
from mmvars.engine.train import main as run_train
from mmvars.errors import InputError
from mmvars.layers.vars_static import lipschitz_estimate

BACKBONE = """
model['backbone'] = dict(
    type='mmvars.VARS', img_size=64, mixer={mixer!r}, mixer_cfg=dict(sparsity=0.1),
    arch=dict(trunk='rvt', embed_dims=[16, 48], num_layers=[1, 1], num_heads=[2, 4]))
custom_hooks = [dict(type='BoundWatch')]
"""
SEG = """
model['backbone']['out_indices'] = (0, 1)
"""
CLS = """
model['backbone']['out_type'] = 'avg_featmap'
"""
REFRESH = """
custom_hooks.append(dict(type='mmvars.LipschitzUpdateHook', interval={interval}, rate=0.5))
"""
AVERAGE = """
custom_hooks.append(dict(type='EMAHook', momentum=0.3, update_buffers={buffers}))
"""
EPOCHS = """
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=10)
train_dataloader['sampler'] = dict(type='DefaultSampler', shuffle=True)
param_scheduler = []
"""


@HOOKS.register_module()
class BoundWatch(Hook):
    """Keeps, of the last run, the iterations in which a Lipschitz constant changed."""

    moved: list[int] = []

    def before_train(self, runner) -> None:
        BoundWatch.moved = []
        self.bounds = bounds_of(runner.model.state_dict())

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        now = bounds_of(runner.model.state_dict())
        if any(not torch.equal(now[key], self.bounds[key]) for key in now):
            self.moved.append(runner.iter)
        self.bounds = now


def bounds_of(state: dict) -> dict:
    return {key: value.clone() for key, value in state.items() if key.endswith('lipschitz')}


@pytest.fixture
def train(toy, tmp_path, forget_runs):
    """Train a toy config with additions; returns the work dir."""
    counter = iter(range(10))

    def run(framework: str, *additions: str, mixer: str = 'vars_s', arguments: tuple = ()) -> Path:
        package = {'seg': 'mmseg', 'cls': 'mmpretrain'}[framework]
        pytest.importorskip(f'{package}.models', exc_type=ImportError)
        forget_runs()
        folder = tmp_path / str(next(counter))
        folder.mkdir()
        config = folder / f'{framework}.py'
        config.write_text(
            (toy / f'{framework}.py').read_text()
            + BACKBONE.format(mixer=mixer)
            + {'seg': SEG, 'cls': CLS}[framework]
            + ''.join(additions)
        )
        run_train([str(config), '--work-dir', str(folder), '--no-validate', *arguments])
        return folder

    return run


def load(path: Path) -> dict:
    return torch.load(path, weights_only=False)


def same_bits(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def log_of(folder: Path) -> str:
    return '\n'.join(path.read_text() for path in folder.glob('*/*.log'))


def test_bounds_move_every_interval_of_a_run_and_a_resumed_run_has_the_same_bits(train) -> None:
    additions = REFRESH.format(interval=2), AVERAGE.format(buffers=False)
    whole = train('seg', *additions)
    assert BoundWatch.moved == [2, 4]  # at 0 the bound is that of the fresh dictionary already
    assert '2 VARS-S mixers, updated every 2' in log_of(whole)
    resumed = train('seg', *additions, arguments=('--resume', str(whole / 'iter_3.pth')))
    assert BoundWatch.moved == [4]
    a, b = load(whole / 'iter_6.pth'), load(resumed / 'iter_6.pth')
    assert len(bounds_of(a['state_dict'])) == 2
    for part in ('state_dict', 'ema_state_dict'):
        same_bits(a[part], b[part])


def test_bounds_move_at_the_start_of_every_epoch(train) -> None:
    train('cls', EPOCHS, REFRESH.format(interval=4))
    assert BoundWatch.moved == [4, 6, 10]  # two epochs of 6


@pytest.mark.parametrize('buffers', [False, True])
def test_averaged_weights_are_saved_with_a_bound_that_holds_for_them(
    buffers, train, toy, tmp_path
) -> None:
    folder = train(
        'cls',
        REFRESH.format(interval=1),
        AVERAGE.format(buffers=buffers),
        arguments=('--cfg-options', 'max_iters=4', 'optim_wrapper.optimizer.lr=0.05'),
    )
    state = load(folder / 'iter_4.pth')
    averaged, trained = state['state_dict'], state['ema_state_dict']  # mmengine swaps the two
    for key, bound in bounds_of(averaged).items():
        assert torch.equal(bound, trained[f'module.{key}']) is not buffers
        filters = key.replace('lipschitz', 'dictionary')
        assert not torch.equal(averaged[filters], trained[f'module.{filters}'])
    for key, bound in bounds_of(averaged).items():
        needed = lipschitz_estimate(averaged[key.replace('lipschitz', 'dictionary')])
        assert (needed < 2 * bound).all()  # shrinkage converges for steps below 2 / L
    assert (
        run_test([str(folder / 'cls.py'), str(folder / 'iter_4.pth'), '--work-dir', str(tmp_path)])
        == 0
    )


def test_a_run_without_the_hook_gets_it_and_is_told(train) -> None:
    folder = train('seg', arguments=('--cfg-options', 'max_iters=1'))

    assert "added dict(type='mmvars.LipschitzUpdateHook', interval=100, rate=0.1)" in log_of(folder)
    # The backbone itself tells those who train it with another script.
    assert "with another script, put dict(type='mmvars.LipschitzUpdateHook')" in log_of(folder)


def test_a_hook_without_vars_s_is_told(train) -> None:
    folder = train(
        'seg',
        REFRESH.format(interval=2),
        mixer='vars_d',
        arguments=('--cfg-options', 'max_iters=1'),
    )
    assert 'LipschitzUpdateHook has nothing to do: the model has no mixer' in log_of(folder)
    assert 'added dict' not in log_of(folder) and 'another script' not in log_of(folder)


@pytest.mark.slow
def test_mmengine_s_flexible_runner_trains_gets_the_hook_and_loads_strictly(
    train, tmp_path
) -> None:
    """It builds its model only when training starts; with it come FSDP and DeepSpeed."""
    folder = train(
        'seg',
        "runner_type = 'FlexibleRunner'\n",
        arguments=('--cfg-options', 'max_iters=3', 'default_hooks.checkpoint.interval=3'),
    )
    assert "added dict(type='mmvars.LipschitzUpdateHook'" in log_of(folder)
    test = [str(folder / 'seg.py'), str(folder / 'iter_3.pth'), '--work-dir', str(tmp_path)]
    assert run_test(test) == 0
    with pytest.raises(InputError, match='num_steps'):
        run_test([*test, '--cfg-options', 'model.backbone.mixer_cfg.num_steps=5'])
    with pytest.raises(InputError, match='checkpoint does not fit the model of this config'):
        run_test([*test, '--cfg-options', 'model.backbone.arch.num_layers=[1, 2]'])
    torch.save(dict(other=torch.ones(1)), tmp_path / 'other.pth')
    options = 'max_iters=1', f'load_from={tmp_path}/other.pth'
    with pytest.raises(InputError, match='fills no tensor of the backbone'):
        train('seg', "runner_type = 'FlexibleRunner'\n", arguments=('--cfg-options', *options))
