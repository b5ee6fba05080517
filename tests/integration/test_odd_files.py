"""Odd files in a data set, through the commands: status 2, one line with the file's name, in time.

Which outcome each of the kinds has is tested in ``tests/datasets``; here are some of each sort.
"""

import importlib.util
import shutil
import time
from pathlib import Path

import pytest
from peak_memory import needs_proc, start_peak
from PIL import Image

from mmvars.cli import run_tool

_SPEC = importlib.util.spec_from_file_location(
    'odd_files', Path(__file__).parents[1] / 'datasets' / 'odd_files.py'
)
odd_files = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(odd_files)
SPECIAL = ['missing', 'dangling link', 'link to itself', 'folder', 'FIFO', '/dev/zero']
CONTENT = ['text', 'empty', '6 GiB after an image', 'png bomb', 'tiff claims', 'png, half']
SECONDS, MEMORY = 60, 512 << 20  # a command at most; bytes more than before, for all together


@pytest.fixture
def checkpoint(toy, tmp_path) -> dict[str, Path]:
    for name in ('seg', 'cls'):
        argv = [str(toy / f'{name}.py'), '--work-dir', str(tmp_path / name), '--no-validate']
        assert run_tool('train', [*argv, '--cfg-options', 'max_iters=1']) == 0
    return {name: tmp_path / name / 'iter_1.pth' for name in ('seg', 'cls')}


@needs_proc
@pytest.mark.slow
def test_the_commands_name_the_file(toy, checkpoint, tmp_path, capsys, forget_runs) -> None:
    growth = start_peak()
    trials = [
        ('seg', 'images/training', 'train', SPECIAL[2:4] + CONTENT[2:4]),
        ('seg', 'annotations/training', 'train', SPECIAL[4:] + CONTENT[4:] + ['1 x 1']),
        ('seg', 'images/validation', 'test', SPECIAL[:2] + SPECIAL[4:] + CONTENT[:2]),
        ('seg', 'annotations/validation', 'test', SPECIAL[:4] + CONTENT[3:] + ['1 x 1']),
        ('cls', 'val/a', 'test', SPECIAL[1:] + CONTENT[:4]),
        ('seg', 'images/validation', 'visualize', SPECIAL[::2] + CONTENT[::2]),
    ]
    outcomes = []
    for config, folder, command, kinds in trials:
        for kind in kinds:
            data = tmp_path / 'data'
            shutil.copytree(toy / ('ade' if config == 'seg' else 'in'), data)
            odd = data / folder / '0'
            odd = odd.with_suffix('.png' if 'annotations' in folder else '.jpg')
            odd.unlink()
            odd_files.KINDS[kind](odd)
            argv = [str(toy / f'{config}.py')]
            argv += [str(checkpoint[config])] if command != 'train' else []
            if command == 'visualize':
                argv += [str(odd), '--out-dir', str(tmp_path / 'pictures')]
            else:
                argv += ['--work-dir', str(tmp_path / 'work')]
            argv += ['--cfg-options', f'data_root={data}']
            if command == 'train':
                argv += ['train_dataloader.num_workers=1', 'max_iters=12']
            capsys.readouterr()
            start = time.monotonic()
            try:
                status = run_tool(command, argv)
            except Exception as error:
                status = repr(error)
            message = capsys.readouterr().err
            # Of a missing image, its labels are left to be named.
            known = (
                str(odd) in message
                or str(odd.with_suffix('')).replace('images', 'annotations') in message
            )
            known &= 'Traceback' not in message
            outcomes.append((command, folder, kind, status, known))
            assert outcomes[-1][3:] == (2, True), (outcomes[-1], message)
            assert time.monotonic() - start < SECONDS
            forget_runs()
            shutil.rmtree(data)
    assert len(outcomes) == 38
    assert growth() < MEMORY


@pytest.mark.slow
def test_a_large_honest_photo_is_drawn(toy, checkpoint, tmp_path, monkeypatch, capsys) -> None:
    """12,000 x 9,000 pixels, as aerial cameras have them; the pipeline scales it down."""
    config = tmp_path / 'seg.py'
    scale = "pipeline.insert(1, dict(type='Resize', scale=(128, 96)))\n"
    config.write_text((toy / 'seg.py').read_text() + scale)
    photo = tmp_path / 'photo.jpg'
    Image.new('RGB', (12_000, 9_000)).save(photo)
    argv = [str(config), str(checkpoint['seg']), str(photo), '--out-dir', str(tmp_path / 'out')]
    assert run_tool('visualize', argv) == 0
    assert list((tmp_path / 'out').glob('photo*.png'))
    monkeypatch.setenv('MMVARS_MAX_PIXELS', '100e6')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', Image.MAX_IMAGE_PIXELS)
    assert run_tool('visualize', argv) == 2
    assert 'MMVARS_MAX_PIXELS' in capsys.readouterr().err
