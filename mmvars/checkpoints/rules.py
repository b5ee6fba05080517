"""Names by tables: templates of keys, renames in both directions, and the row of a format."""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ['Constant', 'Format', 'Reason', 'Rename', 'matches', 'reason_for', 'same_names']

_FIELDS = {'i': r'\d+', 'j': r'\d+', 'path': r'.+'}


@functools.cache
def _pattern(template: str) -> re.Pattern:
    parts = re.split(r'\{(\w+)\}', template)
    return re.compile(''.join(f'(?P<{part}>{_FIELDS[part]})' if index % 2 else re.escape(part)
                              for index, part in enumerate(parts)))


def _fields(template: str, key: str) -> dict[str, str] | None:
    """The fields of ``key`` as ``template`` sees it; ``None`` if it does not match as a whole."""
    match = _pattern(template).fullmatch(key)
    return None if match is None else match.groupdict()


def matches(template: str, key: str) -> bool:
    """Whether ``key`` as a whole is of the kind of ``template``."""
    return _fields(template, key) is not None


@dataclass(frozen=True)
class Rename:
    """One row of a table: a key of the source, and its name in an mmvars network.

    Both are templates with the same fields: ``{i}`` and ``{j}`` are numbers, ``{path}`` is any
    rest of a key.

    Attributes:
        source: Template of the key.
        target: Template of the name.
        singletons: Axes of the source's tensor that have length 1 and that the network's tensor
            does without, in increasing order.
    """

    source: str
    target: str
    singletons: tuple[int, ...] = ()

    def forward(self, key: str) -> str | None:
        """The network's name of the source's ``key``, or ``None`` if this row is not for it."""
        fields = _fields(self.source, key)
        return None if fields is None else self.target.format(**fields)

    def backward(self, name: str) -> str | None:
        """The source's key of the network's ``name``, or ``None`` if this row is not for it."""
        fields = _fields(self.target, name)
        return None if fields is None else self.source.format(**fields)

    def to_network(self, tensor: Tensor) -> Tensor:
        """The source's tensor without its singleton axes; as it is where they are not there."""
        if any(tensor.ndim <= axis or tensor.shape[axis] != 1 for axis in self.singletons):
            return tensor
        return tensor.squeeze(self.singletons) if self.singletons else tensor

    def from_network(self, tensor: Tensor) -> Tensor:
        """The network's tensor with the source's singleton axes."""
        for axis in self.singletons:
            tensor = tensor.unsqueeze(axis)
        return tensor


@dataclass(frozen=True)
class Constant:
    """One row of a table: a key that the source has, but that no network reads.

    It is left out on the way in, and written again on the way out.

    Attributes:
        source: Template of the key.
        beside: Template of a network name: where there is such a tensor, the source has the key.
        value: What the source sets it to, in every element.
        reason: Why it is dead.
        length_of: Template of the network name of a tensor with as many rows as the constant has
            elements; ``None`` for a scalar.
    """

    source: str
    beside: str
    value: float
    reason: str
    length_of: str | None = None

    def entries(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Keys and tensors of the source that go with these tensors of a network."""
        for name in tensors:
            fields = _fields(self.beside, name)
            if fields is not None:
                rows = self.length_of and len(tensors[self.length_of.format(**fields)])
                yield (self.source.format(**fields),
                       torch.full(() if rows is None else (rows, ), self.value))


@dataclass(frozen=True)
class Reason:
    """What is said of every key that matches the template."""

    template: str
    text: str


def same_names(prefix: str, *templates: str) -> tuple[Rename, ...]:
    """Rows for keys whose name in the network is ``prefix`` and the source's name."""
    return tuple(Rename(template, prefix + template) for template in templates)


@dataclass(frozen=True)
class Format:
    """How one source names the tensors of a network. A new source is a new row of this kind.

    Attributes:
        name: What the command line calls it.
        title: What it is, in words.
        rows: The table. The first row that matches a key wins, in both directions; the order of
            the rows is the order of the keys in a file of this format.
        signs: Templates of keys by which a file of this format is known.
        prefix: What stands before every key of the network in such a file.
        carried: Templates of keys that belong to no mmvars network and are handed on as they are.
        ignored: Keys that are left out, and why; those of the constants besides.
        refused: Keys of networks that mmvars does not have, and why that is the end.
        unnamed: Network names that this format does without, and why.
        container: Key of the dict around the tensors of a file; ``None`` for a flat file.
        variable: Options of a mixer in which files of this format may differ from the mixer's
            defaults; ``None`` for any.
    """

    name: str
    title: str
    rows: tuple[Rename | Constant, ...]
    signs: tuple[str, ...] = ()
    prefix: str = ''
    carried: tuple[str, ...] = ()
    ignored: tuple[Reason, ...] = ()
    refused: tuple[Reason, ...] = ()
    unnamed: tuple[Reason, ...] = ()
    container: str | None = None
    variable: tuple[str, ...] | None = None

    def fits(self, keys: Iterable[str]) -> bool:
        """Whether one of ``keys`` is a sign of this format."""
        return any(matches(self.prefix + sign, key) for key in keys for sign in self.signs)

    def to_network(self, key: str) -> tuple[str, Rename] | None:
        """The network's name of a key of this format and its row; ``None`` if it has none."""
        if not key.startswith(self.prefix):
            return None
        key = key.removeprefix(self.prefix)
        return _first((name, row) for row in self._renames if (name := row.forward(key)))

    def from_network(self, name: str) -> tuple[str, Rename] | None:
        """The key of a network's tensor in this format and its row; ``None`` if it has none."""
        return _first((self.prefix + key, row) for row in self._renames
                      if (key := row.backward(name)))

    def constants(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, str]]:
        """Key, tensor and reason of each :class:`Constant` beside these tensors of a network."""
        for row in self.rows:
            if isinstance(row, Constant):
                for key, tensor in row.entries(tensors):
                    yield self.prefix + key, tensor, row.reason

    def reason_to_ignore(self, key: str) -> str | None:
        """Why a key is left out; ``None`` if it is not."""
        key = key.removeprefix(self.prefix)
        dead = (Reason(row.source, row.reason) for row in self.rows if isinstance(row, Constant))
        return reason_for((*self.ignored, *dead), key)

    def carries(self, key: str) -> bool:
        """Whether a key is handed on as it is."""
        return any(matches(template, key) for template in self.carried)

    def position(self, key: str) -> tuple:
        """What sorts keys as a file of this format has them: part, numbers of the part, row."""
        key = key.removeprefix(self.prefix)
        parts = list(dict.fromkeys(row.source.split('.')[0] for row in self.rows))
        for index, row in enumerate(self.rows):
            fields = _fields(row.source, key)
            if fields is not None:
                numbers = [int(number) for name, number in fields.items() if name != 'path']
                return parts.index(row.source.split('.')[0]), numbers, index
        return len(parts), [], len(self.rows)

    @property
    def _renames(self) -> Iterator[Rename]:
        return (row for row in self.rows if isinstance(row, Rename))


def reason_for(reasons: Sequence[Reason], key: str) -> str | None:
    """The text of the first reason whose template matches ``key``."""
    return _first(reason.text for reason in reasons if matches(reason.template, key))


def _first(values: Iterable) -> object | None:
    return next((value for value in values if value is not None), None)
