"""A run takes up only what resembles its own state, and says which entry does not."""

from types import SimpleNamespace

import pytest
import torch
from corpus import states
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper, PolyLR
from torch import nn

from mmvars.checkpoints.io import read_checkpoint
from mmvars.engine.training_state import check_training_state
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
