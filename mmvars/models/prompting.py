"""Training that makes a segmentor follow its prior: what it is asked, and what it is to answer.

The thesis finds classification a poor teacher of top-down attention (Section 2.7). Here the labels
of segmentation teach it: a class is the prior, and the pixels of that class are the answer.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import build_norm_layer
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.structures import PixelData
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError, check_number
from mmvars.registry import MODELS

__all__ = ['PriorSampler', 'PromptHead']

_LAYOUTS = ((1, 2), (2, 1), (2, 2))
"""Rows and columns of the tiles of a mosaic."""


@MODELS.register_module()
class PriorSampler:
    """Draw a prior for each training image from its labels, after making mosaics.

    ``present`` of the images get one of their classes, ``absent`` a class that they do not have,
    and all others none, for the usual segmentation. Images that bring a ``prior`` along keep it.
    All random numbers are torch's, on the CPU.

    Args:
        present: Share of the images that are asked for a class in them.
        absent: Share that is asked for a class not in them.
        mosaic: Share that becomes a mosaic of images of the batch: two side by side or one below
            the other, cropped, or four, at half their size. In a mosaic things stand together that
            do not in photographs, so that the prior alone tells which is meant.
        min_share: A class counts as present from this share of the pixels on.
        alpha_factors: Least and greatest factor of the network's alpha, drawn log-uniformly for
            each image, so that the scale can be turned afterwards. Designs whose feedback takes no
            alpha, or no prior, have none.
        held_out: Class ids that are never asked for. To prompt head and prior loss their pixels
            are without a label, so that they can be asked for by their names as by any other text
            afterwards.
    """

    def __init__(
        self,
        present: float = 0.5,
        absent: float = 0.2,
        mosaic: float = 0.25,
        min_share: float = 0.005,
        alpha_factors: tuple[float, float] = (0.5, 2.0),
        held_out: Sequence[int] = (),
    ) -> None:
        for name, value in dict(present=present, absent=absent, mosaic=mosaic).items():
            check_number(f'{name} of the PriorSampler', value, 0, 1)
        check_number('min_share of the PriorSampler', min_share, 0, 1)
        if present + absent > 1:
            raise InputError(
                f'present ({present:g}) and absent ({absent:g}) of the PriorSampler are shares of '
                'all images and may add up to 1 at most; the rest is asked for nothing'
            )
        self.present = present
        self.absent = absent
        self.mosaic = mosaic
        self.min_share = min_share
        if not isinstance(alpha_factors, Sequence) or len(alpha_factors) != 2:
            raise InputError(
                f'alpha_factors of the PriorSampler must be two numbers, the least and the '
                f'greatest factor, such as (0.5, 2.0); got {alpha_factors!r}'
            )
        least, greatest = alpha_factors
        check_number('alpha_factors[0] of the PriorSampler', least, 1e-3, 1e3)
        check_number('alpha_factors[1] of the PriorSampler', greatest, least, 1e3)
        self.alpha_factors = least, greatest
        self.held_out = [*held_out]
        for class_id in self.held_out:
            check_number('held_out of the PriorSampler', class_id, 0, whole=True)
        self._has_warned = False

    def __call__(
        self, images: Tensor, samples: Sequence[Any], num_classes: int, ignore_index: int
    ) -> tuple[Tensor, list[Any]]:
        """A batch with mosaics, each sample with a ``prior``: a class id, or -1 for none.

        Args:
            images: ``(B, C, H, W)``.
            samples: Data samples with ``gt_sem_seg``; they stay as they are.
            num_classes: Classes 0 to ``num_classes - 1`` are asked for.
            ignore_index: The label of pixels without a class.

        Raises:
            InputError: If the samples have pixels of annotation that a mosaic would not move.
        """
        samples = [sample.new() for sample in samples]
        if self.mosaic:
            images = self._with_mosaics(images, samples)
        for sample in samples:
            if sample.get('prior') is None:
                labels = sample.gt_sem_seg.data
                sample.set_metainfo(dict(prior=self._draw(labels, num_classes, ignore_index)))
        return images, samples

    def without_held_out(self, labels: Tensor, ignore_index: int) -> Tensor:
        """Labels without those of the classes that are held out."""
        held_out = torch.tensor(self.held_out, dtype=labels.dtype, device=labels.device)
        return torch.where(torch.isin(labels, held_out), ignore_index, labels)

    def draw_factors(self, count: int) -> Tensor:
        """Factors of alpha ``(count,)``."""
        least, greatest = self.alpha_factors
        return least * (greatest / least) ** torch.rand(count)

    def _draw(self, labels: Tensor, num_classes: int, ignore_index: int) -> int:
        """A class id, or -1."""
        known = labels[(labels != ignore_index) & (labels < num_classes)]
        counts = torch.bincount(known.flatten().long(), minlength=num_classes).cpu()
        share = float(torch.rand(()))
        if share < self.present:
            candidates = (counts > 0) & (counts >= self.min_share * labels.numel())
        elif share < self.present + self.absent:
            candidates = counts == 0
        else:
            return -1
        candidates[self.held_out] = False
        ids = candidates.nonzero().flatten().tolist()
        return ids[int(torch.randint(len(ids), ()))] if ids else -1

    def _with_mosaics(self, images: Tensor, samples: Sequence[Any]) -> Tensor:
        """The images, some of them mosaics, whose labels replace those of the samples."""
        size = len(samples)
        if size < 2:
            if not self._has_warned:
                self._has_warned = True
                print_log(
                    f'mosaic={self.mosaic:g} of the PriorSampler has no effect on a batch of one '
                    'image: raise batch_size, or set mosaic=0',
                    logger='current',
                    level=logging.WARNING,
                )
            return images
        others = set(samples[0].keys()) - {'gt_sem_seg', 'prior'}
        if others:
            raise InputError(
                f'a mosaic of the PriorSampler moves gt_sem_seg alone, and the data samples have '
                f'{sorted(others)} too: set mosaic=0'
            )
        labels = torch.stack([sample.gt_sem_seg.data for sample in samples])
        result = images.clone()
        for index, sample in enumerate(samples):
            if float(torch.rand(())) >= self.mosaic or sample.get('prior') is not None:
                continue
            rows, columns = _LAYOUTS[int(torch.randint(len(_LAYOUTS), ()))]
            picked = torch.randperm(size)[: rows * columns].tolist()
            picked = [*picked, *picked][: rows * columns]  # of batches of two and three, for four
            result[index], mixed = _mosaic(images[picked], labels[picked], rows, columns)
            sample.gt_sem_seg = PixelData(data=mixed)
        return result


def _mosaic(images: Tensor, labels: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """One image ``(C, H, W)`` and its labels ``(1, H, W)`` of ``rows * columns`` of each.

    Four are shrunk to half their size; of two the middle is taken.
    """
    height, width = images.shape[-2:]
    result, mixed = torch.empty_like(images[0]), torch.empty_like(labels[0])
    for tile, (image, label) in enumerate(zip(images, labels, strict=True)):
        row, column = divmod(tile, columns)
        ys = slice(row * height // rows, (row + 1) * height // rows)
        xs = slice(column * width // columns, (column + 1) * width // columns)
        size = ys.stop - ys.start, xs.stop - xs.start
        if rows == columns:
            result[:, ys, xs] = F.interpolate(image[None], size, mode='bilinear', antialias=True)[0]
            mixed[:, ys, xs] = F.interpolate(label[None].float(), size, mode='nearest-exact')[0]
        else:
            top, left = (height - size[0]) // 2, (width - size[1]) // 2
            here = slice(None), slice(top, top + size[0]), slice(left, left + size[1])
            result[:, ys, xs], mixed[:, ys, xs] = image[here], label[here]
    return result, mixed


@MODELS.register_module()
class PromptHead(BaseModule):
    """Mark what was asked for: one logit a pixel, whatever kind of prior asked.

    Two 1x1 convolutions on the last map of the backbone, of the last pass. It does not see the
    prior: it can only read what top-down attention made of it.

    Args:
        in_channels: Of that map; filled in by ``mmvars.EncoderDecoder``.
        channels: Between the two.
        norm_cfg: Config of the norm of the map; default: SyncBN.
        loss_weight: Of both losses.
        init_cfg: As everywhere in OpenMMLab.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 128,
        norm_cfg: dict | None = None,
        loss_weight: float = 1.0,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        check_number('loss_weight of the PromptHead', loss_weight, 0)
        self.norm = build_norm_layer(norm_cfg or dict(type='SyncBN'), in_channels)[1]
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1), nn.GELU(), nn.Conv2d(channels, 1, 1)
        )
        self.loss_weight = loss_weight

    def forward(self, feats: Sequence[Any]) -> Tensor:
        """Logits ``(B, 1, h, w)`` of the features of the backbone."""
        last = feats[-1]
        return self.layers(self.norm(last if isinstance(last, Tensor) else last[0]))

    def loss(
        self, feats: Sequence[Any], labels: Tensor, asked: Tensor, ignore_index: int
    ) -> dict[str, Tensor]:
        """Binary cross entropy and Dice loss against the mask of the class that was asked for.

        The mask of an absent class is empty. Images that were asked for nothing do not count.

        Args:
            feats: Features of the backbone.
            labels: ``(B, 1, H, W)``.
            asked: Class ids ``(B,)``, -1 for none.
            ignore_index: Label of pixels that do not count.
        """
        logits = F.interpolate(self(feats).float(), labels.shape[2:], mode='bilinear')
        asked = asked.view(-1, 1, 1, 1)
        counted = ((labels != ignore_index) & (asked >= 0)).float()
        mask = (labels == asked).float() * counted
        bce = F.binary_cross_entropy_with_logits(logits, mask, counted, reduction='sum')
        marked = logits.sigmoid() * counted
        both, either = (marked * mask).sum((1, 2, 3)), (marked + mask).sum((1, 2, 3))
        dice = (1 - (2 * both + 1) / (either + 1)).sum()  # 0 where nothing counts
        return dict(
            loss_bce=self.loss_weight * bce / counted.sum().clamp_min(1),
            loss_dice=self.loss_weight * dice / (asked >= 0).sum().clamp_min(1),
        )
