"""What a file computes: one part of a host model, from images to tensors, with no sample around."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.visualization.host import is_segmentor

__all__ = ['PARTS', 'ExportedPart', 'check_predicts_as']

PARTS = ('model', 'backbone')


class ExportedPart(nn.Module):
    """A segmentor's logits at the size of the image, a classifier's logits, or feature maps.

    Args:
        model: A host model in eval mode.
        part: ``'model'``, or ``'backbone'`` for the features alone.
        labels: Give class numbers in place of logits.
        normalise: Take pixels from 0 to 255 as the config loads them, and apply mean, standard
            deviation and channel order of the model's data preprocessor; else images are taken as
            the preprocessor leaves them.

    Raises:
        InputError: If the model or its preprocessor is of a kind that is not known here.
    """

    def __init__(self, model: nn.Module, part: str = 'model', labels: bool = False,
                 normalise: bool = False) -> None:
        super().__init__()
        if labels and part == 'backbone':
            raise InputError('--labels needs the heads: leave out --part backbone')
        if part == 'model' and is_segmentor(model) and isinstance(model.decode_head, nn.ModuleList):
            raise InputError(f'{type(model).__name__} is a cascade of decode heads, which is not '
                             'exported as a whole; --part backbone exports its backbone')
        self.model = model.backbone if part == 'backbone' else model
        self.task = ('backbone' if part == 'backbone' else
                     'segmentor' if is_segmentor(model) else 'classifier')
        self.labels = labels
        self.swaps_channels = False
        if normalise:
            self._take_normalisation(model.data_preprocessor)
        self.normalises = normalise

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""
        if self.task == 'backbone':
            return [f'features_{index}' for index in self.model.out_indices]
        return ['labels' if self.labels else 'logits']

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """``images (B, C, H, W)`` to features of each output block, or a tuple of one.

        That is logits ``(B, K, H, W)`` or ``(B, K)``, or labels ``(B, H, W)`` or ``(B,)``.
        """
        if self.task != 'backbone':
            logits = self.logits(images)
            return (self._labels(logits) if self.labels else logits, )
        return tuple(self.model(self._normalised(images)))

    def logits(self, images: Tensor) -> Tensor:
        """``(B, K, H, W)`` or ``(B, K)``, whatever :meth:`forward` gives."""
        inputs = self._normalised(images)
        if self.task == 'classifier':
            return self.model(inputs, mode='tensor')
        head = self.model.decode_head
        logits = head(self.model.extract_feat(inputs))
        return F.interpolate(logits, size=images.shape[2:], mode='bilinear',
                             align_corners=head.align_corners)

    def _labels(self, logits: Tensor) -> Tensor:
        if logits.shape[1] > 1:
            return logits.argmax(dim=1)
        return (logits[:, 0].sigmoid() > self.model.decode_head.threshold).long()

    def _normalised(self, images: Tensor) -> Tensor:
        if not self.normalises:
            return images
        if self.swaps_channels:
            images = images.flip(1)
        return (images - self.mean) / self.std

    def _take_normalisation(self, preprocessor: nn.Module) -> None:
        mean, std = (getattr(preprocessor, name, None) for name in ('mean', 'std'))
        if not isinstance(mean, Tensor) or not isinstance(std, Tensor):
            raise InputError(f'--normalise needs a data_preprocessor with mean and std, and '
                             f'{type(preprocessor).__name__} of this config has none')
        self.register_buffer('mean', mean.reshape(1, -1, 1, 1).clone())
        self.register_buffer('std', std.reshape(1, -1, 1, 1).clone())
        self.swaps_channels = bool(getattr(preprocessor, '_channel_conversion', False)
                                   or getattr(preprocessor, 'to_rgb', False))


@torch.no_grad()
def check_predicts_as(part: ExportedPart, images: Tensor) -> None:
    """Refuse a segmentor whose head predicts in another way than by its forward alone.

    Raises:
        InputError: If its own whole-image inference gives other logits.
    """
    if part.task != 'segmentor':
        return
    size = torch.Size(images.shape[2:])
    meta = dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0, 0, 0, 0])
    own = part.model.encode_decode(part._normalised(images), [meta] * images.shape[0])
    found = part.logits(images)
    if own.shape != found.shape or not torch.allclose(own, found, rtol=1e-4, atol=1e-4):
        raise InputError(f'{type(part.model.decode_head).__name__} does more in a test than its '
                         'forward does, so that its logits cannot be exported; --part backbone '
                         'exports the backbone')
