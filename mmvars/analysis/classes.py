"""Finding a class by its number or its name."""

from collections.abc import Sequence
from difflib import get_close_matches

from mmvars.errors import InputError

__all__ = ['find_class', 'short_name']

NUM_SUGGESTIONS = 5


def short_name(name: str) -> str:
    """The first of the synonyms of an ImageNet class: ``'tench, Tinca tinca'`` -> ``'tench'``."""
    return name.split(',')[0].strip()


def find_class(wanted: str, num_classes: int, names: Sequence[str] | None = None) -> int:
    """The index of a class given by number or name.

    Args:
        wanted: ``'207'`` or ``'golden retriever'``. A name matches regardless of case, and any one
            of the synonyms that a class lists with commas is enough.
        num_classes: Number K of classes.
        names: Names of the K classes; ``None``: only numbers can be given.

    Returns:
        The index, 0 to K - 1.

    Raises:
        InputError: If there is no such class (with the nearest names), or several.
    """
    if wanted.strip().lstrip('-').isdigit():
        index = int(wanted)
        if not 0 <= index < num_classes:
            raise InputError(f'class {index} does not exist: classes are numbered from 0 to '
                             f'{num_classes - 1}')
        return index
    if not names:
        raise InputError(f'class {wanted!r} cannot be looked up: the classes have no names here; '
                         f'give its number, 0 to {num_classes - 1}')
    by_name: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        for synonym in {name.strip().lower(), *(part.strip().lower() for part in name.split(','))}:
            by_name.setdefault(synonym, []).append(index)
    found = by_name.get(wanted.strip().lower(), [])
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f'class name {wanted!r} is not unique: classes {found} have it; '
                         'give the number')
    near = get_close_matches(wanted.strip().lower(), by_name, n=NUM_SUGGESTIONS)
    hint = f'did you mean {", ".join(map(repr, near))}?' if near else \
        f'the {num_classes} classes start with {", ".join(map(repr, map(short_name, names[:3])))}'
    raise InputError(f'no class is called {wanted!r}; {hint} (a number, 0 to {num_classes - 1}, '
                     'works too)')
