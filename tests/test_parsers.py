"""What every command answers before anything heavy is imported."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmvars.cli import COMMANDS
from mmvars.parsers import benchmark, convert, train, visualize
from mmvars.parsers.common import Parser

ALL_COMMANDS = """
import sys
for name in ('torch', 'torchvision', 'numpy', 'timm', 'mmengine', 'matplotlib', 'PIL'):
    sys.modules[name] = None
from mmvars.cli import COMMANDS, main
status = {}
for argv in (['--help'], *([name, option] for name in COMMANDS for option in ('-h', '--no-such'))):
    try:
        status[' '.join(argv)] = main(argv)
    except SystemExit as end:
        status[' '.join(argv)] = end.code
print(status, file=sys.stderr)
"""


def test_help_and_errors_need_nothing_heavy(repo: Path) -> None:
    """They must come at once, and where torch itself is broken."""
    done = subprocess.run(
        [sys.executable, '-c', ALL_COMMANDS], cwd=repo, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = {'--help': 0}
    for name in COMMANDS:
        expected |= {f'{name} -h': 0, f'{name} --no-such': 2}
    assert done.stderr.splitlines()[-1] == str(expected)
    assert done.stdout.count('usage: ') == len(COMMANDS) + 1


@pytest.mark.parametrize(
    'parse, argv, words',
    [
        (train, ['x.py', '--workdir', 'x'], r"--workdir x; did you mean '--work-dir'\?"),
        (train, ['x.py', '--workdir=x'], r"--workdir=x; did you mean '--work-dir'\?"),
        (train, ['x.py', '--launcher', 'pytorh'], r"did you mean 'pytorch'\?"),
        (convert, ['a', 'b', '--arch', 'absvit_bas'], "did you mean 'absvit_base"),
        (visualize, ['a', 'b', 'c', '--cfg-options', 'x'], "'x' is not of the form KEY=VALUE"),
    ],
)
def test_errors_are_one_line_with_what_was_meant(parse, argv, words, capsys) -> None:
    with pytest.raises(SystemExit, match='2'):
        parse.parse_args(argv)
    message = capsys.readouterr().err
    assert re.search(words, message)
    assert message.count('\n') == 1


def test_choices_are_those_of_the_library(monkeypatch) -> None:
    """They are written out in the parsers, which must not import it."""
    from mmvars.checkpoints.convert import TASKS
    from mmvars.checkpoints.formats import TARGETS
    from mmvars.checkpoints.weights import WEIGHTS
    from mmvars.layers import MIXERS
    from mmvars.layers.mixers import PRESETS
    from mmvars.networks import MODELS
    from mmvars.visualization.draw import LIMITS

    parsers = []
    monkeypatch.setattr(Parser, 'parse_args', lambda self, argv: parsers.append(self))
    monkeypatch.setattr(Parser, 'parse_intermixed_args', lambda self, argv: parsers.append(self))
    for module in (convert, visualize, benchmark):
        module.parse_args([])
    choices = {
        action.option_strings[0]: tuple(action.choices)
        for parser in parsers
        for action in parser._actions
        if action.choices
    }
    assert choices['--arch'] == MODELS
    assert choices['--mixer'] == tuple(MIXERS)
    assert choices['--for'] == TASKS
    assert choices['--to'] == tuple(TARGETS)
    assert choices['--weights'] == ('auto', *WEIGHTS)
    assert choices['--limits'] == tuple(LIMITS)
    assert choices['--preset'] == PRESETS


def test_the_help_names_all_shorthands(capsys) -> None:
    pytest.importorskip('mmengine')
    from mmvars.engine.shorthands import SHORTHANDS

    with pytest.raises(SystemExit, match='0'):
        train.parse_args(['--help'])
    text = re.sub(r'\s+', ' ', capsys.readouterr().out)
    assert f'depends on them: {", ".join(SHORTHANDS)}.' in text
