"""Priors and scales: which rows a figure has, and which of them a network has a use for."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from torch import nn

from mmvars.analysis import Half
from mmvars.errors import InputError
from mmvars.networks import MaskFeedback, TopDown
from mmvars.visualization.host import ClassTable, network_of
from mmvars.visualization.priors import NamedPrior, resolve_prior
from mmvars.visualization.views import reweights_output

__all__ = ['Steering', 'check_steering', 'class_token_note', 'maps_footer', 'steerings']

HALVES: tuple[Half, ...] = ('left', 'right')


@dataclass(frozen=True)
class Steering:
    """One row of panels.

    Attributes:
        prior: What to look for; ``None`` where the network takes none.
        alpha: Scale of the top-down signal; ``None``: the network's own.
        asked: Of two photos side by side, the one whose class the prior is.
    """

    prior: NamedPrior | None = None
    alpha: float | None = None
    asked: Half | None = None

    def label(self, network: TopDown) -> str:
        """What stands beside the row."""
        words = []
        if self.prior is not None:
            side = f' ({self.asked})' if self.asked else ''
            words.append(f'prior: {self.prior.label}{side}')
        if (alpha := self.scale(network)) is not None:
            words.append(f'α = {alpha:g}')
        return '\n'.join(words)

    def scale(self, network: TopDown) -> float | None:
        """The scale in use; ``None`` for a network that scales nothing."""
        if network.is_plain or isinstance(network.feedback, MaskFeedback):
            return None
        return network.alpha if self.alpha is None else self.alpha


def check_steering(network: TopDown, prior: bool = False, alpha: bool = False,
                   remedy: str = 'leave it out') -> None:
    """Refuse a prior or a scale that a network has no use for.

    Args:
        prior: Whether one is given.
        alpha: Whether one is given.
        remedy: The end of the message.

    Raises:
        InputError: With the reason.
    """
    if network.is_plain and (prior or alpha):
        name = 'the prior' if prior else 'alpha'
        raise InputError(f'{name} steers top-down attention, and this model has no feedback: '
                         f'{remedy}, or take an AbSViT')
    if prior and network.prior is None:
        raise InputError('the prior has no place in this model: its feedback sends the output '
                         "tokens back as they are, with no reweighting (design='feedback'): "
                         f'{remedy}')
    if alpha and isinstance(network.feedback, MaskFeedback):
        raise InputError('alpha changes nothing in this model: it scales the tokens that are sent '
                         "back, and design='mask_attention' sends the mask alone: " + remedy)


def steerings(words: Sequence[str] | None, alphas: Sequence[float] | None, model: nn.Module,
              classes: ClassTable, pair: bool = False) -> list[Steering]:
    """The rows: each prior with each scale.

    Args:
        words: Of ``--prior``. For two photos side by side the first is that of the left photo, the
            second that of the right one.
        alphas: Of ``--alpha``.
        pair: Whether there are two photos side by side.

    Raises:
        InputError: If a prior is not understood, or the model has no use for a prior or a scale.
    """
    network = network_of(model)
    check_steering(network, bool(words), bool(alphas), 'leave --prior and --alpha out'
                   if network.is_plain else f'leave {"--prior" if words else "--alpha"} out')
    if pair and words and len(words) > len(HALVES):
        raise InputError(f'--pair takes at most two of --prior, the class of the left and of the '
                         f'right photo, got {len(words)}: {" ".join(words)}')
    priors: list[NamedPrior | None] = [None]
    if network.prior is not None:
        priors = [resolve_prior(word, model, classes) for word in words or ['query']]
    asked: list[Half | None] = [None] * len(priors)
    if pair and words:
        asked = [None if prior.vector is None else half
                 for prior, half in zip(priors, HALVES, strict=False)]
    return [Steering(prior, alpha, half) for (prior, half), alpha
            in product(zip(priors, asked, strict=True), alphas or [None])]


def class_token_note(model: nn.Module, rows: Sequence[Steering]) -> str:
    """A warning where class prototypes steer a model that classifies by its class token."""
    by_class = any(row.prior is not None and row.prior.class_index is not None for row in rows)
    if by_class and model.backbone.out_type == 'cls_token':
        return ('class prototypes of a class-token model align with that token, hardly with the '
                'patches')
    return ''


def maps_footer(network: TopDown, layer: int) -> str:
    """Where the maps of a network come from, for the small print."""
    if reweights_output(network):
        return 'norms of the output tokens · one pass, reweighted by the token mask'
    text = f'token norms after block {layer + 1} of {network.trunk.depth}'
    if network.is_plain:
        text += ' · no feedback: one pass, no token mask, no top-down attention'
    elif network.prior is None:
        text += ' · feedback without a prior, so no token mask'
    return text
