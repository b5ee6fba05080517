"""From the keys of a file to the names of a network."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from mmvars.checkpoints.formats import FORMATS, detect_format
from mmvars.checkpoints.io import tensor_fault
from mmvars.checkpoints.key_mapping import Format, first_match
from mmvars.checkpoints.report import ConversionReport, Status
from mmvars.checkpoints.weights import matches
from mmvars.errors import InputError
from mmvars.networks import rename_old_keys

__all__ = ['Source', 'name_tensors']

_OPENMMLAB_VIT = re.compile(r'(^|\.)layers\.\d+\.(ln1|attn\.attn|ffn\.layers)\.')  # keys of theirs


class Source(NamedTuple):
    """A tensor of a file: key and shape there, and value in the form that the network has."""

    key: str
    value: Any
    shape: tuple[int, ...] | None


def name_tensors(
    state_dict: Mapping[str, Any],
    report: ConversionReport,
    ignore: Sequence[str] = (),
    pass_through: bool = True,
) -> tuple[Format, dict[str, Source], dict[str, Tensor]]:
    """The format of a state dict, its tensors by network name, and those handed on by key.

    Keys that become no tensor of the network get their entry in ``report`` here. Patterns in
    ``ignore`` leave keys out; ``pass_through`` says whether heads of segmentors are handed on.

    Raises:
        InputError: If the keys are those of no known format.
    """
    source = None if any(map(_OPENMMLAB_VIT.search, state_dict)) else detect_format(state_dict)
    if source is None:
        raise InputError(f'{report.title}: {_unknown_names(list(state_dict))}')
    report.remark(f'source names: {source.title}')
    named: dict[str, Source] = {}
    passthrough = {}
    for key, value in state_dict.items():
        shape, (name, axes) = getattr(value, 'shape', None), source.to_network(key) or ('', ())
        name = rename_old_keys([name], plain=False)[name]
        passes = first_match(source.passthrough, key)
        if note := (
            'as requested'
            if matches(key, ignore)
            else source.reason_to_ignore(key)
            or ('not part of the network' if passes and not pass_through else '')
        ):
            report.add(Status.IGNORED, key, shape=shape, note=note)
        elif refused := first_match(source.refused, key.removeprefix(source.prefix)):
            report.add(Status.REFUSED, key, shape=shape, note=source.refused[refused])
        elif passes:
            fault = tensor_fault(value)
            report.add(
                Status.BROKEN if fault else Status.PASSTHROUGH,
                key,
                None if fault else key,
                shape,
                note=fault,
            )
            passthrough[key] = value
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


def _unknown_names(keys: list[str]) -> str:
    """What is known of a file whose keys are those of no known format, and the remedy."""
    if any(map(_OPENMMLAB_VIT.search, keys)):
        return (
            'the file is of a VisionTransformer of MMPretrain or MMSegmentation, whose names '
            'mmvars does not convert; take the file of timm, DeiT or the release that it was made '
            'from'
        )
    for prefix in dict.fromkeys(key.split('.')[0] + '.' for key in keys if '.' in key):
        inside = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
        if (source := detect_format(inside)) is not None:
            return (
                f'the keys after {prefix!r} are those of: {source.title}; take them alone with '
                f'--prefix {prefix[:-1]} (prefix={prefix!r})'
            )
    known = ', '.join(f.title for f in FORMATS)
    return (
        f'the keys are those of no known source ({known}); they begin with '
        f'{", ".join(keys[:5]) or "nothing: there are none"}'
    )
