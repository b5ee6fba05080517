"""MMSegmentation host: the backbone's own losses join; inference with bounded memory."""

import torch
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder as _EncoderDecoder
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.structures import SegDataSample
from torch import Tensor

from mmvars.errors import InputError
from mmvars.models.augmented import SegTTAModel
from mmvars.models.labels import label_image, untouched
from mmvars.models.inference_options import InferenceOptions
from mmvars.models.windows import (Logits, WholeLogits, WindowSum, collect_windows, sliding_windows,
                                   window_logits)
from mmvars.registry import MODELS

__all__ = ['EncoderDecoder', 'SegTTAModel']


@MODELS.register_module()
class EncoderDecoder(_EncoderDecoder):
    """mmseg's ``EncoderDecoder`` whose loss contains the backbone's, and with bounded memory.

    With an AbSViT whose ``reconstruction_loss_weight`` is above 0, the losses gain
    ``backbone.loss_reconstruction`` (Eq. 2.13, weighted). With weight 0, or a plain ViT, it is
    mmseg's segmentor: the released segmentation recipe has the two heads' losses only, and no
    supervision of pass 1.

    ``test_cfg`` takes mmseg's ``mode``, ``crop_size`` and ``stride``, and the further keys of
    :class:`~mmvars.models.inference_options.InferenceOptions`. Without these, finite predictions
    are bit for bit those of mmseg. ``window_batch`` changes them by rounding.
    ``keep_logits=False``, ``logits_device`` and ``logits_dtype`` make logits of full size a few
    classes at a time, which changes them by rounding too (how ``interpolate`` rounds depends on the
    number of channels); ``predict`` then goes neither through ``inference`` nor through
    ``postprocess_result``.

    Raises:
        InputError: If the backbone is none of mmvars, or ``test_cfg`` cannot be used.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not hasattr(self.backbone, 'forward_train'):
            raise InputError(f'mmvars.EncoderDecoder needs an mmvars backbone, got '
                             f'{type(self.backbone).__name__}; use type="mmseg.EncoderDecoder"')
        self.test_cfg = ConfigDict({'mode': 'whole', **(self.test_cfg or {})})
        InferenceOptions.of(self.test_cfg)

    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Losses of heads and backbone for ``inputs (B, C, H, W)``."""
        output = self.backbone.forward_train(inputs)
        feats = self.neck(output.feats) if self.with_neck else output.feats
        losses = {f'backbone.{name}': value for name, value in output.losses.items()}
        losses.update(self._decode_head_forward_train(feats, data_samples))
        if self.with_auxiliary_head:
            losses.update(self._auxiliary_head_forward_train(feats, data_samples))
        return losses

    def predict(self, inputs: Tensor, data_samples: list | None = None) -> list:
        """Predictions for ``inputs (B, C, H, W)``, as ``test_cfg`` says.

        Returns:
            Data samples with ``pred_sem_seg`` and, unless ``keep_logits=False``, ``seg_logits``.
        """
        options = InferenceOptions.of(self.test_cfg)  # it may have been changed since construction
        if not options.by_class:
            return super().predict(inputs, data_samples)
        return self._predict_by_class(inputs, data_samples, options)

    def slide_inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Logits ``(B, C, H, W)``, the mean over sliding windows, in one piece."""
        options = InferenceOptions.of(self.test_cfg)
        windows = sliding_windows(inputs.shape[2:], options.crop_size, options.stride)
        metas = self._window_metas(inputs, windows, batch_img_metas)
        total = WindowSum(inputs, windows, self.out_channels, lambda logits: logits,
                          options.logits_device, options.logits_dtype)
        for window, logits in window_logits(inputs, windows,
                                            lambda crops: self.encode_decode(crops, metas),
                                            options.window_batch):
            total.add(window, logits)
        return total.mean()

    def postprocess_result(self, seg_logits: Tensor, data_samples: list | None = None) -> list:
        """As mmseg's, without a second copy of logits that have the right size already."""
        if data_samples is None or len(data_samples) != 1 or not untouched(
                seg_logits.shape[2:], data_samples[0].metainfo):
            return super().postprocess_result(seg_logits, data_samples)
        found, = super().postprocess_result(seg_logits)
        data_samples[0].set_data({'seg_logits': found.seg_logits,
                                  'pred_sem_seg': found.pred_sem_seg})
        return data_samples

    @torch.no_grad()
    def _predict_by_class(self, inputs: Tensor, data_samples: list | None,
                          options: InferenceOptions) -> list:
        metas = [None] * len(inputs)
        if data_samples is not None:
            metas = [sample.metainfo for sample in data_samples]
        logits = self._logits(inputs, metas, options)
        samples = data_samples or [SegDataSample() for _ in metas]
        for image, (sample, meta) in enumerate(zip(samples, metas, strict=True)):
            found = label_image(logits, image, meta, self.align_corners,
                                getattr(self.decode_head, 'threshold', None), options.keep_logits,
                                options.logits_device, options.logits_dtype)
            sample.set_data({name: PixelData(data=data) for name, data in found.items()})
        return samples

    def _logits(self, inputs: Tensor, metas: list, options: InferenceOptions) -> Logits:
        """Logits of a batch, as small as the head leaves them."""
        size = tuple(inputs.shape[2:])
        shapes = dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0, 0, 0, 0])
        metas = [shapes if meta is None else meta for meta in metas]
        windows = None
        if options.mode == 'slide':
            windows = sliding_windows(size, options.crop_size, options.stride)
            metas = self._window_metas(inputs, windows, metas)

        def encode_decode(images: Tensor) -> Tensor:
            return self.encode_decode(images, metas)

        def decode(images: Tensor) -> Tensor:
            return self.decode_head.forward(self.extract_feat(images))

        def resize(logits: Tensor) -> Tensor:
            return self.decode_head.predict_by_feat(logits, metas)

        steps = (decode, resize) if self._resizes_last() else (encode_decode, lambda logits: logits)
        if windows is None:
            return WholeLogits(steps[0](inputs), steps[1], size)
        return collect_windows(inputs, windows, *steps, options.window_batch,
                               options.logits_device, options.logits_dtype)

    def _window_metas(self, inputs: Tensor, windows: list, metas: list[dict]) -> list[dict]:
        """Meta information that makes a head resize to the window: it reads the first one."""
        shape = windows[0].of(inputs).shape[2:]
        return [dict(metas[0], img_shape=shape), *metas[1:]]

    def _resizes_last(self) -> bool:
        """Whether the head's last step is mmseg's plain resize, class by class."""
        head = type(self.decode_head)
        return (head.predict is BaseDecodeHead.predict
                and head.predict_by_feat is BaseDecodeHead.predict_by_feat
                and type(self).encode_decode is _EncoderDecoder.encode_decode)
