"""State-dict keys that every network loads too: of mmvars 0.1, and of plain networks."""

import re
from collections.abc import Iterable
from typing import Any

__all__ = ['rename_entries', 'rename_old_keys']

OLD_KEYS: tuple[tuple[re.Pattern, str], ...] = (
    (re.compile(r'(feedback\.decoders\.\d+)\.chain\.'), r'\1.to_below.'),
    (re.compile(r'(feedback\.decoders\.\d+)\.readout\.'), r'\1.to_value.'),
    (re.compile(r'(feedback)\.crossings\.'), r'\1.upsamples.'),
    (re.compile(r'(blocks\.\d+\.attn)\.step_bound$'), r'\1.lipschitz'),
)
"""Pattern in a key of 0.1 -> its replacement."""

PARTS = ('trunk.', 'prior.', 'feedback.')
"""What the keys of a network with top-down attention begin with."""


def rename_old_keys(keys: Iterable[str], plain: bool) -> dict[str, str]:
    """Present names for the keys of a network, old or new.

    Args:
        keys: Keys of one network, without what stands before the network's name.
        plain: Whether the network has no top-down attention. In 0.1 such a network stood inside
            another module, so all its keys began with ``trunk.``. The keys of one that has, and of
            no part of it, are those of a plain network: its trunk's.

    Returns:
        Key -> present name, for all keys.
    """
    renamed = {}
    for key in keys:
        name = key.removeprefix('trunk.') if plain else key
        for pattern, replacement in OLD_KEYS:
            name = pattern.sub(replacement, name)
        if not plain and not name.startswith(PARTS):
            name = f'trunk.{name}'
        renamed[key] = name
    return renamed


def rename_entries(state_dict: dict[str, Any], prefix: str, plain: bool) -> None:
    """Rename the entries of a state dict that start with ``prefix``, in place."""
    keys = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
    for key, name in rename_old_keys(keys, plain).items():
        if key != name:
            state_dict[prefix + name] = state_dict.pop(prefix + key)
