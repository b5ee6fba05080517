"""Whether a file is of the token mixer that a network has, with its constants."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mmvars.checkpoints.fit import named_state, shapes_of, trunk_of
from mmvars.checkpoints.formats import Recorded, stated
from mmvars.checkpoints.key_mapping import mixers_seen, shown_options
from mmvars.checkpoints.naming import Source
from mmvars.checkpoints.report import ConversionReport
from mmvars.errors import InputError
from mmvars.networks import Trunk

__all__ = ['check_constants', 'check_mixer']


def check_mixer(
    network: nn.Module, sources: Mapping[str, Source], title: str, advice: str = ''
) -> None:
    """Refuse a file whose tensors show another mixer than the network's, or other options of it.

    Raises:
        InputError: Naming both mixers, with ``advice``, or each option and both values.
    """
    trunk, expected, shapes = trunk_of(network), shapes_of(named_state(network)), shapes_of(sources)
    ours, file = mixers_seen(expected), mixers_seen(shapes)
    if file and ours and not file.keys() & ours.keys():
        raise InputError(
            f'{title}: the file mixes tokens with {" and ".join(sorted(file))}, the '
            f'network with {" and ".join(sorted(ours))}. Build the network with the '
            f'mixer of the file (leave --mixer out). {advice}'
        )
    options = shown_options(expected, trunk.mixer)
    if others := {
        name: value
        for name, value in shown_options(shapes, trunk.mixer).items()
        if options.get(name, value) != value
    }:
        present = {name: trunk.mixer_cfg.get(name, options[name]) for name in others}
        raise InputError(
            f'{title}: the tensors of the file show {stated(others)}, but the network '
            f'has {stated(present)}. {_build_with(others)}'
        )


def check_constants(
    trunk: Trunk, recorded: Recorded | None, report: ConversionReport, allow: Sequence[str] = ()
) -> None:
    """Refuse a file that was made with other constants than the network's, but for ``allow``.

    Raises:
        InputError: Naming each constant and both values; or an unknown name in ``allow``.
    """
    constants = trunk.mixer_cfg
    if unknown := sorted(set(allow) - set(constants)):
        raise InputError(
            f'allow_constants names {", ".join(unknown)}; the constants of mixer '
            f'{trunk.mixer!r} are {", ".join(constants) or "none"}'
        )
    options = recorded.options if recorded and recorded.mixer == trunk.mixer else None
    if options is None and constants:
        report.remark(f'the file does not say its constants; the network has {stated(constants)}')
    others = {
        name: value
        for name, value in (options or {}).items()
        if name in constants and value != constants[name]
    }
    if refused := {name: value for name, value in others.items() if name not in allow}:
        compared = ', '.join(
            f'{name}={value!r} (network: {constants[name]!r})' for name, value in refused.items()
        )
        raise InputError(
            f'{report.title}: the file was made with {compared}. '
            f'{_build_with(refused)}, or, to run it with other constants on purpose, '
            f'load it with allow_constants={tuple(refused)!r} (in init_cfg, of '
            f'load_pretrained; --cfg-options allow_constants={",".join(refused)})'
        )
    if others:
        report.remark(
            f'other constants than the file was made with, as allowed: '
            f'{stated({name: constants[name] for name in others})} instead of '
            f'{stated(others)}'
        )


def _build_with(options: Mapping[str, Any]) -> str:
    words = ' '.join(f'{name}={value}' for name, value in options.items())
    return f'Build the network with mixer_cfg=dict({stated(options)}) (--mixer-cfg {words})'
