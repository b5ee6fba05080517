"""The command line of the converter."""

import argparse
import json
import os
import subprocess
import sys

import pytest
import torch

from mmvars.cli import run_tool
from mmvars.networks import MODELS

ARCH = ['--arch', 'absvit_base_patch16', '--embed-dim', '48', '--depth', '3']


@pytest.fixture
def script(repo, tmp_path):
    """Runs tools/convert_checkpoint.py in a process and a folder of its own."""

    def run(*arguments):
        environment = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(repo)}
        environment.pop('MMVARS_DEBUG', None)
        return subprocess.run(
            [sys.executable, str(repo / 'tools' / 'convert_checkpoint.py'), *arguments],
            cwd=tmp_path,
            env=environment,
            text=True,
            capture_output=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Runs the same in this process: exit status and what stands on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MMVARS_DEBUG', raising=False)

    def run(*arguments):
        try:
            status = run_tool('convert', list(arguments))
        except SystemExit as stop:  # argparse
            status = stop.code
        return status, capsys.readouterr().err

    return run


def test_help_names_every_arch(script):
    result = script('--help')
    assert result.returncode == 0
    for word in (
        *MODELS,
        '--for',
        '--to',
        '--weights',
        '--prefix',
        '--img-size',
        '--overwrite',
        '--report',
    ):
        assert word in result.stdout


def test_a_released_checkpoint(here, golden, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = golden('absvit_cls')['state_dict']
    torch.save(
        dict(
            model=state,
            model_ema={k: v + 1 for k, v in state.items()},
            epoch=3,
            optimizer={'state': {}},
            args=argparse.Namespace(lr=1.0),
        ),
        tmp_path / 'a.pth',
    )
    arguments = ['a.pth', 'b.pth', *ARCH, '--for', 'segmentation', '--weights', 'ema']
    arguments += ['--img-size', '32x128', '--report', 'r.json']
    assert run_tool('convert', arguments) == 0
    out = capsys.readouterr().out
    for line in (
        "weights: entry 'model_ema' (moving averages), as requested",
        'used: 49',
        'ignored: 6',
        'head.weight',
        '[optimizer]  (state of training)',
        'resampled from 4x4 to 2x8',
        'decoders.{0..2}.linear.weight',
        'wrote b.pth',
    ):
        assert line in out
    content = torch.load(tmp_path / 'b.pth', weights_only=True)
    assert torch.equal(content['state_dict']['backbone.network.prior.query'], state['prompt'] + 1)
    assert len(content['state_dict']) == 50  # with the record of the grid
    report = json.loads((tmp_path / 'r.json').read_text())
    assert report['ok'] is True
    assert len([line for line in report['entries'] if line['status'] == 'used']) == 49

    written = (tmp_path / 'b.pth').read_bytes()
    status, error = here('a.pth', 'b.pth', *ARCH)
    assert status == 2
    assert 'b.pth exists and is kept' in error
    status, error = here('a.pth', 'c.pth', *ARCH, '--report', 'r.json')
    assert status == 2
    assert 'r.json exists and is kept' in error
    assert not (tmp_path / 'c.pth').exists()
    assert (tmp_path / 'b.pth').read_bytes() == written


def test_a_prefix(here, golden, tmp_path):
    state = golden('absvit_cls')['state_dict']
    torch.save(
        dict(
            state_dict={f'encoder.{k}': v for k, v in state.items()}
            | {'projector.weight': torch.ones(2, 2)}
        ),
        tmp_path / 'a.pth',
    )
    assert here('a.pth', 'c.pth', *ARCH)[0] == 0  # is found
    assert here('a.pth', 'b.pth', *ARCH, '--prefix', 'encoder', '--report', 'r.json')[0] == 0
    for name in 'bc':
        content = torch.load(tmp_path / f'{name}.pth', weights_only=True)
        assert torch.equal(content['state_dict']['backbone.network.prior.query'], state['prompt'])
    ignored = [
        entry
        for entry in json.loads((tmp_path / 'r.json').read_text())['entries']
        if entry['status'] == 'ignored'
    ]
    assert [entry['source'] for entry in ignored] == ['projector.weight']


def test_what_does_not_fit_fails_without_a_trace(script, golden, tmp_path):
    torch.save(golden('vit_cls')['state_dict'], tmp_path / 'a.pth')
    (tmp_path / 'b.pth').write_bytes(b'precious')
    result = script(
        'a.pth', 'b.pth', '--arch', 'vit_base_patch16', '--overwrite', '--report', 'r.json'
    )
    assert result.returncode == 2
    assert 'Traceback' not in result.stderr
    for part in ('WRONG SHAPE', 'MISSING', 'embed_dim 48'):
        assert part in result.stderr
    assert (tmp_path / 'b.pth').read_bytes() == b'precious'
    assert json.loads((tmp_path / 'r.json').read_text())['ok'] is False


def test_a_hostile_file(here, tmp_path):
    trace = tmp_path / 'executed'

    class Payload:
        def __reduce__(self):
            return os.system, (f'touch {trace}',)

    torch.save({'model': {'w': torch.ones(1)}, 'x': Payload()}, tmp_path / 'a.pth')
    status, error = here('a.pth', 'b.pth', '--arch', 'vit_tiny')
    assert status == 2
    assert 'is refused' in error
    assert '.system' in error
    assert [p.name for p in tmp_path.iterdir()] == ['a.pth']


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--arch', 'vit_huge'], 'absvit_tiny'),
        ([], '--arch'),
        (['--arch', 'vit_tiny', '--img-size', '12by3'], 'HEIGHTxWIDTH'),
        (['--arch', 'vit_tiny', '--source-grid', '14'], 'HEIGHTxWIDTH'),
        (['--arch', 'vit_tiny', '--report', 'gone/r.json'], 'gone does not exist'),
        (['--arch', 'vit_tiny', '--report', 'b.pth'], 'b.pth is DST itself'),
        (['--arch', 'vit_tiny'], 'a.pth does not exist'),
    ],
)
def test_bad_arguments(here, arguments, said):
    status, error = here('a.pth', 'b.pth', *arguments)
    assert status == 2
    assert said in error


def test_a_report_never_replaces_a_checkpoint(here, golden, tmp_path):
    torch.save(golden('absvit_cls')['state_dict'], tmp_path / 'a.pth')
    source = (tmp_path / 'a.pth').read_bytes()
    status, error = here('a.pth', 'b.pth', *ARCH, '--report', 'a.pth', '--overwrite')
    assert status == 2
    assert 'a.pth is the source itself' in error
    status, error = here('a.pth', 'b.pth', *ARCH, '--report', 'b.pth', '--overwrite')
    assert status == 2
    assert (tmp_path / 'a.pth').read_bytes() == source
    assert [p.name for p in tmp_path.iterdir()] == ['a.pth']


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--patch-size', '0'], 'patch_size must be'),
        (['--in-chans', '0'], 'in_chans must be'),
        (['--allow-new', 'trunk.haed'], "no network has: ['trunk.haed']"),
    ],
)
def test_arguments_that_no_network_takes(here, golden, tmp_path, arguments, said):
    torch.save(golden('absvit_cls')['state_dict'], tmp_path / 'a.pth')
    status, error = here('a.pth', 'b.pth', *ARCH, *arguments)
    assert status == 2
    assert said in error
    assert [p.name for p in tmp_path.iterdir()] == ['a.pth']


def test_addresses_and_folders_that_cannot_be_used(here, golden, tmp_path):
    torch.save(golden('absvit_cls')['state_dict'], tmp_path / 'a.pth')
    status, error = here('https://example.org/a.pth', 'b.pth', *ARCH)
    assert status == 2
    assert 'is an address' in error
    status, error = here('a.pth', '/proc/b.pth', *ARCH)  # not even root may write there
    assert status == 2
    assert error.startswith('mmvars: ') and '/proc' in error
