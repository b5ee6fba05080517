"""Names by tables: templates of keys, renames in both directions, and the row of a format."""

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ['Format', 'Reason', 'Rename', 'reason_for', 'same_names']

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


@dataclass(frozen=True)
class Rename:
    """One row of a table: a key of the source, and its name in an mmvars network.

    Both are templates with the same fields: ``{i}`` and ``{j}`` are numbers, ``{path}`` is any
    rest of a key.
    """

    source: str
    target: str

    def forward(self, key: str) -> str | None:
        """The network's name of the source's ``key``, or ``None`` if this row is not for it."""
        fields = _fields(self.source, key)
        return None if fields is None else self.target.format(**fields)

    def backward(self, name: str) -> str | None:
        """The source's key of the network's ``name``, or ``None`` if this row is not for it."""
        fields = _fields(self.target, name)
        return None if fields is None else self.source.format(**fields)


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
        renames: The table. The first row that matches a key wins, in both directions; the order
            of the rows is the order of the keys in a file of this format.
        signs: Templates of keys by which a file of this format is known.
        prefix: What stands before every key of the network in such a file.
        carried: Templates of keys that belong to no mmvars network and are handed on as they are.
        ignored: Keys that are left out, and why.
        refused: Keys of networks that mmvars does not have, and why that is the end.
        unnamed: Network names that this format does without, and why.
        container: Key of the dict around the tensors of a file; ``None`` for a flat file.
    """

    name: str
    title: str
    renames: tuple[Rename, ...]
    signs: tuple[str, ...] = ()
    prefix: str = ''
    carried: tuple[str, ...] = ()
    ignored: tuple[Reason, ...] = ()
    refused: tuple[Reason, ...] = ()
    unnamed: tuple[Reason, ...] = ()
    container: str | None = None

    def fits(self, keys: Iterable[str]) -> bool:
        """Whether one of ``keys`` is a sign of this format."""
        return any(_fields(self.prefix + sign, key) is not None for key in keys
                   for sign in self.signs)

    def to_network(self, key: str) -> str | None:
        """The network's name of a key of this format; ``None`` if it has none."""
        if not key.startswith(self.prefix):
            return None
        return _first(rename.forward(key.removeprefix(self.prefix)) for rename in self.renames)

    def from_network(self, name: str) -> str | None:
        """The key of a network's tensor in this format; ``None`` if it has none."""
        key = _first(rename.backward(name) for rename in self.renames)
        return None if key is None else self.prefix + key

    def carries(self, key: str) -> bool:
        """Whether a key is handed on as it is."""
        return any(_fields(template, key) is not None for template in self.carried)

    def position(self, key: str) -> int:
        """Where a key's part of the network stands in a file of this format."""
        part = key.removeprefix(self.prefix).split('.')[0]
        parts = list(dict.fromkeys(rename.source.split('.')[0] for rename in self.renames))
        return parts.index(part) if part in parts else len(parts)


def reason_for(reasons: Sequence[Reason], key: str) -> str | None:
    """The text of the first reason whose template matches ``key``."""
    return _first(reason.text for reason in reasons if _fields(reason.template, key) is not None)


def _first(values: Iterable[str | None]) -> str | None:
    return next((value for value in values if value is not None), None)
