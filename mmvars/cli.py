"""The console script ``mmvars`` and the wrapper that every command-line tool runs in.

Nothing heavy is imported before the arguments of a command are known to be right, so ``mmvars``,
``mmvars COMMAND --help`` and ``mmvars doctor`` answer at once, even where torch or OpenMMLab cannot
be imported.
"""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location

from mmvars import __version__
from mmvars.errors import InputError, did_you_mean
from mmvars.resources import resource_root

__all__ = ['COMMANDS', 'load_command', 'main', 'run_tool']

COMMANDS = {
    'train': ('mmvars.engine.train', 'train a model from a config'),
    'pretune': (
        'mmvars.pretune',
        'fit the decoders of a frozen trunk to unlabeled images, in one pass',
    ),
    'prototypes': ('mmvars.prototypes', 'make the prototype of each class, as a prior'),
    'test': ('mmvars.engine.test', 'test a checkpoint: metrics, predictions, pictures'),
    'robustness': (
        'mmvars.robustness.cli',
        'measure how robust any segmentor or classifier is, with intervals',
    ),
    'attention': (
        'mmvars.saliency.cli',
        'measure maps of attention against eye fixations and masks of objects',
    ),
    'faithfulness': (
        'mmvars.saliency.faithfulness',
        'measure whether a model needs what its attention marks: deletion and insertion',
    ),
    'probe': (
        'mmvars.saliency.probe',
        'decode images from bottom-up and top-down tokens, inside and outside objects',
    ),
    'ask': (
        'mmvars.vision_language.ask',
        'ask a METER about images: answers, and where each question makes it look',
    ),
    'predict': ('mmvars.predict', 'predict images and videos, with a prior too'),
    'compare': (
        'tools/compare_runs.py',
        'train variants of a config with several seeds, mean and spread',
    ),
    'convert': ('mmvars.checkpoints.cli', 'convert checkpoints from and to other formats'),
    'export': ('mmvars.export', 'write a model as an ONNX file or a program of torch'),
    'visualize': ('mmvars.visualization.cli', 'draw bottom-up and top-down attention'),
    'steerability': (
        'mmvars.steerability.cli',
        'measure whether a model follows its prior, with controls',
    ),
    'steer': ('mmvars.steer.cli', 'steer a model on a local web page: click, box, class, words'),
    'table': (
        'tools/benchmark/get_flops.py',
        'parameters and multiply-adds beside the published tables',
    ),
    'benchmark': ('tools/benchmark/benchmark.py', 'time and memory of networks and mixers'),
    'configs': ('mmvars.resources', 'list or copy the configs that mmvars ships'),
    'doctor': ('mmvars.doctor', 'say what is wrong with this environment, and the remedy'),
}
"""Command -> the module, or the script of the clone or wheel, whose ``main`` it is; its purpose."""

_OPENMMLAB = (
    'train',
    'pretune',
    'prototypes',
    'test',
    'robustness',
    'attention',
    'faithfulness',
    'probe',
    'ask',
    'predict',
    'compare',
    'export',
    'visualize',
    'steerability',
    'steer',
)
"""Commands that import OpenMMLab."""

_STACK = {
    'torch',
    'torchvision',
    'timm',
    'safetensors',
    'numpy',
    'PIL',
    'matplotlib',
    'mmengine',
    'mmcv',
    'mmseg',
    'mmpretrain',
}
"""Packages whose absence is a matter of installation, not a bug in mmvars."""


def load_command(name: str) -> Callable[..., int | None]:
    """Import a command's ``main``.

    Args:
        name: One of :data:`COMMANDS`.

    Raises:
        InputError: If the installation lacks its script.
    """
    source = COMMANDS[name][0]
    if not source.endswith('.py'):
        return import_module(source).main
    path = resource_root() / source
    if not path.is_file():
        raise InputError(
            f'{path} does not exist: install mmvars anew with '
            '`pip install --force-reinstall --no-deps mmvars`'
        )
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # as for every .py file
    module = sys.modules[path.stem] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


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
        if isinstance(tool, str):  # for --help and wrong arguments, before torch is imported
            import_module(f'mmvars.parsers.{tool}').parse_args(argv)
            if tool in _OPENMMLAB:
                import_module('mmvars.notices').leave_out_notices()
        return (load_command(tool) if isinstance(tool, str) else tool)(argv) or 0
    except KeyboardInterrupt:
        return _print_error('stopped by Ctrl-C', status=130)
    except (InputError, ImportError, OSError) as error:
        message = _user_message(error)
        if os.environ.get('MMVARS_DEBUG') == '1' or message is None:
            raise
        return _print_error(message, status=2)


def _user_message(error: Exception) -> str | None:
    """The message for the user; None for what is a bug."""
    if isinstance(error, OSError):  # a file that is missing, or may not be read or written
        return None if error.filename is None else f'{error.filename}: {error.strerror}'
    if isinstance(error, ImportError):
        if (error.name or '').partition('.')[0] not in _STACK:
            return None
        if isinstance(error, ModuleNotFoundError) and error.name in _STACK:
            return (
                f'{error}. Install the OpenMMLab stack with `pip install "mmvars[onedl]"`; '
                '`mmvars doctor` says what else is missing'
            )
        # Installed but broken: installing more could mix stacks.
        return f'{error}: an installed package does not work; `mmvars doctor` names the remedy'
    # A DataLoader's worker sends its whole traceback as the message; the user needs its last line.
    return str(error).rpartition(f'{InputError.__module__}.{InputError.__name__}: ')[2].strip()


def _print_error(message: str, status: int) -> int:
    rank = os.environ.get('RANK', '0')
    print(f'mmvars{"" if rank == "0" else f" (rank {rank})"}: {message}', file=sys.stderr)
    return status


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script ``mmvars``.

    Args:
        argv: Arguments; None means the command line's.

    Returns:
        Exit status.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ('-h', '--help', 'help'):
        rows = '\n'.join(f'  {name:<10} {purpose}' for name, (_, purpose) in COMMANDS.items())
        print(
            f'mmvars {__version__}\n\nusage: mmvars COMMAND [arguments]\n\n{rows}\n\n'
            '`mmvars COMMAND --help` lists the arguments of a command.'
        )
        return 0 if argv else 2
    if argv[0] in ('-V', '--version'):
        print(f'mmvars {__version__}')
        return 0
    if argv[0] not in COMMANDS:
        hint = did_you_mean(argv[0], COMMANDS)
        return _print_error(f'{argv[0]!r} is not a command ({", ".join(COMMANDS)}){hint}', status=2)
    sys.argv[0] = f'mmvars {argv[0]}'  # what argparse prints as the program's name
    return run_tool(argv[0], argv[1:])


if __name__ == '__main__':
    sys.exit(main())
