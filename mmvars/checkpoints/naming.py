"""From the keys of a file to the names of a network, by the table of its format."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from mmvars.checkpoints.account import Account, Status
from mmvars.checkpoints.containers import asked_to_ignore
from mmvars.checkpoints.formats import FORMATS, detect_format
from mmvars.checkpoints.rules import Format, reason_for
from mmvars.checkpoints.source import Source, tensor_fault
from mmvars.errors import InputError

__all__ = ['NamedTensors', 'is_head', 'name_tensors', 'without_head']


class NamedTensors(NamedTuple):
    """A state dict in the names of a network.

    Attributes:
        format: What the keys showed.
        tensors: Network name -> tensor of the file.
        carried: Tensors outside the network that keep their keys.
    """

    format: Format
    tensors: dict[str, Source]
    carried: dict[str, Tensor]


def name_tensors(state_dict: Mapping[str, Any], account: Account, ignore: Sequence[str] = (),
                 carry: bool = True) -> NamedTensors:
    """Sort a state dict by what the table of its format says of each key.

    Keys that become no tensor of the network get their line in ``account`` here.

    Args:
        state_dict: Key -> tensor.
        account: Gets those lines and a remark on the format.
        ignore: Shell-style patterns of keys to leave out.
        carry: Whether heads outside the network are handed on; else they are left out.

    Raises:
        InputError: If the keys are those of no known format.
    """
    source = detect_format(state_dict)
    if source is None:
        known = ', '.join(f.title for f in FORMATS)
        raise InputError(f'{account.title}: the keys are those of no known source ({known}); they '
                         f'begin with {", ".join(list(state_dict)[:5])}')
    account.remark(f'source names: {source.title}')
    named, carried = {}, {}
    for key, value in state_dict.items():
        name, row = source.to_network(key) or (None, None)
        status, note = _fate(key, value, name, source, named, ignore)
        if status is Status.CARRIED and not carry:
            status, note = Status.IGNORED, 'not part of the network'
        if status is Status.USED:
            fits = row.to_network(value) if isinstance(value, Tensor) else value
            named[name] = Source(key, fits, getattr(value, 'shape', None))
            continue
        if status is Status.CARRIED:
            carried[key] = value
        account.add(status, key, key if status is Status.CARRIED else None,
                    getattr(value, 'shape', None), note=note)
    return NamedTensors(source, named, carried)


def is_head(name: str) -> bool:
    """Whether a network name belongs to its classifier."""
    return name.startswith('trunk.head.')


def without_head(sources: Mapping[str, Source], account: Account, reason: str) -> dict[str, Source]:
    """``sources`` without the classifier, which the account shows as ignored for ``reason``."""
    for name in filter(is_head, sources):
        source = sources[name]
        account.add(Status.IGNORED, source.key, shape=source.shape, note=reason)
    return {name: source for name, source in sources.items() if not is_head(name)}


def _fate(key: str, value: Any, name: str | None, source: Format, named: Mapping[str, Source],
          ignore: Sequence[str]) -> tuple[Status, str]:
    inner = key.removeprefix(source.prefix)
    if asked_to_ignore(key, ignore):
        return Status.IGNORED, 'as asked'
    if refusal := reason_for(source.refused, inner):
        return Status.REFUSED, refusal
    if reason := source.reason_to_ignore(key):
        return Status.IGNORED, reason
    if source.carries(key):
        fault = tensor_fault(value)
        return (Status.BROKEN, fault) if fault else (Status.CARRIED, '')
    if name is None:
        return Status.UNEXPECTED, ''
    if name in named:
        return Status.UNEXPECTED, f'names the same tensor as {named[name].key}'
    return Status.USED, ''
