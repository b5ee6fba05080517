"""`tools/benchmark/second_prompt.py`: every model gets its ratios. No test is about times."""

import re

import pytest
from second_prompt import MODEL_ROWS, main


@pytest.mark.slow
def test_every_model_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['--side', '64', '--rounds', '1', '--num-classes', '3']) == 0
    ratios = re.findall(r'^(.*), 64 px: (.*): [\d.]+ \[', capsys.readouterr().out, re.MULTILINE)
    assert ratios == [
        (name, ratio)
        for name in MODEL_ROWS
        for ratio in ('click / whole', 'second pass / backbone')
    ]
