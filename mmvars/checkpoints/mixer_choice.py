"""Which token mixer, with which constants, a conversion is for."""

from collections.abc import Mapping
from typing import Any

from mmvars.checkpoints.account import Account
from mmvars.checkpoints.constants import Recorded, stated
from mmvars.checkpoints.mixers import SHOWN_OPTIONS, mixers_seen
from mmvars.checkpoints.rules import Format
from mmvars.checkpoints.sizes import meta_network
from mmvars.checkpoints.source import Source
from mmvars.errors import InputError
from mmvars.layers import mixer_options
from mmvars.networks import TRUNK_MIXERS, Trunk

__all__ = ['check_variable', 'choose_mixer']


def choose_mixer(arch: str, mixer: str | None, options: Mapping[str, Any],
                 recorded: Recorded | None, sources: Mapping[str, Source],
                 title: str) -> dict[str, Any]:
    """Arguments ``mixer`` and ``mixer_options`` of :func:`~mmvars.networks.build_network`.

    Args:
        arch: One of :data:`~mmvars.networks.VARIANTS`.
        mixer: What the user asks for; ``None`` for what the file says, or else what its tensors
            show.
        options: What the user says of its constants.
        recorded: What the file itself says.
        sources: Network name -> tensor of the file.
        title: Of messages.

    Raises:
        InputError: If the user and the file say different things.
    """
    mixer = mixer or (recorded.mixer if recorded else _seen(arch, sources))
    if recorded and recorded.mixer == mixer:
        _refuse_contradiction(recorded, options, title)
        options = recorded.options
    chosen: dict[str, Any] = dict(mixer=mixer) if mixer else {}
    return chosen | dict(mixer_options=dict(options)) if options else chosen


def check_variable(source: Format, trunk: Trunk, account: Account) -> None:
    """Refuse constants that no file of a format was, or could be, made with.

    Args:
        source: The format; files of it never say their constants.
        trunk: With the constants.
        account: Gets a remark on those that a file of the format can have.

    Raises:
        InputError: Naming each constant and both values.
    """
    own, usual = trunk.mixer_options, mixer_options(trunk.mixer)
    if source.variable is None or not own:
        return
    fixed = {name: value for name, value in own.items()
             if name not in source.variable and value != usual.get(name)}
    if fixed:
        told = ', '.join(f'{name}={usual.get(name)!r}' for name in fixed)
        raise InputError(f'{account.title}: the released code computes with {told} and has no '
                         f'option for it, so {stated(fixed)} is not possible. Leave it out of '
                         f'--mixer-cfg; to run released weights with other constants on purpose, '
                         f'say allow_constants where they are loaded')
    unsaid = {name: value for name, value in own.items()
              if name in source.variable and name not in SHOWN_OPTIONS}
    if unsaid:
        account.remark(f'constants that no file of the release says: {stated(unsaid)}')


def _refuse_contradiction(recorded: Recorded, options: Mapping[str, Any], title: str) -> None:
    asked = mixer_options(recorded.mixer, **options)
    said = asked if 'preset' in options else options
    others = {name: asked[name] for name in said
              if name in recorded.options and asked[name] != recorded.options[name]}
    if others:
        made = {name: recorded.options[name] for name in others}
        raise InputError(f'{title}: the file was made with {stated(made)}, not {stated(others)}; '
                         f'leave that out of --mixer-cfg. To run the weights with other constants '
                         f'on purpose, say allow_constants where they are loaded')


def _seen(arch: str, sources: Mapping[str, Source]) -> str | None:
    """The mixer that the tensors show; ``None`` where the trunk's own fits, or none is shown."""
    seen = mixers_seen(sources)
    if not seen or set(seen) & set(mixers_seen(meta_network(arch).state_dict())):
        return None
    mixer = seen.most_common(1)[0][0]
    # The mask is a matter of `arch`. What a trunk cannot have is reported by check_mixer.
    usable = mixer != 'masked_attention' and mixer in TRUNK_MIXERS[arch.split('_')[0]]
    return mixer if usable else None
