"""The console script's table and its handling of errors."""

import pytest
import torch

from mmvars import __version__, cli
from mmvars.errors import InputError


@pytest.mark.parametrize('command', sorted(cli.COMMANDS))
def test_every_command_exists(command: str) -> None:
    assert callable(cli.load_command(command))


def test_a_wheel_without_its_tools_says_so(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(cli, 'resource_root', lambda: tmp_path)
    with pytest.raises(InputError, match='get_flops.py does not exist: install mmvars anew'):
        cli.load_command('table')


@pytest.mark.parametrize(
    'argv, status, words',
    [
        ([], 2, 'usage'),
        (['--help'], 0, 'doctor'),
        (['--version'], 0, __version__),
    ],
)
def test_usage(argv, status, words, capsys) -> None:
    assert cli.main(argv) == status
    assert words in capsys.readouterr().out


def test_an_unknown_command_names_the_nearest(capsys) -> None:
    assert cli.main(['trian']) == 2
    assert "'train'" in capsys.readouterr().err


def _raiser(error: BaseException):
    def tool(argv):
        raise error

    return tool


@pytest.mark.parametrize(
    'error, status, words',
    [
        (InputError('arch must be ...'), 2, 'arch must be ...'),
        (ModuleNotFoundError("No module named 'mmseg'", name='mmseg'), 2, 'mmvars doctor'),
        (FileNotFoundError(2, 'No such file or directory', 'x.png'), 2, 'x.png: No such file'),
        (KeyboardInterrupt(), 130, 'Ctrl-C'),
    ],
)
def test_what_the_user_can_mend_is_one_line(error, status, words, capsys) -> None:
    assert cli.run_tool(_raiser(error), []) == status
    message = capsys.readouterr().err
    assert words in message
    assert message.count('\n') == 1


@pytest.mark.parametrize(
    'error',
    [
        ModuleNotFoundError("No module named 'mmcv._ext'", name='mmcv._ext'),
        ImportError("cannot import name 'Config' from 'mmcv'", name='mmcv'),
    ],
)
def test_a_package_that_is_broken_is_not_one_to_install(error, capsys) -> None:
    """Installing one stack over a broken other one would mix the two."""
    assert cli.run_tool(_raiser(error), []) == 2
    message = capsys.readouterr().err
    assert message.startswith(f'mmvars: {error}')
    assert 'mmvars doctor' in message and 'pip install' not in message


class _Broken(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index):
        raise InputError('a.jpg is truncated; fetch it again')


def test_what_a_dataloader_worker_refuses_is_one_line_too(capsys) -> None:
    def tool(argv):
        list(torch.utils.data.DataLoader(_Broken(), num_workers=1))

    assert cli.run_tool(tool, []) == 2
    assert capsys.readouterr().err == 'mmvars: a.jpg is truncated; fetch it again\n'


@pytest.mark.parametrize(
    'error',
    [
        ValueError('a bug'),
        KeyError('a'),
        OSError('no file named'),
        ModuleNotFoundError("No module named 'typo'", name='typo'),
    ],
)
def test_bugs_keep_their_traceback(error) -> None:
    with pytest.raises(type(error)):
        cli.run_tool(_raiser(error), [])


def test_the_traceback_can_be_asked_for(monkeypatch) -> None:
    monkeypatch.setenv('MMVARS_DEBUG', '1')
    with pytest.raises(InputError):
        cli.run_tool(_raiser(InputError('x')), [])


def test_the_tool_gets_its_arguments() -> None:
    assert cli.run_tool(lambda argv: len(argv), ['a', 'b', 'c']) == 3
    assert cli.run_tool(lambda argv: None, []) == 0
