"""`tools/benchmark/transfer_cost.py`: every pair gets a ratio. No test is about times."""

import re

import pytest
from transfer_cost import main

pytestmark = pytest.mark.slow  # measures six networks


def test_every_pair_gets_a_ratio(capsys):
    assert main(['--arch', 'timm/test_vit', '--sizes', '64', '--rounds', '2']) == 0
    output = capsys.readouterr().out
    pairs = re.findall(r'^64 (\w+): (top-down.*?) / (plain.*?): [\d.]+ \[', output, re.MULTILINE)
    kinds = ('top-down, frozen', 'top-down, end2end'), ('plain, end2end', 'plain, linear')
    expected = {('training', ours, plain) for ours in kinds[0] for plain in kinds[1]}
    assert set(pairs) == expected | {('forward', 'top-down', 'plain')}
