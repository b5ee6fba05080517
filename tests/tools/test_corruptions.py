"""`tools/benchmark/corruptions.py`: all are measured and summed. No test is about times."""

import re

import corruptions as tool
import numpy as np
import pytest

from mmvars.robustness import CORRUPTIONS, corruptions


def test_every_corruption_is_measured_and_summed(monkeypatch, capsys) -> None:
    textures = [np.zeros((80, 80, 3), np.uint8)] * 6
    monkeypatch.setattr(corruptions, '_frost_textures', lambda: textures)
    monkeypatch.setattr(tool, 'other', lambda image, severity, name: image)
    clock = iter(range(10_000))
    monkeypatch.setattr(tool.time, 'process_time', lambda: next(clock))  # a call takes a second
    tool.compare(64, 64, severity=3, rounds=2)
    rows = re.findall(r'^(\S.*?) +([\d.]+) +([\d.]+) +([\d.]+)$', capsys.readouterr().out, re.M)
    assert rows == [
        *((name, '1.000', '1.000', '1.0') for name in CORRUPTIONS),
        ('sum of the 15', '15.000', '15.000', '1.0'),
        ('sum of all 19', '19.000', '19.000', '1.0'),
    ]


def test_a_size_that_is_none_is_refused(monkeypatch, capsys) -> None:
    monkeypatch.setattr('sys.argv', ['corruptions.py', '--sizes', '512'])
    with pytest.raises(SystemExit, match='2'):
        tool.main()
    assert '512x1024' in capsys.readouterr().err
