"""``--brief``: a console of short lines; the log file stays as long as ever."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.logging import MMLogger

__all__ = ['brief_console', 'short_line']

_PACKAGE = Path(__file__).parents[1]
_PROGRESS = re.compile(r'(?:Iter|Epoch)\((train|val|test)\) +(?:\[(\d+)\])?\[ *(\d+)/(\d+)\](.*)')
_KEPT = ('Saving checkpoint', 'The best checkpoint', 'Load checkpoint from', 'resumed epoch')
_NOTICES = ('The prefix is not set in metric class', '"FileClient" will be', '"HardDiskBackend" is')
_FROZEN = 'is skipped since its requires_grad=False'  # a line for each frozen parameter
_TIMES = ('time', 'data_time', 'step')


def short_line(record: logging.LogRecord) -> str | None:
    """What the console shows of a record of the log; ``None``: nothing.

    It shows progress and scores in short, warnings and errors, what mmvars itself says, and where
    checkpoints are written and read; not the environment, the config, hooks and tables.
    """
    text = record.getMessage().strip()
    if text.startswith(_NOTICES) or text.endswith(_FROZEN):
        return None
    if record.levelno > logging.INFO:
        return f'{record.levelname}: {text}'
    if match := _PROGRESS.match(text):
        stage, epoch, done, total, rest = match.groups()
        pairs = (entry.partition(': ') for entry in re.split(r'\s\s+', rest.strip()))
        values = {name: value for name, _, value in pairs}
        if stage == 'train':
            shown = [f'loss {values.get("loss")}', f'{values.get("eta")} left']
        elif 'eta' in values:
            return None
        else:
            shown = [f'{name} {value}' for name, value in values.items() if name not in _TIMES]
        return '  '.join([f'epoch {epoch}'] * bool(epoch) + [f'{stage} {done}/{total}', *shown])
    is_ours = _PACKAGE in Path(record.pathname).parents
    return text if is_ours or text.startswith(_KEPT) else None


class _ShortLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return short_line(record) or ''

    def filter(self, record: logging.LogRecord) -> bool:
        return short_line(record) is not None


@contextmanager
def brief_console() -> Iterator[None]:
    """Loggers that mmengine makes in here, as a Runner does at its start, have a brief console."""
    init = MMLogger.__init__

    def brief_init(self: MMLogger, *args, **kwargs) -> None:
        init(self, *args, **kwargs)
        for handler in self.handlers:
            if type(handler) is logging.StreamHandler:  # not those of files, which inherit from it
                handler.setFormatter(lines := _ShortLines())
                handler.addFilter(lines)
            elif isinstance(handler, logging.FileHandler):
                print(f'full log: {handler.baseFilename}', flush=True)

    MMLogger.__init__ = brief_init
    try:
        yield
    finally:
        MMLogger.__init__ = init
