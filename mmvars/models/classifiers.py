"""mmpretrain's classifier, with the losses and priors of mmvars' backbones."""

import inspect
from typing import Any

import torch
from mmpretrain.models import ImageClassifier as _ImageClassifier
from mmpretrain.registry import MODELS as MMPRETRAIN
from torch import Tensor, nn

from mmvars.errors import InputError, check_choice, check_number
from mmvars.models.arguments import check_class_priors, fill_in_channels, stack_priors
from mmvars.models.prior_loss import PRIOR_LOSSES, prior_loss
from mmvars.registry import MODELS

__all__ = ['ImageClassifier']


@MODELS.register_module()
class ImageClassifier(_ImageClassifier):
    """mmpretrain's ``ImageClassifier`` with the training loss of the released AbSViT.

    ``(CE(pass 1) + CE(pass 2)) / 2 + weight * reconstruction``: the head sees the last feature of
    both passes, and the log shows ``loss_bottom_up``, ``loss_top_down`` (both already halved) and
    ``backbone.loss_reconstruction``. A plain ViT has one ``loss``. Predictions are of pass 2.

    Differs from the thesis (Eq. 2.13: one supervised loss): the released code supervises both
    passes.

    A data sample's ``prior`` (a vector, or a class id), metainfo or plain field, is the prior for
    that image in training, prediction and test-time augmentation; without it the backbone's own is.

    Args:
        backbone, neck, head, pretrained, train_cfg, data_preprocessor, init_cfg: As for
            mmpretrain's. ``in_channels`` of the head may be left out.
        prior_loss_weight: Weight of ``loss_prior`` (Eq. 2.15), which aligns the feature that the
            head reads with its prior: that of the image's class, for a backbone with
            ``prior=dict(type='learned_classes')``, or that which the data sample brings, such as a
            text vector. Images of one class are no negatives of each other.
        prior_loss_form: ``'clip'`` or ``'thesis'``, see
            :func:`~mmvars.models.prior_loss.prior_loss`.

    Raises:
        InputError: If the backbone is none of mmvars, or its last output is not the last block's,
            or the prior loss has nothing to align.
    """

    hands_priors_on = True
    """Whether the backbone gets the ``prior`` of data samples."""

    _has_prototypes = False

    def __init__(
        self,
        backbone: Any,
        neck: Any = None,
        head: Any = None,
        pretrained: str | None = None,
        train_cfg: dict | None = None,
        data_preprocessor: Any = None,
        init_cfg: Any = None,
        prior_loss_weight: float = 0.0,
        prior_loss_form: str = 'clip',
    ) -> None:
        if not isinstance(backbone, nn.Module):
            backbone = MMPRETRAIN.build(backbone)
        if not hasattr(backbone, 'trunk'):
            raise InputError(
                f'mmvars.ImageClassifier needs an mmvars backbone, got '
                f'{type(backbone).__name__}; use type="mmpretrain.ImageClassifier"'
            )
        last = backbone.num_layers - 1
        if backbone.out_indices[-1] != last or not backbone.final_norm:
            raise InputError(
                f'mmvars.ImageClassifier reads the last block in both passes, so '
                f'out_indices must end with {last} (or -1) and final_norm be True, '
                f'got {backbone.out_indices} and {backbone.final_norm}'
            )
        if neck is not None and not isinstance(neck, nn.Module):
            neck = MMPRETRAIN.build(neck)
        if isinstance(head, dict) and _takes_in_channels(head):
            head = fill_in_channels(head, backbone, neck, in_index=-1)
        super().__init__(backbone, neck, head, pretrained, train_cfg, data_preprocessor, init_cfg)
        check_number('prior_loss_weight', prior_loss_weight, 0)
        check_choice('prior_loss_form', prior_loss_form, PRIOR_LOSSES)
        self.prior_loss_weight = prior_loss_weight
        self.prior_loss_form = prior_loss_form
        if prior_loss_weight and self.backbone.prior is None:
            raise InputError(
                f'prior_loss_weight={prior_loss_weight:g} aligns priors with features, and this '
                "backbone has no prior: use mmvars.AbSViT with prior=dict(type='learned_classes', "
                "num_classes=K) or dict(type='text', text_dim=D)"
            )
        if prior_loss_weight and (neck is not None or self.backbone.out_type.startswith('featmap')):
            raise InputError(
                f'prior_loss_weight={prior_loss_weight:g} needs one feature an image from the '
                f"backbone: use neck=None and out_type='pooled', got "
                f'out_type={self.backbone.out_type!r}'
            )

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Losses of both passes and of the backbone for ``inputs (B, C, H, W)``."""
        asked = stack_priors(data_samples, inputs)
        prior = self.backbone.prior
        asks_classes = self.prior_loss_weight if asked is None else not asked.is_floating_point()
        if asks_classes and prior is not None and prior.num_classes and not self._has_prototypes:
            check_class_priors(prior)
            self._has_prototypes = True
        output = self.backbone(inputs, asked, return_losses=True)
        losses = {f'backbone.{name}': value for name, value in output.losses.items()}
        if self.prior_loss_weight:
            losses['loss_prior'] = self._prior_loss(output.feats[-1], asked, data_samples)
        if output.first_pass_feats is None:
            return losses | self._head_loss(output.feats, data_samples)
        for name, feats in (('bottom_up', output.first_pass_feats), ('top_down', output.feats)):
            for key, value in self._head_loss(feats, data_samples).items():
                losses[f'{key}_{name}'] = value / 2 if 'loss' in key else value
        return losses

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> Any:
        """As mmpretrain's; priors of the data samples count in the mode ``'tensor'`` too."""
        prior = stack_priors(data_samples, inputs) if mode == 'tensor' else None
        if prior is None:
            return super().forward(inputs, data_samples, mode)
        feats = self.backbone(inputs, prior)
        feats = self.neck(feats) if self.with_neck else feats
        return self.head(feats) if self.with_head else feats

    def predict(self, inputs: Tensor, data_samples: list | None = None, **kwargs: Any) -> list:
        """Data samples with the predictions for ``inputs (B, C, H, W)``.

        ``kwargs`` go to the head's ``predict``, as in mmpretrain.
        """
        feats = self.backbone(inputs, stack_priors(data_samples, inputs))
        return self.head.predict(
            self.neck(feats) if self.with_neck else feats, data_samples, **kwargs
        )

    def _prior_loss(self, features: Tensor, asked: Any, data_samples: list) -> Tensor:
        prior = self.backbone.prior
        labels = torch.stack([sample.gt_label for sample in data_samples]).to(features.device)
        if labels.numel() != len(features):
            raise InputError(
                f'prior_loss_weight={self.prior_loss_weight:g} needs one label an image, got '
                f'{tuple(labels.shape)} labels of {len(features)} images'
            )
        labels = labels.flatten()
        if asked is None and not prior.num_classes:
            raise InputError(
                f'prior_loss_weight={self.prior_loss_weight:g} needs the prior of each image: '
                'data_samples[i].prior is missing, and the backbone has no priors of classes'
            )
        priors = prior(labels if asked is None else asked, len(features))
        loss = prior_loss(features, priors, labels, self.prior_loss_form)
        return self.prior_loss_weight * loss

    def _head_loss(self, feats: tuple[Tensor, ...], data_samples: list) -> dict[str, Tensor]:
        return self.head.loss(self.neck(feats) if self.with_neck else feats, data_samples)


def _takes_in_channels(head: dict) -> bool:
    kind = head.get('type')
    head_class = MMPRETRAIN.get(kind) if isinstance(kind, str) else kind
    return head_class is not None and any(
        'in_channels' in inspect.signature(base).parameters for base in head_class.__mro__[:-1]
    )
