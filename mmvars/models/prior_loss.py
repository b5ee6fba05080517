"""The prior loss, ``-log`` of Eq. 2.15: what was looked for in an image is like its output.

The prior xi of an image is to have a larger inner product with the output z of that image than with
the outputs z- of others: ``p = exp(xi' z) / (exp(xi' z) + sum_k exp(xi' z-_k))``. The output can be
that of an image, or the mean token of a region.
"""

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from mmvars.errors import InputError, check_choice, check_number

__all__ = ['PRIOR_LOSSES', 'prior_loss', 'region_prior_loss']

PRIOR_LOSSES = ('clip', 'thesis')
"""Forms of :func:`prior_loss`."""

TEMPERATURE = 0.07
"""What cosines are divided by, as in CLIP, whose initial value it is."""


def prior_loss(
    outputs: Tensor,
    priors: Tensor,
    labels: Tensor | None = None,
    form: str = 'clip',
    temperature: float = TEMPERATURE,
) -> Tensor:
    """The prior loss of images, whose negatives are those of all processes.

    ``'thesis'`` is Eq. 2.15 as printed: inner products as they are, each prior against all outputs.
    ``'clip'`` is the form in the released code, where its call is commented out: cosines over a
    temperature, and the mean of that and of each output against all priors.

    Differs from the release: gradients reach the other processes' outputs, so that several
    processes train as one with the whole batch.

    Args:
        outputs: ``(B, C)``, such as the class tokens of the last pass.
        priors: ``(B, C)``, that of each.
        labels: ``(B,)``: images of one label, such as a class, are no negatives of each other;
            ``None``: all others are.
        form: One of :data:`PRIOR_LOSSES`.
        temperature: For ``'clip'``.

    Returns:
        The mean over the images of this process; zero where there is no negative.

    Raises:
        InputError: If shapes or values do not fit.
    """
    check_choice('form of the prior loss', form, PRIOR_LOSSES)
    check_number('temperature of the prior loss', temperature, 1e-6)
    if outputs.ndim != 2 or outputs.shape != priors.shape:
        raise InputError(
            f'the prior loss needs outputs and priors (B, C) of one shape, got '
            f'{tuple(outputs.shape)} and {tuple(priors.shape)}'
        )
    with torch.autocast(outputs.device.type, enabled=False):  # exponents need their digits
        outputs, priors = outputs.float(), priors.float()
        if form == 'clip':
            outputs = F.normalize(outputs, dim=1)
            priors = F.normalize(priors, dim=1) / temperature
        all_outputs, start = _gathered(outputs)
        itself = torch.arange(len(outputs), device=outputs.device) + start
        if labels is None:
            same = F.one_hot(itself, len(all_outputs)).bool()
        else:
            same = labels.unsqueeze(1) == _gathered(labels)[0]
        losses = _contrast(priors @ all_outputs.T, same, itself)
        if form == 'clip':
            losses = (losses + _contrast(outputs @ _gathered(priors)[0].T, same, itself)) / 2
        return losses.mean()


def region_prior_loss(
    tokens: Tensor,
    priors: Tensor,
    labels: Tensor,
    ignore_index: int,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """The prior loss with regions for images and classes for captions.

    z is the mean token of a class in an image, its prior the class's, and negatives are the regions
    of all other classes in the batch of this process. Where the thesis has inner products, here are
    cosines over a temperature, as in CLIP, to which it refers.

    Args:
        tokens: Map ``(B, C, h, w)`` of the tokens that are compared with the prior.
        priors: ``(K, C)``.
        labels: ``(B, 1, H, W)``.
        ignore_index: Label of pixels without a class.
        temperature: What cosines are divided by.

    Returns:
        The mean over all regions; zero where the batch has only one class.
    """
    num_classes, size = len(priors), tokens.shape[-2:]
    small = F.interpolate(labels.float(), size, mode='nearest-exact').flatten(1).long()
    small = torch.where((small == ignore_index) | (small >= num_classes), num_classes, small)
    shares = F.one_hot(small, num_classes + 1)[..., :num_classes].float()  # (B, N, K)
    image, classes = (shares.sum(1) > 0).nonzero(as_tuple=True)
    with torch.autocast(tokens.device.type, enabled=False):  # cosines over 0.07 need their digits
        sums = torch.einsum('bnk,bcn->bkc', shares, tokens.flatten(2).float())
        regions = F.normalize(sums[image, classes], dim=-1)  # a mean's direction is the sum's
        logits = F.normalize(priors.float()[classes], dim=-1) @ regions.T / temperature
    itself = torch.arange(len(classes), device=classes.device)
    losses = _contrast(logits, classes.unsqueeze(1) == classes, itself)
    return losses.sum() / max(len(classes), 1)


def _contrast(logits: Tensor, same: Tensor, itself: Tensor) -> Tensor:
    """``-log(exp(l_ii) / (exp(l_ii) + sum_k exp(l_ik)))`` of each row, k over what is not the same.

    Args:
        logits: ``(n, m)``.
        same: ``(n, m)`` bool.
        itself: Column of each row's own ``(n,)``.
    """
    others = logits.masked_fill(same, torch.finfo(logits.dtype).min).logsumexp(1)
    return F.softplus(others - logits.gather(1, itself.unsqueeze(1)).squeeze(1))


def _gathered(values: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes, with gradients, and where those of this one start."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return values, 0
    if values.requires_grad:
        parts = all_gather(values)
    else:
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values.contiguous())
    return torch.cat(list(parts)), dist.get_rank() * len(values)
