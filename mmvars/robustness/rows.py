"""Results of a run, one file a setting, which several processes and machines may fill together."""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmvars.errors import InputError, first_of
from mmvars.robustness.protocols import Setting
from mmvars.write import write_text

__all__ = ['Rows']

_IDENTITY = 'run.json'
_WAIT = 1.0  # seconds between two looks at what others do


class Rows:
    """The rows of one model: a file for each setting, in the folder of all that it depends on.

    A row is written whole or not at all, and one that is there is never made again. Who makes a row
    holds a lock of the system on the file beside it, which ends with the process, however that
    ends. Where a network file system knows no locks, two processes may make the same row, twice
    with the same result.

    Args:
        folder: Holds a folder for each key.
        keys: Name of each setting -> key, as :meth:`of` has made them.
    """

    def __init__(self, folder: str | Path, keys: Mapping[str, str]) -> None:
        self.folder = Path(folder)
        self.keys = dict(keys)
        self._identities: dict[str, dict[str, Any]] = {}
        self._lock: int | None = None

    @classmethod
    def of(
        cls,
        folder: str | Path,
        identities: Iterable[tuple[Mapping[str, Any], Sequence[Setting]]],
    ) -> 'Rows':
        """The rows in ``folder/rows/KEY``.

        Args:
            folder: Of the results.
            identities: All that rows depend on, whose hash is the ``KEY``, with the settings that
                it is of.
        """
        rows = cls(Path(folder, 'rows'), {})
        for identity, settings in identities:
            text = json.dumps(identity, indent=1, sort_keys=True)
            key = hashlib.sha256(text.encode()).hexdigest()[:12]
            path = rows.folder / key / _IDENTITY
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write_text(path, text, overwrite=True)
            rows.keys |= {setting.name: key for setting in settings}
        return rows

    def identity(self, setting: Setting) -> dict[str, Any]:
        """All that a row depends on."""
        key = self.keys[setting.name]
        if key not in self._identities:
            self._identities[key] = _read(self.folder / key / _IDENTITY)
        return self._identities[key]

    def path(self, setting: Setting) -> Path:
        return self.folder / self.keys[setting.name] / f'{setting.name}.json'

    def read(self, setting: Setting) -> dict[str, Any]:
        """A row.

        Raises:
            InputError: If it is damaged.
        """
        return _read(self.path(setting))

    def missing(self, settings: Sequence[Setting]) -> list[Setting]:
        """Those of the settings whose row is not there."""
        return [setting for setting in settings if not self.path(setting).exists()]

    def claim_next(self, settings: Sequence[Setting]) -> Setting | None:
        """The first setting that is to be done, locked; ``None`` when all are done.

        While others are at work on all that is left, it waits: one of them may be killed.
        """
        waits = False
        while missing := self.missing(settings):
            for setting in missing:
                if self._claim(setting):
                    return setting
            if not waits:
                names = first_of([setting.name for setting in missing], 3)
                print(f'waiting for other processes, which are at work on {names}', flush=True)
            waits = True
            time.sleep(_WAIT)
        return None

    def write(self, setting: Setting, row: Mapping[str, Any]) -> None:
        """Write the row of a claimed setting, and give the claim back."""
        write_text(self.path(setting), json.dumps(row, separators=(',', ':')), overwrite=True)
        self._release()

    def _claim(self, setting: Setting) -> bool:
        file = self.path(setting).with_suffix('.lock')
        self._lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        if _try_lock(self._lock) and not self.path(setting).exists():  # written meanwhile
            return True
        self._release()
        return False

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)  # which unlocks it
            self._lock = None


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except ValueError:
        raise InputError(f'{path} is damaged: remove it, and run again') from None


def _try_lock(file: int) -> bool:
    """Lock a file, unless another process has it; workers that are forked do not inherit it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True
