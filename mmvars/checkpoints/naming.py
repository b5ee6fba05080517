"""From the keys of a file to the names of a network."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from mmvars.checkpoints.formats import FORMATS, detect_format
from mmvars.checkpoints.io import tensor_fault
from mmvars.checkpoints.key_mapping import Format
from mmvars.checkpoints.report import ConversionReport, Status
from mmvars.checkpoints.weights import matches
from mmvars.errors import InputError
from mmvars.networks import rename_old_keys

__all__ = ['Source', 'find_network', 'name_tensors']

_EMBEDDING = re.compile(r'((?:.*?\.)?)(?:patch_embed|embeddings\.patch_embeddings)\.')


class Source(NamedTuple):
    """A tensor of a file: key and shape there, and value in the form that the network has."""

    key: str
    value: Any
    shape: tuple[int, ...] | None
    note: str = ''


def find_network(keys: Collection[str], report: ConversionReport) -> tuple[str, Format | None]:
    """What stands before the keys of the one network among ``keys``, and the format after it.

    A network is where its patch embedding is. ``report`` gets a remark.

    Returns:
        ``('', None)`` where there is no network of a known format.

    Raises:
        InputError: If there are several.
    """
    networks = {}
    for path in ('', *(match[1] for key in keys if (match := _EMBEDDING.match(key)))):
        for end in [0, *(i + 1 for i, letter in enumerate(path) if letter == '.')]:
            prefix = path[:end]
            inside = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
            if source := detect_format(inside):
                networks[prefix] = source
                break
    if len(networks) > 1:
        choices = ' or '.join(f'--prefix {prefix[:-1]}' for prefix in networks)
        raise InputError(
            f'{report.title}: the file holds {len(networks)} networks; choose one of them with '
            f'{choices} (in Python prefix={[*networks][0]!r})'
        )
    for prefix, source in networks.items():
        report.remark(f'source names: {source.title}{f" after {prefix!r}" if prefix else ""}')
        return prefix, source
    return '', None


def name_tensors(
    state_dict: Mapping[str, Any],
    report: ConversionReport,
    ignore: Sequence[str] = (),
    pass_through: bool = True,
) -> tuple[Format, dict[str, Source], dict[str, Tensor]]:
    """The format of a state dict, its tensors by network name, and those handed on by key.

    Keys that become no tensor of the network get their entry in ``report`` here. Patterns in
    ``ignore`` leave keys out; ``pass_through`` says whether what is beside the network is handed
    on, such as heads of segmentors, by the names of mmvars.

    Raises:
        InputError: If the keys are those of no known format, or of several networks.
    """
    prefix, source = find_network(state_dict, report)
    if source is None:
        known = ', '.join(f.title for f in FORMATS)
        raise InputError(
            f'{report.title}: the keys are those of no known source ({known}); they begin with '
            f'{", ".join([*state_dict][:5]) or "nothing: there are none"}'
        )
    named: dict[str, Source] = {}
    passthrough = {}
    for key, value in state_dict.items():
        shape, outside = getattr(value, 'shape', None), not key.startswith(prefix)
        name, axes = (
            (source.outside_name(key), ())
            if outside
            else source.to_network(key.removeprefix(prefix)) or ('', ())
        )
        name = name and rename_old_keys([name], plain=False)[name]
        passes = source.beside_name(key)
        if note := (
            'as requested'
            if matches(key, ignore)
            else source.reason_to_ignore(key.removeprefix(prefix))
            or ('not part of the network' if passes and not pass_through else '')
            or (f'does not start with {prefix!r}' if outside and not passes and not name else '')
        ):
            report.add(Status.IGNORED, key, shape=shape, note=note)
        elif passes:
            fault = tensor_fault(value)
            report.add(
                Status.BROKEN if fault else Status.PASSTHROUGH,
                key,
                None if fault else passes,
                shape,
                note=fault or 'not checked',
            )
            passthrough[passes] = value
        elif not name or name in named:
            report.add(
                Status.UNEXPECTED,
                key,
                shape=shape,
                note=name and f'names the same tensor as {named[name].key}',
            )
        else:
            if axes and shape is not None and all(shape[axis : axis + 1] == (1,) for axis in axes):
                value = value.squeeze(axes)
            named[name] = Source(key, value, shape)
    return source, named, passthrough
