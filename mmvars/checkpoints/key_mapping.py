"""What the keys of a file are called in a network, and what names and shapes show of its mixer."""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ['Format', 'Shapes', 'first_match', 'mixers_seen', 'shown_options', 'table']

Shapes = Mapping[str, tuple[int, ...]]
"""Network name -> shape of the tensor, in the form that the network has."""

_UNREAD = 'nothing reads it, and the release never changes it'

_SIGNS: tuple[tuple[str, str], ...] = (
    ('vars_sd', 'static_atoms'),
    ('vars_sd', 'dictionary random_features'),
    ('vars_s', 'dictionary'),
    ('vars_d', 'gram_modulation random_features'),
    ('performer', 'random_features'),
    ('masked_attention', 'attention_mask'),
    ('global_filter', 'complex_weight'),
    ('self_attention', 'qkv.weight'),
)
"""Mixer and the names of tensors that show it; the first row that matches is taken."""


class Format(NamedTuple):
    """How one source names the tensors of a network. A new source is a new value of this class.

    Names of a network's tensors start with ``trunk.``, ``prior.`` or ``feedback.``, for plain
    networks too. In templates, ``#`` is a number and ``*`` any part of a key.

    Attributes:
        title: What it is, in words.
        rows: See :func:`table`. The first row that matches wins, in both directions; their order
            is that of the keys in a file of this format.
        signs: Templates of keys by which a file of this format is recognized.
        prefix: What stands before every key of the network in such a file.
        singletons: Key template of a row -> axes of length 1 that only the source's tensor has.
        constants: Template of a key that nothing reads, which has a row with the name ``''`` ->
            template of the tensor beside which it stands, and what makes it from that one.
        passthrough: Templates of keys outside the network that are handed on as they are.
        beside: Rows for tensors beside the network, such as those of METER: key in the file, and in
            a file of mmvars. They are handed on, too.
        ignored: Templates of keys that are left out -> why.
        outside: Rows for keys that do not start with what stands before the network's.
        container: Key of the dict around the tensors of a file; ``None`` for a flat file.
        by_release: Whether the released code, which has one way to compute a mixer, writes it.
    """

    title: str
    rows: tuple[tuple[str, str], ...]
    signs: tuple[str, ...] = ()
    prefix: str = ''
    singletons: Mapping[str, tuple[int, ...]] = {}
    constants: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]] = {}
    passthrough: tuple[str, ...] = ()
    beside: tuple[tuple[str, str], ...] = ()
    ignored: Mapping[str, str] = {}
    outside: tuple[tuple[str, str], ...] = ()
    container: str | None = None
    by_release: bool = False

    def fits(self, keys: Iterable[str]) -> bool:
        """Whether one of ``keys`` is a sign of this format."""
        return any(first_match((self.prefix + sign for sign in self.signs), key) for key in keys)

    def to_network(self, key: str) -> tuple[str, tuple[int, ...]] | None:
        """Network name of a key and the axes to squeeze; ``None`` if it has none."""
        for source, target in self.rows:
            if target and (match := _match(self.prefix + source, key)):
                return _fill(target, match), self.singletons.get(source, ())
        return None

    def outside_name(self, key: str) -> str:
        """Network name of a key outside of the network's prefix, or ``''``."""
        matches = ((target, _match(source, key)) for source, target in self.outside)
        return next((_fill(target, match) for target, match in matches if match), '')

    def beside_name(self, key: str) -> str:
        """What mmvars calls a tensor beside the network, or ``''``."""
        if first_match(self.passthrough, key):
            return key
        matches = ((target, _match(source, key)) for source, target in self.beside)
        return next((_fill(target, match) for target, match in matches if match), '')

    def beside_key(self, name: str) -> str:
        """The key here of a tensor that mmvars gives this name beside the network."""
        matches = ((source, _match(target, name)) for source, target in self.beside)
        return next((_fill(source, match) for source, match in matches if match), name)

    def from_network(self, name: str) -> tuple[str, tuple[int, ...]] | None:
        """Key of a network's tensor and the axes to add; ``None`` if it has none."""
        for source, target in self.rows:
            if match := _match(target, name):
                return _fill(self.prefix + source, match), self.singletons.get(source, ())
        return None

    def unread(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, str]]:
        """Key, tensor and reason of the :attr:`constants` beside these tensors of a network."""
        for source, (beside, make) in self.constants.items():
            for name in state:
                if match := _match(beside, name):
                    yield _fill(self.prefix + source, match), make(state[name]), _UNREAD

    def reason_to_ignore(self, key: str) -> str:
        """Why a key is left out, or ``''``."""
        reasons = {**dict.fromkeys(self.constants, _UNREAD), **self.ignored}
        return reasons.get(first_match(reasons, key), '')

    def position(self, key: str) -> tuple[int, list[int], int]:
        """What sorts keys as a file of this format has them: part, numbers of the part, row."""
        parts = list(dict.fromkeys(source.split('.')[0] for source, _ in self.rows))
        for index, (source, _) in enumerate(self.rows):
            if match := _match(self.prefix + source, key):
                numbers = [int(field) for field in match.groups() if field.isdecimal()]
                return parts.index(source.split('.')[0]), numbers, index
        return len(parts), [], len(self.rows)


def table(text: str, source: str = '', target: str = 'trunk.') -> tuple[tuple[str, str], ...]:
    """Templates of keys and of their names in a network, from words ``key>name``.

    Both sides have the same fields in the same order; ``key`` alone names both, ``key>`` has no
    name. ``source`` and ``target`` stand before all of them.
    """
    pairs = (word.partition('>') for word in text.split())
    return tuple(
        (source + key, '' if arrow and not name else target + (name or key))
        for key, arrow, name in pairs
    )


def first_match(templates: Iterable[str], key: str) -> str:
    """The first of the templates that ``key`` matches, or ``''``."""
    return next((template for template in templates if _match(template, key)), '')


def mixers_seen(names: Iterable[str]) -> Counter[str]:
    """Which mixers the names of a network's tensors show, and in how many blocks."""
    mixers = map(_mixer_of, _by_block(dict.fromkeys(names, ())).values())
    return Counter(mixer for mixer in mixers if mixer)


def shown_options(shapes: Shapes, mixer: str) -> dict[str, Any]:
    """Options of ``mixer`` that the shapes of a network's tensors show, by name."""
    leaves = next((each for each in _by_block(shapes).values() if _mixer_of(each) == mixer), {})
    features, filters, qv = (
        leaves.get(leaf, ()) for leaf in ('random_features', 'dictionary', 'qv.weight')
    )
    is_release = {
        'vars_sd': not filters,
        'vars_s': 'output_filter' in leaves,
        'vars_d': len(qv) < 2 or qv[0] == 2 * qv[1],
    }.get(mixer)
    options: dict[str, Any] = {}
    if leaves and is_release is not None:
        options['preset'] = 'release' if is_release else 'thesis'
    if leaves and mixer == 'vars_d':
        options['separate_keys'] = 'k.weight' in leaves
    if len(features) == 3 and features[1]:
        ratio, rest = divmod(features[2], features[1])
        options['feature_ratio'] = features[2] / features[1] if rest else ratio
    if len(filters) == 5:
        options['atoms_per_channel'] = filters[1]
    return options


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r'\#', r'(\d+)').replace(r'\*', '(.+)'))


def _match(template: str, key: str) -> re.Match[str] | None:
    return _pattern(template).fullmatch(key)


def _fill(template: str, match: re.Match[str]) -> str:
    fields = iter(match.groups())
    return re.sub(r'[#*]', lambda _: next(fields), template)


def _mixer_of(leaves: Mapping[str, Any]) -> str | None:
    return next((mixer for mixer, signs in _SIGNS if leaves.keys() >= set(signs.split())), None)


def _by_block(shapes: Shapes) -> dict[str, dict[str, tuple[int, ...]]]:
    """Block -> name inside its mixer -> shape."""
    blocks: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if match := re.fullmatch(r'(.*\bblocks\.\d+)\.attn\.(.+)', name):
            blocks.setdefault(match[1], {})[match[2]] = shape
    return blocks
