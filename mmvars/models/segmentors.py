"""mmseg's segmentor, with the losses and priors of mmvars' backbones, and with bounded memory."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder as _EncoderDecoder
from mmseg.models import SegTTAModel as _SegTTAModel
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS as MMSEG
from torch import Tensor, nn

from mmvars.errors import InputError, check_flag, check_number
from mmvars.models.arguments import (
    check_class_priors,
    fill_in_channels,
    stack_priors,
    with_num_classes,
)
from mmvars.models.prior_loss import region_prior_loss
from mmvars.models.sliding_window import (
    InferenceOptions,
    Window,
    class_groups,
    running_argmax,
    whole_image_metas,
    window_mean,
)
from mmvars.networks import Feedback
from mmvars.registry import MODELS

__all__ = ['EncoderDecoder', 'SegTTAModel']


@MODELS.register_module()
class EncoderDecoder(_EncoderDecoder):
    """mmseg's ``EncoderDecoder`` whose loss contains the backbone's, and with bounded memory.

    With a backbone whose ``reconstruction_loss_weight`` is above 0, the losses gain
    ``backbone.loss_reconstruction`` (Eq. 2.13, weighted). Pass 1 is not supervised, as in the
    released segmentation recipe.

    A data sample's ``prior`` (a vector, or a class id), metainfo or plain field, is the prior for
    that image in training, prediction, sliding windows and test-time augmentation; without it the
    backbone's own is.

    With ``prior_sampler``, ``prompt_head`` and ``prior_loss_weight``, all off by default, it learns
    to follow class priors, see :mod:`mmvars.models.prompting`; ``configs/_base_/steerable.py``
    turns them on. The usual losses count for all images, whatever they are asked for.

    ``test_cfg`` takes mmseg's ``mode``, ``crop_size`` and ``stride``, and the further keys of
    :class:`~mmvars.models.sliding_window.InferenceOptions`. Without these, finite predictions are
    bit for bit those of mmseg. ``window_batch`` changes them by rounding. ``keep_logits=False``,
    ``logits_device`` and ``logits_dtype`` make full-size logits a few classes at a time, which
    changes them by rounding too (how ``interpolate`` rounds depends on the number of channels);
    ``predict`` then goes neither through ``inference`` nor through ``postprocess_result``.

    Args:
        backbone, decode_head, neck, auxiliary_head, train_cfg, test_cfg, data_preprocessor,
            pretrained, init_cfg: As for mmseg's. ``in_channels`` of the heads may be left out, and
            so may ``num_classes`` of the backbone's class priors.
        prior_sampler: Config of a :class:`~mmvars.models.prompting.PriorSampler`.
        prompt_head: Config of a :class:`~mmvars.models.prompting.PromptHead`, trained with the
            losses ``prompt.loss_bce`` and ``prompt.loss_dice``. A backbone of ``design='feedback'``
            takes no prior: it is trained on the same answers, and is not told the questions.
        frozen_heads: Whether neck, decode head and auxiliary heads keep weights and statistics: for
            a trained model that learns to follow priors. With ``transfer='top-down'`` and a
            trunk of timm it is then, to the bit, what it was without feedback (alpha 0), where it
            is asked for nothing.
        prior_loss_weight: Weight of ``loss_prior``, see
            :func:`~mmvars.models.prior_loss.region_prior_loss`.

    Raises:
        InputError: If the backbone is none of mmvars or cannot be steered, or ``test_cfg`` cannot
            be used.
    """

    hands_priors_on = True
    """Whether the backbone gets the ``prior`` of data samples."""

    _has_prototypes = False

    def __init__(
        self,
        backbone: dict,
        decode_head: dict,
        neck: dict | None = None,
        auxiliary_head: dict | list[dict] | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        pretrained: str | None = None,
        init_cfg: Any = None,
        prior_sampler: dict | None = None,
        prompt_head: dict | None = None,
        prior_loss_weight: float = 0.0,
        frozen_heads: bool = False,
    ) -> None:
        super().__init__(
            with_num_classes(ConfigDict(backbone), decode_head),
            decode_head,
            neck,
            auxiliary_head,
            train_cfg,
            ConfigDict({'mode': 'whole', **(test_cfg or {})}),
            data_preprocessor,
            pretrained,
            init_cfg,
        )
        InferenceOptions.from_cfg(self.test_cfg)
        self.prior_sampler = MODELS.build(prior_sampler) if prior_sampler else None
        self.prompt_head = None
        if prompt_head:
            width = self.backbone.out_channels[-1]
            self.prompt_head = MODELS.build(dict(in_channels=width, **prompt_head))
        check_number('prior_loss_weight', prior_loss_weight, 0)
        self.prior_loss_weight = prior_loss_weight
        check_flag('frozen_heads', frozen_heads)
        self.frozen_heads = frozen_heads
        if frozen_heads:
            for head in self._usual_heads():
                head.requires_grad_(False)
        self._check_steering()

    def _usual_heads(self) -> list[Any]:
        """What segments behind the backbone."""
        auxiliary = self.auxiliary_head if self.with_auxiliary_head else []
        several = isinstance(auxiliary, list | nn.ModuleList)
        neck = [self.neck] if self.with_neck else []
        return [*neck, self.decode_head, *(auxiliary if several else [auxiliary])]

    def train(self, mode: bool = True) -> 'EncoderDecoder':
        super().train(mode)
        if self.frozen_heads:
            for head in self._usual_heads():
                head.eval()
        return self

    def _check_steering(self) -> None:
        """Refuse what would train nothing."""
        prior = self.backbone.prior
        knows_classes = prior is not None and prior.num_classes > 0
        if self.prior_loss_weight:
            trains = [*self.backbone.trunk.parameters(), *(prior.parameters() if prior else ())]
            if not knows_classes:
                raise InputError(
                    f'prior_loss_weight={self.prior_loss_weight:g} aligns class priors with '
                    "tokens: give the backbone prior=dict(type='learned_classes')"
                )
            if not any(parameter.requires_grad for parameter in trains):
                raise InputError(
                    f'prior_loss_weight={self.prior_loss_weight:g} has nothing to train: trunk and '
                    "class priors are fixed; write prior=dict(type='learned_classes'), or leave "
                    'prior_loss_weight at 0'
                )
        if bool(self.prior_sampler) != bool(self.prompt_head):
            raise InputError(
                'prior_sampler asks, and prompt_head answers: give both, or neither; got '
                f'{"prior_sampler" if self.prior_sampler else "prompt_head"} alone'
            )
        held_out = self.prior_sampler.held_out if self.prior_sampler else []
        if max(held_out, default=-1) >= self.num_classes:
            raise InputError(
                f'held_out={held_out} of the PriorSampler names a class that is not there: they '
                f'are numbered from 0 to {self.num_classes - 1}'
            )
        if self.prior_sampler and not knows_classes:
            if prior is not None or not _has_decoders(self.backbone.network):
                raise InputError(
                    'prior_sampler asks for classes, and this backbone has no class priors: use '
                    "mmvars.AbSViT with prior=dict(type='learned_classes'), got "
                    f'{type(self.backbone).__name__} with '
                    f'{"no prior" if prior is None else type(prior).__name__}'
                )

    def _init_decode_head(self, decode_head: dict) -> None:
        if not hasattr(self.backbone, 'trunk'):
            raise InputError(
                f'mmvars.EncoderDecoder needs an mmvars backbone, got '
                f'{type(self.backbone).__name__}; use type="mmseg.EncoderDecoder"'
            )
        channels = list(self.backbone.out_channels)
        taken = getattr(self.neck, 'in_channels', None) if self.with_neck else None
        if isinstance(taken, list | tuple) and list(taken) != channels:
            raise InputError(
                f'the neck {type(self.neck).__name__} has in_channels={list(taken)}, but the '
                f'features of the backbone have {channels}: write neck=None, or in_channels='
                f'{channels} in the neck'
            )
        super()._init_decode_head(self._with_in_channels(decode_head))

    def _init_auxiliary_head(self, auxiliary_head: dict | list[dict] | None) -> None:
        super()._init_auxiliary_head(self._with_in_channels(auxiliary_head))

    def _with_in_channels(self, head: Any) -> Any:
        if isinstance(head, list):
            return [self._with_in_channels(each) for each in head]
        kind = head.get('type') if isinstance(head, dict) else None
        head_class = MMSEG.get(kind) if isinstance(kind, str) else kind
        if head_class is None or not issubclass(head_class, BaseDecodeHead):
            return head
        if 'kernel_generate_head' in head:  # K-Net reads the features through its first stage
            head = head.copy()
            head['kernel_generate_head'] = self._with_in_channels(head['kernel_generate_head'])
            return head
        return fill_in_channels(
            head, self.backbone, self.neck if self.with_neck else None, head.get('in_index', -1)
        )

    def extract_feat(self, inputs: Tensor, prior: Tensor | None = None) -> Any:
        """Features of ``inputs (B, C, H, W)``; ``prior`` as the backbone takes it."""
        feats = self.backbone(inputs, prior)
        return self.neck(feats) if self.with_neck else feats

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Logits of ``inputs (B, C, H, W)``; ``prior`` in the meta information is the prior."""
        feats = self.extract_feat(inputs, stack_priors(batch_img_metas, inputs))
        return self.decode_head.predict(feats, batch_img_metas, self.test_cfg)

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Losses of heads and backbone for ``inputs (B, C, H, W)``."""
        ignore_index = self.decode_head.ignore_index
        if self.prior_sampler is not None:
            prior = self.backbone.prior
            if prior is not None and not self._has_prototypes:
                check_class_priors(prior)
                self._has_prototypes = True
            inputs, data_samples = self.prior_sampler(
                inputs, data_samples, self.num_classes, ignore_index
            )
        asked = stack_priors(data_samples, inputs)
        network, alpha = self.backbone.network, None
        takes_prior = self.prior_sampler is None or network.prior is not None
        if self.prior_sampler and takes_prior and _has_decoders(network):
            alpha = network.alpha * self.prior_sampler.draw_factors(len(inputs)).to(inputs)
        output = self.backbone(inputs, asked if takes_prior else None, alpha, return_losses=True)
        feats = self.neck(output.feats) if self.with_neck else output.feats
        losses = {f'backbone.{name}': value for name, value in output.losses.items()}
        if self.prompt_head is not None or self.prior_loss_weight:
            labels = torch.stack([sample.gt_sem_seg.data for sample in data_samples])
            if self.prior_sampler is not None:
                labels = self.prior_sampler.without_held_out(labels, ignore_index)
            losses.update(self._steering_losses(output, labels, asked, ignore_index))
        losses.update(self._decode_head_forward_train(feats, data_samples))
        if self.with_auxiliary_head:
            losses.update(self._auxiliary_head_forward_train(feats, data_samples))
        return losses

    def _steering_losses(
        self, output: Any, labels: Tensor, asked: Any, ignore_index: int
    ) -> dict[str, Tensor]:
        """What follows from labels ``(B, 1, H, W)`` and the class ids that were asked for."""
        losses = {}
        if self.prompt_head is not None:
            if asked is None or asked.is_floating_point():
                raise InputError(
                    'prompt_head learns from class ids, whose masks are in the labels, and '
                    'data_samples[i].prior is a vector: leave the prior out of the samples'
                )
            prompt_losses = self.prompt_head.loss(output.feats, labels, asked, ignore_index)
            losses = {f'prompt.{name}': value for name, value in prompt_losses.items()}
        if self.prior_loss_weight:
            prior = self.backbone.prior
            loss = region_prior_loss(output.compared, prior.class_priors(), labels, ignore_index)
            losses['loss_prior'] = self.prior_loss_weight * loss
        return losses

    def _forward(self, inputs: Tensor, data_samples: list | None = None) -> Any:
        return self.decode_head.forward(
            self.extract_feat(inputs, stack_priors(data_samples, inputs))
        )

    def predict(self, inputs: Tensor, data_samples: list | None = None) -> list:
        """Predictions for ``inputs (B, C, H, W)``, as ``test_cfg`` says.

        Returns:
            Data samples with ``pred_sem_seg`` and, unless ``keep_logits=False``, ``seg_logits``.
        """
        options = InferenceOptions.from_cfg(self.test_cfg)  # it may have changed since __init__
        metas = (
            whole_image_metas(inputs)
            if data_samples is None
            else [dict(sample.metainfo, prior=sample.get('prior')) for sample in data_samples]
        )
        if options.by_class:
            return self._predict_by_class(inputs, metas, data_samples, options)
        return self.postprocess_result(self.inference(inputs, metas), data_samples)

    def slide_inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Logits ``(B, C, H, W)``, the mean over sliding windows, in one piece."""
        options = InferenceOptions.from_cfg(self.test_cfg)
        total = inputs.new_zeros(
            (len(inputs), self.out_channels, *inputs.shape[2:]), **options.storage
        )
        return window_mean(
            self._window_logits(inputs, batch_img_metas, options, self.encode_decode), total
        )

    def postprocess_result(self, seg_logits: Tensor, data_samples: list | None = None) -> list:
        """As mmseg's, without a second copy of logits that have the right size already."""
        meta = data_samples[0].metainfo if data_samples and len(data_samples) == 1 else {}
        padding = meta.get('img_padding_size', meta.get('padding_size', ()))
        if (
            data_samples is None
            or any(padding)
            or meta.get('flip')
            or tuple(meta.get('ori_shape', ()))[:2] != tuple(seg_logits.shape[2:])
        ):
            return super().postprocess_result(seg_logits, data_samples)
        (result,) = super().postprocess_result(seg_logits)
        data_samples[0].set_data(dict(result.items()))
        return data_samples

    @torch.no_grad()
    def _predict_by_class(
        self,
        inputs: Tensor,
        metas: list[dict],
        data_samples: list | None,
        options: InferenceOptions,
    ) -> list:
        """:meth:`predict` with full-size logits of a few classes at a time."""
        small = self._small_logits(inputs, metas, options)
        full: Any = self.inference(inputs, metas) if small is None else None
        samples = []
        for image, meta in enumerate(metas):
            best, stored = None, None
            num_pixels = max(math.prod(inputs.shape[2:]), math.prod(meta['ori_shape'][:2]))
            for classes in class_groups(self.out_channels, num_pixels):
                logits = (
                    self._mean_logits(small, inputs, image, classes)
                    if small
                    else full[image : image + 1, classes].to(inputs)
                )
                (sample,) = super().postprocess_result(
                    logits, data_samples and data_samples[image : image + 1]
                )
                logits, labels = sample.seg_logits.data, sample.pred_sem_seg.data
                if self.out_channels > 1:
                    best = running_argmax(
                        best, logits.amax(0, keepdim=True), labels + classes.start
                    )
                    labels = best[1]
                if options.keep_logits:
                    if stored is None:
                        stored = logits.new_empty(
                            (self.out_channels, *logits.shape[1:]), **options.storage
                        )
                    stored[classes] = logits
                del sample.seg_logits
            sample.set_data({'pred_sem_seg': PixelData(data=labels)})
            if options.keep_logits:
                sample.set_data({'seg_logits': PixelData(data=stored)})
            samples.append(sample)
        return samples

    def _small_logits(
        self, inputs: Tensor, metas: list[dict], options: InferenceOptions
    ) -> list[tuple[Window, Tensor]] | None:
        """Each window with its logits ``(B, C, h, w)``, as small as the head makes them.

        ``None`` where their sum in full size is smaller still, or cannot be made class by class:
        where the head's last step is not mmseg's plain resize.
        """
        head, windows = type(self.decode_head), []
        if (
            head.predict is not BaseDecodeHead.predict
            or head.predict_by_feat is not BaseDecodeHead.predict_by_feat
            or type(self).encode_decode is not EncoderDecoder.encode_decode
        ):
            return None

        def decode(crops: Tensor, crop_metas: list[dict]) -> Tensor:
            feats = self.extract_feat(crops, stack_priors(crop_metas, crops))
            return self.decode_head.forward(feats)

        count = len(options.windows(inputs))
        for window, logits in self._window_logits(inputs, metas, options, decode):
            if count > 1 and count * logits[0, 0].numel() >= inputs[0, 0].numel():
                return None
            windows.append((window, logits))
        return windows

    def _mean_logits(
        self, windows: list[tuple[Window, Tensor]], inputs: Tensor, image: int, classes: slice
    ) -> Tensor:
        """Logits ``(1, k, H, W)`` of some classes of one image, averaged over the windows."""
        metas = [dict(img_shape=inputs[windows[0][0]].shape[2:])]
        parts = (
            (window, self.decode_head.predict_by_feat(logits[image : image + 1, classes], metas))
            for window, logits in windows
        )
        if len(windows) == 1:
            return next(parts)[1]
        return window_mean(
            parts, inputs.new_zeros((1, classes.stop - classes.start, *inputs.shape[2:]))
        )

    def _window_logits(
        self,
        inputs: Tensor,
        metas: list[dict],
        options: InferenceOptions,
        forward: Callable[[Tensor, list[dict]], Tensor],
    ) -> Iterator[tuple[Window, Tensor]]:
        """Each window with the logits ``(B, C, ...)`` that ``forward`` makes of its crops."""
        windows = options.windows(inputs)
        # A head resizes its logits to the ``img_shape`` of the first image.
        metas = [dict(metas[0], img_shape=inputs[windows[0]].shape[2:]), *metas[1:]]
        for start in range(0, len(windows), options.window_batch):
            group = windows[start : start + options.window_batch]
            # A single window stays a view: the very tensor that mmseg gives to the network.
            crops = (
                inputs[group[0]]
                if len(group) == 1
                else torch.cat([inputs[window] for window in group])
            )
            yield from zip(
                group, forward(crops, metas * len(group)).split(len(inputs)), strict=True
            )


def _has_decoders(network: nn.Module) -> bool:
    """Whether it feeds tokens back through decoders, which alpha scales."""
    return isinstance(getattr(network, 'feedback', None), Feedback)


@MODELS.register_module()
class SegTTAModel(_SegTTAModel):
    """mmseg's ``SegTTAModel``, and bit for bit its predictions, with bounded memory.

    mmseg holds the logits of all augmented versions of an image until the last: twelve times those
    of one image for six scales and a flip. Here only their sum is held.

    Args:
        module: The segmentor, or its config.
        data_preprocessor: As for mmseg's.

    Raises:
        InputError: If the segmentor makes no logits (``keep_logits=False``) to average.
    """

    def __init__(self, module: Any, data_preprocessor: Any = None) -> None:
        super().__init__(module, data_preprocessor)
        if not InferenceOptions.from_cfg(getattr(self.module, 'test_cfg', None)).keep_logits:
            raise InputError(
                'test-time augmentation averages logits, and test_cfg.keep_logits is '
                'False: leave it out; test_cfg.logits_dtype="float16" and '
                'logits_device="cpu" save memory too'
            )

    def test_step(self, data: dict | list | tuple) -> list:
        """Predictions for a batch of images, averaged over their augmented versions.

        Args:
            data: As the data loader makes it: each entry is a list over the versions.

        Returns:
            The data samples of the last version, with ``pred_sem_seg``.
        """
        versions: list[Any] = (
            [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]
            if isinstance(data, dict)
            else list(map(list, zip(*data, strict=True)))
        )
        first: list = []
        samples: list = []
        totals: list[Tensor] = []
        many = self.module.out_channels > 1
        for version in versions:
            for sample in samples:  # make room; ``data`` holds the sample too
                del sample.seg_logits
            samples = self.module.test_step(version)
            first = first or samples
            totals = totals or [torch.zeros_like(sample.seg_logits.data) for sample in samples]
            for sample, total in zip(samples, totals, strict=True):
                total += (
                    sample.seg_logits.data.softmax(dim=0)
                    if many
                    else sample.seg_logits.data.sigmoid()
                )
        for sample, start, total in zip(samples, first, totals, strict=True):
            total /= len(versions)
            labels = (
                total.argmax(dim=0)
                if many
                else (total > self.module.decode_head.threshold).to(total).squeeze(1)
            )
            sample.set_data({'pred_sem_seg': PixelData(data=labels)})
            if 'gt_sem_seg' in start:
                sample.set_data({'gt_sem_seg': start.gt_sem_seg})
            sample.set_metainfo({'img_path': start.img_path})
        return samples
