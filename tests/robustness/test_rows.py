"""A folder of rows that processes fill together, some of which are killed."""

import contextlib
import os
import signal

import pytest

from mmvars.errors import InputError
from mmvars.robustness import rows as module
from mmvars.robustness.protocols import CLEAN, Setting
from mmvars.robustness.rows import Rows

FOG, SNOW = Setting('fog', 1), Setting('snow', 2)
ALL = [CLEAN, FOG, SNOW]


def test_rows_are_made_once_in_order(tmp_path) -> None:
    rows = Rows.of(tmp_path, [(dict(weights='a'), ALL)])
    for setting in ALL:
        assert rows.claim_next(ALL) == setting
        rows.write(setting, dict(labels=[1]))
    assert rows.claim_next(ALL) is None
    again = Rows.of(tmp_path, [(dict(weights='a'), ALL)])
    assert again.read(FOG) == dict(labels=[1]) and again.identity(FOG) == dict(weights='a')
    assert Rows.of(tmp_path, [(dict(weights='b'), ALL)]).claim_next(ALL) == CLEAN


def test_what_another_process_makes_is_left_to_it_until_it_is_killed(tmp_path, monkeypatch) -> None:
    rows = Rows.of(tmp_path, [({}, ALL)])
    ready, say = os.pipe()
    child = os.fork()
    if child == 0:  # claims the first, and hangs
        Rows.of(tmp_path, [({}, ALL)]).claim_next(ALL)
        os.write(say, b'x')
        signal.pause()
    try:
        os.read(ready, 1)
        for setting in (FOG, SNOW):
            assert rows.claim_next(ALL) == setting
            rows.write(setting, {})
        slept = []

        def wait(seconds: float) -> None:  # all that is left is the child's
            slept.append(seconds)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

        monkeypatch.setattr(module.time, 'sleep', wait)
        assert rows.claim_next(ALL) == CLEAN and len(slept) == 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.close(ready)
        os.close(say)


def test_a_damaged_row_is_named(tmp_path) -> None:
    rows = Rows.of(tmp_path, [({}, ALL)])
    rows.path(FOG).write_text('{"labels": [1')
    with pytest.raises(InputError, match='fog-1.json is damaged: remove it'):
        rows.read(FOG)
