"""The report of a conversion: what became of every tensor, in words and in JSON."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import Enum

from mmvars.errors import InputError

__all__ = ['CheckpointError', 'ConversionReport', 'Entry', 'Status']


class Status(Enum):
    """What became of a tensor; the value is the heading in the printed report."""

    USED = 'used'
    MERGED = 'merged into other tensors'
    PASSTHROUGH = 'passed through unchanged (not part of the network)'
    IGNORED = 'ignored'
    NEW = 'new in the target'
    REFUSED = 'REFUSED'
    BROKEN = 'UNUSABLE'
    MISSHAPED = 'WRONG SHAPE (file -> network)'
    MISSING = 'MISSING in the file'
    UNEXPECTED = 'UNEXPECTED in the file'


PROBLEMS = (Status.REFUSED, Status.BROKEN, Status.MISSHAPED, Status.MISSING, Status.UNEXPECTED)


class CheckpointError(InputError):
    """A checkpoint that does not fit. ``report`` lists what does not."""

    def __init__(self, message: str, report: 'ConversionReport') -> None:
        super().__init__(message)
        self.report = report


@dataclass
class Entry:
    """One tensor, or another entry of the file: its key and shape in the file and in the output.

    ``shape`` is the expected one of a missing tensor; ``target_shape`` is set where it differs.
    """

    status: Status
    source: str | None = None
    target: str | None = None
    shape: tuple[int, ...] | None = None
    target_shape: tuple[int, ...] | None = None
    note: str = ''

    def line(self) -> tuple[str, str]:
        """The entry in words, with ``{}`` for the last number of its keys, and that number."""
        names = [name for name in (self.source, self.target) if name]
        numbers = [match[1] for name in names if (match := re.search(r'.*\.(\d+)\.', name))]
        shapes = [
            'x'.join(map(str, shape)) or 'scalar'
            for shape in (self.shape, self.target_shape)
            if shape is not None
        ]
        text = [
            ' -> '.join(re.sub(r'(.*\.)\d+\.', r'\1{}.', name) for name in names),
            ' -> '.join(shapes),
            f'({self.note})' if self.note else '',
        ]
        return '  '.join(filter(None, text)), ''.join(numbers[:1])


@dataclass
class ConversionReport:
    """What was done to a file: an entry a tensor, and remarks on the file as a whole."""

    title: str
    remarks: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    def add(
        self,
        status: Status,
        source: str | None = None,
        target: str | None = None,
        shape: Iterable[int] | None = None,
        target_shape: Iterable[int] | None = None,
        note: str = '',
    ) -> None:
        """Add an :class:`Entry`."""
        self.entries.append(
            Entry(
                status,
                source,
                target,
                None if shape is None else tuple(shape),
                None if target_shape is None else tuple(target_shape),
                note,
            )
        )

    def remark(self, text: str) -> None:
        """Add a remark, once."""
        if text not in self.remarks:
            self.remarks.append(text)

    def of(self, *statuses: Status) -> list[Entry]:
        """The entries of these statuses."""
        return [entry for entry in self.entries if entry.status in statuses]

    @property
    def problems(self) -> list[Entry]:
        """The entries that stand against using the file."""
        return self.of(*PROBLEMS)

    def raise_problems(self, remedy: str) -> None:
        """Raise a :class:`CheckpointError` with all problems at once, and ``remedy``."""
        if self.problems:
            raise CheckpointError(
                '\n'.join([f'{self.title}: failed', *self._sections(PROBLEMS), remedy]), self
            )

    def check_complete(self, sources: Iterable[str], targets: Iterable[str]) -> None:
        """Raise a ``RuntimeError`` if a key of either side has no entry, or more than one."""
        for side, keys in (('source', sources), ('target', targets)):
            count = Counter(getattr(entry, side) for entry in self.entries)
            if faults := {key: count[key] for key in keys if count[key] != 1}:
                raise RuntimeError(f'{side} keys -> number of their entries: {faults}')

    def summary(self) -> str:
        """One sentence for a log."""
        counts = ', '.join(
            f'{len(self.of(status))} {status.value.split(" (")[0]}'
            for status in Status
            if self.of(status)
        )
        return '; '.join([f'{self.title}: {counts}', *self.remarks])

    def render(self) -> str:
        """The whole report for a terminal; numbered parts that are alike share a line."""
        return '\n'.join(
            [self.title, *(f'  {remark}' for remark in self.remarks), *self._sections(Status)]
        )

    def to_dict(self) -> dict:
        """The whole report, one entry a tensor, of JSON types only."""
        entries = [asdict(entry) | {'status': entry.status.name.lower()} for entry in self.entries]
        return {
            'title': self.title,
            'remarks': self.remarks,
            'entries': entries,
            'ok': not self.problems,
        }

    def _sections(self, statuses: Iterable[Status]) -> list[str]:
        text = []
        for status in statuses:
            groups: dict[str, list[str]] = {}
            for entry in self.of(status):
                line, number = entry.line()
                groups.setdefault(line, []).append(number)
            if groups:
                text.append(f'{status.value}: {sum(map(len, groups.values()))}')
                text += [
                    f'  {line.replace("{}", _range(numbers))}' for line, numbers in groups.items()
                ]
        return text


def _range(numbers: list[str]) -> str:
    """``{0..11}`` or, with gaps, ``{2,3,7}``; a single number as it is."""
    if len(numbers) == 1:
        return numbers[0]
    texts = [str(number) for number in range(int(numbers[0] or 0), int(numbers[-1] or 0) + 1)]
    return f'{{{numbers[0]}..{numbers[-1]}}}' if numbers == texts else f'{{{",".join(numbers)}}}'
