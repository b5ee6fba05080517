"""Processes of a run that end together."""

import os
import signal
import time
from threading import Thread

__all__ = ['PARENT', 'end_with_parent']

PARENT = 'MMVARS_PARENT'
"""Environment variable: the process with whose end this one is to end."""


def end_with_parent() -> None:
    """When the process that started this one is killed, send SIGTERM to this one.

    Training takes it for the wish to save a checkpoint and leave. Nothing else would tell: a killed
    launcher passes no signal on, and its ranks would train on with nobody to stop them. Only
    processes of torchrun, and those with ``MMVARS_PARENT`` in their environment: others may outlive
    the shell that started them.
    """
    parent = int(os.environ.get(PARENT, os.getppid()))
    if PARENT in os.environ or 'TORCHELASTIC_RUN_ID' in os.environ:
        Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
