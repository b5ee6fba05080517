"""Named networks: the one place that knows all parts."""

import inspect

from torch import nn

from mmvars.errors import InputError
from mmvars.networks.feedback import Feedback
from mmvars.networks.prior import PRIORS, ClassPrototype, Prior
from mmvars.networks.top_down import TopDown
from mmvars.networks.vit import VisionTransformer

__all__ = ['SIZES', 'VARIANTS', 'build_network', 'build_prior']

SIZES: dict[str, dict] = {
    'tiny_patch16': dict(embed_dim=192, depth=12, num_heads=3, patch_size=16),
    'small_patch16': dict(embed_dim=384, depth=12, num_heads=6, patch_size=16),
    'base_patch16': dict(embed_dim=768, depth=12, num_heads=12, patch_size=16),
    'tiny_patch8_gap': dict(embed_dim=192, depth=12, num_heads=3, patch_size=8, global_pool='avg'),
}
"""Sizes of the thesis's ViT and AbSViT (Table 2.2): width, depth, heads, patch."""

VARIANTS: tuple[str, ...] = tuple(f'{family}_{size}' for family in ('vit', 'absvit')
                                  for size in SIZES)
"""Names that :func:`build_network` knows."""

_TRUNK_ARGUMENTS = tuple(inspect.signature(VisionTransformer).parameters)


def build_prior(prior: str | dict, embed_dim: int, classifier: nn.Module | None = None) -> Prior:
    """Build a prior from its name or ``dict(type=name, ...)``.

    A ``'class_prototype'`` without ``num_classes`` takes a copy of ``classifier``'s rows.

    Raises:
        InputError: If the name is unknown, or prototypes are wanted of no classifier.
    """
    arguments = dict(prior) if isinstance(prior, dict) else dict(type=prior)
    name = arguments.pop('type', None)
    if name not in PRIORS:
        raise InputError(f'prior must be one of {sorted(PRIORS)}, got {name!r}')
    if name == 'class_prototype' and 'num_classes' not in arguments:
        if not isinstance(classifier, nn.Linear):
            raise InputError("prior='class_prototype' needs a classifier: build the network with "
                             "num_classes > 0, or give dict(type='class_prototype', num_classes=K)")
        return ClassPrototype.from_classifier(classifier)
    return PRIORS[name](embed_dim, **arguments)


def build_network(name: str, prior: str | dict = 'learned_query', alpha: float = 1.,
                  **overrides) -> TopDown:
    """Build a network by name, with torch's current default device and dtype.

    Args:
        name: One of :data:`VARIANTS`: ``vit_*`` is one bottom-up pass, ``absvit_*`` has feedback.
        prior: For ``absvit_*``: a name of :data:`mmvars.networks.PRIORS`, or
            ``dict(type=name, ...)``.
        alpha: For ``absvit_*``: scale of the modulated tokens.
        **overrides: Arguments of :class:`VisionTransformer` that replace the named size's.

    Raises:
        InputError: On an unknown name or argument, listing the choices.
    """
    if name not in VARIANTS:
        raise InputError(f'network name must be one of {", ".join(VARIANTS)}; got {name!r}')
    unknown = sorted(set(overrides) - set(_TRUNK_ARGUMENTS))
    if unknown:
        raise InputError(f'{name} takes no argument {", ".join(unknown)}; it takes '
                         f'{", ".join(_TRUNK_ARGUMENTS)}')
    family, size = name.split('_', 1)
    trunk = VisionTransformer(**SIZES[size] | overrides)
    if family == 'vit':
        return TopDown(trunk)
    return TopDown(trunk, prior=build_prior(prior, trunk.embed_dim, trunk.head),
                   feedback=Feedback(trunk.embed_dim, trunk.depth), alpha=alpha)
