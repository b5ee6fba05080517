"""Growth of the peak memory of this process since a moment.

``ru_maxrss`` cannot give it: it never falls, so that after any larger peak nothing is seen.
"""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

_PROC = Path('/proc/self')

needs_proc = pytest.mark.skipif(
    not os.access(_PROC / 'clear_refs', os.W_OK), reason='peak memory is reset through /proc'
)


def start_peak() -> Callable[[], int]:
    """Reset the peak. The function that is returned gives the bytes it has grown by since.

    Garbage goes first: what earlier tests left and is freed later would hide as much growth.
    """
    gc.collect()
    (_PROC / 'clear_refs').write_text('5')
    before = _peak()
    return lambda: _peak() - before


def _peak() -> int:
    status = (_PROC / 'status').read_text()
    return int(status.partition('VmHWM:')[2].split()[0]) << 10
