"""From OpenMMLab's argument names to ours: the one translation."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mmvars.errors import InputError, check_flag, check_number
from mmvars.networks import SIZES, TRUNKS

__all__ = ['ARCHITECTURES', 'named_network', 'outside_names', 'prompt_arguments', 'size_arguments',
           'split_init_cfg']

ARCHITECTURES = {'tiny': 'tiny_patch16', 'small': 'small_patch16', 'base': 'base_patch16',
                 'tiny_patch8_gap': 'tiny_patch8_gap'}
"""OpenMMLab ``arch`` -> size name of :data:`mmvars.networks.SIZES`."""

_ARCH_KEYS = {'embed_dims': 'embed_dim', 'num_layers': 'depth', 'num_heads': 'num_heads',
              'patch_size': 'patch_size', 'mlp_ratio': 'mlp_ratio', 'global_pool': 'global_pool'}
_PROMPT_KEYS = {'num_tokens': 'num_prompt_tokens', 'deep': 'deep_prompts',
                'dropout': 'prompt_dropout'}
_OUTSIDE = {inside: outside for outside, inside in _ARCH_KEYS.items()} | {
    inside: f'prompt_cfg.{outside}' for outside, inside in _PROMPT_KEYS.items()} | {
    'in_chans': 'in_channels', 'top_down': 'design'}
_PRETRAINED_KEYS = {'checkpoint': 'path', 'prefix': 'prefix', 'allow_new': 'allow_new',
                    'allow_constants': 'allow_constants'}


def size_arguments(arch: str | dict) -> dict:
    """Sizes of a ViT, as :func:`mmvars.networks.build_network` takes them, for an ``arch``.

    Raises:
        InputError: If the name or a key is unknown, or a needed key is missing.
    """
    if isinstance(arch, str) and arch in ARCHITECTURES:
        return SIZES[ARCHITECTURES[arch]]
    if not isinstance(arch, dict):
        raise _unknown_arch(arch, ARCHITECTURES)
    return _translate('arch', arch, _ARCH_KEYS, required=('embed_dims', 'num_layers', 'num_heads'))


_FAMILIES = ('rvt', 'deit_convstem', 'gfnet', 'gfnet_convstem', 'fan')
_TRUNK_KEYS = {'embed_dims': 'embed_dim', 'num_layers': 'depth', 'num_heads': 'num_heads',
               'mlp_ratio': 'mlp_ratio'}


@contextmanager
def outside_names() -> Iterator[None]:
    """Let errors of the networks name arguments as the user of a backbone typed them."""
    try:
        yield
    except InputError as error:
        words = re.compile(rf'\b({"|".join(_OUTSIDE)})\b')
        raise InputError(words.sub(lambda found: _OUTSIDE[found[0]], str(error))) from error


def named_network(arch: str | dict, families: Sequence[str] = _FAMILIES,
                  others: Sequence[str] = ()) -> dict:
    """``name`` and sizes, as :func:`mmvars.networks.build_network` takes them, for an ``arch``.

    Args:
        arch: A name, or a dict with ``trunk``, ``embed_dims``, ``num_layers``, ``num_heads`` and
            optionally ``mlp_ratio``. Where the backbone fixes the trunk, without it.
        families: Trunks that the backbone takes; a single one is fixed.
        others: Names that the backbone understands by itself, for the message.

    Raises:
        InputError: If the name or a key is unknown, or a needed key is missing.
    """
    family = families[0] if len(families) == 1 else ''
    names = [name.removeprefix(f'{family}_') for name in TRUNKS if name.startswith(tuple(families))]
    if isinstance(arch, str) and arch in names:
        return dict(name=f'{family}_{arch}' if family else arch)
    if not isinstance(arch, dict):
        raise _unknown_arch(arch, [*others, *names])
    sizes = dict(arch)
    trunk = family or sizes.pop('trunk', None)
    if trunk not in families:
        raise InputError(f"arch['trunk'] must be one of {', '.join(families)}; got {trunk!r}")
    required = ('embed_dims', 'num_layers', 'num_heads')
    return dict(name=f'{trunk}_tiny') | _translate('arch', sizes, _TRUNK_KEYS, required)


def _unknown_arch(arch: object, names: Sequence[str]) -> InputError:
    return InputError(f'arch must be one of {", ".join(names)}, or a dict; got {arch!r}')


def _translate(what: str, given: dict, names: dict[str, str], required: Sequence[str] = ()) -> dict:
    unknown = sorted(set(given) - set(names))
    missing = sorted(set(required) - set(given))
    if unknown or missing:
        raise InputError(f'{what} takes the keys {list(names)}; unknown: {unknown}, missing: '
                         f'{missing}')
    return {names[key]: value for key, value in given.items()}


def prompt_arguments(prompt_cfg: dict | None) -> dict:
    """The same for a ``prompt_cfg``, with the defaults of the released configs."""
    if not isinstance(prompt_cfg, dict | None):
        raise InputError(f'prompt_cfg must be a dict such as dict(num_tokens=50), got '
                         f'{prompt_cfg!r}')
    given = dict(num_tokens=50, deep=True, dropout=0.) | (prompt_cfg or {})
    check_number('prompt_cfg.num_tokens', given.get('num_tokens'), 1, 10_000, whole=True)
    check_flag('prompt_cfg.deep', given.get('deep'))
    return _translate('prompt_cfg', given, _PROMPT_KEYS)


def split_init_cfg(init_cfg: dict | list[dict] | None) -> tuple[dict | None, list[dict] | None]:
    """The ``Pretrained`` entry as arguments of :func:`load_pretrained`, and all other entries."""
    entries = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg] if init_cfg else []
    if not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"init_cfg must be a dict or a list of dicts, such as "
                         f"dict(type='Pretrained', checkpoint=FILE); got {init_cfg!r}")
    pretrained = [dict(e) for e in entries if e.get('type') == 'Pretrained']
    others = [e for e in entries if e.get('type') != 'Pretrained']
    if len(pretrained) > 1:
        raise InputError(f'init_cfg may name one Pretrained checkpoint, got {len(pretrained)}')
    if not pretrained:
        return None, others or None
    entry = pretrained[0]
    del entry['type']
    arguments = _translate('init_cfg of type Pretrained', entry, _PRETRAINED_KEYS, ('checkpoint', ))
    return arguments, others or None
