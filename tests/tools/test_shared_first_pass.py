"""`tools/benchmark/shared_first_pass.py`: both ways compute the same. No test is about times."""

import re

import pytest
from shared_first_pass import main

pytestmark = pytest.mark.slow  # measures sixteen networks


def test_every_part_gets_a_ratio(capsys):
    sizes = ['--arch', 'tiny', '--side', '32', '--captions', '3', '--layers', '1', '--width', '64']
    assert main([*sizes, '--rounds', '2']) == 0
    output = capsys.readouterr().out
    rows = re.findall(r'^(\w+) (\w+), (\w+): shared .*; ratio [\d.]+ \[', output, re.MULTILINE)
    modes, names, parts = ('forward', 'training'), ('AbSViT', 'ViT'), ('encoder', 'whole')
    assert rows == [(name, mode, part) for mode in modes for name in names for part in parts]
    assert output.count('kept for backward') == 4
