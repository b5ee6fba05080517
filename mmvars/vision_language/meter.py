"""METER: a vision backbone and a text backbone, fused by co-attention."""

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmvars.errors import InputError, check_choice, check_number
from mmvars.models.base import Backbone
from mmvars.models.prior_loss import PRIOR_LOSSES, prior_loss
from mmvars.networks import LearnedText
from mmvars.registry import MODELS
from mmvars.vision_language.fusion import CoAttentionFusion
from mmvars.vision_language.heads import RetrievalHead
from mmvars.vision_language.text_backbone import TextFeatures

__all__ = ['METER']


@MODELS.register_module()
class METER(BaseModel):
    """Vision and language with a text that tells the vision backbone where to look (Table 2.1).

    The text vector of the text backbone is the prior of a vision backbone with
    ``prior=dict(type='text', text_dim=D)``; its gradient reaches the text backbone through the
    second pass. The first pass does not depend on the text: the k texts of an image share it. The
    tokens of the image, class token first, and those of the text are fused, and the head reads both
    pooled first tokens.

    A data sample has one text (``question`` for :class:`VQAHead`), or as many as all others of the
    batch (``text``, a list, for :class:`RetrievalHead`).

    Args:
        backbone: An mmvars backbone with ``out_type='featmap_cls_token'``, which has a text prior,
            or none at all (``mmvars.ViT``, ``design='feedback'``).
        text_backbone: :class:`~mmvars.vision_language.TextBackbone`.
        head: :class:`VQAHead` or :class:`RetrievalHead`.
        fusion: Arguments of :class:`~mmvars.vision_language.fusion.CoAttentionFusion`; the widths
            of text and image are filled in.
        prior_loss_cfg: ``dict(weight=0.1, form='clip')``: the weight of ``loss_prior``, and
            arguments of :func:`~mmvars.models.prior_loss.prior_loss` (Eq. 2.15), between the
            class tokens of the last pass and the priors of the first text of each image, which
            here are no function of the text backbone's weights. Images of equal texts are no
            negatives of each other, two questions about one image are. ``None``: without, as
            released (the call is there, commented out: weight 0.1 inside of a sum that counts 0.3,
            thus 0.03).
        data_preprocessor: mmpretrain's ``MultiModalDataPreprocessor``, or its arguments.
        init_cfg: As everywhere in OpenMMLab.

    Raises:
        InputError: If the parts do not fit each other.
    """

    def __init__(
        self,
        backbone: Any,
        text_backbone: Any,
        head: Any,
        fusion: dict | None = None,
        prior_loss_cfg: dict | None = None,
        data_preprocessor: Any = None,
        init_cfg: Any = None,
    ) -> None:
        if data_preprocessor is None or isinstance(data_preprocessor, dict):
            data_preprocessor = dict(
                dict(type='mmpretrain.MultiModalDataPreprocessor'), **(data_preprocessor or {})
            )
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = _built(backbone)
        self.text_backbone = _built(text_backbone)
        _check_backbone(self.backbone, self.text_backbone.embed_dims)
        self.fusion = CoAttentionFusion(
            self.text_backbone.embed_dims, self.backbone.out_channels[-1], **(fusion or {})
        )
        self.head = _built(_with_in_dim(head, 2 * self.fusion.hidden_dim))
        self.is_steered = self.backbone.prior is not None
        self.prior_loss = _checked_prior_loss(prior_loss_cfg, self.is_steered)

    def forward(
        self, images: Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> Any:
        """As everywhere in OpenMMLab.

        Args:
            images: ``(B, C, H, W)``, preprocessed.
            data_samples: With the texts; with the targets in the mode ``'loss'``.
            mode: ``'loss'``: the losses. ``'predict'``: the data samples with the head's
                predictions. ``'tensor'``: the fused features ``(B * k, 2 * hidden_dim)``.
        """
        if mode not in ('loss', 'predict', 'tensor'):
            raise InputError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}")
        samples = list(data_samples or ())
        texts = self._texts(samples, len(images))
        text = self.text_backbone(texts)
        if mode == 'loss':
            return self._loss(images, texts, text, samples)
        features = self.extract_feat(images, text)
        return features if mode == 'tensor' else self.head.predict(features, samples)

    def extract_feat(self, images: Tensor, text: TextFeatures) -> Tensor:
        """Fused features ``(B * k, 2 * hidden_dim)`` of images with k texts each.

        Args:
            images: ``(B, C, H, W)``, preprocessed.
            text: Of ``B * k`` texts, those of image i at ``i * k`` to ``i * k + k - 1``.
        """
        return self._fuse(self.backbone.forward_first_pass(images), text, len(images))

    @torch.no_grad()
    def score(
        self, images: Tensor, texts: Sequence[str] | TextFeatures, chunk_size: int = 256
    ) -> Tensor:
        """The score of every pair of an image and a text: ``(num_images, num_texts)``.

        Args:
            images: ``(num_images, C, H, W)``, preprocessed.
            texts: The texts, or what ``text_backbone`` made of them: encode them once for many
                batches of images.
            chunk_size: Pairs that are computed at once, at least one of each image.

        Raises:
            InputError: If the head is none that scores pairs.
        """
        check_number('chunk_size', chunk_size, 1, whole=True)
        if not isinstance(self.head, RetrievalHead):
            raise InputError(
                'METER.score needs head=dict(type="mmvars.RetrievalHead"), got '
                f'{type(self.head).__name__}'
            )
        text = texts if isinstance(texts, TextFeatures) else self.text_backbone(texts)
        first = self.backbone.forward_first_pass(images)
        num_images, step = len(images), max(1, chunk_size // len(images))
        columns = []
        for chunk in zip(*(each.split(step) for each in text), strict=True):
            pairs = TextFeatures(*(torch.cat([each] * num_images) for each in chunk))
            scores = self.head(self._fuse(first, pairs, num_images))
            columns.append(scores.view(num_images, -1))
        return torch.cat(columns, dim=1)

    def _loss(
        self, images: Tensor, texts: list[str], text: TextFeatures, samples: list
    ) -> dict[str, Tensor]:
        first = self.backbone.forward_first_pass(images)
        output = self._second_pass(first, text, len(images), return_losses=True)
        losses = {f'backbone.{name}': value for name, value in output.losses.items()}
        if self.prior_loss:
            weight, options = self.prior_loss
            class_tokens, asked = output.feats[-1][1], text.vector.detach()
            step = len(asked) // len(images)  # the first text of an image is its own
            priors = self.backbone.prior.from_vectors(asked[::step])
            numbers = [zlib.crc32(each.encode()) for each in texts[::step]]  # alike everywhere
            labels = torch.tensor(numbers, device=images.device)
            loss = prior_loss(class_tokens[::step], priors, labels, **options)
            losses['loss_prior'] = weight * loss
        features = self.fusion(text.tokens, text.mask, _tokens(output.feats)).features
        return losses | self.head.loss(features, samples)

    def _fuse(self, first: Any, text: TextFeatures, num_images: int) -> Tensor:
        feats = self._second_pass(first, text, num_images)
        return self.fusion(text.tokens, text.mask, _tokens(feats)).features

    def _second_pass(
        self, first: Any, text: TextFeatures, num_images: int, return_losses: bool = False
    ) -> Any:
        """The features of the images as each of their texts asks for them."""
        if not self.is_steered:
            return self.backbone.forward_second_pass(first, return_losses=return_losses)
        return self.backbone.forward_second_pass(
            first,
            text.vector,
            priors_per_image=len(text.vector) // num_images,
            return_losses=return_losses,
        )

    def _texts(self, samples: list, num_images: int) -> list[str]:
        """The texts of all images, those of one side by side."""
        field = self.head.text_field
        texts = [sample.get(field) for sample in samples]
        texts = [[each] if isinstance(each, str) else each for each in texts]
        if len(texts) != num_images or not all(texts):
            raise InputError(
                f'METER needs a data sample with {field!r} for each of {num_images} images, got '
                f'{[sample.get(field) for sample in samples]!r}'
            )
        counts = sorted({len(each) for each in texts})
        if len(counts) > 1:
            raise InputError(
                f'the images of a batch must have equally many texts, but their {field!r} have '
                f'{" and ".join(map(str, counts))}'
            )
        return [text for each in texts for text in each]


def _tokens(feats: tuple[Any, ...]) -> Tensor:
    """All tokens ``(P, 1 + h * w, C)``, class token first."""
    maps, class_token = feats[-1]
    return torch.cat([class_token.unsqueeze(1), maps.flatten(2).transpose(1, 2)], dim=1)


def _checked_prior_loss(cfg: dict | None, is_steered: bool) -> tuple[float, dict[str, Any]] | None:
    """Weight and options of the prior loss."""
    if cfg is None:
        return None
    if not is_steered:
        raise InputError(
            'prior_loss_cfg needs a backbone with a text prior, and this one has none: leave it out'
        )
    options = dict(cfg)
    unknown = sorted(set(options) - {'weight', 'form', 'temperature'})
    if unknown:
        raise InputError(f'prior_loss_cfg takes weight, form and temperature, not {unknown}')
    weight = options.pop('weight', 0.1)
    check_number('weight of prior_loss_cfg', weight, 0)
    check_choice('form of prior_loss_cfg', options.get('form', 'clip'), PRIOR_LOSSES)
    return weight, options


def _built(part: Any) -> Any:
    return part if isinstance(part, nn.Module) else MODELS.build(part)


def _with_in_dim(head: Any, in_dim: int) -> Any:
    """A head's config with ``in_dim``."""
    if isinstance(head, nn.Module):
        return head
    if head.get('in_dim', in_dim) != in_dim:
        raise InputError(
            f'in_dim of the head is {head["in_dim"]}, but the fusion gives {in_dim} features: '
            'leave it out'
        )
    return dict(head, in_dim=in_dim)


def _check_backbone(backbone: Any, text_dim: int) -> None:
    """Refuse a backbone that the text cannot steer, or that has no class token."""
    if not isinstance(backbone, Backbone):
        raise InputError(
            f'METER needs an mmvars backbone, got {type(backbone).__name__}: write '
            "backbone=dict(type='mmvars.ViT', ...) or mmvars.AbSViT"
        )
    name = f'mmvars.{type(backbone).__name__}'
    if backbone.out_type != 'featmap_cls_token' or not backbone.final_norm:
        raise InputError(
            f"METER reads all tokens after the final norm: give {name} out_type='featmap_cls_token'"
            f' and final_norm=True, got {backbone.out_type!r} and {backbone.final_norm}'
        )
    prior = backbone.prior
    if prior is None:
        return
    if not isinstance(prior, LearnedText):
        raise InputError(
            f'METER gives the text to {name} as its prior, which is a {type(prior).__name__}: '
            f"write prior=dict(type='text', text_dim={text_dim})"
        )
    if prior.requested_dim != text_dim:
        raise InputError(
            f'text_dim of the prior of {name} is {prior.requested_dim}, but the text backbone has '
            f'{text_dim} channels: write text_dim={text_dim}'
        )
