"""The account of a conversion: what became of every tensor, in words and in JSON."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum

from mmvars.errors import InputError

__all__ = ['Account', 'CheckpointError', 'Line', 'Status']

Shape = tuple[int, ...]


class Status(Enum):
    """What became of a tensor; the value is the heading in the printed account."""

    USED = 'used'
    CARRIED = 'carried over unchanged (not part of the network, so not checked)'
    IGNORED = 'ignored'
    NEW = 'new in the target'
    REFUSED = 'REFUSED'
    BROKEN = 'UNUSABLE'
    MISSHAPED = 'WRONG SHAPE (file -> network)'
    MISSING = 'MISSING in the file'
    UNEXPECTED = 'UNEXPECTED in the file'


PROBLEMS = (Status.REFUSED, Status.BROKEN, Status.MISSHAPED, Status.MISSING, Status.UNEXPECTED)


class CheckpointError(InputError):
    """A checkpoint that does not fit. ``account`` says what was found."""

    def __init__(self, message: str, account: 'Account') -> None:
        super().__init__(message)
        self.account = account


@dataclass(frozen=True)
class Line:
    """One tensor (or entry of the file).

    Attributes:
        status: What became of it.
        source: Its key in the file.
        target: Its key in the output.
        shape: Its shape in the file; where the file lacks it, the shape wanted.
        target_shape: Its shape in the output, where that differs or should.
        note: Why, or what was done to it.
    """

    status: Status
    source: str | None = None
    target: str | None = None
    shape: Shape | None = None
    target_shape: Shape | None = None
    note: str = ''

    def text(self) -> str:
        """One line: ``source -> target  shape -> shape  (note)``."""
        names = ' -> '.join(name for name in (self.source, self.target) if name)
        shapes = ' -> '.join(_shape_text(s) for s in (self.shape, self.target_shape)
                             if s is not None)
        return '  '.join(part for part in (names, shapes, f'({self.note})' if self.note else '')
                         if part)


@dataclass
class Account:
    """The account of one file.

    Attributes:
        title: What was done to which file.
        remarks: Choices that concern the file as a whole.
        lines: One a tensor.
    """

    title: str
    remarks: list[str] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def add(self, status: Status, source: str | None = None, target: str | None = None,
            shape: Shape | None = None, target_shape: Shape | None = None, note: str = '') -> None:
        """Add a :class:`Line`."""
        self.lines.append(Line(status, source, target, None if shape is None else tuple(shape),
                               None if target_shape is None else tuple(target_shape), note))

    def remark(self, text: str) -> None:
        """Add a remark, once."""
        if text not in self.remarks:
            self.remarks.append(text)

    def settle_shapes(self, written: Mapping[str, Shape]) -> None:
        """Give the tensors that were used the shapes they have in the output, by key."""
        for index, line in enumerate(self.lines):
            if line.status is Status.USED and line.target in written:
                shape = tuple(written[line.target])
                self.lines[index] = replace(line, target_shape=None if shape == line.shape
                                            else shape)

    def of(self, *statuses: Status) -> list[Line]:
        """The lines of these statuses."""
        return [line for line in self.lines if line.status in statuses]

    @property
    def problems(self) -> list[Line]:
        """The lines that stand against using the file."""
        return self.of(*PROBLEMS)

    def raise_problems(self, remedy: str) -> None:
        """Fail if there are problems, with all of them at once.

        Raises:
            CheckpointError: The problems, then ``remedy``.
        """
        if self.problems:
            raise CheckpointError('\n'.join([f'{self.title}: failed', *self._sections(PROBLEMS),
                                             remedy]), self)

    def check_complete(self, sources: Iterable[str], targets: Iterable[str]) -> None:
        """See that no key of either side escaped. A failure is a fault of this package.

        Raises:
            RuntimeError: If a key has no line, or more than one.
        """
        for side, keys, told in (
                ('source', sources, [line.source for line in self.lines if line.source]),
                ('target', targets, [line.target for line in self.lines if line.target])):
            keys = list(keys)
            lost = sorted(set(keys) - set(told))
            twice = sorted({key for key in keys if told.count(key) > 1})
            if lost or twice:
                raise RuntimeError(f'{side} keys without a line: {lost}; with several: {twice}')

    def summary(self) -> str:
        """One sentence for a log."""
        counts = ', '.join(f'{len(self.of(status))} {status.value.split(" (")[0]}'
                           for status in Status if self.of(status))
        return '; '.join([f'{self.title}: {counts}', *self.remarks])

    def render(self) -> str:
        """The whole account for a terminal: like keys of numbered parts share a line."""
        return '\n'.join([self.title, *(f'  {remark}' for remark in self.remarks),
                          *self._sections(tuple(Status))])

    def to_dict(self) -> dict:
        """The whole account, one entry a tensor, of JSON types only."""
        lines = [asdict(line) | {'status': line.status.name.lower()} for line in self.lines]
        return {'title': self.title, 'remarks': self.remarks, 'lines': lines,
                'ok': not self.problems}

    def _sections(self, statuses: Iterable[Status]) -> list[str]:
        text = []
        for status in statuses:
            lines = self.of(status)
            if lines:
                text.append(f'{status.value}: {len(lines)}')
                text += [f'  {line.text()}' for line in _grouped(lines)]
        return text


def _shape_text(shape: Shape) -> str:
    return 'x'.join(map(str, shape)) or 'scalar'


def _grouped(lines: list[Line]) -> list[Line]:
    """Lines that differ in the last number of their keys only, as one line each."""
    groups: dict[tuple, list[Line]] = {}
    for line in lines:
        alike = (_split(line.source)[0], _split(line.target)[0], line.shape, line.target_shape,
                 line.note)
        groups.setdefault(alike, []).append(line)
    return [_merged(group) for group in groups.values()]


def _merged(group: list[Line]) -> Line:
    names = {}
    for side in ('source', 'target'):
        template, _ = _split(getattr(group[0], side))
        numbers = [_split(getattr(line, side))[1] for line in group]
        names[side] = template and template.replace('{}', _numbers_text(numbers))
    first = group[0]
    return Line(first.status, names['source'], names['target'], first.shape, first.target_shape,
                first.note)


def _split(key: str | None) -> tuple[str | None, int | None]:
    """A key with ``{}`` for the last number among its parts, and that number."""
    match = re.fullmatch(r'(.*\.)(\d+)(\..*)', key or '')
    if match is None:
        return key, None
    return f'{match[1]}{{}}{match[3]}', int(match[2])


def _numbers_text(numbers: list[int | None]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f'{{{numbers[0]}..{numbers[-1]}}}'
    return f'{{{",".join(map(str, numbers))}}}'
