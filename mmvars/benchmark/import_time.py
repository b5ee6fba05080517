"""How long imports take, one after the other, in fresh processes."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from mmvars.benchmark.markdown import markdown_table
from mmvars.benchmark.statistics import spread
from mmvars.errors import InputError

__all__ = ['IMPORTS', 'import_seconds', 'imports_entry', 'render_imports']

IMPORTS: tuple[str, ...] = ('mmseg', 'mmvars', 'mmseg.models', 'mmvars.models')
"""Modules in the order of their import: the host, we; the host's models, ours (which is what the
first ``type='mmvars...'`` of a config imports)."""

_PROGRAM = """\
import contextlib, importlib, json, sys, time
clock = time.process_time
seconds = []
for name in json.loads(sys.argv[1]):
    before = clock()
    with contextlib.redirect_stdout(sys.stderr):
        importlib.import_module(name)
    seconds.append(clock() - before)
print(json.dumps(seconds))
"""


def import_seconds(modules: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """CPU seconds that each import adds to those before it, one value a fresh process.

    What was imported before costs nothing again, so each module is charged for itself alone: the
    difference between importing without and with it, pair by pair.

    Args:
        modules: In the order of their import.
        rounds: Processes.

    Raises:
        InputError: If one cannot be imported.
    """
    samples: dict[str, list[float]] = {name: [] for name in modules}
    environment = os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    for _ in range(rounds):
        done = subprocess.run([sys.executable, '-W', 'ignore', '-c', _PROGRAM,
                               json.dumps(list(modules))], env=environment, text=True,
                              capture_output=True, check=False)
        if done.returncode:
            reason = done.stderr.strip().rpartition('\n')[2]
            raise InputError(f'importing {", ".join(modules)} failed: {reason}')
        for name, seconds in zip(modules, json.loads(done.stdout), strict=True):
            samples[name].append(seconds)
    return samples


def imports_entry(samples: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Plain values for a report."""
    return [dict(name=name, seconds=seconds, time=spread(seconds)._asdict())
            for name, seconds in samples.items()]


def render_imports(entries: Sequence[dict[str, Any]]) -> str:
    """A table of what each import adds."""
    rows = [[entry['name'], f'{entry["time"]["median"]:.3f}',
             f'{entry["time"]["low"]:.3f} to {entry["time"]["high"]:.3f}'] for entry in entries]
    return (f'CPU seconds that each import adds to those above it, in {len(entries[0]["seconds"])} '
            f'fresh processes.\n\n{markdown_table(["import", "s", "middle half"], rows)}')
