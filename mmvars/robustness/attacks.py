"""Adversarial examples of a classifier or segmentor, bounded in its own pixels.

The attacker knows the weights, the preprocessing and the labels, and changes each of the three
values of each pixel by at most epsilon, in 1/255 of their range. The pixels are those that the test
pipeline hands to the model: after its resize, before its normalization. What follows is attacked as
it is tested: normalization, padding, sliding windows, both passes of AbSViT, and the resize of
logits to the size of the labels.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmvars.datasets.files import image_name
from mmvars.errors import InputError
from mmvars.visualization.model import is_segmentor

__all__ = ['ATTACKS', 'ATTACKS_VERSION', 'SEGMENTATION_LOSSES', 'Attack', 'Attacker', 'attacked']

ATTACKS_VERSION = 1
"""Raised whenever the numbers of an attack change."""

Loss = Callable[[Tensor, Tensor, float], Tensor]
"""Of logits ``(N, K)``, labels ``(N,)`` and the share of steps that are done, below 1."""


def cross_entropy(logits: Tensor, labels: Tensor, done: float) -> Tensor:
    return F.cross_entropy(logits, labels)


def segpgd(logits: Tensor, labels: Tensor, done: float) -> Tensor:
    """First of pixels that are still right, more and more of all (Gu et al., 2022, Eq. 4-6)."""
    wrong = logits.argmax(1) != labels
    weights = torch.where(wrong, done / 2, 1 - done / 2)
    return (weights * F.cross_entropy(logits, labels, reduction='none')).mean()


def cospgd(logits: Tensor, labels: Tensor, done: float) -> Tensor:
    """Weighted by the cosine of probabilities and truth (Agnihotri et al., 2024, Eq. 6)."""
    probabilities = logits.detach().softmax(1)
    truth = probabilities.gather(1, labels[:, None])[:, 0]
    weights = truth / probabilities.norm(dim=1)
    return (weights * F.cross_entropy(logits, labels, reduction='none')).mean()


def masked_cross_entropy(logits: Tensor, labels: Tensor, done: float) -> Tensor:
    """Of the pixels that are still right (SEA: Croce et al., 2024)."""
    right = logits.argmax(1) == labels
    return (right * F.cross_entropy(logits, labels, reduction='none')).mean()


def balanced_cross_entropy(logits: Tensor, labels: Tensor, done: float) -> Tensor:
    """Of the pixels that are still right, each class with the same weight, as mIoU has it."""
    right = logits.argmax(1) == labels
    weights = right / labels.bincount(minlength=logits.shape[1])[labels]
    return (weights * F.cross_entropy(logits, labels, reduction='none')).sum()


def jensen_shannon(logits: Tensor, labels: Tensor, done: float) -> Tensor:
    """Divergence of probabilities and truth; what is lost already counts little (SEA)."""
    log_p = logits.log_softmax(1)
    truth = F.one_hot(labels, logits.shape[1]).to(log_p)
    log_m = ((log_p.exp() + truth) / 2).clamp_min(torch.finfo(log_p.dtype).tiny).log()
    to_p = F.kl_div(log_m, log_p, reduction='none', log_target=True)
    to_truth = F.kl_div(log_m, truth, reduction='none')
    return (to_p + to_truth).sum(1).mean() / 2


@dataclass(frozen=True)
class Attack:
    """Steps along the sign of the gradient of a loss, each followed by a projection.

    Attributes:
        loss: What grows.
        steps: How many.
        step_size: Of each, in epsilons.
        random_start: Whether it starts anywhere in the box of epsilon, or at the image.
    """

    loss: Loss
    steps: int
    step_size: float
    random_start: bool = True


SEGMENTATION_LOSSES = dict(
    segpgd=segpgd,
    cospgd=cospgd,
    masked=masked_cross_entropy,
    balanced=balanced_cross_entropy,
    jensen_shannon=jensen_shannon,
)
"""Attack of segmentors alone -> its loss over the pixels of an image."""

ATTACKS = dict(
    noise=Attack(cross_entropy, 0, 0.0),
    fgsm=Attack(cross_entropy, 1, 1.0, random_start=False),
    pgd=Attack(cross_entropy, 5, 0.5),
    pgd20=Attack(cross_entropy, 20, 0.25),
    **{name: Attack(loss, 20, 0.25) for name, loss in SEGMENTATION_LOSSES.items()},
)
"""Name -> attack. ``fgsm`` and ``pgd`` at 1/255 are those of the thesis (Table 1.2); ``noise`` is
the random start alone."""


class Attacker:
    """Turns batches into adversarial ones.

    Args:
        model: A segmentor or classifier in evaluation mode. Neither its mode, nor its weights,
            their gradients or its statistics change.
        name: One of :data:`ATTACKS`.
        epsilon: In 1/255 of the range of pixels.
        seed: Of the random starts, which follow from it, the file of the image, and the name.
        ignore_index: The label of a segmentor that does not count.

    Raises:
        InputError: If the attack is for segmentors, and the model is a classifier.
    """

    def __init__(
        self, model: Any, name: str, epsilon: float, seed: int = 0, ignore_index: int = 255
    ) -> None:
        self.segmentation = is_segmentor(model)
        if name in SEGMENTATION_LOSSES and not self.segmentation:
            raise InputError(
                f'the attack {name!r} weighs pixels, and {type(model).__name__} is a classifier: '
                'take fgsm, pgd or pgd20'
            )
        self.model = model
        self.name = name
        self.attack = ATTACKS[name]
        self.epsilon = epsilon
        self.seed = seed
        self.ignore_index = ignore_index

    def __call__(self, data: dict) -> tuple[dict, list[float | None]]:
        """A batch of a data loader with other pixels, as float32 on the device of the model.

        Returns:
            The batch, and for each image the share of its values whose gradient is zero in the
            first step, or no number; ``None`` where no label counts, or there is no step.

        Raises:
            InputError: If pixels are not from 0 to 255, or logits carry no gradient.
        """
        device = next(self.model.parameters()).device
        clean = [image.to(device, torch.float32) for image in data['inputs']]
        for image, sample in zip(clean, data['data_samples'], strict=True):
            _check_pixels(image, sample)
        low, high = (
            [(image + shift).clamp(0, 255) for image in clean]
            for shift in (-self.epsilon, self.epsilon)
        )
        pixels = list(clean)
        if self.attack.random_start:
            starts = map(self._random, clean, data['data_samples'])
            pixels = [
                (image + self.epsilon * start).clamp(0, 255)
                for image, start in zip(clean, starts, strict=True)
            ]
        zero: list[float | None] = [None] * len(clean)
        for step in range(self.attack.steps):
            gradients = self.gradients(pixels, data, step / self.attack.steps)
            if step == 0:
                # A gradient that is not a number moves nothing either.
                zero = [
                    None if g is None else float((~(g.abs() > 0)).float().mean()) for g in gradients
                ]
            pixels = [
                each
                if gradient is None
                else (each + self.attack.step_size * self.epsilon * gradient.sign()).clamp(*box)
                for each, gradient, *box in zip(pixels, gradients, low, high, strict=True)
            ]
        return dict(data, inputs=self._batch(pixels, data)), zero

    def gradients(
        self, pixels: Sequence[Tensor], data: dict, done: float = 0.0
    ) -> list[Tensor | None]:
        """Gradient of the loss by each image ``(3, H, W)``; ``None`` where no label counts.

        Args:
            pixels: Images ``(3, H, W)``, 0 to 255.
            data: The batch that they are of.
            done: Share of the steps that are done.
        """
        leaves = [image.detach().requires_grad_() for image in pixels]
        with torch.enable_grad(), torch.autocast(leaves[0].device.type, enabled=False):
            losses = [
                self.attack.loss(logits.float(), labels, done) if len(labels) else None
                for logits, labels in self._logits(self._batch(leaves, data), data)
            ]
            counted = [loss for loss in losses if loss is not None]
            if not counted:
                return [None] * len(losses)
            total = torch.stack(counted).sum()
        if not total.requires_grad:
            raise InputError(
                f'the logits of {type(self.model).__name__} carry no gradient, so it cannot be '
                'attacked; a segmentor of mmvars must keep them: --cfg-options '
                'model.test_cfg.keep_logits=True, without logits_device and logits_dtype'
            )
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        return [
            None if loss is None else torch.zeros_like(leaf) if gradient is None else gradient
            for loss, leaf, gradient in zip(losses, leaves, gradients, strict=True)
        ]

    def _logits(self, batch: Any, data: dict) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each image the logits ``(N, K)`` of what has a label, and the labels ``(N,)``."""
        samples = [sample.new() for sample in data['data_samples']]  # results are written into them
        prepared = self.model.data_preprocessor(dict(inputs=batch, data_samples=samples), False)
        if not self.segmentation:
            logits = self.model(**prepared, mode='tensor')
            for each, sample in zip(logits, samples, strict=True):
                yield each[None], sample.gt_label.to(each.device)
            return
        with _one_window_at_a_time(self.model):
            results = self.model(**prepared, mode='predict')
        for result in results:
            if 'seg_logits' not in result:
                raise InputError(
                    f'{type(self.model).__name__} keeps no logits, so it cannot be attacked: '
                    '--cfg-options model.test_cfg.keep_logits=True'
                )
            logits = result.seg_logits.data.flatten(1).T
            if logits.shape[1] == 1:  # mmseg has made a probability of the one logit
                logits = torch.cat([torch.zeros_like(logits), logits.logit(1e-6)], dim=1)
            labels = result.gt_sem_seg.data.flatten().to(logits.device, torch.long)
            counts = labels != self.ignore_index
            yield logits[counts], labels[counts]

    def _batch(self, pixels: Sequence[Tensor], data: dict) -> Any:
        """Images as the data loader gave them: a tensor, or a list."""
        return torch.stack(list(pixels)) if isinstance(data['inputs'], Tensor) else list(pixels)

    def _random(self, image: Tensor, sample: Any) -> Tensor:
        """Uniform in -1 to 1, the same for an image in every batch and process."""
        name = image_name(sample.img_path)
        digest = hashlib.sha256(f'{name} {self.name} {self.seed}'.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], 'little') >> 1)
        return (2 * torch.rand(image.shape, generator=generator) - 1).to(image)


@contextmanager
def attacked(model: Any, attacker: Attacker) -> Iterator[None]:
    """While it lasts, ``model.test_step`` is given adversarial batches.

    Each result says in its ``zero_gradient`` what :class:`Attacker` does.
    """
    original = model.test_step

    def test_step(data: dict) -> list:
        data, zero = attacker(data)
        results = original(data)
        for result, share in zip(results, zero, strict=True):
            result.set_metainfo(dict(zero_gradient=share))
        return results

    model.test_step = test_step
    try:
        yield
    finally:
        del model.test_step


@contextmanager
def _one_window_at_a_time(model: Any) -> Iterator[None]:
    """Hold what the gradient needs of one sliding window at a time, computed once more for it."""
    if model.test_cfg.get('mode') != 'slide':
        yield
        return
    encode_decode = model.encode_decode

    def decode(*args: Any) -> Tensor:
        return checkpoint(encode_decode, *args, use_reentrant=False)

    model.encode_decode = decode
    try:
        yield
    finally:
        del model.encode_decode


def _check_pixels(image: Tensor, sample: Any) -> None:
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > 255 or 0 < high <= 1:
        raise InputError(
            f'an attack is measured in 1/255 of pixels from 0 to 255, and those of '
            f'{sample.img_path!r} are {low:.3g} to {high:.3g} before the normalization: leave that '
            'to the data_preprocessor'
        )
