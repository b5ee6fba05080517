"""Training states are read without running code from the file, and bad files are named."""

import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from mmvars.engine.safe_load import check_checkpoint_file, load_from_local
from mmvars.errors import InputError


def history() -> HistoryBuffer:
    buffer = HistoryBuffer()
    for value in (1.0, 2.0, 4.0):
        buffer.update(value)
    return buffer


@pytest.fixture
def save(tmp_path):
    def write(content, name='x.pth') -> str:
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    return write


def test_a_training_state_comes_back_whole(save) -> None:
    state = dict(
        state_dict={'a': torch.ones(2)},
        meta=dict(iter=3, cfg='x = 1'),
        optimizer=dict(param_groups=[dict(lr=0.1)]),
        message_hub=dict(log_scalars={'train/loss': history()}),
    )
    found = load_from_local(save(state))
    assert torch.equal(found['state_dict']['a'], torch.ones(2))
    assert (found['meta'], found['optimizer']) == (state['meta'], state['optimizer'])
    buffer = found['message_hub']['log_scalars']['train/loss']
    assert buffer.statistics('max') == 4 and buffer.current() == 4


@pytest.mark.parametrize('module', ['numpy.core.multiarray', 'numpy._core.multiarray'])
def test_states_of_numpy_1_and_numpy_2_are_read(module, tmp_path) -> None:
    """A run may be resumed in an environment with the other numpy."""
    path = tmp_path / 'x.pth'
    torch.save(
        dict(state_dict={}, meta=dict(best=np.float64(0.5)), history=history()),
        path,
        _use_new_zipfile_serialization=False,
    )  # not a zip file: names can be replaced in it
    own = np.float64(0).__reduce__()[0].__module__.encode()
    content = path.read_bytes()
    assert own in content
    path.write_bytes(content.replace(own, module.encode()))
    found = load_from_local(str(path))
    assert found['meta']['best'] == 0.5 and found['history'].current() == 4


def test_a_flat_file_gets_the_entry_that_hooks_look_for(tmp_path) -> None:
    torch.save({'a': torch.ones(2)}, tmp_path / 'x.pth')
    assert list(load_from_local(str(tmp_path / 'x.pth'))) == ['state_dict']


def test_safetensors_are_weights(tmp_path) -> None:
    save_file({'a': torch.ones(2)}, tmp_path / 'x.safetensors')
    found = load_from_local(str(tmp_path / 'x.safetensors'))
    assert torch.equal(found['state_dict']['a'], torch.ones(2))


def test_config_text_that_resuming_would_execute_is_dropped(save) -> None:
    found = load_from_local(save(dict(state_dict={}, meta=dict(iter=1, config='import os'))))
    assert found['meta'] == dict(iter=1)


class Runs:
    def __init__(self, *call) -> None:
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize(
    'call, named',
    [
        ((os.mkdir, 'planted'), 'mkdir'),
        ((getattr, HistoryBuffer, '__init__'), '__init__'),
        ((eval, '1'), 'eval'),
    ],
)
def test_hostile_files_are_refused_and_do_nothing(call, named, save, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(dict(state_dict={}, x=Runs(*call)))
    with pytest.raises(InputError, match=named) as caught:
        load_from_local(path)
    assert path in str(caught.value)
    assert not (tmp_path / 'planted').exists()


def test_values_that_are_not_finite_are_named(save) -> None:
    path = save(dict(state_dict={'good': torch.ones(1), 'bad': torch.tensor([1.0, float('nan')])}))
    with pytest.raises(InputError, match='NaN or infinity in bad:'):
        load_from_local(path)


@pytest.mark.parametrize(
    'content, message',
    [
        (None, 'does not exist'),
        (b'', 'is empty'),
        (b'not a checkpoint', 'is no checkpoint: it starts with'),
    ],
)
def test_files_that_are_no_checkpoints(content, message, tmp_path) -> None:
    path = tmp_path / 'x.pth'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_from_local(str(path))


@pytest.mark.parametrize('share', [0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_found_before_anything_is_built(share, save, tmp_path) -> None:
    whole = open(save(dict(state_dict={'a': torch.randn(1000)})), 'rb').read()
    cut = tmp_path / 'cut.pth'
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match='truncated'):
        check_checkpoint_file(str(cut), '--resume checkpoint')


@pytest.mark.parametrize('protocol', [2, 4])
def test_a_bare_pickle_is_refused_in_words(protocol, tmp_path) -> None:
    content = pickle.dumps(Runs(os.mkdir, str(tmp_path / 'planted')), protocol)
    (tmp_path / 'x.pth').write_bytes(content)
    with pytest.raises(InputError, match='refused: it is a pickle that torch.save did not write'):
        load_from_local(str(tmp_path / 'x.pth'))
    assert not (tmp_path / 'planted').exists()


@pytest.mark.parametrize('content', [dict(state_dict=5), dict(state_dict={1: torch.ones(1)})])
def test_state_dicts_have_names(content, save) -> None:
    with pytest.raises(InputError, match='holds no state dict'):
        load_from_local(save(content))


def test_a_list_is_no_checkpoint(save) -> None:
    with pytest.raises(InputError, match='holds a list'):
        load_from_local(save([1, 2]))
