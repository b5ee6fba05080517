"""MMPretrain host: both passes are supervised, and the backbone's losses join."""

from mmpretrain.models import ImageClassifier as _ImageClassifier
from torch import Tensor

from mmvars.errors import InputError
from mmvars.registry import MODELS

__all__ = ['ImageClassifier']


@MODELS.register_module()
class ImageClassifier(_ImageClassifier):
    """mmpretrain's ``ImageClassifier`` with the AbSViT training loss (A.5).

    ``(CE(pass 1) + CE(pass 2)) / 2 + weight * reconstruction``: the head sees the last feature of
    both passes, and the log shows ``loss_bottom_up``, ``loss_top_down`` (both already halved) and
    ``backbone.loss_reconstruction``. A plain ViT has one pass and one ``loss``. Predictions are
    those of pass 2.

    Raises:
        InputError: If the backbone is none of mmvars, or its last output is not the last block's.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not hasattr(self.backbone, 'forward_train'):
            raise InputError(f'mmvars.ImageClassifier needs an mmvars backbone, got '
                             f'{type(self.backbone).__name__}; use '
                             f'type="mmpretrain.ImageClassifier"')
        last = self.backbone.num_layers - 1
        if self.backbone.out_indices[-1] != last:
            raise InputError(f'mmvars.ImageClassifier reads the last block in both passes, so '
                             f'out_indices must end with {last} (or -1), got '
                             f'{self.backbone.out_indices}')

    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Losses of both passes and of the backbone for ``inputs (B, C, H, W)``."""
        output = self.backbone.forward_train(inputs)
        losses = {f'backbone.{name}': value for name, value in output.losses.items()}
        if output.bottom_up_feats is None:
            return losses | self._head_loss(output.feats, data_samples)
        passes = {'bottom_up': output.bottom_up_feats, 'top_down': output.feats}
        for name, feats in passes.items():
            for key, value in self._head_loss(feats, data_samples).items():
                losses[f'{key}_{name}'] = value / len(passes) if 'loss' in key else value
        return losses

    def _head_loss(self, feats: tuple[Tensor, ...], data_samples: list) -> dict:
        return self.head.loss(self.neck(feats) if self.with_neck else feats, data_samples)
