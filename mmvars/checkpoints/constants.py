"""Constants of token mixers that no tensor shows: what a file says of them, and whether it fits."""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmvars.checkpoints.account import Account
from mmvars.errors import InputError
from mmvars.networks import Trunk

__all__ = ['Recorded', 'check_constants', 'mixer_meta', 'recorded_mixer', 'released_args', 'stated']

_RELEASED_MIXERS = {'self-att': 'self_attention', 'perf': 'performer', 'vars_s': 'vars_s',
                    'vars_d': 'vars_d', 'vars_sd': 'vars_sd'}
_RELEASED_CONSTANTS = {'num_step': 'num_steps', 'lam': 'sparsity',
                       'rand_feat_dim_ratio': 'feature_ratio'}


class Recorded(NamedTuple):
    """What a file's meta says of its mixer.

    Attributes:
        mixer: Its name.
        options: Its constants, by name.
    """

    mixer: str
    options: dict[str, Any]


def check_constants(trunk: Trunk, recorded: Recorded | None, account: Account,
                    allow: Sequence[str] = ()) -> None:
    """Refuse a file that was made with other constants than the network's.

    Args:
        trunk: What the file is for.
        recorded: What the file says; without, a remark says that nothing could be compared.
        account: Gets the remarks.
        allow: Names of constants that may differ.

    Raises:
        InputError: Naming each constant, both values and the remedies; or an unknown name.
    """
    own = trunk.mixer_options
    strangers = sorted(set(allow) - set(own))
    if strangers:
        raise InputError(f'allow_constants names {", ".join(strangers)}; the constants of mixer '
                         f'{trunk.mixer!r} are {", ".join(own) or "none"}')
    if recorded is None or recorded.mixer != trunk.mixer:
        if own:
            account.remark(f'the file does not say its constants; the network has {stated(own)}')
        return
    others = {name: value for name, value in recorded.options.items()
              if name in own and value != own[name]}
    refused = {name: value for name, value in others.items() if name not in allow}
    if refused:
        told = ', '.join(f'{name}={value!r} (network: {own[name]!r})'
                         for name, value in refused.items())
        raise InputError(f'{account.title}: the file was made with {told}. Build the network with '
                         f'mixer_cfg=dict({stated(refused)}), or, to run it with other constants '
                         f'on purpose, say allow_constants={tuple(refused)!r} (in init_cfg, of '
                         f'load_pretrained, or to the tools: --cfg-options '
                         f'allow_constants={",".join(refused)})')
    if others:
        account.remark(f'other constants than the file was made with, as allowed: '
                       f'{stated({name: own[name] for name in others})} instead of '
                       f'{stated(others)}')


def mixer_meta(trunk: Trunk) -> dict[str, str]:
    """What a converted file says of its mixer, in strings."""
    return dict(mixer=trunk.mixer, mixer_options=json.dumps(trunk.mixer_options))


def recorded_mixer(meta: Mapping[str, Any], title: str) -> Recorded | None:
    """What :func:`mixer_meta` wrote, or ``None`` where it is not there.

    Raises:
        InputError: If the entry is damaged.
    """
    if 'mixer_options' not in meta:
        return None
    try:
        options = json.loads(meta['mixer_options'])
        return Recorded(str(meta['mixer']), dict(options))
    except (TypeError, ValueError, KeyError):
        raise InputError(f'{title}: the entries mixer and mixer_options of its meta are damaged '
                         f'({meta["mixer_options"]!r}); convert the original file again') from None


def released_args(content: Any) -> Recorded | None:
    """What the released training script's options say, where a file kept them as ``args``."""
    args = vars(content['args']) if _holds_args(content) else {}
    mixer = _RELEASED_MIXERS.get(args.get('attention'))
    if mixer is None:
        return None
    # VARS-S has constants of its own in the released code, whatever these options were.
    names = _RELEASED_CONSTANTS if mixer in ('vars_d', 'vars_sd') else {}
    return Recorded(mixer, {ours: args[theirs] for theirs, ours in names.items()
                            if isinstance(args.get(theirs), (int, float))})


def stated(options: Mapping[str, Any]) -> str:
    """Options as Python writes them: ``num_steps=3, start='shrunk'``."""
    return ', '.join(f'{name}={value!r}' for name, value in options.items())


def _holds_args(content: Any) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get('args'), argparse.Namespace)
