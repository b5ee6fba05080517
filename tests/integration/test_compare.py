"""`mmvars compare` with real trainings, and the validation that a stop would have cost."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmvars.engine import TrainingInterrupted
from mmvars.engine.train import main as run_train


@HOOKS.register_module()
class SignalInValidation(Hook):
    """Send this process a signal in the second validation of a training."""

    def __init__(self, number: int) -> None:
        self.left = 2
        self.number = number

    def before_val_epoch(self, runner) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


def validations(work_dir) -> list[list[float]]:
    """Accuracies of the validations, one list for each process."""
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    rows = [[json.loads(line) for line in log.read_text().splitlines()] for log in logs]
    return [[row['aAcc'] for row in part if 'aAcc' in row] for part in rows]


@pytest.mark.slow
def test_a_run_stopped_in_its_last_validation_makes_it_when_resumed(
    toy, tmp_path, forget_runs
) -> None:
    pytest.importorskip('mmseg.models', exc_type=ImportError)
    config = tmp_path / 'seg.py'
    text = (toy / 'seg.py').read_text() + '\ntrain_cfg["val_interval"] = 3\n'
    config.write_text(
        text + f"custom_hooks = [dict(type='SignalInValidation', number={int(signal.SIGTERM)})]\n"
    )
    with pytest.raises(TrainingInterrupted):
        run_train([str(config), '--work-dir', str(tmp_path / 'work')])
    assert (tmp_path / 'work' / 'last_checkpoint').read_text().endswith('iter_6.pth')
    assert [len(part) for part in validations(tmp_path / 'work')] == [1]

    config.write_text(text)
    (tmp_path / 'work').rename(tmp_path / 'moved')  # its log is of the same second
    for log in (tmp_path / 'moved').glob('2*'):
        log.rename(log.with_name('1'))
    forget_runs()
    run_train([str(config), '--work-dir', str(tmp_path / 'moved'), '--resume'])
    forget_runs()
    run_train([str(config), '--work-dir', str(tmp_path / 'whole')])
    (first,), (last,) = validations(tmp_path / 'moved')
    assert [first, last] == pytest.approx(validations(tmp_path / 'whole')[0])


@pytest.mark.slow
def test_a_table_of_real_trainings(toy, repo, tmp_path) -> None:
    pytest.importorskip('mmseg.models', exc_type=ImportError)
    command = [
        sys.executable,
        str(repo / 'tools' / 'compare_runs.py'),
        str(toy / 'seg.py'),
        '--variant',
        'with: model.backbone.reconstruction_loss_weight=0.1',
        '--variant',
        'without: model.backbone.reconstruction_loss_weight=0',
        '--seeds',
        '0',
        '1',
        '--metric',
        'aAcc',
        '--work-dir',
        str(tmp_path / 'work'),
    ]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(repo), *sys.path]), OMP_NUM_THREADS='1')

    def start() -> subprocess.Popen:
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    first = start()
    log = tmp_path / 'work' / 'without' / 'seed_0' / 'train.log'  # of the second run
    while first.poll() is None and not (log.is_file() and 'Iter(train)' in log.read_text()):
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=300)
    assert first.returncode == 130, err
    assert 'goes on from here' in out
    second = start()
    out, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    table = json.loads((tmp_path / 'work' / 'comparison.json').read_text())
    assert table['complete']
    for row in table['variants']:
        assert row['n'] == 2 and 0 <= row['mean'] <= 100
        for run in row['runs']:
            folder = tmp_path / 'work' / row['name'] / f'seed_{run["seed"]}'
            assert run['value'] == validations(folder)[-1][-1]
            has_loss = 'loss_reconstruction' in (folder / 'train.log').read_text()
            assert has_loss == (row['name'] == 'with')
