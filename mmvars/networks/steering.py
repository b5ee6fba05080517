"""What a network does with a prior, and with the scale of what is fed back."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmvars.errors import InputError
from mmvars.networks.feedback import LearnedQuery, LearnedText, MaskFeedback
from mmvars.networks.top_down import PerceiverIO, TopDown
from mmvars.networks.trunk import Trunk

__all__ = ['check_top_down', 'feeds_back_unasked', 'given_priors', 'scale_of']

Network = Trunk | TopDown | PerceiverIO


def scale_of(network: Network, alpha: float | None) -> float | None:
    """The scale in use: ``alpha``, else the network's own; ``None`` where nothing is scaled."""
    if isinstance(network, Trunk) or _sends_mask_alone(network):
        return None
    return network.alpha if alpha is None else alpha


def _sends_mask_alone(network: Network) -> bool:
    return isinstance(network, TopDown) and isinstance(network.feedback, MaskFeedback)


def feeds_back_unasked(network: Network) -> bool:
    """Whether a network feeds something back where no prior is given: it has one of its own, or
    needs none."""
    return not isinstance(network, Trunk) and (
        network.prior is None or isinstance(network.prior, LearnedQuery)
    )


@contextmanager
def given_priors(network: Network) -> Iterator[None]:
    """Take float vectors for priors ``(C,)`` meanwhile, also where they are text vectors else: for
    priors of places in an image, random ones, and texts that went through the map already."""
    prior = getattr(network, 'prior', None)
    if not isinstance(prior, LearnedText):
        yield
        return
    prior.takes_text = False
    try:
        yield
    finally:
        prior.takes_text = True


def check_top_down(network: Network, has_prior: bool, has_alpha: bool, remedy: str) -> None:
    """Refuse a prior or a scale that a network has no use for, and name the ``remedy``."""
    if isinstance(network, Trunk) and (has_prior or has_alpha):
        name = 'the prior' if has_prior else 'alpha'
        raise InputError(
            f'{name} steers top-down attention, and this model has no feedback: '
            f'{remedy}, or take an AbSViT'
        )
    if has_prior and network.prior is None:
        raise InputError(
            'the prior has no place in this model: its feedback sends the output '
            "tokens back as they are, with no reweighting (design='feedback'): "
            f'{remedy}'
        )
    if has_alpha and _sends_mask_alone(network):
        raise InputError(
            'alpha changes nothing in this model: it scales the tokens that are sent '
            "back, and design='mask_attention' sends the mask alone: " + remedy
        )
    if has_alpha and not has_prior and not feeds_back_unasked(network):
        raise InputError(
            'alpha scales what a prior feeds back, and this model has no prior of its own: give '
            f'one, or {remedy}'
        )
