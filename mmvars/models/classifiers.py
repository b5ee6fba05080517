"""mmpretrain's classifier, with the losses and priors of mmvars' backbones."""

import inspect
from typing import Any

from mmpretrain.models import ImageClassifier as _ImageClassifier
from mmpretrain.registry import MODELS as MMPRETRAIN
from torch import Tensor, nn

from mmvars.errors import InputError
from mmvars.models.arguments import fill_in_channels, stack_priors
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

    Raises:
        InputError: If the backbone is none of mmvars, or its last output is not the last block's.
    """

    hands_priors_on = True
    """Whether the backbone gets the ``prior`` of data samples."""

    def __init__(
        self,
        backbone: Any,
        neck: Any = None,
        head: Any = None,
        pretrained: str | None = None,
        train_cfg: dict | None = None,
        data_preprocessor: Any = None,
        init_cfg: Any = None,
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

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Losses of both passes and of the backbone for ``inputs (B, C, H, W)``."""
        output = self.backbone(inputs, stack_priors(data_samples, inputs), return_losses=True)
        losses = {f'backbone.{name}': value for name, value in output.losses.items()}
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

    def _head_loss(self, feats: tuple[Tensor, ...], data_samples: list) -> dict[str, Tensor]:
        return self.head.loss(self.neck(feats) if self.with_neck else feats, data_samples)


def _takes_in_channels(head: dict) -> bool:
    kind = head.get('type')
    head_class = MMPRETRAIN.get(kind) if isinstance(kind, str) else kind
    return head_class is not None and any(
        'in_channels' in inspect.signature(base).parameters for base in head_class.__mro__[:-1]
    )
