"""MMSegmentation host: the backbone's own losses join the segmentor's."""

from mmseg.models import EncoderDecoder as _EncoderDecoder
from torch import Tensor

from mmvars.errors import InputError
from mmvars.registry import MODELS

__all__ = ['EncoderDecoder']


@MODELS.register_module()
class EncoderDecoder(_EncoderDecoder):
    """mmseg's ``EncoderDecoder`` whose loss contains the backbone's.

    With an AbSViT whose ``reconstruction_loss_weight`` is above 0, the losses gain
    ``backbone.loss_reconstruction`` (Eq. 2.13, weighted). With weight 0, or a plain ViT, it is
    mmseg's segmentor: the released segmentation recipe has the two heads' losses only, and no
    supervision of pass 1.

    Raises:
        InputError: If the backbone is none of mmvars.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not hasattr(self.backbone, 'forward_train'):
            raise InputError(f'mmvars.EncoderDecoder needs an mmvars backbone, got '
                             f'{type(self.backbone).__name__}; use type="mmseg.EncoderDecoder"')

    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Losses of heads and backbone for ``inputs (B, C, H, W)``."""
        output = self.backbone.forward_train(inputs)
        feats = self.neck(output.feats) if self.with_neck else output.feats
        losses = {f'backbone.{name}': value for name, value in output.losses.items()}
        losses.update(self._decode_head_forward_train(feats, data_samples))
        if self.with_auxiliary_head:
            losses.update(self._auxiliary_head_forward_train(feats, data_samples))
        return losses
