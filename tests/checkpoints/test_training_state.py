"""A run takes up only what resembles its own state, and says which entry does not."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from corpus import states
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.logging import MessageHub
from mmengine.optim import OneCycleLR, OptimWrapper, PolyLR
from torch import nn

from mmvars.checkpoints.io import read_checkpoint
from mmvars.engine.training_state import check_training_state, leave_out_unreadable
from mmvars.errors import InputError


def _run(kind: type = torch.optim.AdamW, **options) -> SimpleNamespace:
    """What of a Runner is compared: two groups, one scheduler, one step done."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups = [dict(params=list(layer.parameters()), lr=0.1) for layer in model]
    wrapper = OptimWrapper(kind(groups, **options))
    scheduler = PolyLR(wrapper, by_epoch=False, end=6)
    model(torch.ones(1, 3)).sum().backward()
    wrapper.step()
    scheduler.step()
    hub = MessageHub('test')
    hub.update_info('iter', 1)
    return SimpleNamespace(
        model=model,
        optim_wrapper=wrapper,
        param_schedulers=[scheduler],
        message_hub=hub,
        hooks=[],
    )


def _saved(run: SimpleNamespace) -> dict:
    hub = dict(
        log_scalars={},
        runtime_info=dict(run.message_hub.runtime_info),
        resumed_keys=dict(iter=True),
    )
    return dict(
        state_dict=run.model.state_dict(),
        meta=dict(iter=1, epoch=0, seed=0),
        optimizer=run.optim_wrapper.state_dict(),
        param_schedulers=[run.param_schedulers[0].state_dict()],
        message_hub=hub,
    )


STATES = {
    name: content
    for name, content in states(_saved(_run()))
    if name.startswith('state-') and not name.startswith(('state-state_dict', 'state-meta'))
}


def test_states_were_made() -> None:
    assert len(STATES) > 80


@pytest.mark.parametrize('name', STATES)
def test_a_state_of_the_wrong_kind_is_refused_by_its_entry(name, tmp_path) -> None:
    (tmp_path / 'x.pth').write_bytes(STATES[name])
    state = read_checkpoint(tmp_path / 'x.pth')
    with pytest.raises(InputError, match='entry (meta|optimizer|param_sch|message_hub).* must be'):
        check_training_state(state, _run())


@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        (torch.optim.AdamW, {}),
        (torch.optim.Adam, dict(amsgrad=True)),
        (torch.optim.SGD, {}),
        (torch.optim.SGD, dict(momentum=0.9, nesterov=True)),
        (torch.optim.RMSprop, {}),
        (torch.optim.Adagrad, {}),
        (torch.optim.Adadelta, {}),
        (torch.optim.NAdam, {}),
        (torch.optim.RAdam, {}),
        (torch.optim.Adamax, {}),
        (torch.optim.Rprop, {}),
        (torch.optim.ASGD, {}),
        (torch.optim.RMSprop, dict(centered=True, momentum=0.9)),
        (getattr(torch.optim, 'Adafactor', torch.optim.SGD), {}),  # not in torch 2.4
    ],
)
def test_a_runs_own_state_is_taken(kind, options, tmp_path) -> None:
    """Of every optimizer, before its first step and after."""
    run = _run(kind, **options)
    torch.save(_saved(run), tmp_path / 'x.pth')
    check_training_state(read_checkpoint(tmp_path / 'x.pth'), _run(kind, **options))
    run.optim_wrapper.optimizer.state.clear()
    torch.save(_saved(run), tmp_path / 'x.pth')
    check_training_state(read_checkpoint(tmp_path / 'x.pth'), _run(kind, **options))


def test_groups_of_one_optimizer_may_remember_different_things(tmp_path) -> None:
    def run() -> SimpleNamespace:
        run = _run(torch.optim.SGD, momentum=0.9)
        run.optim_wrapper.optimizer.param_groups[1]['momentum'] = 0
        return run

    state = _saved(run())
    del state['optimizer']['state'][2], state['optimizer']['state'][3]
    state['optimizer']['state'][2] = {}
    check_training_state(state, run())
    state['optimizer']['state'][0] = {}
    with pytest.raises(InputError, match=r"state.0 must be complete, .* \['momentum_buffer'\]"):
        check_training_state(state, run())


def test_what_could_not_be_read_again_is_not_written(tmp_path, caplog) -> None:
    """A scheduler that keeps a method of its own, a hook that keeps an object."""
    run = _run()
    run.logger = logging.getLogger('mmvars.test')
    run.param_schedulers = [OneCycleLR(run.optim_wrapper, eta_max=0.1, total_steps=9)]
    run.message_hub.update_info('of a hook', {'object': {1, 2}, 'number': np.float64(3)})
    state = _saved(run)
    state['meta']['dataset_meta'] = Config(dict(classes=('a', 'b'), of={1}))._cfg_dict
    leave_out_unreadable(state, run)
    assert 'runtime_info.of a hook.object, meta.dataset_meta.of are not saved' in caplog.text or (
        'meta.dataset_meta.of, message_hub.runtime_info.of a hook.object are' in caplog.text
    )
    assert 'anneal_func' not in caplog.text
    torch.save(state, tmp_path / 'x.pth')
    read = read_checkpoint(tmp_path / 'x.pth')
    assert read['meta']['dataset_meta'] == dict(classes=('a', 'b'))
    assert read['message_hub']['runtime_info']['of a hook'] == dict(number=3)
    check_training_state(read, run)


def test_switches_of_optimizers_that_only_one_torch_has(tmp_path) -> None:
    state = _saved(_run())
    for group in (*state['optimizer']['param_groups'], state['optimizer']['base_param_settings']):
        group.pop('foreach')
        group['not_yet_known'] = False
    torch.save(state, tmp_path / 'x.pth')
    check_training_state(read_checkpoint(tmp_path / 'x.pth'), _run())


def test_a_best_checkpoint_outside_of_the_name_that_mmengine_gives_is_refused() -> None:
    """mmengine deletes what the entry names, folders too, once there is a better one."""
    state = _saved(_run())
    state['message_hub']['runtime_info']['best_ckpt'] = '/somewhere/best_mIoU_iter_3.pth'
    check_training_state(state, _run())
    state['message_hub']['runtime_info']['best_ckpt'] = '/home'
    with pytest.raises(InputError, match=r'best_ckpt must be the path of a best_\*.pth'):
        check_training_state(state, _run())
    run = _run()
    run.hooks = [CheckpointHook(filename_tmpl='it_{}.pt')]
    state['message_hub']['runtime_info']['best_ckpt'] = '/somewhere/best_mIoU_it_3.pt'
    check_training_state(state, run)
