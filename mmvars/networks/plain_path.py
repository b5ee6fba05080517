"""A switch for the exact rewrites, to compare with and without."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ['is_plain_path', 'plain_path']

_plain = False


@contextmanager
def plain_path() -> Iterator[None]:
    """Within, :class:`~mmvars.networks.TopDown` follows its equations step by step.

    Decoders one after the other, nothing kept between forwards, nothing shared between the passes
    but the embedding, no token left out. The outputs are the same up to rounding; tests and
    benchmarks compare the two.
    """
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def is_plain_path() -> bool:
    """Whether :func:`plain_path` is in force."""
    return _plain
