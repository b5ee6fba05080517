"""The one exception that means "the user can fix this", and the checks that raise it most."""

import difflib
import math
from collections.abc import Collection, Iterable, Sequence
from numbers import Integral, Real
from typing import Any

__all__ = ['InputError', 'check_choice', 'check_flag', 'check_number', 'did_you_mean', 'first_of']


class InputError(ValueError):
    """Bad input: an argument, a file or a config entry that cannot be used as it is.

    The message names the thing, says what it holds, and how to put it right. The command-line
    tools print the message alone and exit with status 2; everything else is a bug and keeps its
    traceback. It is a ``ValueError``, so library users need not know this class.
    """


def did_you_mean(name: Any, names: Iterable[str], limit: int = 1, cutoff: float = 0.6) -> str:
    """What was probably meant by a wrong name, as the end of a message.

    Args:
        name: What was given.
        names: Those that are known.
        limit: Most names to suggest.
        cutoff: Least likeness, difflib's ratio without regard to upper and lower case.

    Returns:
        ``"; did you mean 'train'?"``, or ``''`` where nothing is like it.
    """
    known = {known.lower(): known for known in names}
    similar = difflib.get_close_matches(str(name).lower(), known, limit, cutoff)
    matches = ' or '.join(repr(known[match]) for match in similar)
    return f'; did you mean {matches}?' if similar else ''


def first_of(names: Sequence[str], count: int = 5) -> str:
    """The first ``count`` of many names, and how many more there are, for a message."""
    more = f' and {len(names) - count} more' if len(names) > count else ''
    return ', '.join(names[:count]) + more


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        InputError: Naming them, and the one that is most like it.
    """
    if not isinstance(value, str) or value not in choices:
        raise InputError(
            f'{name} must be one of {", ".join(choices)}; got {value!r}'
            f'{did_you_mean(value, choices)}'
        )


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither ``True`` nor ``False``: ``'no'`` would count as true.

    Raises:
        InputError: Naming it.
    """
    if not isinstance(value, bool):
        raise InputError(f'{name} must be True or False, got {value!r}')


def check_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, whole: bool = False
) -> None:
    """Refuse a value that is no number, or one out of range.

    Args:
        name: Of the argument, for the message.
        value: What was given.
        low: Least value allowed.
        high: Greatest value allowed.
        whole: Whether it must be an integer.

    Raises:
        InputError: If it is not finite, of another type, or out of ``[low, high]``.
    """
    is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    finite = is_number and (isinstance(value, Integral) or math.isfinite(value))
    if finite and low <= value <= high:
        return
    limits = ''
    if low > -math.inf and high < math.inf:
        limits = f' in [{low:g}, {high:g}]'
    elif low > -math.inf:
        limits = f' of at least {low:g}'
    raise InputError(f'{name} must be a {"whole " if whole else ""}number{limits}, got {value!r}')
