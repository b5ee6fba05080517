"""Hostile and odd files: refused in one line, in no time, within memory, and nothing runs."""

import gc
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from corpus import FINE, Runs, corpus
from peak_memory import needs_proc, start_peak

from mmvars.checkpoints.io import read_checkpoint
from mmvars.errors import InputError

EVENTS = (
    'compile', 'ctypes', 'exec', 'ftplib', 'marshal', 'os.chmod', 'os.exec', 'os.fork', 'os.mkdir',
    'os.posix_spawn', 'os.putenv', 'os.remove', 'os.rename', 'os.rmdir', 'os.spawn', 'os.system',
    'pickle', 'pty', 'shutil', 'socket', 'sqlite3', 'subprocess', 'sys.set', 'urllib', 'webbrowser',
)  # fmt: skip
"""Beginnings of the names of audit events that no reader of data has a reason for."""

_seen: list[str] = []
_watching = False


def _audit(event: str, arguments: tuple) -> None:
    if _watching and (
        event.startswith(EVENTS) or (event == 'open' and set(str(arguments[1])) & set('wax+'))
    ):
        _seen.append(f'{event} {arguments}')


sys.addaudithook(_audit)  # for good: hooks cannot be removed


@pytest.fixture
def watch(monkeypatch):
    """The list of what a call did that it should not."""

    def call(function, *arguments):
        global _watching
        _seen.clear()
        _watching = True
        try:
            return function(*arguments)
        finally:
            _watching = False

    return call


@pytest.fixture
def frozen():
    """What is there already is left out of the collections that each measurement begins with."""
    gc.freeze()
    yield
    gc.unfreeze()


def _weights() -> dict[str, torch.Tensor]:
    return {
        'trunk.cls_token': torch.zeros(1, 1, 8),
        'trunk.pos_embed': torch.ones(1, 5, 8),
        'trunk.blocks.0.attn.qkv.weight': torch.linspace(0, 1, 24 * 8).view(24, 8),
        'trunk.blocks.0.attn.qkv.bias': torch.zeros(24),
        'count': torch.tensor(3),
    }


def _training(weights: dict[str, torch.Tensor]) -> dict:
    groups = [
        dict(lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0, params=[index, index + 2])
        for index in range(2)
    ]
    slots = {
        index: dict(step=torch.tensor(1.0), exp_avg=torch.ones(2), exp_avg_sq=torch.ones(2))
        for index in range(4)
    }
    return dict(
        state_dict=weights,
        meta=dict(iter=3, epoch=0, seed=0),
        optimizer=dict(param_groups=groups, state=slots),
        param_schedulers=[dict(base_values=[0.1, 0.1], last_step=3)],
        message_hub=dict(log_scalars={}, runtime_info=dict(iter=3), resumed_keys={}),
    )


@needs_proc
def test_every_file_is_read_or_refused_in_one_line(tmp_path, monkeypatch, watch, frozen) -> None:
    monkeypatch.chdir(tmp_path)
    weights = _weights()
    (tmp_path / 'files').mkdir()
    paths = corpus(tmp_path / 'files', weights, _training(weights))
    assert len(paths) >= 400
    assert len(list(tmp_path.iterdir())) == 1
    for name in ('good-training', 'fine-rewritten'):  # what is imported on first use
        read_checkpoint(paths[name])
    read_checkpoint(paths['good-ours.safetensors'])
    with pytest.raises(InputError):
        read_checkpoint(paths['archive-html'])
    accepted, faults = [], {}
    for name, path in paths.items():
        growth, start = start_peak(), time.process_time()
        try:
            watch(read_checkpoint, path)
            accepted.append(name)
        except InputError as error:
            if '\n' in str(error) or path.name[:200] not in str(error) and 'zero' not in name:
                faults[name] = str(error)
        except Exception as error:  # noqa: BLE001  all of them are listed
            faults[name] = repr(error)
        if _seen:
            faults[name] = f'did {_seen}'
        if (spent := time.process_time() - start) > 2:
            faults[name] = f'{spent:.1f} s'
        if growth() > 256 << 20:
            faults[name] = 'memory'
    assert not faults
    assert {name for name in paths if name.startswith('good')} <= set(accepted)
    # Those of states are of the right types: it takes a run to see what is wrong with them.
    assert [name for name in accepted if not name.startswith((*FINE, 'state'))] == []
    assert not (tmp_path / 'executed').exists()


def test_the_hook_sees_what_the_payload_does(tmp_path, monkeypatch, watch) -> None:
    """Otherwise the test above could not fail."""
    monkeypatch.chdir(tmp_path)
    watch(pickle.loads, pickle.dumps(Runs()))
    assert (tmp_path / 'executed').exists()
    assert any(event.startswith('os.system') for event in _seen)


@needs_proc
@pytest.mark.slow
def test_every_entry_point(tmp_path) -> None:
    """A part of the corpus; ``python tests/checkpoints/attack.py FOLDER`` takes all of it."""
    pytest.importorskip('mmseg')
    script = Path(__file__).with_name('attack.py')
    command = [sys.executable, str(script), str(tmp_path / 'attack'), '12']
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count('refused') == 8
