"""The console script ``mmvars`` and the wrapper that every command-line tool runs in.

Nothing heavy is imported before a sub-command is chosen, so ``mmvars`` and ``mmvars doctor``
answer even where torch or OpenMMLab cannot be imported.
"""

import difflib
import os
import sys
from collections.abc import Callable
from importlib import import_module

from mmvars import __version__
from mmvars.errors import InputError

__all__ = ['COMMANDS', 'main', 'run_tool']

COMMANDS = {
    'train': ('mmvars.engine.train:main', 'train a model from a config'),
    'test': ('mmvars.engine.test:main', 'test a checkpoint: metrics, predictions, pictures'),
    'compare': ('mmvars.engine.compare:main',
                'train variants of a config with several seeds, mean and spread'),
    'convert': ('mmvars.checkpoints.cli:main', 'convert checkpoints from and to other formats'),
    'export': ('mmvars.export.cli:main', 'write a model as an ONNX file or a program of torch'),
    'visualize': ('mmvars.visualization.cli:main', 'draw bottom-up and top-down attention'),
    'table': ('mmvars.benchmark.table_cli:main',
              'parameters and multiply-adds beside the published tables'),
    'benchmark': ('mmvars.benchmark.cli:main', 'time and memory of networks and mixers'),
    'doctor': ('mmvars.doctor:main', 'say what is wrong with this environment, and the remedy'),
}
# Packages whose absence is a matter of installation, not a bug in mmvars.
_STACK = {'torch', 'torchvision', 'timm', 'safetensors', 'numpy', 'PIL', 'matplotlib',
          'mmengine', 'mmcv', 'mmseg', 'mmpretrain'}


def run_tool(tool: str | Callable[..., int | None], argv: list[str] | None = None) -> int:
    """Run one tool and turn what the user can mend into one line on stderr.

    Args:
        tool: A name in :data:`COMMANDS`, or a function ``(argv) -> exit status``.
        argv: Arguments without the program's name; None means the command line's.

    Returns:
        Exit status: the tool's own, 2 for bad input, 130 after Ctrl-C. With ``MMVARS_DEBUG=1`` in
        the environment, bad input is raised instead, so that its traceback can be seen.
    """
    try:
        if isinstance(tool, str):
            module, function = COMMANDS[tool][0].split(':')
            tool = getattr(import_module(module), function)
        return tool(argv) or 0
    except KeyboardInterrupt:
        return _complain('stopped by Ctrl-C', status=130)
    except (InputError, ImportError, OSError) as error:
        if os.environ.get('MMVARS_DEBUG') == '1' or not _for_the_user(error):
            raise
        return _complain(_message(error), status=2)


def _for_the_user(error: Exception) -> bool:
    if isinstance(error, ImportError):
        return (error.name or '').partition('.')[0] in _STACK
    if isinstance(error, OSError):  # a file that is missing, or may not be read or written
        return error.filename is not None
    return True


def _message(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name in _STACK:
        return (f'{error}. Install the OpenMMLab stack with `pip install "mmvars[onedl]"`; '
                '`mmvars doctor` says what else is missing')
    if isinstance(error, ImportError):  # installed but broken: installing more could mix stacks
        return f'{error}: an installed package does not work; `mmvars doctor` names the remedy'
    if isinstance(error, OSError):
        return f'{error.filename}: {error.strerror}'
    # A DataLoader's worker sends its whole traceback as the message; the user needs its last line.
    return str(error).rpartition(f'{InputError.__module__}.{InputError.__name__}: ')[2].strip()


def _complain(message: str, status: int) -> int:
    rank = os.environ.get('RANK')
    where = f' (rank {rank})' if rank not in (None, '0') else ''
    print(f'mmvars{where}: {message}', file=sys.stderr)
    return status


def _usage() -> str:
    rows = '\n'.join(f'  {name:<10} {text}' for name, (_, text) in COMMANDS.items())
    return (f'mmvars {__version__}\n\nusage: mmvars COMMAND [arguments]\n\n{rows}\n\n'
            '`mmvars COMMAND --help` lists the arguments of a command.')


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script ``mmvars``.

    Args:
        argv: Arguments; None means the command line's.

    Returns:
        Exit status.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ('-h', '--help', 'help'):
        print(_usage())
        return 0 if argv else 2
    if argv[0] in ('-V', '--version'):
        print(f'mmvars {__version__}')
        return 0
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f'; did you mean {near[0]!r}?' if near else ''
        return _complain(f'{command!r} is not a command ({", ".join(COMMANDS)}){hint}', status=2)
    sys.argv[0] = f'mmvars {command}'  # what argparse prints as the program's name
    return run_tool(command, rest)


if __name__ == '__main__':
    sys.exit(main())
